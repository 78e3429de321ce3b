package sqldb

import "time"

// poll returns a job that is waiting, or nil.
func (w *writer) poll() *job {
	select {
	case j := <-w.queue:
		return j
	default:
		return nil
	}
}

// Before a batch begins it waits for more jobs when there are likely to be some: when one of the last
// batches had several. A commit costs about as much as four jobs, so that under load it is the number of
// commits that counts; who is alone does not wait.
const (
	linger  = 16 * time.Millisecond
	enough  = 64 // jobs are worth a commit: those that wait are still taken in, nobody is waited for
	patient = 8  // batches
)

// gather collects a batch that begins with first.
func (w *writer) gather(first *job) []*job {
	jobs := []*job{first}
	if w.company == 0 {
		return jobs
	}
	w.company--
	if w.timer == nil {
		w.timer = time.NewTimer(linger)
	} else {
		w.timer.Reset(linger)
	}
	for len(jobs) < enough {
		select {
		case j := <-w.queue:
			jobs = append(jobs, j)
		case <-w.timer.C:
			return jobs
		case <-w.db.closing:
			return jobs
		}
	}
	return jobs
}

// join adds the jobs that have come meanwhile.
func (w *writer) join(ran []*job, more func() *job) []*job {
	for more != nil && len(ran) < maxBatch {
		j := more()
		if j == nil {
			break
		}
		if j.state.CompareAndSwap(waiting, taken) {
			ran = append(ran, j)
		}
	}
	return ran
}
