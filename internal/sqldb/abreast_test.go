package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// TestAbreast: what functions about different things ask travels together on PostgreSQL, and each gets its own answers.
func TestAbreast(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		var steps []string // of the last run
		about := func(id int64, name string) func(context.Context, *sqldb.Tx) error {
			return func(_ context.Context, tx *sqldb.Tx) error {
				steps = append(steps, "ask "+name)
				if n, err := tx.Exec("INSERT INTO item (id, name, data) VALUES (?, ?, ?), (?, ?, NULL)", id, name, []byte{}, id+1, name+"'"); err != nil || n != 2 {
					return fmt.Errorf("%d, %w", n, err)
				}
				steps = append(steps, "told "+name)
				rows, err := tx.Query("SELECT name, data IS NULL FROM item WHERE id IN (?, ?) ORDER BY id", id, id+1)
				if err != nil {
					return err
				}
				defer rows.Close()
				var got string
				for rows.Next() {
					var s string
					var null bool
					if err := rows.Scan(&s, &null); err != nil {
						return err
					}
					got += fmt.Sprint(s, null, " ")
				}
				if want := name + "false " + name + "'true "; got != want || rows.Err() != nil {
					return fmt.Errorf("got %q, %v, want %q", got, rows.Err(), want)
				}
				var none int64
				if rows, err := tx.Query("SELECT id FROM item WHERE id = -1"); err != nil || rows.Next() {
					return fmt.Errorf("a row that is not there: %w", err)
				} else {
					rows.Close()
				}
				if err := tx.QueryRow("SELECT id FROM item WHERE name = ?", name+"'").Scan(&none); err != nil || none != id+1 {
					return fmt.Errorf("got %d, %w", none, err)
				}
				return tx.Queue("UPDATE item SET name = ? WHERE id = ?", name+"!", id)
			}
		}
		before := db.Stats().Commits
		for i, err := range abreast(t, db, about(10, "a"), about(20, "b"), about(30, "c")) {
			if err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		}
		want := "ask a, told a, ask b, told b, ask c, told c"
		if db.Engine() == sqldb.PostgreSQL {
			want = "ask a, ask b, ask c, told a, told b, told c"
		}
		if got := strings.Join(steps, ", "); got != want || db.Stats().Commits != before+1 || count(t, db) != 6 {
			t.Errorf("got %s in %d commits, want %s in one", got, db.Stats().Commits-before, want)
		}
		steps = nil
		order := []string{"x", "y", "x", "", "z", "x"}
		batchAbout(t, db, func(i int) string { return order[i] }, about(40, "d"), about(50, "e"), about(60, "f"), about(70, "g"), about(80, "h"), about(90, "i"))
		want = "ask d, told d, ask e, told e, ask f, told f, ask g, told g, ask h, told h, ask i, told i"
		if db.Engine() == sqldb.PostgreSQL {
			want = "ask d, ask e, told d, told e, ask f, told f, ask g, told g, ask h, ask i, told h, told i"
		}
		if got := strings.Join(steps, ", "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// TestAbreastSameThing: functions about the same thing never overlap, so that they need no lock between them.
func TestAbreastSameThing(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		var adds []func(context.Context, *sqldb.Tx) error
		things := []string{"x", "y", "z", ""}
		for i := range 80 {
			adds = append(adds, func(_ context.Context, tx *sqldb.Tx) error {
				for _, thing := range things { // "" is about all of them
					if things[i%4] != "" && thing != things[i%4] {
						continue
					}
					var n int64
					tx.QueryRow("SELECT n FROM counter WHERE id = ?", thing).Scan(&n) // 0 at first
					if _, err := tx.Exec("INSERT INTO counter (id, n) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET n = excluded.n", thing, n+1); err != nil {
						return err
					}
				}
				return nil
			})
		}
		for i, err := range batchAbout(t, db, func(i int) string { return things[i%4] }, adds...) {
			if err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		}
		err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			for i, want := range []int64{40, 40, 40, 20} {
				var n int64
				if err := tx.QueryRow("SELECT n FROM counter WHERE id = ?", things[i]).Scan(&n); err != nil || n != want {
					t.Errorf("%q: got %d, %v, want %d", things[i], n, err, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestAbreastCarry: a value is loaded once also when its loading asks, and again when that was refused.
func TestAbreastCarry(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		if err := insert(db, 1, "head"); err != nil {
			t.Fatal(err)
		}
		loads, refuse := 0, errors.New("refused")
		use := func(id int64, fails bool) func(context.Context, *sqldb.Tx) error {
			return func(_ context.Context, tx *sqldb.Tx) error {
				v, err := tx.Carry("head", func(tx *sqldb.Tx) (any, error) {
					loads++
					n := new(int64)
					for range 2 {
						if err := tx.QueryRow("SELECT id FROM item WHERE name = ?", "head").Scan(n); err != nil {
							return nil, err
						}
					}
					if fails {
						return nil, refuse
					}
					return n, nil
				}, func(tx *sqldb.Tx, v any) error {
					return tx.Queue("UPDATE item SET data = ? WHERE id = 1", []byte(fmt.Sprint(*v.(*int64))))
				})
				if err != nil {
					return err
				}
				*v.(*int64)++
				return tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", id, fmt.Sprint(id))
			}
		}
		errs := abreast(t, db, use(10, true), use(20, false), use(30, false), use(40, true))
		for i, want := range []error{refuse, nil, nil, nil} {
			if !errors.Is(errs[i], want) {
				t.Errorf("function %d: got %v, want %v", i, errs[i], want)
			}
		}
		var head string
		err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			var b []byte
			err := tx.QueryRow("SELECT data FROM item WHERE id = 1").Scan(&b)
			head = string(b)
			return err
		})
		if err != nil || head != "4" || loads != 2 || count(t, db) != 4 {
			t.Errorf("got head %s, %v after %d loads and %d rows, want 4, 2, 4", head, err, loads, count(t, db))
		}
	})
}

// TestAbreastFaults: whatever functions do, each one's outcome is its own, and the store has what the others wrote.
func TestAbreastFaults(t *testing.T) {
	no := errors.New("no")
	const ask = "SELECT COUNT(*) FROM item"
	put := func(tx *sqldb.Tx, id int64) error {
		_, err := tx.Exec("INSERT INTO item (id, name) VALUES (?, ?)", id, fmt.Sprint(id))
		return err
	}
	var n int64
	kinds := []struct {
		name string
		rows int64
		fn   func(tx *sqldb.Tx, id int64) error
		ends func(error) bool
	}{
		{"writes", 1, put, func(err error) bool { return err == nil }},
		{"reads and queues", 1, func(tx *sqldb.Tx, id int64) error {
			if err := tx.QueryRow(ask).Scan(&n); err != nil {
				return err
			}
			return tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", id, fmt.Sprint(id))
		}, func(err error) bool { return err == nil }},
		{"does nothing", 0, func(*sqldb.Tx, int64) error { return nil }, func(err error) bool { return err == nil }},
		{"refuses", 0, func(*sqldb.Tx, int64) error { return no }, func(err error) bool { return errors.Is(err, no) }},
		{"refuses after reading", 0, func(tx *sqldb.Tx, _ int64) error { return errors.Join(tx.QueryRow(ask).Scan(&n), no) }, func(err error) bool { return errors.Is(err, no) }},
		{"refuses after writing", 0, func(tx *sqldb.Tx, id int64) error { return errors.Join(put(tx, id), no) }, func(err error) bool { return errors.Is(err, no) }},
		{"refuses after queueing", 0, func(tx *sqldb.Tx, id int64) error {
			return errors.Join(tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", id, fmt.Sprint(id)), no)
		}, func(err error) bool { return errors.Is(err, no) }},
		{"writes what is there", 0, func(tx *sqldb.Tx, id int64) error { return errors.Join(put(tx, id), put(tx, -1)) }, func(err error) bool { return errors.Is(err, sqldb.ErrUnique) }},
		{"queues what is there", 0, func(tx *sqldb.Tx, id int64) error {
			return errors.Join(put(tx, id), tx.Queue("INSERT INTO item (id, name) VALUES (-1, 'x')"))
		}, func(err error) bool { return errors.Is(err, sqldb.ErrUnique) }},
		{"swallows an error", 0, func(tx *sqldb.Tx, id int64) error { put(tx, -1); return put(tx, id) }, func(err error) bool { return err != nil }},
		{"no such table", 0, func(tx *sqldb.Tx, id int64) error { put(tx, id); return tx.QueryRow("SELECT * FROM nothing").Scan(&n) }, func(err error) bool { return err != nil }},
		{"panics", 0, func(tx *sqldb.Tx, id int64) error { put(tx, id); panic("help") }, func(err error) bool { return err != nil && err.Error() == "panic: help" }},
	}
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url, func(c *sqldb.Config) { c.ReadCommitted = true })
		if err := insert(db, -1, "-1"); err != nil {
			t.Fatal(err)
		}
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		next, want := int64(0), int64(1)
		for round := range 40 {
			var chosen []int
			if round < len(kinds) { // each once between two that write
				chosen = []int{0, round, 1}
			} else {
				for range 1 + random.IntN(12) {
					chosen = append(chosen, random.IntN(len(kinds)))
				}
			}
			var fns []func(context.Context, *sqldb.Tx) error
			for _, k := range chosen {
				next++
				id := next
				want += kinds[k].rows
				fns = append(fns, func(_ context.Context, tx *sqldb.Tx) error { return kinds[k].fn(tx, id) })
			}
			things := random.Perm(len(chosen))
			errs := batchAbout(t, db, func(i int) string { return []string{"", "a", "b", "c", "d", "e", "f"}[things[i]%7] }, fns...)
			for i, k := range chosen {
				if !kinds[k].ends(errs[i]) {
					t.Errorf("seed %d, round %d %v: %q ended with %v", seed, round, chosen, kinds[k].name, errs[i])
				}
			}
			if got := count(t, db); got != want {
				t.Fatalf("seed %d, round %d %v: got %d rows, want %d", seed, round, chosen, got, want)
			}
		}
		if slices.ContainsFunc(abreast(t, db, add(next+1, "last"), add(next+2, "one")), func(err error) bool { return err != nil }) {
			t.Error("the store does not work any more")
		}
	})
}
