package sqldb

import (
	"errors"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/cradle-iot/cradle"
)

// refusal says why a store does not open, for whoever starts the program: what is wrong with the database, its role or its file,
// and what mends it.
func refusal(err error) error {
	say := func(k cradle.Kind, hint, detail string, cause error) error {
		return &cradle.Error{Kind: k, Detail: detail + reason(cause), Hint: hint, Err: err}
	}
	var server *pgconn.PgError
	if errors.As(err, &server) {
		switch server.Code {
		case "3D000":
			return say(cradle.Invalid, "create it, owned by the role of the URL: CREATE DATABASE ... OWNER ...", "the database is not there", server)
		case "28000", "28P01":
			return say(cradle.Invalid, "name the role in --db, and its password in ~/.pgpass (mode 0600) or the file that PGPASSFILE names", "the database server does not let the role in", server)
		case "42501":
			return say(cradle.Invalid, "the role must own the database, or the schemas provider, provisioning and hub", "the role may not use the database", server)
		}
	}
	if code := liteCode(err) & 0xff; code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB {
		return say(cradle.Invalid, "keep the file as it is, and restore a backup into a new folder: cradle restore", "the database file is damaged", nil)
	}
	var unreached *pgconn.ConnectError
	if cradle.KindOf(err) == cradle.Busy && errors.As(err, &unreached) {
		var op *net.OpError
		var name *net.DNSError
		switch {
		case errors.As(err, &name):
			return say(cradle.Busy, "look at the host in --db, and at the database server", "the store is away", name)
		case errors.As(err, &op):
			return say(cradle.Busy, "look at host and port in --db, and at the database server", "the store is away", op)
		}
	}
	return err
}

// reason is the cause's own words, in one line.
func reason(err error) string {
	if err == nil {
		return ""
	}
	return ": " + strings.Join(strings.Fields(err.Error()), " ")
}
