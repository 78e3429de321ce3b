package sqldb

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"reflect"
)

// lite is what SQLite's driver made of a connection. Its statements are run without database/sql around
// them, which takes a lock, checks a context and copies each value per call.
type lite struct {
	driver driver.ConnPrepareContext
	stmts  map[string]liteStmt // prepared ones by text
	args   []driver.NamedValue // of the statement that runs
}

// liteStmt is a prepared statement of the driver.
type liteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func newLite(d driver.ConnPrepareContext) *lite {
	return &lite{driver: d, stmts: map[string]liteStmt{}}
}

func (l *lite) exec(text string, args []any) (int64, error) {
	s, err := l.stmt(text)
	if err != nil {
		return 0, err
	}
	defer func() { clear(l.args) }()
	if err := l.bind(args); err != nil {
		return 0, err
	}
	r, err := s.ExecContext(forever, l.args)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (l *lite) query(text string, args []any) (*liteRows, error) {
	s, err := l.stmt(text)
	if err != nil {
		return nil, err
	}
	defer func() { clear(l.args) }()
	if err := l.bind(args); err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(forever, l.args)
	if err != nil {
		return nil, err
	}
	return &liteRows{rows: rows, values: make([]driver.Value, len(rows.Columns()))}, nil
}

// queryRow reads the first row.
func (l *lite) queryRow(text string, args []any) *liteRows {
	r, err := l.query(text, args)
	if err != nil {
		return &liteRows{err: err}
	}
	r.Next()
	r.Close()
	return r
}

// bind makes l.args of args.
func (l *lite) bind(args []any) (err error) {
	l.args = l.args[:0]
	for i, a := range args {
		n := driver.NamedValue{Ordinal: i + 1, Value: a}
		switch a.(type) {
		case nil, int64, string, []byte:
		default:
			if n.Value, err = driver.DefaultParameterConverter.ConvertValue(a); err != nil {
				return fmt.Errorf("internal error: argument %d: %w", i+1, err)
			}
		}
		l.args = append(l.args, n)
	}
	return nil
}

// stmt returns the prepared statement.
func (l *lite) stmt(text string) (liteStmt, error) {
	if s, ok := l.stmts[text]; ok {
		return s, nil
	}
	if len(l.stmts) >= maxStatements {
		l.close()
		clear(l.stmts)
	}
	d, err := l.driver.PrepareContext(forever, text)
	if err != nil {
		return nil, err
	}
	s := d.(liteStmt)
	l.stmts[text] = s
	return s, nil
}

// close closes the statements.
func (l *lite) close() {
	for _, s := range l.stmts {
		s.Close()
	}
}

// liteRows are the rows of a query, or the one row of QueryRow.
type liteRows struct {
	rows   driver.Rows // nil when closed
	values []driver.Value
	there  bool // values are those of a row
	err    error
}

// Next implements Rows.
func (r *liteRows) Next() bool {
	if r.rows == nil {
		return false
	}
	err := r.rows.Next(r.values)
	if r.there = err == nil; r.there {
		return true
	}
	if err != io.EOF {
		r.err = err
	}
	r.Close()
	return false
}

// Close implements Rows.
func (r *liteRows) Close() {
	if r.rows == nil {
		return
	}
	if err := r.rows.Close(); r.err == nil {
		r.err = err
	}
	r.rows = nil
}

// Err implements Row and Rows.
func (r *liteRows) Err() error { return r.err }

// Scan implements Row and Rows.
func (r *liteRows) Scan(dest ...any) error {
	switch {
	case r.err != nil:
		return r.err
	case !r.there:
		return sql.ErrNoRows
	case len(dest) != len(r.values):
		return fmt.Errorf("internal error: %d places for %d columns", len(dest), len(r.values))
	}
	for i, d := range dest {
		if !assign(d, r.values[i]) {
			return fmt.Errorf("internal error: column %d is a %T, which does not fit a %T", i+1, r.values[i], d)
		}
	}
	return nil
}

// assign puts a value of the driver, whose bytes are the reader's own, where dest points. It reports whether it fits:
// text and bytes are alike, a whole number must lie in the range of dest, and NULL is no bytes and nothing else.
func assign(dest any, v driver.Value) bool {
	to := reflect.ValueOf(dest).Elem()
	switch v := v.(type) {
	case int64:
		switch {
		case to.CanInt() && !to.OverflowInt(v):
			to.SetInt(v)
		case to.CanUint() && v >= 0 && !to.OverflowUint(uint64(v)):
			to.SetUint(uint64(v))
		case to.Kind() == reflect.Bool && (v == 0 || v == 1):
			to.SetBool(v == 1)
		default:
			return false
		}
		return true
	case string:
		if to.Kind() == reflect.String {
			to.SetString(v)
			return true
		}
		return setBytes(to, []byte(v))
	case []byte:
		if to.Kind() == reflect.String {
			to.SetString(string(v))
			return true
		}
		return setBytes(to, v)
	case nil:
		return setBytes(to, nil)
	}
	return false
}

func setBytes(to reflect.Value, b []byte) bool {
	if to.Kind() != reflect.Slice || to.Type().Elem().Kind() != reflect.Uint8 {
		return false
	}
	to.SetBytes(b)
	return true
}
