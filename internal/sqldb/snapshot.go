package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strings"

	"modernc.org/sqlite"

	"github.com/cradle-iot/cradle"
)

// Copy names a SQLite file and where its copy goes.
type Copy struct{ From, To string }

// snapshotPages are copied between two looks at ctx.
const snapshotPages = 4096

// Snapshot copies SQLite databases that may be in use, also by other processes. All are held at one moment, in the order
// of copies, before the first is copied: what the first knew from the last, the last knows. Each copy is a whole
// database in one file of mode 0600. progress (may be nil) is told how many bytes of how many are done.
func Snapshot(ctx context.Context, copies []Copy, progress func(done, total int64)) error {
	conns := make([]*sql.Conn, len(copies))
	for i, c := range copies {
		if _, err := os.Stat(c.From); err != nil {
			return cradle.Errorf(cradle.NotFound, "no database %s", c.From).WithHint("name the data folder of cradle serve with --data")
		}
		db, err := OpenFile(c.From)
		if err != nil {
			return err
		}
		defer db.Close()
		if conns[i], err = db.Conn(ctx); err != nil {
			return fmt.Errorf("opening %s: %w", c.From, err)
		}
		defer conns[i].Close()
	}
	for i, c := range conns { // a transaction sees the database as it is at its first read
		var n int64
		if _, err := c.ExecContext(ctx, "BEGIN"); err != nil {
			return fmt.Errorf("reading %s: %w", copies[i].From, err)
		}
		if err := c.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&n); err != nil {
			return fmt.Errorf("reading %s: %w", copies[i].From, err)
		}
	}
	var total, done int64
	for i, c := range conns {
		var pages, size int64
		if err := c.QueryRowContext(ctx, "SELECT page_count, page_size FROM pragma_page_count, pragma_page_size").Scan(&pages, &size); err != nil {
			return fmt.Errorf("reading %s: %w", copies[i].From, err)
		}
		total += pages * size
	}
	for i, c := range conns {
		n, err := copyPages(ctx, c, copies[i].To, func(n int64) {
			if progress != nil {
				progress(done+n, total)
			}
		})
		if err != nil {
			return fmt.Errorf("copying %s: %w", copies[i].From, err)
		}
		done += n
	}
	return nil
}

func copyPages(ctx context.Context, c *sql.Conn, to string, progress func(int64)) (n int64, err error) {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	var size int64
	if err := c.QueryRowContext(ctx, "PRAGMA page_size").Scan(&size); err != nil {
		return 0, err
	}
	err = c.Raw(func(driver any) error {
		b, err := driver.(interface {
			NewBackup(string) (*sqlite.Backup, error)
		}).NewBackup("file:" + escape(to))
		if err != nil {
			return err
		}
		for more := true; more; {
			if err := ctx.Err(); err != nil {
				b.Finish()
				return err
			}
			if more, err = b.Step(snapshotPages); err != nil {
				b.Finish()
				return err
			}
			n = int64(b.PageCount()-b.Remaining()) * size
			progress(n)
		}
		return b.Finish()
	})
	return n, err
}

func escape(path string) string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
}

// OpenFile opens a SQLite file of whatever version to be read.
func OpenFile(path string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+escape(path)+"?mode=ro&_pragma=busy_timeout(10000)")
}

// CheckFile looks through a SQLite file that nobody has open, page by page.
func CheckFile(ctx context.Context, path string) error {
	db, err := OpenFile(path)
	if err != nil {
		return err
	}
	defer db.Close()
	var word string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&word); err != nil {
		return cradle.Errorf(cradle.Invalid, "%s is not a database: %v", path, err)
	}
	if word != "ok" {
		return cradle.Errorf(cradle.Invalid, "%s is damaged: %s", path, word)
	}
	return nil
}

// SchemaVersion is the newest migration that a SQLite file has seen.
func SchemaVersion(ctx context.Context, path string) (n int64, err error) {
	db, err := OpenFile(path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, "SELECT max(version_id) FROM goose_db_version").Scan(&n)
	return n, err
}
