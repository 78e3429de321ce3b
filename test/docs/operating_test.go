package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// commandsOf returns the blocks of shell of a page, those marked with arg.
func commandsOf(t *testing.T, page, arg string) (out []string) {
	t.Helper()
	for _, b := range blocks(read(t, page)) {
		if b.lang == "sh" && b.arg == arg {
			out = append(out, b.text())
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no commands", page)
	}
	return out
}

// shell runs commands in a folder that has the world's data folder as cradle-data, and returns what they printed.
func shell(t *testing.T, w *world.World, dir string, env []string, commands ...string) string {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, "cradle-data")); err != nil {
		if err := os.Symlink(w.Data, filepath.Join(dir, "cradle-data")); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "-c", "set -euo pipefail\n"+strings.Join(commands, ""))
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "PATH="+w.Bin+":"+os.Getenv("PATH")), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func prints(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, want := range words {
		if !strings.Contains(out, want) {
			t.Errorf("%q was not printed:\n%s", want, out)
		}
	}
}

// TestAuditPage runs the commands of docs/operating/audit.md as they stand.
func TestAuditPage(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "swtpm", "bash", "curl", "python3")
	w := world.New(t, world.Options{})
	w.Acts()
	w.Make(1)
	w.Must("cradle", "anchors", "--data", w.Data, "--out", filepath.Join(w.Data, "anchors.pem"))
	out := shell(t, w, t.TempDir(), nil, commandsOf(t, "docs/operating/audit.md", "")...)
	prints(t, out, " 0 findings", "cosigned into ", "log acme: cosigned by witness.example.com/1", "witness witness.example.com/1: ",
		"anybody may read log acme", "/local/acme\n")
}

// TestBackupPage runs the commands of docs/operating/backup.md as they stand, on both stores.
func TestBackupPage(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "swtpm", "bash", "pg_dump", "pg_restore")
	const page = "docs/operating/backup.md"
	t.Run("sqlite", func(t *testing.T) {
		w := world.New(t, world.Options{})
		w.Acts()
		w.Make(1)
		out := shell(t, w, t.TempDir(), nil, commandsOf(t, page, "")...)
		prints(t, out, "not in it, keep them apart: ", "accounts/acme/order-key.pem, key-encryption-key", "CLOSED LOG", "log acme is open", "log provider is open", "no log is closed")
	})
	t.Run("postgres", func(t *testing.T) {
		db, fresh := testenv.Postgres(t), testenv.Postgres(t)
		w := world.New(t, world.Options{DB: db})
		w.Acts()
		w.Make(1)
		dir, env := t.TempDir(), []string{"DB=" + db, "NEWDB=" + fresh}
		commands := commandsOf(t, page, "postgres")
		shell(t, w, dir, env, commands[0])
		if code := w.Server().Stop(); code != 0 {
			t.Fatalf("cradle serve ended with %d", code)
		}
		prints(t, shell(t, w, dir, env, commands[1:]...), "marked as restored", "log acme is open", "log provider is open", "no log is closed")
	})
}
