package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// TestLostUpdate: read, add one, write, from many goroutines and two replicas.
func TestLostUpdate(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		for name, c := range map[string]struct {
			committed bool
			query     string
		}{
			"serializable": {false, "SELECT n FROM counter WHERE id = ?"},
			"locked":       {true, "SELECT n FROM counter WHERE id = ? FOR UPDATE"},
		} {
			t.Run(name, func(t *testing.T) {
				config := func(conf *sqldb.Config) { conf.ReadCommitted = c.committed }
				replicas := []*sqldb.DB{open(t, url, config)}
				if replicas[0].Engine() == sqldb.PostgreSQL {
					replicas = append(replicas, open(t, url, config))
				}
				err := replicas[0].Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					_, err := tx.Exec("INSERT INTO counter (id, n) VALUES (?, 0)", name)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				var done atomic.Int64
				var wg sync.WaitGroup
				for g := range 16 {
					db := replicas[g%len(replicas)]
					wg.Go(func() {
						for i := range 20 {
							// Keys of many writers, to have conflicts within a process too.
							err := db.UpdateKey(t.Context(), fmt.Sprint(g, i), func(_ context.Context, tx *sqldb.Tx) error {
								var n int64
								if err := tx.QueryRow(c.query, name).Scan(&n); err != nil {
									return err
								}
								_, err := tx.Exec("UPDATE counter SET n = ? WHERE id = ?", n+1, name)
								return err
							})
							switch {
							case err == nil:
								done.Add(1)
							case cradle.KindOf(err) != cradle.Busy:
								t.Errorf("got %v, want success or Busy", err)
							}
						}
					})
				}
				wg.Wait()
				var n int64
				err = replicas[0].View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
					return tx.QueryRow("SELECT n FROM counter WHERE id = ?", name).Scan(&n)
				})
				if err != nil || n != done.Load() || n == 0 {
					t.Errorf("got %d, %v, want the %d that were confirmed", n, err, done.Load())
				}
				if c.committed && n != 320 {
					t.Errorf("got %d of 320: row locks alone need no retry", n)
				}
			})
		}
	})
}

