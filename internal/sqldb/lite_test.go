package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

type (
	word  string
	bytes []byte
	small int8
)

func TestScan(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		_ = insert(db, 300, "one")
		_ = insert(db, 1, "two")
		scan := func(columns string, dest ...any) error {
			return db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				return tx.QueryRow("SELECT "+columns+" FROM item WHERE id = 300", nil...).Scan(dest...)
			})
		}
		var (
			s  string
			w  word
			b  []byte
			bs bytes
			n  int
			u  uint16
			ok bool
		)
		if err := scan("name, name, data, data, id, id, id = 300", &s, &w, &b, &bs, &n, &u, &ok); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(s, w, string(b), string(bs), n, u, ok); got != "oneoneoneone300 300 true" {
			t.Errorf("got %s", got)
		}
		if err := scan("NULL", &b); err != nil || b != nil {
			t.Errorf("NULL into bytes: got %x, %v", b, err)
		}
		var tiny small
		var f float64
		for name, err := range map[string]error{
			"NULL into text":            scan("NULL", &s),
			"NULL into a number":        scan("NULL", &n),
			"text into a number":        scan("name", &n),
			"bytes into a number":       scan("data", &n),
			"a number that is too long": scan("id", &tiny),
			"a negative one":            scan("-id", &u),
			"text into a fraction":      scan("name", &f),
			"too few places":            scan("id, name", &n),
			"too many places":           scan("id", &n, &s),
		} {
			if err == nil || errors.Is(err, sql.ErrNoRows) {
				t.Errorf("%s: got %v", name, err)
			}
		}
		var none error
		err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			none = tx.QueryRow("SELECT id FROM item WHERE id = 2").Scan(&n)
			return nil
		})
		if err != nil || !errors.Is(none, sql.ErrNoRows) {
			t.Errorf("no row: got %v, %v", none, err)
		}
	})
}

// Rows that are left early, and a statement that fails while they are read, spoil nothing that comes after.
func TestRows(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		for i := range int64(5) {
			if err := insert(db, i, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		read := func(query string, limit int) (out []string, err error) {
			err = db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				out = nil
				rows, err := tx.Query(query)
				if err != nil {
					return err
				}
				defer rows.Close()
				for len(out) < limit && rows.Next() {
					var s string
					if err := rows.Scan(&s); err != nil {
						return err
					}
					out = append(out, s)
				}
				rows.Close()
				if rows.Next() {
					t.Error("a row after Close")
				}
				return rows.Err()
			})
			return out, err
		}
		const names = "SELECT name FROM item ORDER BY id"
		for range 2 {
			if got, err := read(names, 2); err != nil || !slices.Equal(got, []string{"0", "1"}) {
				t.Errorf("left early: got %v, %v", got, err)
			}
			if got, err := read(names, 9); err != nil || strings.Join(got, "") != "01234" {
				t.Errorf("got %v, %v", got, err)
			}
			if _, err := read("SELECT nothing FROM item", 9); err == nil {
				t.Error("an unknown column was read")
			}
		}
	})
}

func TestArguments(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		put := func(id, name, data any) error {
			return db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				_, err := tx.Exec("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", id, name, data)
				return err
			})
		}
		for _, args := range [][]any{{int64(1), "a", []byte("x")}, {2, word("b"), bytes("x")}, {uint16(3), "c", nil}, {small(4), "", []byte{}}} {
			if err := put(args[0], args[1], args[2]); err != nil {
				t.Errorf("%v: %v", args, err)
			}
		}
		if n := count(t, db); n != 4 {
			t.Errorf("got %d rows, want 4", n)
		}
		if err := put(struct{}{}, "e", nil); err == nil {
			t.Error("a struct was stored")
		}
		if err := insert(db, 5, "f"); err != nil { // the connection is as good as before
			t.Error(err)
		}
	})
}

// A row that nobody reads holds nothing up, and what its statement wrote is stored.
func TestRowLeft(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		for id := range int64(3) {
			err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				tx.QueryRow("INSERT INTO item (id, name) VALUES (?, ?) RETURNING id", id, fmt.Sprint(id))
				if id == 1 {
					tx.QueryRow("SELECT id FROM item")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			err = db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				tx.QueryRow("SELECT id FROM item")
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if n := count(t, db); n != id+1 { // a snapshot that was kept would show fewer
				t.Errorf("got %d rows, want %d", n, id+1)
			}
		}
	})
}

