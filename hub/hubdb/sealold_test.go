package hubdb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// old makes a store as the version before had it: fill's entries with their keys as they are, and n more devices.
func old(t *testing.T, url string, n int) {
	t.Helper()
	s, err := hubdb.OpenOld(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(t.Context(), func(tx *sqldb.Tx) error {
		const device = `INSERT INTO devices (hub, id, generation, etag, disabled, reason, status_changed, primary_thumb, secondary_thumb, iot_edge, created, updated,
			auth, primary_key, secondary_key) VALUES (?, ?, '', '1', 0, '', 0, '', '', 0, 0, 0, ?, ?, ?)`
		for _, h := range []string{"hub-1", "hub-2"} {
			var id int64
			if err := tx.QueryRow(`INSERT INTO hubs (name, created) VALUES (?, 0) RETURNING id`, h).Scan(&id); err != nil {
				return err
			}
			for _, p := range []string{"a", "b"} {
				k := keyed(h + p)
				if err := tx.Queue(`INSERT INTO policies (hub, name, primary_key, secondary_key, rights) VALUES (?, ?, ?, ?, 1)`, id, p, k.Primary, k.Secondary); err != nil {
					return err
				}
			}
			for _, d := range []string{"d1", "d2"} {
				k := keyed(h + d)
				if err := tx.Queue(device, id, d, k.Type, k.Primary, k.Secondary); err != nil {
					return err
				}
			}
			if err := tx.Queue(device, id, "x509", iothub.SelfSigned, []byte{}, []byte{}); err != nil {
				return err
			}
			for _, m := range []string{"m1", "m2"} {
				k := keyed(h + "d1" + m)
				if err := tx.Queue(`INSERT INTO modules (hub, device, id, generation, etag, managed_by, auth, primary_key, secondary_key, primary_thumb, secondary_thumb, created, updated)
					VALUES (?, 'd1', ?, '', '1', '', ?, ?, ?, '', '', 0, 0)`, id, m, k.Type, k.Primary, k.Secondary); err != nil {
					return err
				}
			}
		}
		var many int64
		if err := tx.QueryRow(`INSERT INTO hubs (name, created) VALUES ('many', 0) RETURNING id`).Scan(&many); err != nil {
			return err
		}
		for i := range n {
			id := fmt.Sprintf("n%05d", i)
			if err := tx.Queue(device, many, id, iothub.SAS, secret(id+" 1"), secret(id+" 2")); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
}

// checkMany reads the devices that old made besides fill's.
func checkMany(t *testing.T, s *hubdb.Store, n int) {
	t.Helper()
	ds, err := s.Devices(t.Context(), "many", "", n+1)
	if err != nil || len(ds) != n {
		t.Fatalf("got %d devices, %v", len(ds), err)
	}
	for _, d := range ds {
		if want := keyed(string(d.ID)); !reflect.DeepEqual(d.Auth, want) || d.ETag != "1" {
			t.Fatalf("%s: got %x %x, ETag %s", d.ID, d.Auth.Primary, d.Auth.Secondary, d.ETag)
		}
	}
}

// TestSealOldKeys runs itself as a child that seals an older store's keys and is killed at a commit: at each moment all keys can
// be read, and the next call goes on.
func TestSealOldKeys(t *testing.T) {
	const many = 2*hubdb.SealBatch + 100
	const rows = 4 + 4 + many + 4
	if url := os.Getenv("CRADLE_HUBDB_CHILD"); url != "" {
		v, err := filekey.LoadVault(os.Getenv("CRADLE_HUBDB_KEK"))
		if err != nil {
			t.Fatal(err)
		}
		s := openWith(t, url, v)
		_, err = s.SealKeys(context.WithValue(t.Context(), http.ServerContextKey, &http.Server{})) // so that its commits count
		t.Fatalf("was not killed: %v", err)
	}
	testenv.EachStore(t, func(t *testing.T, url string) {
		file := filepath.Join(t.TempDir(), "kek")
		v, err := filekey.CreateVault(file)
		if err != nil {
			t.Fatal(err)
		}
		old(t, url, many)
		s := openWith(t, url, v)
		check(t, s)
		checkMany(t, s, many)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		total := 0
		// The first commit of a child is that of what is left of the policies, or of the devices.
		for _, c := range []struct {
			spec        string
			least, most int // rows sealed by the child
		}{{"before:1", 0, 0}, {"after:1", 4, 4}, {"before:2", 500, 500}, {"during:1", 0, 500}, {"before:1", 0, 0}} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestSealOldKeys$")
			cmd.Env = append(os.Environ(), "CRADLE_HUBDB_CHILD="+url, "CRADLE_HUBDB_KEK="+file, "CRADLE_KILL_AT_COMMIT="+c.spec)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("%s: ended with %v, want SIGKILL: %s", c.spec, err, out)
			}
			s := openWith(t, url, v)
			check(t, s)
			checkMany(t, s, many)
			before := total
			total = 0
			for _, table := range []string{"policies", "devices", "modules"} {
				_, n := columns(t, s, table)
				total += n
			}
			if n := total - before; n < c.least || n > c.most {
				t.Errorf("%s: sealed %d rows, want %d to %d", c.spec, n, c.least, c.most)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		s = openWith(t, url, v)
		if n, err := s.SealKeys(t.Context()); n != rows-total || err != nil {
			t.Errorf("sealed %d of %d that were left, %v", n, rows-total, err)
		}
		if n, err := s.SealKeys(t.Context()); n != 0 || err != nil {
			t.Errorf("sealed %d again, %v", n, err)
		}
		check(t, s)
		checkMany(t, s, many)
	})
}

// TestSealedFile: after the keys of an older store were sealed and the store was closed, its file has none of their bytes.
func TestSealedFile(t *testing.T) {
	const many = 3*hubdb.SealBatch + 7
	url := filepath.Join(t.TempDir(), "hub.db")
	old(t, url, many)
	in := func() (n int) {
		t.Helper()
		files, err := filepath.Glob(url + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			places := []string{"hub-1a", "hub-2b", "hub-1d1", "hub-2d2", "hub-1d1m1", "hub-2d1m2"}
			for i := range many {
				places = append(places, fmt.Sprintf("n%05d", i))
			}
			for _, p := range places {
				for _, slot := range []string{" 1", " 2"} {
					// Half a key is as telling as a whole one.
					if k := secret(p + slot); bytes.Contains(b, k[:16]) || bytes.Contains(b, k[16:]) {
						n++
					}
				}
			}
		}
		return n
	}
	if n := in(); n != 2*(many+6) {
		t.Fatalf("%d keys are in the old store's file, want all %d", n, 2*(many+6))
	}
	s := open(t, url)
	if _, err := s.SealKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := in(); n != 0 {
		t.Errorf("%d keys are left in the file", n)
	}
	if left, _ := filepath.Glob(url + "-*"); len(left) > 0 {
		t.Errorf("%s is left", strings.Join(left, ", "))
	}
}
