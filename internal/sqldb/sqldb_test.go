package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

const (
	version1 = `-- +goose Up
CREATE TABLE counter (id TEXT PRIMARY KEY, n BIGINT NOT NULL);
CREATE TABLE item (id BIGINT PRIMARY KEY, name TEXT NOT NULL UNIQUE, data %s);
-- +goose Down
DROP TABLE counter;
DROP TABLE item;
`
	version2 = `-- +goose Up
CREATE TABLE more (id BIGINT PRIMARY KEY);
-- +goose Down
DROP TABLE more;
`
)

func migrations(versions int) fstest.MapFS {
	m := fstest.MapFS{}
	for engine, blob := range map[string]string{"sqlite": "BLOB", "postgres": "BYTEA"} {
		m[engine+"/00001_first.sql"] = &fstest.MapFile{Data: []byte(fmt.Sprintf(version1, blob))}
		if versions > 1 {
			m[engine+"/00002_more.sql"] = &fstest.MapFile{Data: []byte(version2)}
		}
	}
	return m
}

func open(t *testing.T, url string, change ...func(*sqldb.Config)) *sqldb.DB {
	t.Helper()
	c := sqldb.Config{URL: url, Schema: "thing", Migrations: migrations(1)}
	for _, f := range change {
		f(&c)
	}
	db, err := sqldb.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

func insert(db *sqldb.DB, id int64, name string) error {
	return db.Update(context.Background(), func(_ context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", id, name, []byte(name))
		return err
	})
}

func count(t *testing.T, db *sqldb.DB) (n int64) {
	t.Helper()
	err := db.View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM item").Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWriteAndRead(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		if want := sqldb.EngineOf(url); db.Engine() != want {
			t.Fatalf("got engine %v, want %v", db.Engine(), want)
		}
		for i := range int64(10) {
			if err := insert(db, i, fmt.Sprint("name", i)); err != nil {
				t.Fatal(err)
			}
		}
		type row struct {
			id   int64
			name string
			data []byte
		}
		for name, read := range map[string]func(context.Context, func(context.Context, *sqldb.Tx) error) error{"View": db.View, "Read": db.Read} {
			var got []row
			err := read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				got = nil
				rows, err := tx.Query("SELECT id, name, data FROM item WHERE id >= ? AND id < ? ORDER BY id", 3, 6)
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var r row
					if err := rows.Scan(&r.id, &r.name, &r.data); err != nil {
						return err
					}
					got = append(got, r)
				}
				return rows.Err()
			})
			if err != nil || len(got) != 3 || got[0].id != 3 || got[2].name != "name5" || string(got[1].data) != "name4" {
				t.Errorf("%s: got %v, %v", name, got, err)
			}
		}
	})
}

func TestValuesSurvive(t *testing.T) {
	// NULL, empty blob and a long text are told apart, on both engines alike.
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		long := string(make([]byte, 0))
		for range 1000 {
			long += "ü€\u0001"
		}
		for i, data := range [][]byte{nil, {}, []byte("\x00\xff"), []byte(long)} {
			err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				_, err := tx.Exec("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", i, fmt.Sprint(i, long), data)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			var name string
			var null bool
			err = db.Read(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				return tx.QueryRow("SELECT data, name, data IS NULL FROM item WHERE id = ?", i).Scan(&got, &name, &null)
			})
			if err != nil || string(got) != string(data) || null != (data == nil) || name != fmt.Sprint(i, long) {
				t.Errorf("row %d: got %q, NULL %v, %v, want %q", i, got, null, err, data)
			}
		}
	})
}

func TestUnique(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		if err := insert(db, 1, "a"); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			id   int64
			name string
		}{{1, "b"}, {2, "a"}} {
			if err := insert(db, c.id, c.name); !errors.Is(err, sqldb.ErrUnique) {
				t.Errorf("%v: got %v, want ErrUnique", c, err)
			}
		}
		// By RETURNING, the error comes from the row.
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			var id int64
			return tx.QueryRow("INSERT INTO item (id, name) VALUES (3, 'a') RETURNING id").Scan(&id)
		})
		if !errors.Is(err, sqldb.ErrUnique) {
			t.Errorf("RETURNING: got %v, want ErrUnique", err)
		}
		err = db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			return tx.Queue("INSERT INTO item (id, name) VALUES (?, ?)", 3, "a")
		})
		if !errors.Is(err, sqldb.ErrUnique) {
			t.Errorf("queued: got %v, want ErrUnique", err)
		}
		// The function makes an answer of its own of it.
		err = db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			if _, err := tx.Exec("INSERT INTO item (id, name) VALUES (?, ?)", 3, "a"); errors.Is(err, sqldb.ErrUnique) {
				return cradle.Errorf(cradle.Conflict, "taken")
			}
			return nil
		})
		if cradle.KindOf(err) != cradle.Conflict {
			t.Errorf("got %v, want Conflict", err)
		}
		if n := count(t, db); n != 1 {
			t.Errorf("got %d rows, want 1", n)
		}
	})
}