// A statement that begins among the rows of another is refused, and spoils nothing that comes after.
func TestStatementAmongRows(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		_, _ = insert(db, 1, "one"), insert(db, 2, "two")
		for range 2 {
			err := db.View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				rows, err := tx.Query("SELECT id FROM item WHERE id > ? ORDER BY id", 0)
				if err != nil || !rows.Next() {
					t.Fatalf("%v", err)
				}
				_, err = tx.Query("SELECT name FROM item")
				return err
			})
			if err == nil {
				t.Error("two statements ran at once")
			}
		}
		if n := count(t, db); n != 2 {
			t.Errorf("got %d rows, want 2", n)
		}
	})
}

func TestRowGone(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "store.db"))
	_ = insert(db, 1, "one")
	err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		var id, n int64
		late := tx.QueryRow("SELECT id FROM item")
		if err := tx.QueryRow("SELECT id FROM item").Scan(&n); err != nil || n != 1 {
			t.Errorf("got %d, %v", n, err)
		}
		return late.Scan(&id)
	})
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		t.Errorf("got %v", err)
	}
}

// What a statement that returns a row may not write is refused all the same.
func TestForeignKeyReturning(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		m := migrations(1)
		for _, engine := range []string{"sqlite", "postgres"} {
			m[engine+"/00002_child.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE child (of BIGINT NOT NULL REFERENCES item (id));\n-- +goose Down\nDROP TABLE child;\n")}
		}
		db := open(t, url, func(c *sqldb.Config) { c.Migrations = m })
		for _, scan := range []bool{true, false} {
			err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				var n int64
				if row := tx.QueryRow("INSERT INTO child (of) VALUES (?) RETURNING of", 7); scan {
					_ = row.Scan(&n)
				}
				return nil
			})
			if err == nil {
				t.Errorf("scan %v: a child without a parent was stored", scan)
			}
		}
	})
}

// What is bound is the statement's own, whatever the size, and the same text can be asked again.
func TestBound(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		_ = insert(db, 1, "one")
		for _, size := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 3} {
			text, blob := strings.Repeat("é", size/2), make(bytes, size)
			for i := range blob {
				blob[i] = byte(i)
			}
			err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				query, same := "SELECT 1 WHERE ? = ? AND ? = 'end'", "::text"
				if db.Engine() == sqldb.PostgreSQL {
					query = strings.ReplaceAll(query, "?", "?"+same)
				}
				var n int
				return tx.QueryRow(query, text, text, "end").Scan(&n)
			})
			if err != nil {
				t.Errorf("text of %d: %v", size, err)
			}
			var got []byte
			err = db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				if _, err := tx.Exec("UPDATE item SET data = ?, name = ? WHERE id = ?", blob, text[:min(1000, len(text))], 1); err != nil {
					return err
				}
				var name string
				err := tx.QueryRow("SELECT data, name FROM item WHERE id = ?", 1).Scan(&got, &name)
				if name != text[:min(1000, len(text))] {
					t.Errorf("text of %d: got %d bytes", size, len(name))
				}
				return err
			})
			if err != nil || !slices.Equal(got, blob) {
				t.Errorf("%d bytes: got %d, %v", size, len(got), err)
			}
		}
	})
}

func TestNoStatement(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "store.db"))
	for _, c := range []struct {
		text string
		args []any
	}{
		{"SELECT 1; SELECT 2", nil},
		{"-- nothing", nil},
		{"", nil},
		{"SELECT ?", nil},
		{"SELECT ?", []any{1, 2}},
		{"SELECT", nil},
	} {
		err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			rows, err := tx.Query(c.text, c.args...)
			if err == nil {
				rows.Close()
			}
			return err
		})
		if err == nil {
			t.Errorf("%q with %d arguments ran", c.text, len(c.args))
		}
	}
}

// Each connection is durable and minds foreign keys: SQLite forgets both with the connection.
func TestPragmas(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "store.db"))
	look := func(_ context.Context, tx *sqldb.Tx) error {
		var mode string
		var synchronous, keys, wait int
		err := tx.QueryRow("SELECT journal_mode, synchronous, foreign_keys, timeout FROM pragma_journal_mode, pragma_synchronous, pragma_foreign_keys, pragma_busy_timeout").
			Scan(&mode, &synchronous, &keys, &wait)
		if mode != "wal" || synchronous != 2 || keys != 1 || wait != 10_000 {
			t.Errorf("got journal_mode %s, synchronous %d, foreign_keys %d, busy_timeout %d", mode, synchronous, keys, wait)
		}
		return err
	}
	if err := errors.Join(db.Update(t.Context(), look), db.View(t.Context(), look)); err != nil {
		t.Error(err)
	}
}
