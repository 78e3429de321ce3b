package sqldb

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// refusals remembers whether the store takes writes.
type refusals struct {
	last atomic.Pointer[error] // of an Update that the store could not commit; nil: a trial went through since, or none failed

	mu    sync.Mutex // held during a trial
	tried time.Time
}

const trialPause = time.Second

// note looks at how an Update ended.
func (r *refusals) note(err error) {
	if err != nil && (full(err) || lost(err)) {
		r.last.Store(&err)
	}
}

// Writable says whether the store takes writes, and if not, why. As long as Updates succeed it asks nothing of the store.
// After one that the store could not commit (no space, a failing disk, a server that is away or became read-only) each
// call is an error until a trial has gone through; calls make one at most every second.
func (db *DB) Writable(ctx context.Context) error {
	r := &db.refusals
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.last.Load()
	if last == nil {
		return nil
	}
	if time.Since(r.tried) < trialPause {
		return *last
	}
	r.tried = time.Now()
	if err := db.Update(ctx, trial); full(err) || lost(err) || ctx.Err() != nil {
		return *r.last.Load()
	}
	r.last.CompareAndSwap(last, nil) // unless another was refused meanwhile
	return nil
}

// trial needs room for a table, and leaves none behind. A small row would not do: it may fit where no file has to grow.
func trial(_ context.Context, tx *Tx) error {
	rows := `SELECT g, repeat(' ', 1900) FROM generate_series(1, 512) g`
	if tx.Engine() == SQLite {
		rows = `SELECT randomblob(65536)`
	}
	if _, err := tx.Exec(`CREATE TABLE writable_trial AS ` + rows); err != nil {
		return err
	}
	_, err := tx.Exec(`DROP TABLE writable_trial`)
	return err
}
