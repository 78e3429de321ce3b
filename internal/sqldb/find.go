package sqldb

import (
	"context"
	"errors"
	"fmt"
)

// Find is Read for a function that only looks rows up by their keys. On PostgreSQL all of it goes over one connection: a
// backend that does every look-up has at hand what it needs, while one of many that does it now and then takes several
// times as long. Who finds the connection free uses it at once; what several look up meanwhile travels together. When
// anything goes wrong each function runs again by Read.
func (db *DB) Find(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	f := db.finder
	if f == nil {
		return db.Read(ctx, fn)
	}
	var err error
	select {
	case f.busy <- struct{}{}:
		err = f.here(ctx, fn)
	default:
		err = db.hand(ctx, &job{fn: fn}, f.queue)
	}
	if errors.Is(err, errApart) {
		return db.Read(ctx, fn)
	}
	return err
}

// errApart is the outcome of a function that has to run again, apart from the others.
var errApart = errors.New("internal error: to be read apart")

// finder runs what Find is given.
type finder struct {
	db    *DB
	queue chan *job
	busy  chan struct{} // holds one while somebody has conn, and for good once the store is closed
	conn  *conn         // nil until needed and after it was lost
}

// here runs one function on its caller's goroutine, which has the connection.
func (f *finder) here(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) (err error) {
	clean := false
	defer func() {
		if !clean { // also when fn panics
			f.drop()
		}
		<-f.busy
	}()
	if err := ctx.Err(); err != nil {
		clean = true
		return err
	}
	if err := f.connect(); err != nil {
		return errApart
	}
	f.conn.deadline(writeDeadline)
	tx := &Tx{db: f.db, conn: f.conn}
	err = fn(ctx, tx)
	if tx.failed != nil {
		clean = !f.conn.broken(tx.failed)
		return errApart
	}
	clean = true
	return f.db.public(err)
}

func (f *finder) drop() {
	f.conn.discard()
	f.conn = nil
}

// run serves the queue until the store is closed.
func (f *finder) run() {
	defer f.drop()
	for {
		select {
		case j := <-f.queue:
			f.busy <- struct{}{}
			f.serve(j)
			<-f.busy
		case <-f.db.closing:
			f.busy <- struct{}{}
			for { // what came before Close is still done
				select {
				case j := <-f.queue:
					f.serve(j)
				default:
					return
				}
			}
		}
	}
}

// serve runs first, and those that come while it waits for answers, abreast.
func (f *finder) serve(first *job) {
	running := f.begin(nil, first)
	for len(running) > 0 {
		err := f.connect()
		if err == nil {
			running = f.step(f.join(running))
			f.conn.deadline(writeDeadline)
			err = f.conn.send()
		}
		if err != nil {
			for _, r := range running {
				r.stop()
				f.end(r, errApart)
			}
			if f.conn != nil && f.conn.broken(err) {
				f.drop()
			}
			return
		}
	}
}

func (f *finder) connect() (err error) {
	if f.conn != nil {
		return nil
	}
	c, err := f.db.connect(forever)
	if err != nil {
		return err
	}
	c.deadline(writeDeadline)
	if err := c.byKeys(); err != nil {
		c.discard()
		return err
	}
	f.conn = c
	return nil
}

// join begins with those that are waiting.
func (f *finder) join(running []*runner) []*runner {
	for len(running) < maxBatch {
		select {
		case j := <-f.queue:
			running = f.begin(running, j)
		default:
			return running
		}
	}
	return running
}

func (f *finder) begin(running []*runner, j *job) []*runner {
	if !j.state.CompareAndSwap(waiting, taken) {
		return running
	}
	tx := &Tx{db: f.db, of: j}
	return append(running, newRunner(tx, func() error { return f.call(j, tx) }))
}

// step runs each until it asks or ends, and returns those that ask.
func (f *finder) step(running []*runner) []*runner {
	left := running[:0]
	for _, r := range running {
		r.tx.conn = f.conn
		if _, more := r.next(); more {
			left = append(left, r)
		} else {
			f.end(r, r.spoilt)
		}
	}
	return left
}

// call runs one function and returns its outcome.
func (f *finder) call(j *job, tx *Tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			j.panicked, err = p, fmt.Errorf("panic: %v", p)
		}
	}()
	if err = j.fn(j.ctx, tx); err == nil {
		err = tx.failed
	}
	return f.db.public(err)
}

// end answers the caller.
func (f *finder) end(r *runner, err error) {
	j := r.tx.of
	j.err = err
	close(j.done)
}
