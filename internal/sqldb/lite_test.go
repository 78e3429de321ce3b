package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

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
