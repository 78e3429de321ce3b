package sqldb_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/cradle-iot/cradle/internal/sqldb"
)

// TestKillAtCommit runs itself as a child that writes until it is killed: what was answered is in the
// store, and of the last write there is what the kill point says.
func TestKillAtCommit(t *testing.T) {
	open := func(file string) (*sqldb.DB, error) {
		return sqldb.Open(t.Context(), sqldb.Config{URL: file, Migrations: fstest.MapFS{
			"sqlite/00001_k.sql": {Data: []byte("-- +goose Up\nCREATE TABLE k (n INTEGER PRIMARY KEY) STRICT;\n")}}})
	}
	if file := os.Getenv("CRADLE_SQLDB_CHILD"); file != "" {
		db, err := open(file)
		if err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		request := context.WithValue(t.Context(), http.ServerContextKey, &http.Server{})
		for n := range 20 {
			ctx := t.Context() // every second write is nobody's request and does not count
			if n%2 == 1 {
				ctx = request
			}
			if err := db.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error {
				_, err := tx.Exec("INSERT INTO k VALUES (?)", n)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			os.Stdout.WriteString("+")
		}
		os.Exit(0)
	}
	for spec, want := range map[string]struct{ least, most int }{
		"before:3": {5, 5}, "during:3": {5, 6}, "after:3": {6, 6},
	} {
		file := filepath.Join(t.TempDir(), "k.db")
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillAtCommit$")
		cmd.Env = append(os.Environ(), "CRADLE_SQLDB_CHILD="+file, "CRADLE_KILL_AT_COMMIT="+spec)
		out, err := cmd.Output()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("%s: ended with %v, want SIGKILL: %s", spec, err, out)
		}
		db, err := open(file)
		if err != nil {
			t.Fatal(err)
		}
		var stored int
		if err := db.View(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			return tx.QueryRow("SELECT count(*) FROM k").Scan(&stored)
		}); err != nil {
			t.Fatal(err)
		}
		db.Close()
		if n := strings.Count(string(out), "+"); n != 5 || stored < want.least || stored > want.most {
			t.Errorf("%s: %d answered, %d stored; want 5 and %d to %d", spec, n, stored, want.least, want.most)
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillAtCommit$")
	cmd.Env = append(os.Environ(), "CRADLE_SQLDB_CHILD="+filepath.Join(t.TempDir(), "k.db"), "CRADLE_KILL_AT_COMMIT=sometimes")
	if out, err := cmd.Output(); err == nil || !strings.Contains(string(out), "is not before:N") {
		t.Errorf("a wrong value: %v, %q", err, out)
	}
}
