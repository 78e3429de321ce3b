package sqldb

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Tx is a running transaction. It must not be used after its function returned, nor by two goroutines.
type Tx struct {
	db     *DB
	conn   *conn
	caller context.Context // of a View or Read: looked at before each statement; nil elsewhere
	wrote  bool            // something other than SELECT was sent
	failed error           // of the first statement that failed
	carry  *carried        // of an Update: what its batch shares
	of     *job            // of an Update or a Find: nil when it saves what was carried
	pause  func() bool     // of a function that runs abreast of others: lets them run, and what waits be sent; false: give up
}

// carried are the values of Carry, in the order of their first use.
type carried struct {
	keys []string
	vals map[string]*carry
}

type carry struct {
	loading bool // by a function that runs abreast
	v       any
	save    func(tx *Tx, v any) error
}

// Carry lets the functions of one batch share the reading, locking and writing of a row that each of them
// changes, for example the head of a log: load is called by the first that asks for key, and save
// once, before the commit. In between every function gets the same value, changes it in place, and
// must also write something (a function that does not, and fails, is taken to have changed nothing).
// When a function fails the transaction is rolled back and the value forgotten with it. Only in Update.
func (tx *Tx) Carry(key string, load func(tx *Tx) (any, error), save func(tx *Tx, v any) error) (any, error) {
	for c := tx.carry.vals[key]; c != nil; c = tx.carry.vals[key] {
		if !c.loading {
			return c.v, nil
		}
		if !tx.pause() {
			return nil, tx.fail(errAborted)
		}
	}
	if tx.carry.vals == nil {
		tx.carry.vals = map[string]*carry{}
	}
	tx.carry.vals[key] = &carry{loading: true}
	var v any
	err := errAborted // when load panics
	defer func() {
		if err != nil {
			delete(tx.carry.vals, key)
		}
	}()
	if v, err = load(tx); err != nil {
		return nil, err
	}
	tx.carry.keys = append(tx.carry.keys, key)
	tx.carry.vals[key] = &carry{v: v, save: save}
	return v, nil
}

// save writes what was carried.
func (c *carried) save(tx *Tx) error {
	for _, k := range c.keys {
		if err := c.vals[k].save(tx, c.vals[k].v); err != nil {
			return err
		}
	}
	return tx.failed
}

// Engine says what the transaction runs on.
func (tx *Tx) Engine() Engine { return tx.db.engine }

// Exec runs a statement and returns how many rows it touched. A unique violation is ErrUnique.
func (tx *Tx) Exec(query string, args ...any) (rowsAffected int64, err error) {
	s, err := tx.prepare(query)
	if err != nil {
		return 0, err
	}
	if tx.conn.lite != nil {
		rowsAffected, err = tx.conn.lite.exec(s.text, args)
	} else {
		a := tx.ask(s, args, count)
		rowsAffected, err = a.affected, a.err
	}
	if err != nil {
		return 0, tx.fail(err)
	}
	return rowsAffected, nil
}

// Touch says that the function changed a carried value and wrote nothing else.
func (tx *Tx) Touch() { tx.wrote = true }

// Queue runs a statement whose result does not matter. On PostgreSQL it travels together with the next
// statement of the batch, at the latest with the commit; its error then ends the Update. On SQLite it runs
// at once. The arguments must not change before the end.
func (tx *Tx) Queue(query string, args ...any) error {
	if tx.db.engine == SQLite {
		_, err := tx.Exec(query, args...)
		return err
	}
	s := tx.db.rebinds.get(query)
	tx.wrote = true
	tx.conn.later = append(tx.conn.later, statementCall{text: s.text, args: args, of: tx.of})
	return nil
}

