package sqldb

import (
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// lite is a connection to a SQLite file. It calls the library beneath the driver modernc.org/sqlite, whose statements
// ask for the names and types of all columns with each query, allocate memory for each argument, and lock the connection
// in each call. What is bound lies in memory of the connection's own, which the next statement writes over.
type lite struct {
	tls   *libc.TLS
	db    uintptr
	stmts map[string]*liteStmt // prepared ones by text
	open  *liteRows            // the rows that were not closed

	args  []driver.Value // of the statement that begins
	bound uintptr        // C memory, never null
	size  int            // of it
}

// liteStmt is a prepared statement.
type liteStmt struct {
	handle uintptr
	params int
}

// litePragmas are set on each connection.
var litePragmas = []string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "cache_size(-32768)", "temp_store(MEMORY)"}

const pointerSize = bits.UintSize / 8

// openLite opens a file that is there.
func openLite(path string) (*lite, error) {
	l := &lite{tls: libc.NewTLS(), stmts: map[string]*liteStmt{}}
	name, err := libc.CString("file:" + escape(path))
	if err == nil {
		defer libc.Xfree(l.tls, name)
		err = l.room(4096)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	// Without mutexes: one goroutine at a time uses the connection.
	rc := lib.Xsqlite3_open_v2(l.tls, name, l.bound, lib.SQLITE_OPEN_READWRITE|lib.SQLITE_OPEN_NOMUTEX|lib.SQLITE_OPEN_URI, 0)
	l.db = l.pointer(0)
	if rc != lib.SQLITE_OK {
		err := l.error(rc)
		l.close()
		return nil, err
	}
	lib.Xsqlite3_extended_result_codes(l.tls, l.db, 1)
	for _, p := range litePragmas {
		if _, err := l.exec("PRAGMA "+p, nil); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// close closes the connection.
func (l *lite) close() {
	l.forget()
	if l.db != 0 {
		lib.Xsqlite3_close_v2(l.tls, l.db)
	}
	lib.Xsqlite3_free(l.tls, l.bound)
	l.tls.Close()
}

// forget closes the statements.
func (l *lite) forget() {
	l.release()
	for _, s := range l.stmts {
		lib.Xsqlite3_finalize(l.tls, s.handle)
	}
	clear(l.stmts)
}

// liteError is what the library says of a statement.
type liteError struct {
	code int // extended result code
	text string
}

func (e *liteError) Error() string { return fmt.Sprintf("sqlite: %s (%d)", e.text, e.code) }

func (l *lite) error(rc int32) error {
	if l.db == 0 {
		return &liteError{int(rc), libc.GoString(lib.Xsqlite3_errstr(l.tls, rc))}
	}
	return &liteError{int(lib.Xsqlite3_extended_errcode(l.tls, l.db)), libc.GoString(lib.Xsqlite3_errmsg(l.tls, l.db))}
}

func (l *lite) exec(text string, args []any) (int64, error) {
	s, err := l.start(text, args)
	if err != nil {
		return 0, err
	}
	for more := true; more; {
		if more, err = l.step(s); err != nil {
			return 0, err
		}
	}
	return int64(lib.Xsqlite3_changes(l.tls, l.db)), l.reset(s)
}

func (l *lite) query(text string, args []any) (*liteRows, error) {
	s, err := l.start(text, args)
	if err != nil {
		return nil, err
	}
	l.open = &liteRows{lite: l, stmt: s}
	return l.open, nil
}

// queryRow reads the first row. It is there until Scan, or until the next statement begins.
func (l *lite) queryRow(tx *Tx, text string, args []any) *liteRows {
	r, err := l.query(text, args)
	if err != nil {
		return &liteRows{err: err}
	}
	r.tx = tx
	r.Next()
	return r
}

var errRowsOpen = errors.New("internal error: a statement begins while the rows of another are open")

// start prepares a statement and binds its arguments.
func (l *lite) start(text string, args []any) (*liteStmt, error) {
	if l.open != nil && l.open.tx == nil {
		return nil, errRowsOpen
	}
	if err := l.release(); err != nil {
		return nil, err
	}
	s, err := l.stmt(text)
	if err != nil {
		return nil, err
	}
	return s, l.bind(s, args)
}

// release closes rows that are still open.
func (l *lite) release() error {
	r := l.open
	if r == nil {
		return nil
	}
	r.Close()
	return r.err
}

// reset ends a statement. It says when what the statement wrote could not stay.
func (l *lite) reset(s *liteStmt) error {
	if rc := lib.Xsqlite3_reset(l.tls, s.handle); rc != lib.SQLITE_OK {
		return l.error(rc)
	}
	return nil
}

// step reports whether there is a row. After an error the statement is reset.
func (l *lite) step(s *liteStmt) (bool, error) {
	switch rc := lib.Xsqlite3_step(l.tls, s.handle); rc {
	case lib.SQLITE_ROW:
		return true, nil
	case lib.SQLITE_DONE:
		return false, nil
	default:
		err := l.error(rc)
		lib.Xsqlite3_reset(l.tls, s.handle)
		return false, err
	}
}

// stmt returns the prepared statement.
func (l *lite) stmt(text string) (*liteStmt, error) {
	if s, ok := l.stmts[text]; ok {
		return s, nil
	}
	if len(l.stmts) >= maxStatements {
		l.forget()
	}
	c, err := libc.CString(text)
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(l.tls, c)
	rc := lib.Xsqlite3_prepare_v3(l.tls, l.db, c, int32(len(text)), lib.SQLITE_PREPARE_PERSISTENT, l.bound, l.bound+pointerSize)
	if rc != lib.SQLITE_OK {
		return nil, l.error(rc)
	}
	s := &liteStmt{handle: l.pointer(0)}
	if end := int(l.pointer(1) - c); s.handle == 0 || strings.TrimSpace(text[end:]) != "" {
		lib.Xsqlite3_finalize(l.tls, s.handle)
		return nil, errors.New("internal error: a text that is not one statement")
	}
	s.params = int(lib.Xsqlite3_bind_parameter_count(l.tls, s.handle))
	l.stmts[text] = s
	return s, nil
}

// pointer reads the i-th pointer in the C memory.
func (l *lite) pointer(i int) uintptr {
	b := libc.GoBytes(l.bound, l.size)[i*pointerSize:]
	if pointerSize == 4 {
		return uintptr(binary.NativeEndian.Uint32(b))
	}
	return uintptr(binary.NativeEndian.Uint64(b))
}

// room sees that n bytes fit into the C memory.
func (l *lite) room(n int) error {
	if n <= l.size {
		return nil
	}
	if n > math.MaxInt32/2 {
		return fmt.Errorf("internal error: %d bytes of arguments", n)
	}
	lib.Xsqlite3_free(l.tls, l.bound)
	l.size = 1 << bits.Len(uint(n-1))
	if l.bound = lib.Xsqlite3_malloc64(l.tls, uint64(l.size)); l.bound == 0 {
		n, l.size = l.size, 0
		return fmt.Errorf("no memory for %d bytes of arguments", n)
	}
	return nil
}

// bind binds all arguments of a statement, so that nothing is left of what was bound before.
func (l *lite) bind(s *liteStmt, args []any) error {
	if len(args) != s.params {
		return fmt.Errorf("internal error: %d arguments for %d places", len(args), s.params)
	}
	defer func() { clear(l.args) }()
	l.args = l.args[:0]
	size := 1 // where nothing is, there is an address all the same
	for i, a := range args {
		switch v := a.(type) {
		case nil, int64:
		case string:
			size += len(v)
		case []byte:
			size += len(v)
		default:
			var err error
			if a, err = driver.DefaultParameterConverter.ConvertValue(a); err != nil {
				return fmt.Errorf("internal error: argument %d: %w", i+1, err)
			}
			switch v := a.(type) {
			case string:
				size += len(v)
			case []byte:
				size += len(v)
			}
		}
		l.args = append(l.args, a)
	}
	if err := l.room(size); err != nil {
		return err
	}
	room, at := libc.GoBytes(l.bound, l.size), 0
	for i, a := range l.args {
		var rc int32
		n, p := int32(i+1), l.bound+uintptr(at)
		switch v := a.(type) {
		case int64:
			rc = lib.Xsqlite3_bind_int64(l.tls, s.handle, n, v)
		case bool:
			rc = lib.Xsqlite3_bind_int64(l.tls, s.handle, n, truth(v))
		case string:
			rc = lib.Xsqlite3_bind_text(l.tls, s.handle, n, p, int32(copy(room[at:], v)), static)
			at += len(v)
		case []byte:
			if v == nil {
				rc = lib.Xsqlite3_bind_null(l.tls, s.handle, n)
				break
			}
			rc = lib.Xsqlite3_bind_blob(l.tls, s.handle, n, p, int32(copy(room[at:], v)), static)
			at += len(v)
		case nil:
			rc = lib.Xsqlite3_bind_null(l.tls, s.handle, n)
		default:
			return fmt.Errorf("internal error: argument %d is a %T", i+1, a)
		}
		if rc != lib.SQLITE_OK {
			return fmt.Errorf("argument %d: %w", i+1, l.error(rc))
		}
	}
	return nil
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// static says that what is bound stays where it is for as long as the statement runs.
const static = 0
