package sqldb

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds on running again.
const (
	batchTries = 3 // of a whole batch; then each function alone
	aloneTries = 8
)

// job is one waiting Update, or Find.
type job struct {
	ctx   context.Context // the caller's, without its end
	fn    func(context.Context, *Tx) error
	of    string // what fn is about; empty: it runs by itself
	state atomic.Int32
	done  chan struct{}

	// Of the writer until done is closed.
	err      error
	panicked any
}

const (
	waiting   = iota
	taken     // by the writer: the caller waits for the outcome
	abandoned // by the caller: the writer leaves it alone
)

// Update runs fn in a write transaction and returns when it is durable. Concurrent Updates share
// a commit, so fn may run more than once: no effects outside tx and its own result variables,
// which it must reset. When fn returns an error, nothing of it is stored and Update returns it.
//
// The end of ctx counts until fn runs; after that the outcome is awaited. Busy means: not stored,
// or (the connection was lost during the commit) not known; try again.
func (db *DB) Update(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return db.UpdateKey(ctx, "", fn)
}

// UpdateKey is Update for functions that lock the same rows: those with equal keys run
// one after the other on the same connection.
func (db *DB) UpdateKey(ctx context.Context, key string, fn func(ctx context.Context, tx *Tx) error) error {
	return db.update(ctx, &job{fn: fn}, key)
}

func (db *DB) update(ctx context.Context, j *job, key string) error {
	w := db.writers[0]
	if key != "" && len(db.writers) > 1 {
		w = db.writers[maphash.String(db.seed, key)%uint64(len(db.writers))]
	}
	return db.hand(ctx, j, w.queue)
}

// hand hands a job over and awaits its outcome.
func (db *DB) hand(ctx context.Context, j *job, queue chan<- *job) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-db.closing:
		return errClosed
	default:
	}
	j.ctx, j.done = context.WithoutCancel(ctx), make(chan struct{})
	select {
	case queue <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.closing:
		return errClosed
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(waiting, abandoned) {
			return ctx.Err()
		}
		<-j.done
	case <-db.stopped:
		if j.state.CompareAndSwap(waiting, abandoned) {
			return errClosed // queued after the writer had ended
		}
		<-j.done
	}
	if j.panicked != nil {
		panic(j.panicked)
	}
	return j.err
}

// writer runs jobs on its own connection. Everything but the queue belongs to its goroutine.
type writer struct {
	db    *DB
	queue chan *job
	conn  *conn // nil until needed and after it was lost

	sizes sizes
	timer *time.Timer // of gather; nil until needed
}

func (w *writer) run() {
	defer func() { w.drop() }()
	for {
		select {
		case j := <-w.queue:
			w.serve(j)
		case <-w.db.closing:
			for { // what came before Close is still done
				j := w.poll()
				if j == nil {
					return
				}
				w.serve(j)
			}
		}
	}
}

// serve brings a batch that begins with first to its end.
func (w *writer) serve(first *job) {
	jobs, more := w.gather(first), w.poll
	var bads []*job // run after the others, so that who came first wins
	defer func() {
		for _, j := range bads {
			w.alone(j)
		}
	}()
	for try := 1; len(jobs) > 0; try++ {
		ran, bad, err := w.attempt(jobs, more)
		if more != nil {
			w.sizes.add(len(ran))
		}
		more = nil // the batch is complete now
		switch {
		case err == nil && bad == nil:
			w.finish(ran)
			return
		case bad != nil:
			bads = append(bads, bad)
			jobs = without(ran, bad)
		case w.again(err, try, batchTries):
			jobs = ran
		case transient(err), errors.As(err, &unsaved{}) && w.conn != nil:
			jobs, try = ran, batchTries
		default:
			for _, j := range ran {
				j.err = w.db.public(err)
			}
			w.finish(ran)
			return
		}
		if try >= batchTries { // nobody suffers for another, however odd the trouble
			for _, j := range jobs {
				w.alone(j)
			}
			return
		}
	}
}

// alone runs one job in a transaction of its own.
func (w *writer) alone(j *job) {
	for try := 1; ; try++ {
		_, bad, err := w.attempt([]*job{j}, nil)
		if err != nil && w.again(err, try, aloneTries) {
			continue
		}
		if err != nil {
			j.err = err
		}
		if bad != nil || err != nil {
			j.err = w.db.public(j.err)
		}
		w.finish([]*job{j})
		return
	}
}

// again reports whether a transaction that ended with err is worth another try, and waits a little
// before it if that helps.
func (w *writer) again(err error, try, tries int) bool {
	switch {
	case try >= tries, errors.As(err, &inDoubt{}):
		return false
	case transient(err):
		time.Sleep(rand.N(time.Millisecond << try))
		return true
	case w.conn == nil && lost(err):
		return try == 1 // an old connection; a new one is opened now
	}
	return false
}