// TestDeadlock: two replicas lock two rows in opposite orders; both succeed.
func TestDeadlock(t *testing.T) {
	url := testenv.Postgres(t)
	committed := func(c *sqldb.Config) { c.ReadCommitted = true }
	a, b := open(t, url, committed), open(t, url, committed)
	err := a.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO counter (id, n) VALUES ('x', 0), ('y', 0)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	both.Add(2)
	var wg sync.WaitGroup
	for db, order := range map[*sqldb.DB][2]string{a: {"x", "y"}, b: {"y", "x"}} {
		wg.Go(func() {
			first := true
			err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				for i, id := range order {
					if _, err := tx.Exec("UPDATE counter SET n = n + 1 WHERE id = ?", id); err != nil {
						return err
					}
					if i == 0 && first {
						first = false
						both.Done()
						both.Wait()
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Wait()
	var sum int64
	err = a.View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow("SELECT SUM(n)::bigint FROM counter").Scan(&sum)
	})
	if err != nil || sum != 4 {
		t.Errorf("got sum %d, %v, want 4", sum, err)
	}
}

// TestServerKilled: what was confirmed is there after the server died in the middle; meanwhile the
// answer is Busy; afterwards the same DB works.
func TestServerKilled(t *testing.T) {
	s := testenv.PostgresServer(t)
	db := open(t, s.Database(t))
	for round := range int64(3) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		confirmed := map[int64]bool{}
		started := make(chan struct{})
		var once sync.Once
		stop := make(chan struct{})
		for g := range int64(8) {
			wg.Go(func() {
				for i := int64(0); ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					id := round*1e6 + g*1e5 + i
					err := insert(db, id, fmt.Sprint(id))
					switch {
					case err == nil:
						mu.Lock()
						confirmed[id] = true
						if len(confirmed) > 50 {
							once.Do(func() { close(started) })
						}
						mu.Unlock()
					case cradle.KindOf(err) == cradle.Busy:
						if _, hint := cradle.Public(err); hint == "" {
							t.Errorf("%v has no hint", err)
						}
						return
					default:
						t.Errorf("got %v, want success or Busy", err)
						return
					}
				}
			})
		}
		<-started
		if round%2 == 0 {
			s.Kill()
		} else {
			s.Stop()
		}
		close(stop)
		wg.Wait()
		if err := insert(db, -1, "x"); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("Update without a server: got %v, want Busy", err)
		}
		view := func(context.Context, *sqldb.Tx) error { return nil }
		if err := db.View(t.Context(), view); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("View without a server: got %v, want Busy", err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		for id := range confirmed {
			if err := insert(db, id, "again"); !errors.Is(err, sqldb.ErrUnique) {
				t.Fatalf("row %d was confirmed; now inserting it says %v, want ErrUnique", id, err)
			}
		}
		if err := insert(db, round*1e6+999999, fmt.Sprint("after", round)); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	}
}

// TestServerRestartedBetween: connections that went stale while idle cost nobody an error.
func TestServerRestartedBetween(t *testing.T) {
	s := testenv.PostgresServer(t)
	db := open(t, s.Database(t))
	for i := range int64(3) {
		if err := insert(db, i, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if n := count(t, db); n != i+1 {
			t.Fatalf("got %d rows, want %d", n, i+1)
		}
		s.Kill()
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFull: SQLite's page limit stands in for a full disk, with the same error code.
func TestFull(t *testing.T) {
	db := open(t, t.TempDir()+"/x.db")
	limit := func(pages int) {
		t.Helper()
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			var n int
			return tx.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(20)
	big := func(id int64) error {
		return db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			_, err := tx.Exec("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", id, fmt.Sprint(id), make([]byte, 10000))
			return err
		})
	}
	var stored int64
	var err error
	for ; err == nil && stored < 100; stored++ {
		err = big(stored)
	}
	stored--
	if _, hint := cradle.Public(err); cradle.KindOf(err) != cradle.Busy || hint == "" {
		t.Fatalf("full: got %v, want Busy with a hint", err)
	}
	if n := count(t, db); n != stored {
		t.Errorf("got %d rows, want %d", n, stored)
	}
	if err := db.Writable(t.Context()); cradle.KindOf(err) != cradle.Busy {
		t.Errorf("full: writable: %v, want Busy", err)
	}
	limit(1000)
	if err := big(stored); err != nil {
		t.Errorf("with space again: %v", err)
	}
	testenv.Eventually(t, "the store to be writable", func() bool { return db.Writable(t.Context()) == nil })
	err = db.View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow("SELECT 1 FROM writable_trial").Scan(new(int))
	})
	if err == nil {
		t.Error("a trial has left its table")
	}
}

// TestCarry: the batch reads and writes the shared row once, and a failing neighbour leaves no trace in it.
func TestCarry(t *testing.T) {
	eachWay(t, func(t *testing.T, url string, batch batcher) {
		db := open(t, url)
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			_, err := tx.Exec("INSERT INTO counter (id, n) VALUES ('head', 0)")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var loads, saves atomic.Int64
		bump := func(id int64, name string, refuse error) func(context.Context, *sqldb.Tx) error {
			return func(_ context.Context, tx *sqldb.Tx) error {
				v, err := tx.Carry("head", func(tx *sqldb.Tx) (any, error) {
					loads.Add(1)
					n := new(int64)
					return n, tx.QueryRow("SELECT n FROM counter WHERE id = 'head' FOR UPDATE").Scan(n)
				}, func(tx *sqldb.Tx, v any) error {
					saves.Add(1)
					return tx.Queue("UPDATE counter SET n = ? WHERE id = ?", *v.(*int64), "head")
				})
				if err != nil {
					return err
				}
				*v.(*int64)++
				if err := tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", id, name); err != nil {
					return err
				}
				return refuse
			}
		}
		head := func() (n int64) {
			err := db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				return tx.QueryRow("SELECT n FROM counter WHERE id = 'head'").Scan(&n)
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		var all []func(context.Context, *sqldb.Tx) error
		for i := range int64(50) {
			all = append(all, bump(i, fmt.Sprint(i), nil))
		}
		for _, err := range batch(t, db, all...) {
			if err != nil {
				t.Error(err)
			}
		}
		if head() != 50 || loads.Load() != 1 || saves.Load() != 1 {
			t.Errorf("got head %d after %d loads and %d saves, want 50, 1, 1", head(), loads.Load(), saves.Load())
		}
		no := errors.New("no")
		errs := batch(t, db, bump(100, "100", nil), bump(101, "101", no), bump(102, "0", nil), bump(103, "103", nil))
		if errs[0] != nil || !errors.Is(errs[1], no) || !errors.Is(errs[2], sqldb.ErrUnique) || errs[3] != nil {
			t.Errorf("got %v, want the second and third refused", errs)
		}
		if n := count(t, db); head() != 52 || n != 52 {
			t.Errorf("got head %d and %d rows, want 52", head(), n)
		}
		// Saving fails: each is asked alone and told.
		bad := func(_ context.Context, tx *sqldb.Tx) error {
			_, err := tx.Carry("bad", func(*sqldb.Tx) (any, error) { return nil, nil }, func(tx *sqldb.Tx, _ any) error { return no })
			if err == nil {
				err = tx.Queue("DELETE FROM item")
			}
			return err
		}
		errs = batch(t, db, bump(104, "104", nil), bad, bump(105, "105", nil))
		if errs[0] != nil || !errors.Is(errs[1], no) || errs[2] != nil {
			t.Errorf("got %v, want only the second refused", errs)
		}
		if n := count(t, db); head() != 54 || n != 54 {
			t.Errorf("got head %d and %d rows, want 54", head(), n)
		}
	})
}

func TestQueueKeepsOrder(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		var n int64
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			for i := range int64(5) {
				if err := tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", i, fmt.Sprint(i)); err != nil {
					return err
				}
			}
			if err := tx.QueryRow("SELECT COUNT(*) FROM item").Scan(&n); err != nil {
				return err
			}
			return tx.Queue("DELETE FROM item WHERE id < ?", 3)
		})
		if err != nil || n != 5 {
			t.Fatalf("inside: got %d rows, %v, want 5", n, err)
		}
		if n := count(t, db); n != 2 {
			t.Errorf("after: got %d rows, want 2", n)
		}
	})
}

