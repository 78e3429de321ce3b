package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

func find(db *sqldb.DB, id int64) (name string, err error) {
	err = db.Find(context.Background(), func(_ context.Context, tx *sqldb.Tx) error {
		name = ""
		return tx.QueryRow("SELECT name FROM item WHERE id = ?", id).Scan(&name)
	})
	return name, err
}

// TestFind: each who looks something up gets its own answer, however many do, and what was stored before is seen.
func TestFind(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		var wg sync.WaitGroup
		for w := range int64(8) {
			wg.Go(func() {
				for i := range int64(40) {
					id := w*1000 + i
					if _, err := find(db, id); !errors.Is(err, sql.ErrNoRows) {
						t.Errorf("%d before it is stored: got %v, want ErrNoRows", id, err)
					}
					if err := insert(db, id, fmt.Sprint("n", id)); err != nil {
						t.Error(err)
					}
					if name, err := find(db, id); err != nil || name != fmt.Sprint("n", id) {
						t.Errorf("%d: got %q, %v", id, name, err)
					}
				}
			})
		}
		wg.Wait()
		// Two statements, the second by what the first said, and several rows.
		for range 20 {
			wg.Go(func() {
				n := 0
				err := db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					n = 0
					var name string
					if err := tx.QueryRow("SELECT name FROM item WHERE id = ?", 1003).Scan(&name); err != nil {
						return err
					}
					rows, err := tx.Query("SELECT id FROM item WHERE name = ? OR id IN (1004, 1005)", name)
					if err != nil {
						return err
					}
					defer rows.Close()
					for ; rows.Next(); n++ {
						var id int64
						if err := rows.Scan(&id); err != nil {
							return err
						}
					}
					return rows.Err()
				})
				if err != nil || n != 3 {
					t.Errorf("got %d rows, %v; want 3", n, err)
				}
			})
		}
		wg.Wait()
	})
}

// TestFindFaults: a function that fails, panics, sends what the database refuses or gives up costs nobody else.
func TestFindFaults(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		if err := insert(db, 1, "a"); err != nil {
			t.Fatal(err)
		}
		mine := errors.New("mine")
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 10 {
					if name, err := find(db, 1); err != nil || name != "a" {
						t.Errorf("a neighbour got %q, %v", name, err)
					}
				}
			})
			wg.Go(func() {
				err := db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					var n int64
					_ = tx.QueryRow("SELECT count(*) FROM item").Scan(&n)
					return mine
				})
				if !errors.Is(err, mine) {
					t.Errorf("got %v, want the function's own error", err)
				}
			})
			wg.Go(func() {
				var n int64
				err := db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					return tx.QueryRow("SELECT n FROM nowhere").Scan(&n)
				})
				if err == nil || errors.Is(err, sql.ErrNoRows) {
					t.Errorf("a statement that fails: got %v", err)
				}
			})
			wg.Go(func() {
				err := db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					_ = tx.QueryRow("SELECT n FROM nowhere").Err()
					return nil
				})
				if err == nil {
					t.Error("a failure that the function swallowed is no failure")
				}
			})
			wg.Go(func() {
				defer func() {
					if p := recover(); p != "boom" {
						t.Errorf("got panic %v, want boom", p)
					}
				}()
				_ = db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					var n int64
					_ = tx.QueryRow("SELECT count(*) FROM item").Scan(&n)
					panic("boom")
				})
			})
			wg.Go(func() {
				err := db.Find(ended, func(context.Context, *sqldb.Tx) error { return nil })
				if !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want Canceled", err)
				}
			})
		}
		wg.Wait()
		// Alone, each on the connection that is free.
		for i := range 3 {
			func() {
				defer func() { _ = recover() }()
				_ = db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					if _, err := tx.Query("SELECT id FROM item"); err != nil { // left open
						return err
					}
					panic("boom")
				})
			}()
			var n int64
			err := db.Find(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				return tx.QueryRow("SELECT n FROM nowhere").Scan(&n)
			})
			if err == nil || errors.Is(err, sql.ErrNoRows) {
				t.Errorf("a statement that fails: got %v", err)
			}
			if name, err := find(db, 1); err != nil || name != "a" {
				t.Errorf("afterwards %d: got %q, %v", i, name, err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := find(db, 1); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("closed: got %v, want Busy", err)
		}
	})
}

// TestFindServerRestarted: a connection that went stale costs nobody an error, and a server that is away is Busy.
func TestFindServerRestarted(t *testing.T) {
	s := testenv.PostgresServer(t)
	db := open(t, s.Database(t))
	if err := insert(db, 1, "a"); err != nil {
		t.Fatal(err)
	}
	all := func(check func(name string, err error)) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { check(find(db, 1)) })
		}
		wg.Wait()
	}
	there := func(name string, err error) {
		if err != nil || name != "a" {
			t.Errorf("got %q, %v", name, err)
		}
	}
	for range 3 {
		all(there)
		s.Kill()
		all(func(_ string, err error) {
			if cradle.KindOf(err) != cradle.Busy {
				t.Errorf("without a server: got %v, want Busy", err)
			}
		})
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		all(there)
		s.Kill()
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
}