// attempt runs jobs, and those that more returns meanwhile, in one transaction. bad is a job whose
// failure spoiled it; err says that the engine did. With either, nothing of the transaction is left.
// It returns the jobs that it took, which excludes abandoned ones.
func (w *writer) attempt(jobs []*job, more func() *job) (ran []*job, bad *job, err error) {
	for _, j := range jobs {
		if j.state.CompareAndSwap(waiting, taken) || j.state.Load() == taken {
			ran = append(ran, j)
		}
	}
	if len(ran) == 0 {
		return nil, nil, nil
	}
	if w.conn == nil {
		if w.conn, err = w.db.connect(forever); err != nil {
			return ran, nil, err
		}
		if err := w.conn.byKeys(); err != nil {
			return ran, nil, w.rollback(err)
		}
	}
	w.conn.deadline(writeDeadline)
	if err := w.conn.begin(w.db.begin); err != nil {
		return ran, nil, w.rollback(err)
	}
	wrote, shared := false, new(carried)
	for i := 0; i < len(ran); {
		n := w.abreast(ran[i:])
		changed, bad, spoilt := w.side(ran[i:i+n], shared)
		if spoilt != nil {
			return w.spoilt(ran, bad, spoilt)
		}
		wrote, i = wrote || changed, i+n
		if i == len(ran) {
			ran = w.join(ran, more)
		}
	}
	if !wrote {
		return ran, nil, w.rollback(nil)
	}
	if err := shared.save(&Tx{db: w.db, conn: w.conn, carry: shared}); err != nil {
		return w.spoilt(ran, nil, unsaved{err})
	}
	w.conn.deadline(writeDeadline)
	if err := w.conn.ready(); err != nil {
		return w.spoilt(ran, nil, err)
	}
	if err := w.db.kill.commit(ran, w.conn.commit); err != nil {
		if w.conn.culprit != nil {
			return w.spoilt(ran, nil, err)
		}
		lostNow := w.conn.pg != nil && w.conn.broken(err)
		err = w.rollback(err)
		if lostNow {
			err = inDoubt{err}
		}
		return ran, nil, err
	}
	w.db.commits.Add(1)
	return ran, nil, nil
}

// spoilt ends an attempt that err brought to nothing: because of bad, or of the function that a failed statement is
// from, unless the engine is the trouble.
func (w *writer) spoilt(ran []*job, bad *job, err error) ([]*job, *job, error) {
	if w.conn.culprit != nil {
		bad = w.conn.culprit
	}
	if bad == nil || w.conn.broken(err) || transient(err) || w.conn.culprit == nil && errors.As(err, &unsaved{}) {
		return ran, nil, w.rollback(err)
	}
	if err := w.rollback(nil); err != nil {
		return ran, nil, err
	}
	if bad.err == nil { // its statement failed after it had ended
		bad.err = err
	}
	return ran, bad, nil
}

// call runs one function and leaves its outcome in j.err. It returns the reason why the transaction
// must not be committed, if there is one: a mere refusal, made before anything was written, is none.
func (w *writer) call(j *job, tx *Tx) (spoilt error) {
	defer func() {
		if p := recover(); p != nil {
			j.panicked, j.err = p, fmt.Errorf("panic: %v", p)
			spoilt = j.err
		}
	}()
	j.panicked = nil
	j.err = j.fn(j.ctx, tx)
	if tx.failed == nil && !w.conn.inside() {
		tx.failed = errAborted
		if j.err != nil {
			tx.failed = j.err
		}
	}
	switch {
	case tx.failed != nil:
		if j.err == nil || errors.Is(j.err, context.Canceled) {
			j.err = tx.failed
		}
		return tx.failed
	case j.err != nil && (tx.wrote || driverError(j.err)):
		return j.err
	}
	return nil
}

// driverError reports whether err came from the database.
func driverError(err error) bool { return pgCode(err) != "" || liteCode(err) != 0 || lost(err) }

// rollback ends the transaction without a trace and returns err. A connection that cannot even do
// that is closed, which has the same effect.
func (w *writer) rollback(err error) error {
	if w.conn.broken(err) {
		w.drop()
		return away{err}
	}
	e := w.conn.rollback()
	if e != nil && strings.Contains(e.Error(), "no transaction is active") {
		return err // SQLite ends it itself after some errors
	}
	if e != nil {
		w.drop()
		if err == nil && w.db.engine == PostgreSQL {
			return away{e}
		}
	}
	return err
}

// writerCache is smaller than a reader's. When a page of an index was split SQLite goes through the whole cache at the end of the
// transaction: it moved pages by way of a number that is beyond the file's end, and forgets all pages beyond it. The
// inner pages of an index over millions of rows fit, and leaves are found in a larger one as rarely. What a
// transaction changes may take more before it is written ahead of the commit. KiB.
var writerCache = []string{"PRAGMA cache_size = -8192", "PRAGMA cache_spill = -32768"}

func (w *writer) connect() (err error) {
	if w.conn, err = w.db.connect(forever); err != nil || w.conn.lite == nil {
		return err
	}
	for _, pragma := range writerCache {
		if err = w.conn.exec(pragma); err != nil {
			w.drop()
			return err
		}
	}
	return nil
}

func (w *writer) drop() {
	w.conn.discard()
	w.conn = nil
}

// finish answers the callers.
func (w *writer) finish(jobs []*job) {
	for _, j := range jobs {
		if j.err == nil {
			w.db.updates.Add(1)
		}
		w.db.refusals.note(j.err)
		close(j.done)
	}
}

func without(jobs []*job, gone *job) []*job {
	var out []*job
	for _, j := range jobs {
		if j != gone {
			out = append(out, j)
		}
	}
	return out
}
