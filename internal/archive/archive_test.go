package archive_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/archive"
)

type about struct{ Version string }

func sample(t testing.TB, dir string) (file string, content map[string][]byte) {
	t.Helper()
	content = map[string][]byte{"a.db": bytes.Repeat([]byte("page "), 50000), "accounts/acme/root.pem": []byte("PEM"), "empty": {}}
	var files []archive.File
	for _, name := range []string{"a.db", "accounts/acme/root.pem", "empty"} {
		p := filepath.Join(dir, "src", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content[name], 0o640); err != nil {
			t.Fatal(err)
		}
		f, err := archive.Add(name, p)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	file = filepath.Join(dir, "x.backup")
	if err := archive.Write(file, "thing", about{"v1"}, files, nil); err != nil {
		t.Fatal(err)
	}
	return file, content
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	file, content := sample(t, dir)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := archive.Write(file, "thing", about{}, nil, nil); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("over an archive: %v", err)
	}
	a, err := archive.Open[about](file, "thing")
	if err != nil || a.About.Version != "v1" {
		t.Fatal(a, err)
	}
	defer a.Close()
	to := filepath.Join(dir, "to")
	if err := a.Extract(to, nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range content {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if _, err := archive.Open[about](file, "other thing"); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("another kind: %v", err)
	}
}

// TestDamage: one changed, missing or further byte anywhere is found; nothing is taken for whole.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	file, content := sample(t, dir)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	same := 0
	try := func(b []byte) error {
		p := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := archive.Open[about](p, "thing")
		if err != nil {
			return err
		}
		defer a.Close()
		to := filepath.Join(t.TempDir(), "to")
		err = a.Extract(to, nil)
		for name, want := range content { // in a compressed file two spellings can say the same
			if got, rerr := os.ReadFile(filepath.Join(to, name)); err == nil && (rerr != nil || !bytes.Equal(got, want)) {
				t.Errorf("%s was taken for whole", name)
			} else if err == nil {
				same++
			}
		}
		return err
	}
	if err := try(good); err != nil {
		t.Fatal(err)
	}
	for i := 12; i < len(good); i += 23 { // behind gzip's header, whose time and name mean nothing
		b := bytes.Clone(good)
		b[i] ^= 0x10
		if err := try(b); err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("byte %d of %d changed: %v", i, len(good), err)
		}
	}
	for n := 0; n < len(good); n += 61 {
		if err := try(good[:n]); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("cut after %d of %d bytes: %v", n, len(good), err)
		}
	}
	if same > len(good)/4 {
		t.Errorf("%d changes changed nothing", same)
	}
	if err := try(append(bytes.Clone(good), good...)); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("twice: %v", err)
	}
}