// TestSwallowedError: a function that goes on after a failed statement must not commit half its work.
func TestSwallowedError(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		if err := insert(db, 1, "a"); err != nil {
			t.Fatal(err)
		}
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			tx.Exec("INSERT INTO item (id, name) VALUES (2, 'b')")
			tx.Exec("INSERT INTO item (id, name) VALUES (3, 'a')")
			return nil
		})
		if !errors.Is(err, sqldb.ErrUnique) {
			t.Errorf("got %v, want ErrUnique", err)
		}
		if n := count(t, db); n != 1 {
			t.Errorf("got %d rows, want 1", n)
		}
	})
}

// batch makes the updates run in one batch: the first one holds the writer until all are queued.
func batch(t *testing.T, db *sqldb.DB, updates ...func(context.Context, *sqldb.Tx) error) []error {
	t.Helper()
	return batchAbout(t, db, func(int) string { return "" }, updates...)
}

// abreast is batch with each update about a thing of its own.
func abreast(t *testing.T, db *sqldb.DB, updates ...func(context.Context, *sqldb.Tx) error) []error {
	t.Helper()
	return batchAbout(t, db, func(i int) string { return fmt.Sprint("thing ", i) }, updates...)
}

// batchAbout is batch with updates that are about what of says.
func batchAbout(t *testing.T, db *sqldb.DB, of func(i int) string, updates ...func(context.Context, *sqldb.Tx) error) []error {
	t.Helper()
	errs := make([]error, len(updates))
	entered, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var once sync.Once
	wg.Go(func() {
		db.Update(context.Background(), func(context.Context, *sqldb.Tx) error {
			once.Do(func() { close(entered) })
			<-release
			return nil
		})
	})
	<-entered
	for i, f := range updates {
		queued := sqldb.Queued(db)
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					errs[i] = fmt.Errorf("panic: %v", p)
				}
			}()
			errs[i] = db.UpdateApart(context.Background(), "", of(i), f)
		})
		for sqldb.Queued(db) == queued { // one after the other, so that their order is known
			sqldb.Yield()
		}
	}
	close(release)
	wg.Wait()
	return errs
}

type batcher func(*testing.T, *sqldb.DB, ...func(context.Context, *sqldb.Tx) error) []error

// eachWay runs f on each store with updates of a batch that run in turn, and with such that may run abreast.
func eachWay(t *testing.T, f func(t *testing.T, url string, batch batcher)) {
	t.Run("in turn", func(t *testing.T) {
		testenv.EachStore(t, func(t *testing.T, url string) { f(t, url, batch) })
	})
	t.Run("abreast", func(t *testing.T) {
		testenv.EachStore(t, func(t *testing.T, url string) { f(t, url, abreast) })
	})
}

func add(id int64, name string) func(context.Context, *sqldb.Tx) error {
	return func(_ context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO item (id, name) VALUES (?, ?)", id, name)
		return err
	}
}

func TestGroupCommit(t *testing.T) {
	eachWay(t, func(t *testing.T, url string, batch batcher) {
		db := open(t, url)
		before := db.Stats()
		var updates []func(context.Context, *sqldb.Tx) error
		for i := range int64(100) {
			updates = append(updates, add(i, fmt.Sprint(i)))
		}
		for i, err := range batch(t, db, updates...) {
			if err != nil {
				t.Errorf("update %d: %v", i, err)
			}
		}
		after := db.Stats()
		if got := after.Updates - before.Updates; got != 101 {
			t.Errorf("got %d updates, want 101", got)
		}
		if got := after.Commits - before.Commits; got != 1 {
			t.Errorf("got %d commits for 101 updates, want 1", got)
		}
		if n := count(t, db); n != 100 {
			t.Errorf("got %d rows, want 100", n)
		}
	})
}