// Query runs a statement that returns rows. Close them before the next statement.
func (tx *Tx) Query(query string, args ...any) (Rows, error) {
	s, err := tx.prepare(query)
	if err != nil {
		return nil, err
	}
	var rows Rows
	switch {
	case tx.conn.lite != nil:
		rows, err = tx.conn.lite.query(s.text, args)
	case tx.pause != nil:
		a := tx.ask(s, args, all)
		rows, err = &answerRows{answer: a}, a.err
	default:
		if err = tx.conn.send(); err == nil {
			rows, err = tx.conn.pg.Query(forever, s.text, args...)
		}
	}
	if err != nil {
		return nil, tx.fail(err)
	}
	return rows, nil
}

// QueryRow runs a statement that returns one row; Scan says sql.ErrNoRows when there is none.
func (tx *Tx) QueryRow(query string, args ...any) Row {
	s, err := tx.prepare(query)
	if err != nil {
		return &answer{err: err}
	}
	var row Row
	if tx.conn.lite != nil {
		row = tx.conn.lite.queryRow(tx, s.text, args)
	} else {
		row = tx.ask(s, args, first)
	}
	if err := row.Err(); err != nil {
		tx.fail(err)
	}
	return row
}

// ask asks a statement behind those that wait.
func (tx *Tx) ask(s *statement, args []any, w want) *answer {
	c := tx.conn
	a := &answer{want: w, types: c.pg.TypeMap()}
	c.later = append(c.later, statementCall{text: s.text, args: args, of: tx.of, to: a})
	tx.await(a)
	return a
}

// await sends what waits, or lets it wait with what the functions that run abreast ask.
func (tx *Tx) await(a *answer) {
	if tx.pause == nil {
		a.err = tx.conn.send()
	} else if !tx.pause() {
		a.err = errAborted
	}
}

// Row is the one row that a query returned.
type Row interface {
	// Scan says sql.ErrNoRows when there was none.
	Scan(dest ...any) error
	Err() error
}

// Rows are the rows that a query returns. After Next said that there are no more, Err says why.
type Rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close()
}

// prepare is what comes before each statement.
func (tx *Tx) prepare(query string) (*statement, error) {
	if tx.caller != nil {
		if err := tx.caller.Err(); err != nil {
			return nil, tx.fail(err)
		}
		tx.conn.deadline(readDeadline)
	}
	s := tx.db.rebinds.get(query)
	tx.wrote = tx.wrote || !s.reads
	return s, nil
}

func (tx *Tx) fail(err error) error {
	if tx.conn.broken(err) {
		err = away{err}
	}
	err = tx.db.public(err)
	if tx.failed == nil {
		tx.failed = err
	}
	return err
}

// statement is a query as its engine wants it.
type statement struct {
	text  string
	reads bool // begins with SELECT
}

// rebinder remembers rewritten statements. There are few: the ones in the source of the stores, and
// those that repeat a group of placeholders.
type rebinder struct {
	engine Engine
	cache  sync.Map // query -> *statement
	size   atomic.Int64
}

const maxRebinds = 4096

func (r *rebinder) get(query string) *statement {
	if s, ok := r.cache.Load(query); ok {
		return s.(*statement)
	}
	s := rewrite(r.engine, query)
	if r.size.Add(1) > maxRebinds {
		r.size.Store(0)
		r.cache.Clear()
	}
	r.cache.Store(query, s)
	return s
}

func rewrite(e Engine, query string) *statement {
	trimmed := strings.TrimSpace(query)
	s := &statement{text: trimmed, reads: len(trimmed) > 6 && strings.EqualFold(trimmed[:6], "select")}
	if e == SQLite {
		for _, lock := range []string{"for update", "for share", "for no key update", "for update skip locked"} {
			if n := len(trimmed) - len(lock); n > 0 && strings.EqualFold(trimmed[n:], lock) {
				s.text = strings.TrimSpace(trimmed[:n])
			}
		}
		return s
	}
	var b strings.Builder
	n := 0
	for i := range len(trimmed) {
		if trimmed[i] != '?' {
			b.WriteByte(trimmed[i])
			continue
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
	}
	s.text = b.String()
	return s
}
