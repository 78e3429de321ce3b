// Package durable writes files that are, after a power cut at any instruction, either as before or
// whole and new.
//
// The trick: write a temporary file beside the target, sync it, rename it over the target, sync the
// folder. When WriteFile has returned nil, the content survives. What a process that was stopped leaves
// begins with TempPrefix; whoever owns the folder may Sweep it.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// TempPrefix begins the name of every temporary file.
const TempPrefix = ".tmp-"

// WriteFile replaces path by data with exactly this mode. On an error the target is as it was, or already the
// new content (when only the folder's sync failed); writing again is safe.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, os.Rename)
}

// CreateFile is WriteFile for a file that must not exist yet: else the error is fs.ErrExist and
// nothing changes. Two callers at once: one wins.
func CreateFile(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, func(tmp, path string) error {
		if err := os.Link(tmp, path); err != nil { // refuses an existing target, unlike rename
			return err
		}
		return os.Remove(tmp)
	})
}

func write(path string, data []byte, mode fs.FileMode, place func(tmp, path string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, TempPrefix+filepath.Base(path)+"-*")
	if err != nil {
		if temp := new(fs.PathError); errors.As(err, &temp) { // whose name says nothing to a reader
			err = fmt.Errorf("folder %s: %w", dir, temp.Err)
		}
		return fmt.Errorf("writing %s: %w", path, err)
	}
	tmp := f.Name()
	err = f.Chmod(mode) // before the content: a secret is at no time readable by others
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = place(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return SyncDir(dir)
}

// MkdirAll makes a folder and its missing parents, each synced into its parent.
func MkdirAll(dir string, mode fs.FileMode) error {
	dir = filepath.Clean(dir)
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := MkdirAll(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if st, err := os.Stat(dir); err != nil {
		return err
	} else if !st.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	return SyncDir(filepath.Dir(dir))
}

// Sweep removes temporary files that a stopped process left in a folder. Nobody may be writing there.
func Sweep(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), TempPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, n.Name())))
		}
	}
	return err
}

// SyncDir makes the names in a folder survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("syncing folder %s: %w", dir, err)
	}
	return nil
}
