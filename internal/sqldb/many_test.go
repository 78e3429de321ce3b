package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

var (
	addMany = sqldb.NewMany(`id bigint, name text, data bytea`, `,
		i AS (INSERT INTO item (id, name, data) SELECT id, name, data FROM asked ON CONFLICT (id) DO NOTHING RETURNING id, xmin::text)
		SELECT n, i.id, asked.name, asked.data, i.xmin, (SELECT count(*) FROM asked) FROM asked JOIN i USING (id)`)
	strictMany = sqldb.NewMany(`id bigint, name text`, ` INSERT INTO item (id, name) SELECT id, name FROM asked`)
	onlyMany   = sqldb.NewMany(`id bigint`, ` SELECT n FROM asked JOIN item USING (id)`)
	renameMany = sqldb.NewMany(`id bigint, name text`, ` UPDATE item SET name = asked.name FROM asked WHERE item.id = asked.id`)
)

type kind string // of text, as the typed ids

// TestMany: what functions of a batch ask of a Many is one statement, and each gets its own row, or none.
func TestMany(t *testing.T) {
	testenv.OnPostgres(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		if err := insert(db, 3, "there before"); err != nil {
			t.Fatal(err)
		}
		var together [5]int64
		add := func(i int64) func(context.Context, *sqldb.Tx) error {
			return func(_ context.Context, tx *sqldb.Tx) error {
				var id int64
				var name, xmin string
				var data []byte
				err := tx.AskMany(addMany, i, kind(fmt.Sprint("name", i)), []byte{byte(i)}).Scan(&id, &name, &data, &xmin, &together[i])
				if i == 3 {
					if !errors.Is(err, sql.ErrNoRows) {
						return fmt.Errorf("row 3 is there already: %v", err)
					}
					return nil
				}
				if err != nil || id != i || name != fmt.Sprint("name", i) || len(data) != 1 || data[0] != byte(i) {
					return fmt.Errorf("function %d got %d, %s, %x, %w", i, id, name, data, err)
				}
				if err := tx.AskMany(onlyMany, i).Scan(); err != nil {
					return fmt.Errorf("a row without columns: %w", err)
				}
				tx.QueueMany(renameMany, i, kind(name+"!")) // behind the insert,
				tx.QueueMany(renameMany, i, name+"?")       // and behind that
				return nil
			}
		}
		for i, err := range abreast(t, db, add(0), add(1), add(2), add(3), add(4)) {
			if err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		}
		if together != [5]int64{5, 5, 5, 0, 5} {
			t.Errorf("asked together with %v", together)
		}
		if got := names(t, db); got != "name0? name1? name2? there before name4?" {
			t.Errorf("got %s", got)
		}
		// Alone, and about the same thing, they are statements of their own.
		together = [5]int64{}
		if _, err := run(db, "DELETE FROM item"); err != nil {
			t.Fatal(err)
		}
		for i, err := range batchAbout(t, db, func(i int) string { return []string{"x", "x", ""}[i] }, add(0), add(1), add(2)) {
			if err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		}
		if together != [5]int64{1, 1, 1} {
			t.Errorf("asked together with %v", together)
		}
		if got := names(t, db); got != "name0? name1? name2?" {
			t.Errorf("got %s", got)
		}
	})
}

// TestWritersSeek: a Many's plan is made for a table that is empty and must serve a large one.
func TestWritersSeek(t *testing.T) {
	testenv.OnPostgres(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		explain := func(_ context.Context, tx *sqldb.Tx) error {
			rows, err := tx.Query("EXPLAIN UPDATE item SET name = 'x' FROM generate_series(1, 1000) AS asked (id) WHERE item.id = asked.id")
			if err != nil {
				return err
			}
			defer rows.Close()
			var plan, line string
			for rows.Next() {
				if err := rows.Scan(&line); err != nil {
					return err
				}
				plan += line + "\n"
			}
			if !strings.Contains(plan, "Nested Loop") || !strings.Contains(plan, "Index Scan using item_pkey") || strings.Contains(plan, "Seq Scan on item") {
				return fmt.Errorf("the plan is\n%s", plan)
			}
			return rows.Err()
		}
		if err := db.Update(t.Context(), explain); err != nil {
			t.Error(err)
		}
		var mode string
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error { return tx.QueryRow("SHOW plan_cache_mode").Scan(&mode) })
		if err != nil || mode != "force_generic_plan" {
			t.Errorf("plans are %q, %v", mode, err)
		}
	})
}

// TestManyFails: when a set fails nobody knows whose row it was, so that each function is run alone.
func TestManyFails(t *testing.T) {
	testenv.OnPostgres(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		for name, ask := range map[string]func(tx *sqldb.Tx, id int64, name string) error{
			"asked": func(tx *sqldb.Tx, id int64, name string) error {
				if err := tx.AskMany(strictMany, id, name).Scan(); !errors.Is(err, sql.ErrNoRows) {
					return err
				}
				return nil
			},
			"queued": func(tx *sqldb.Tx, id int64, name string) error {
				tx.QueueMany(strictMany, id, name)
				return nil
			},
		} {
			if _, err := run(db, "DELETE FROM item"); err != nil {
				t.Fatal(err)
			}
			var fs []func(context.Context, *sqldb.Tx) error
			for i := range int64(6) {
				fs = append(fs, func(_ context.Context, tx *sqldb.Tx) error { return ask(tx, i, fmt.Sprint(i%5)) })
			}
			for i, err := range abreast(t, db, fs...) {
				if i == 5 && !errors.Is(err, sqldb.ErrUnique) || i != 5 && err != nil {
					t.Errorf("%s: function %d: %v", name, i, err)
				}
			}
			if got := names(t, db); got != "0 1 2 3 4" {
				t.Errorf("%s: got %s", name, got)
			}
		}
	})
}

func run(db *sqldb.DB, query string) (n int64, err error) {
	err = db.Update(context.Background(), func(_ context.Context, tx *sqldb.Tx) error {
		n, err = tx.Exec(query)
		return err
	})
	return n, err
}

func names(t *testing.T, db *sqldb.DB) string {
	t.Helper()
	var out []string
	err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		out = nil
		rows, err := tx.Query("SELECT name FROM item ORDER BY id")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var s string
			if err := rows.Scan(&s); err != nil {
				return err
			}
			out = append(out, s)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}
