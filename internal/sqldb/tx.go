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
	caller context.Context // of a View: looked at before each statement; nil in an Update
	wrote  bool            // something other than SELECT was sent
	failed error           // of the first statement that failed
	carry  *carried        // of an Update: what its batch shares
}

// carried are the values of Carry, in the order of their first use.
type carried struct {
	keys []string
	vals map[string]carry
}

type carry struct {
	v    any
	save func(tx *Tx, v any) error
}

// Carry lets the functions of one batch share the reading, locking and writing of a row that each of them
// changes, for example the head of a log: load is called by the first that asks for key, and save
// once, before the commit. In between every function gets the same value, changes it in place, and
// must also write something (a function that does not, and fails, is taken to have changed nothing).
// When a function fails the transaction is rolled back and the value forgotten with it. Only in Update.
func (tx *Tx) Carry(key string, load func(tx *Tx) (any, error), save func(tx *Tx, v any) error) (any, error) {
	if c, ok := tx.carry.vals[key]; ok {
		return c.v, nil
	}
	v, err := load(tx)
	if err != nil {
		return nil, err
	}
	if tx.carry.vals == nil {
		tx.carry.vals = map[string]carry{}
	}
	tx.carry.keys = append(tx.carry.keys, key)
	tx.carry.vals[key] = carry{v, save}
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
	n, err := tx.conn.execArgs(s.text, args)
	if err != nil {
		return 0, tx.fail(err)
	}
	return n, nil
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
	tx.conn.later = append(tx.conn.later, statementCall{s.text, args})
	return nil
}

// Query runs a statement that returns rows. Close them before the next statement.
func (tx *Tx) Query(query string, args ...any) (Rows, error) {
	s, err := tx.prepare(query)
	if err != nil {
		return nil, err
	}
	rows, err := tx.conn.query(s.text, args)
	if err != nil {
		return nil, tx.fail(err)
	}
	return rows, nil
}

// QueryRow runs a statement that returns one row; Scan says sql.ErrNoRows when there is none.
func (tx *Tx) QueryRow(query string, args ...any) Row {
	s, err := tx.prepare(query)
	if err != nil {
		return &pgRow{err: err}
	}
	row := tx.conn.queryRow(s.text, args)
	if err := row.Err(); err != nil {
		tx.fail(err)
	}
	return row
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
