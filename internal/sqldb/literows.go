package sqldb

import (
	"database/sql"
	"errors"
	"fmt"
	"reflect"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// liteRows are the rows of a query, or the one row of QueryRow. Scan reads from the statement, which stands at its row.
type liteRows struct {
	lite  *lite
	stmt  *liteStmt // nil when closed
	tx    *Tx       // of QueryRow, whose row Scan closes
	there bool      // the statement stands at a row
	err   error
}

var errRowGone = errors.New("internal error: a row is read after the next statement began")

// Next implements Rows.
func (r *liteRows) Next() bool {
	if r.stmt == nil {
		return false
	}
	r.there, r.err = r.lite.step(r.stmt)
	if !r.there {
		r.Close()
	}
	return r.there
}

// Close implements Rows.
func (r *liteRows) Close() {
	if r.stmt == nil {
		return
	}
	if err := r.lite.reset(r.stmt); r.err == nil {
		r.err = err
	}
	r.stmt = nil
	if r.lite.open == r {
		r.lite.open = nil
	}
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
	case r.stmt == nil:
		return errRowGone
	}
	if err := r.scan(dest); err != nil || r.tx == nil {
		return err
	}
	if r.Close(); r.err != nil { // a statement that writes and returns is at its end only now
		return r.tx.fail(r.err)
	}
	return nil
}

func (r *liteRows) scan(dest []any) error {
	if n := int(lib.Xsqlite3_column_count(r.lite.tls, r.stmt.handle)); len(dest) != n {
		return fmt.Errorf("internal error: %d places for %d columns", len(dest), n)
	}
	for i, d := range dest {
		if kind, ok := r.read(int32(i), d); !ok {
			return fmt.Errorf("internal error: column %d is %s, which does not fit a %T", i+1, liteKinds[kind], d)
		}
	}
	return nil
}

var liteKinds = map[int32]string{lib.SQLITE_INTEGER: "a whole number", lib.SQLITE_FLOAT: "a fraction", lib.SQLITE_TEXT: "text",
	lib.SQLITE_BLOB: "bytes", lib.SQLITE_NULL: "NULL"}

// read puts a column where dest points. It reports what it is, and whether it fits: text and bytes are alike, a whole
// number must lie in the range of dest, and NULL is no bytes and nothing else.
func (r *liteRows) read(i int32, dest any) (kind int32, ok bool) {
	tls, handle := r.lite.tls, r.stmt.handle
	kind = lib.Xsqlite3_column_type(tls, handle, i)
	switch kind {
	case lib.SQLITE_INTEGER:
		n := lib.Xsqlite3_column_int64(tls, handle, i)
		if to, ok := dest.(*int64); ok {
			*to = n
			return kind, true
		}
		return kind, setNumber(reflect.ValueOf(dest).Elem(), n)
	case lib.SQLITE_TEXT, lib.SQLITE_BLOB:
		var there []byte // in memory of the library, until the next step
		if p := lib.Xsqlite3_column_blob(tls, handle, i); p != 0 {
			there = libc.GoBytes(p, int(lib.Xsqlite3_column_bytes(tls, handle, i)))
		}
		switch to := dest.(type) {
		case *string:
			*to = string(there)
			return kind, true
		case *[]byte:
			*to = ownBytes(there, kind)
			return kind, true
		}
		to := reflect.ValueOf(dest).Elem()
		if to.Kind() == reflect.String {
			to.SetString(string(there))
			return kind, true
		}
		return kind, setBytes(to, ownBytes(there, kind))
	case lib.SQLITE_NULL:
		return kind, setBytes(reflect.ValueOf(dest).Elem(), nil)
	}
	return kind, false
}

// ownBytes copies a column: an empty blob is nil, an empty text is not.
func ownBytes(b []byte, kind int32) []byte {
	if len(b) == 0 && kind == lib.SQLITE_BLOB {
		return nil
	}
	return append([]byte{}, b...)
}

func setNumber(to reflect.Value, n int64) bool {
	switch {
	case to.CanInt() && !to.OverflowInt(n):
		to.SetInt(n)
	case to.CanUint() && n >= 0 && !to.OverflowUint(uint64(n)):
		to.SetUint(uint64(n))
	case to.Kind() == reflect.Bool && (n == 0 || n == 1):
		to.SetBool(n == 1)
	default:
		return false
	}
	return true
}

func setBytes(to reflect.Value, b []byte) bool {
	if to.Kind() != reflect.Slice || to.Type().Elem().Kind() != reflect.Uint8 {
		return false
	}
	to.SetBytes(b)
	return true
}
