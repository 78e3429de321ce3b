package sqldb

import (
	"context"
	"iter"
	"slices"
)

// UpdateApart is UpdateKey for a function that is about one thing, which of names: besides what it carries, its
// decisions rest on rows of that thing alone, or on what one statement finds and does at once, and it writes no others.
// On PostgreSQL the functions of a batch that are about different things run abreast: each runs until it asks for a
// result, then what all of them ask travels together. Functions of the same thing, and those of Update, run one after
// the other as ever. With of empty it is UpdateKey.
func (db *DB) UpdateApart(ctx context.Context, key, of string, fn func(ctx context.Context, tx *Tx) error) error {
	return db.update(ctx, &job{of: of, fn: fn}, key)
}

// abreast is how many of the first jobs may run abreast, at least one.
func (w *writer) abreast(jobs []*job) int {
	if w.db.engine != PostgreSQL || jobs[0].of == "" {
		return 1
	}
	n := 1
	for n < len(jobs) && jobs[n].of != "" && !slices.ContainsFunc(jobs[:n], func(j *job) bool { return j.of == jobs[n].of }) {
		n++
	}
	return n
}

// runner is a function that is under way beside others.
type runner struct {
	tx     *Tx
	next   func() (struct{}, bool) // runs it until it asks or ends
	stop   func()                  // what it asks for fails from now on
	spoilt error                   // what it returned
}

func newRunner(tx *Tx, run func() error) *runner {
	r := &runner{tx: tx}
	r.next, r.stop = iter.Pull(func(yield func(struct{}) bool) {
		tx.pause = func() bool { return yield(struct{}{}) }
		r.spoilt = run()
	})
	return r
}

// side runs jobs, several of them abreast. It returns why the transaction must not be committed, if it must not, and
// the job that is to blame.
func (w *writer) side(jobs []*job, shared *carried) (wrote bool, bad *job, spoilt error) {
	if len(jobs) == 1 {
		tx := &Tx{db: w.db, conn: w.conn, carry: shared, of: jobs[0]}
		spoilt = w.call(jobs[0], tx)
		return tx.wrote, jobs[0], spoilt
	}
	w.conn.side = len(w.conn.later)
	running := make([]*runner, len(jobs))
	for i, j := range jobs {
		tx := &Tx{db: w.db, conn: w.conn, carry: shared, of: j}
		running[i] = newRunner(tx, func() error { return w.call(j, tx) })
		defer running[i].stop()
	}
	for {
		left := running[:0]
		for _, r := range running {
			if _, more := r.next(); more {
				left = append(left, r)
				continue
			}
			if r.spoilt != nil {
				return wrote, r.tx.of, r.spoilt
			}
			wrote = wrote || r.tx.wrote
		}
		if running = left; len(running) == 0 {
			return wrote, nil, nil
		}
		if err := w.conn.send(); err != nil {
			return wrote, jobs[0], err
		}
	}
}