func TestFailureIsTheCallersOnly(t *testing.T) {
	eachWay(t, func(t *testing.T, url string, batch batcher) {
		db := open(t, url)
		mine := errors.New("mine")
		refuse := func(context.Context, *sqldb.Tx) error { return mine }
		undo := func(_ context.Context, tx *sqldb.Tx) error {
			if err := add(90, "ninety")(nil, tx); err != nil {
				return err
			}
			return mine
		}
		panics := func(_ context.Context, tx *sqldb.Tx) error {
			add(91, "ninety-one")(nil, tx)
			panic("mine")
		}
		recovered := func() (r any) {
			defer func() { r = recover() }()
			db.Update(t.Context(), panics)
			return nil
		}
		if got := recovered(); got != "mine" {
			t.Errorf("got panic %v in the caller, want mine", got)
		}
		errs := batch(t, db, add(1, "a"), refuse, add(2, "b"), undo, add(3, "a"), undo, add(4, "d"), add(5, "a"), add(6, "f"))
		want := []error{nil, mine, nil, mine, sqldb.ErrUnique, mine, nil, sqldb.ErrUnique, nil}
		for i := range want {
			if !errors.Is(errs[i], want[i]) {
				t.Errorf("update %d: got %v, want %v", i, errs[i], want[i])
			}
		}
		if n := count(t, db); n != 4 {
			t.Errorf("got %d rows, want 4", n)
		}
	})
}

// TestRefusalOnUncommittedRows: a refusal that rests on a neighbour's row which is then rolled back is asked again.
func TestRefusalOnUncommittedRows(t *testing.T) {
	eachWay(t, func(t *testing.T, url string, batch batcher) {
		db := open(t, url)
		fails := func(_ context.Context, tx *sqldb.Tx) error {
			if err := add(1, "a")(nil, tx); err != nil {
				return err
			}
			return errors.New("no")
		}
		unlessThere := func(_ context.Context, tx *sqldb.Tx) error {
			var n int64
			if err := tx.QueryRow("SELECT COUNT(*) FROM item WHERE id = 1").Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return cradle.Errorf(cradle.Conflict, "there")
			}
			return add(1, "b")(nil, tx)
		}
		var runs atomic.Int64
		late := func(_ context.Context, tx *sqldb.Tx) error {
			if runs.Add(1) == 1 {
				add(7, "x")(nil, tx)
				return errors.New("spoils the batch once")
			}
			return add(7, "x")(nil, tx)
		}
		errs := batch(t, db, fails, unlessThere, late)
		if errs[0] == nil || errs[1] != nil || errs[2] != nil {
			t.Errorf("got %v, want only the first refused", errs)
		}
	})
}

func TestCancelledContext(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.Update(ended, add(1, "a")); !errors.Is(err, context.Canceled) {
			t.Errorf("Update: got %v, want Canceled", err)
		}
		if err := db.View(ended, func(context.Context, *sqldb.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("View: got %v, want Canceled", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		err := db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error {
			cancel()
			_, err := tx.Query("SELECT id FROM item")
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("View, cancelled inside: got %v, want Canceled", err)
		}

		// Cancelled while its function runs: the outcome is awaited and stands, for it and its neighbours.
		ctx, cancel = context.WithCancel(t.Context())
		errs := make([]error, 2)
		var wg sync.WaitGroup
		entered := make(chan struct{})
		wg.Go(func() {
			errs[0] = db.Update(ctx, func(c context.Context, tx *sqldb.Tx) error {
				close(entered)
				cancel()
				if c.Err() != nil {
					return errors.New("the function's context ended")
				}
				return add(2, "b")(nil, tx)
			})
		})
		<-entered
		wg.Go(func() { errs[1] = db.Update(context.Background(), add(3, "c")) })
		wg.Wait()
		if errs[0] != nil || errs[1] != nil {
			t.Errorf("got %v, want both stored", errs)
		}

		// Cancelled while waiting: its function never runs.
		ctx, cancel = context.WithCancel(t.Context())
		entered, release := make(chan struct{}), make(chan struct{})
		wg.Go(func() {
			db.Update(context.Background(), func(context.Context, *sqldb.Tx) error {
				close(entered)
				<-release
				return nil
			})
		})
		<-entered
		var ran atomic.Bool
		done := make(chan error, 1)
		go func() {
			done <- db.Update(ctx, func(context.Context, *sqldb.Tx) error { ran.Store(true); return nil })
		}()
		for sqldb.Queued(db) == 0 {
			sqldb.Yield()
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while waiting: got %v", err)
		}
		close(release)
		wg.Wait()
		if err := insert(db, 4, "d"); err != nil {
			t.Error(err)
		}
		if ran.Load() {
			t.Error("the function of a caller that had left was run")
		}
		if n := count(t, db); n != 3 {
			t.Errorf("got %d rows, want 3", n)
		}
	})
}
