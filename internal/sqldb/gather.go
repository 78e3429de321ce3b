package sqldb

import (
	"slices"
	"time"
)

// poll returns a job that is waiting, or nil.
func (w *writer) poll() *job {
	select {
	case j := <-w.queue:
		return j
	default:
		return nil
	}
}

// Before a batch begins it waits for more jobs when there are likely to be some: for as many as the largest of the last
// batches had. A commit costs about as much as four jobs, so that under load it is the number of commits that counts; who
// is alone does not wait, nor do a few that are all there.
const (
	linger = 16 * time.Millisecond // at most
	enough = 64                    // jobs are worth a commit: those that wait are still taken in, nobody is waited for
)

// sizes are those of a writer's last batches.
type sizes struct {
	last [8]int
	next int
}

func (s *sizes) add(n int) {
	s.last[s.next] = n
	s.next = (s.next + 1) % len(s.last)
}

func (s *sizes) largest() int { return slices.Max(s.last[:]) }

// gather collects a batch that begins with first.
func (w *writer) gather(first *job) []*job {
	jobs := []*job{first}
	want := min(w.sizes.largest(), enough)
	if want <= 1 {
		return jobs
	}
	if w.timer == nil {
		w.timer = time.NewTimer(linger)
	} else {
		w.timer.Reset(linger)
	}
	for len(jobs) < want {
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
