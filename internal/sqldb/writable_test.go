package sqldb_test

import (
	"context"
	"crypto/rand"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// grow inserts a row that does not compress.
func grow(t *testing.T, db *sqldb.DB, size int) error {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	return db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO item (id, name, data) SELECT COUNT(*), ?, ? FROM item", rand.Text(), data)
		return err
	})
}

// TestWritablePostgres fills the disk that holds a database's tables, but not its log, as a small change of a row that is
// there then goes through: the store is not writable for all that, until there is room. It needs to mount a small file system.
func TestWritablePostgres(t *testing.T) {
	testenv.Long(t)
	url := testenv.PostgresServer(t).Database(t)
	disk := testenv.SmallDisk(t, "24m")
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	if err := os.Chown(disk, uid, -1); err != nil {
		t.Fatal(err)
	}
	db := open(t, url)
	exec := func(query string) {
		t.Helper()
		c, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(context.Background())
		if _, err := c.Exec(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLESPACE small LOCATION '" + disk + "'")
	exec("ALTER TABLE thing.item SET TABLESPACE small")
	exec("DO $$ BEGIN EXECUTE 'ALTER ROLE ' || current_user || ' SET default_tablespace = small'; END $$") // of the trial's table
	if err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec("INSERT INTO counter (id, n) VALUES ('x', 1)")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	db.Close()
	db = open(t, url) // sessions that know the tablespace
	if err := db.Writable(t.Context()); err != nil {
		t.Errorf("with room: %v", err)
	}
	for err = nil; err == nil; {
		err = grow(t, db, 100_000)
	}
	if cradle.KindOf(err) != cradle.Busy {
		t.Fatalf("got %v, want Busy", err)
	}
	for range 2 { // a change that needs no room tells nothing
		if err := db.Writable(t.Context()); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("full: writable: %v, want Busy", err)
		}
		err := db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			_, err := tx.Exec("UPDATE counter SET n = n + 1 WHERE id = 'x'")
			return err
		})
		if err != nil {
			t.Errorf("a change of a row that is there: %v", err)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the store to be writable", func() bool { return db.Writable(t.Context()) == nil })
	if err := grow(t, db, 100_000); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestWritableRefusals: what a function refuses says nothing of the store, and neither does a conflict of rows.
func TestWritableRefusals(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		db := open(t, url)
		for range 2 {
			_ = db.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
				_, err := tx.Exec("INSERT INTO counter (id, n) VALUES ('x', 1)")
				return err
			})
		}
		_ = db.Update(t.Context(), func(context.Context, *sqldb.Tx) error { return cradle.Errorf(cradle.Busy, "come again") })
		before := db.Stats()
		if err := db.Writable(t.Context()); err != nil || db.Stats() != before {
			t.Errorf("%v, %v updates, want none", err, db.Stats().Updates-before.Updates)
		}
	})
}
