package sqldb_test

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

func TestInsertMany(t *testing.T) {
	type name string
	testenv.EachStore(t, func(t *testing.T, url string) {
		table := func(integer, blob string) *fstest.MapFile {
			return &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE things (id TEXT PRIMARY KEY, n " + integer + " NOT NULL, b " + blob + " NOT NULL);\n")}
		}
		db, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Schema: "bulk", Migrations: fstest.MapFS{
			"sqlite/00001_things.sql": table("INTEGER", "BLOB"), "postgres/00001_things.sql": table("BIGINT", "BYTEA")}})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		insert := func(rows ...[]any) error {
			return db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				return tx.InsertMany("things", []string{"id", "n", "b"}, rows)
			})
		}
		if err := insert(); err != nil {
			t.Errorf("no rows: %v", err)
		}
		if err := insert([]any{name("a"), int64(1), []byte{0, 1}}, []any{name("b"), int64(-2), []byte("x")}, []any{name("c"), int64(3), []byte{255}}); err != nil {
			t.Fatal(err)
		}
		if err := insert([]any{name("d"), int64(4), []byte{}}, []any{name("b"), int64(5), []byte("y")}); !errors.Is(err, sqldb.ErrUnique) {
			t.Errorf("a row twice: %v, want ErrUnique", err)
		}
		var n, sum int64
		var b []byte
		err = db.View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			if err := tx.QueryRow(`SELECT count(*), sum(n) FROM things`).Scan(&n, &sum); err != nil {
				return err
			}
			return tx.QueryRow(`SELECT b FROM things WHERE id = ? AND n = ?`, "a", int64(1)).Scan(&b)
		})
		if err != nil || n != 3 || sum != 2 || string(b) != "\x00\x01" {
			t.Errorf("%d rows, sum %d, blob %x: %v", n, sum, b, err)
		}
	})
}
