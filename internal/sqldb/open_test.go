package sqldb_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

func TestClosed(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		var wg sync.WaitGroup
		var stored atomic.Int64
		for i := range int64(50) {
			wg.Go(func() {
				err := insert(db, i, fmt.Sprint(i))
				if err == nil {
					stored.Add(1)
				} else if cradle.KindOf(err) != cradle.Busy {
					t.Errorf("got %v, want Busy", err)
				}
			})
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if err := insert(db, 100, "x"); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("Update: got %v, want Busy", err)
		}
		if err := db.View(t.Context(), func(context.Context, *sqldb.Tx) error { return nil }); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("View: got %v, want Busy", err)
		}
		if n := count(t, open(t, url)); n != stored.Load() {
			t.Errorf("got %d rows, want the %d that were confirmed", n, stored.Load())
		}
	})
}

func TestVersions(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		two := func(c *sqldb.Config) { c.Migrations = migrations(2) }
		old := open(t, url)
		if err := insert(old, 1, "a"); err != nil {
			t.Fatal(err)
		}
		old.Close()
		if n := count(t, open(t, url, two)); n != 1 {
			t.Errorf("after the migration: got %d rows, want 1", n)
		}
		_, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Schema: "thing", Migrations: migrations(1)})
		if _, hint := cradle.Public(err); cradle.KindOf(err) != cradle.Conflict || hint == "" {
			t.Errorf("a newer database: got %v, want Conflict with a hint", err)
		}
	})
}

func TestOpenTogether(t *testing.T) {
	url := testenv.Postgres(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			db, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Schema: "thing", Migrations: migrations(2)})
			if err != nil {
				t.Error(err)
				return
			}
			db.Close()
		})
	}
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	for _, url := range []string{t.TempDir() + "/missing/x.db", t.TempDir()} {
		if _, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Migrations: migrations(1)}); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: got %v, want Invalid", url, err)
		}
	}
	if _, err := sqldb.Open(t.Context(), sqldb.Config{URL: "postgres:///x?host=/nonexistent", Migrations: migrations(1)}); cradle.KindOf(err) != cradle.Busy {
		t.Errorf("no server: got %v, want Busy", err)
	}
	if _, err := sqldb.Open(t.Context(), sqldb.Config{URL: "postgres:///x?host=/nonexistent", Schema: `a"b`, Migrations: migrations(1)}); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("schema: got %v, want Invalid", err)
	}
}

// TestOpenRefusals: what keeps a store from opening is named, with what mends it.
func TestOpenRefusals(t *testing.T) {
	check := func(what, url string, k cradle.Kind, words, hint string) {
		t.Helper()
		db, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Migrations: migrations(1)})
		if err == nil {
			db.Close()
		}
		if d, h := cradle.Public(err); cradle.KindOf(err) != k || !strings.Contains(d, words) || !strings.Contains(h, hint) || strings.Contains(d, "\n") {
			t.Errorf("%s: got %q, hint %q (%v), want %v with %q, hint with %q", what, d, h, cradle.KindOf(err), k, words, hint)
		}
	}
	check("nobody listens", "postgres://127.0.0.1:1/x?connect_timeout=2", cradle.Busy, "refused", "port in --db")
	check("no such host", "postgres://nosuch.invalid/x?connect_timeout=2", cradle.Busy, "nosuch.invalid", "host in --db")
	file := filepath.Join(t.TempDir(), "x.db")
	db, err := sqldb.Open(t.Context(), sqldb.Config{URL: file, Migrations: migrations(1)})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < len(b); i++ {
		b[i] ^= 0x5a
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a damaged file", file, cradle.Invalid, "damaged", "cradle restore")
	file = filepath.Join(t.TempDir(), "x.db")
	if err := os.Mkdir(file+"-wal", 0o700); err != nil { // where the disk refuses, as when it is full
		t.Fatal(err)
	}
	check("a file beside it that cannot be made", file, cradle.Busy, "file", "room")

	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	missing, role := *u, *u
	missing.Path = "/nosuch"
	check("no such database", missing.String(), cradle.Invalid, "not there", "CREATE DATABASE")
	q := role.Query()
	q.Set("user", "nosuch")
	role.RawQuery = q.Encode()
	check("no such role", role.String(), cradle.Invalid, "does not let the role in", "~/.pgpass")
}

// TestOpenWithoutTheLock: a replica that is not given the schema's lock must not migrate beside the one that holds it.
func TestOpenWithoutTheLock(t *testing.T) {
	url := testenv.Postgres(t)
	h := fnv.New64a()
	h.Write([]byte("cradle schema thing"))
	err := open(t, url).View(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		var one int
		if err := tx.QueryRow("SELECT 1 FROM pg_advisory_xact_lock(?)", int64(h.Sum64())).Scan(&one); err != nil {
			return err
		}
		mark := "?"
		if strings.Contains(url, "?") {
			mark = "&"
		}
		db, err := sqldb.Open(ctx, sqldb.Config{URL: url + mark + "statement_timeout=200ms", Schema: "thing", Migrations: migrations(2)})
		if err == nil {
			db.Close()
			t.Error("migrated without the lock")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
