package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cradle-iot/cradle/internal/durable"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, c := range []struct {
		data string
		mode fs.FileMode
	}{{"first", 0o600}, {"the second is longer", 0o644}, {"", 0o640}} {
		if err := durable.WriteFile(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		st, _ := os.Stat(path)
		if err != nil || string(b) != c.data || st.Mode().Perm() != c.mode {
			t.Errorf("got %q %v %v, want %q %v", b, st.Mode(), err, c.data, c.mode)
		}
	}
	if err := durable.CreateFile(path, []byte("x"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateFile over a file: %v", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
	if err := durable.WriteFile(dir, nil, 0o600); err == nil { // the rename fails; nothing may be left
		t.Error("a folder was replaced")
	}
	if err := os.WriteFile(filepath.Join(dir, durable.TempPrefix+"f-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Sweep(dir); err != nil {
		t.Error(err)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if left, _ := filepath.Glob(filepath.Join(d, durable.TempPrefix+"*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
}

// Readers see one whole content or the other, never a part; of many creators one wins.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			content := make([]byte, 10000)
			for j := range content {
				content[j] = byte(i)
			}
			if err := durable.CreateFile(filepath.Join(dir, "one"), content, 0o600); err == nil {
				won.Add(1)
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
			for range 5 {
				if err := durable.WriteFile(path, content, 0o600); err != nil {
					t.Error(err)
				}
				b, err := os.ReadFile(path)
				if err != nil || len(b) != len(content) || b[0] != b[len(b)-1] {
					t.Errorf("a part was read: %d bytes %v", len(b), err)
				}
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d creators won", won.Load())
	}
}

func TestMkdirAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "f")
	if err := durable.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.MkdirAll(filepath.Join(file, "c"), 0o700); err == nil {
		t.Error("a folder was made in a file")
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := durable.Lock(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Lock(path, false); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("taken twice: %v", err)
	}
	got := make(chan error)
	go func() {
		second, err := durable.Lock(path, true)
		if err == nil {
			second()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