func TestRewrite(t *testing.T) {
	for _, c := range []struct {
		engine sqldb.Engine
		in     string
		want   string
		reads  bool
	}{
		{sqldb.SQLite, " SELECT a FROM b WHERE c = ? FOR UPDATE\n", "SELECT a FROM b WHERE c = ?", true},
		{sqldb.SQLite, "select a from b for share", "select a from b", true},
		{sqldb.SQLite, "SELECT a FROM b FOR UPDATE SKIP LOCKED", "SELECT a FROM b", true},
		{sqldb.PostgreSQL, "SELECT a FROM b WHERE c = ? AND d = ? FOR UPDATE", "SELECT a FROM b WHERE c = $1 AND d = $2 FOR UPDATE", true},
		{sqldb.PostgreSQL, "INSERT INTO a VALUES (?,?,?)", "INSERT INTO a VALUES ($1,$2,$3)", false},
		{sqldb.PostgreSQL, "WITH x AS (DELETE FROM a RETURNING b) SELECT b FROM x", "WITH x AS (DELETE FROM a RETURNING b) SELECT b FROM x", false},
	} {
		if got, reads := sqldb.Rewrite(c.engine, c.in); got != c.want || reads != c.reads {
			t.Errorf("%v %q: got %q, %v, want %q, %v", c.engine, c.in, got, reads, c.want, c.reads)
		}
	}
}

// TestQueueNeighbours: a queued statement that fails costs its own function alone, although its error shows when
// another one asks for a result.
func TestQueueNeighbours(t *testing.T) {
	eachWay(t, func(t *testing.T, url string, batch batcher) {
		db := open(t, url)
		if err := insert(db, 1, "taken"); err != nil {
			t.Fatal(err)
		}
		var seen [4]int64
		put := func(id int64, name string) func(context.Context, *sqldb.Tx) error {
			return func(_ context.Context, tx *sqldb.Tx) error {
				return tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", id, name)
			}
		}
		look := func(n *int64) func(context.Context, *sqldb.Tx) error {
			return func(_ context.Context, tx *sqldb.Tx) error {
				if err := tx.QueryRow("SELECT COUNT(*) FROM item").Scan(n); err != nil {
					return cradle.Errorf(cradle.Conflict, "an answer of its own")
				}
				return tx.Queue("UPDATE item SET name = name WHERE id = 1")
			}
		}
		errs := batch(t, db, put(2, "good"), look(&seen[0]), put(3, "taken"), look(&seen[1]), put(4, "fine"), look(&seen[2]))
		for i, err := range errs {
			if want := i == 2; errors.Is(err, sqldb.ErrUnique) != want || !want && err != nil {
				t.Errorf("function %d: got %v", i, err)
			}
		}
		if n := count(t, db); n != 3 || seen[2] != 3 {
			t.Errorf("got %d rows, of which the last function saw %d; want 3", n, seen[2])
		}
	})
}
