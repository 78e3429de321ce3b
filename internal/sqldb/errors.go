package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/cradle-iot/cradle"
)

// ErrUnique says that a row with this key exists (errors.Is).
var ErrUnique = errors.New("a row with this key exists")

var (
	errBad     = driver.ErrBadConn
	errAborted = errors.New("a statement failed and the function went on")
	errClosed  = cradle.Errorf(cradle.Busy, "the store is closed").WithHint("the service is stopping; try again")
)

// inDoubt marks an error of a commit whose answer was lost.
type inDoubt struct{ err error }

func (e inDoubt) Error() string { return "commit in doubt: " + e.err.Error() }
func (e inDoubt) Unwrap() error { return e.err }

// unsaved marks an error of writing what a batch carried.
type unsaved struct{ err error }

func (e unsaved) Error() string { return e.err.Error() }
func (e unsaved) Unwrap() error { return e.err }

// away marks an error after which the connection was closed.
type away struct{ err error }

func (e away) Error() string { return "connection lost: " + e.err.Error() }
func (e away) Unwrap() error { return e.err }

// public gives an error of a driver its kind; others stay as they are.
func (db *DB) public(err error) error {
	var known *cradle.Error
	switch {
	case err == nil, errors.Is(err, ErrUnique), errors.Is(err, sql.ErrNoRows),
		errors.As(err, &known) && known.Kind != cradle.Internal:
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded) && !lost(err):
		return err
	case errors.As(err, &inDoubt{}):
		return busy(err, "the store was lost while committing: the change may or may not be made",
			"ask again; what was made is found again")
	case unique(err):
		return fmt.Errorf("%w: %w", ErrUnique, err)
	case transient(err), contended(err):
		return busy(err, "the store is contended", "try again")
	case full(err):
		return busy(err, "the store has no space left", "free disk space; nothing was changed")
	case lost(err) && db.engine == SQLite:
		return busy(err, "the store's file cannot be read or written", "look at its disk: is there room, and may the service write there?")
	case lost(err):
		return busy(err, "the store is away", "try again; if it lasts, look at the database server")
	}
	return err
}

func busy(err error, detail, hint string) error {
	return &cradle.Error{Kind: cradle.Busy, Detail: detail, Hint: hint, Err: err}
}

func pgCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// liteCode returns SQLite's extended result code, 0 if err has none.
func liteCode(err error) int {
	var own *liteError
	var migrating *sqlite.Error
	switch {
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &migrating):
		return migrating.Code()
	}
	return 0
}

func unique(err error) bool {
	switch liteCode(err) {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return true
	}
	return pgCode(err) == "23505"
}

// transient reports whether the same transaction may succeed when it is run again at once.
func transient(err error) bool {
	switch pgCode(err) {
	case "40001", "40P01", // serialization failure, deadlock
		"0A000": // a cached plan that a migration by another replica made stale
		return true
	}
	return false
}

// contended reports whether somebody else held a lock for as long as we were ready to wait.
func contended(err error) bool {
	switch liteCode(err) & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return true
	}
	return pgCode(err) == "55P03"
}

func full(err error) bool {
	return liteCode(err)&0xff == sqlite3.SQLITE_FULL || pgCode(err) == "53100"
}

// lost reports whether the database, not the request, is the trouble.
func lost(err error) bool {
	if errors.As(err, &away{}) {
		return true
	}
	if code := pgCode(err); code != "" {
		switch code[:2] {
		case "08", "53", "57", "58": // connection, resources, operator intervention, system error
			return code != "57014" // query cancelled
		}
		switch code {
		case "25P03", "25006", "3D000": // idle too long, read only (a standby), database being replaced
			return true
		}
		return false
	}
	switch liteCode(err) & 0xff {
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL:
		return true
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errBad) || errors.Is(err, sql.ErrConnDone)
}
