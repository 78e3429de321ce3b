package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cradle-iot/cradle"
)

// marker is the file by which the demo knows a folder as its own.
const marker = ".cradle-demo"

// folder is the demo's own folder.
type folder struct {
	dir  string
	lock *os.File
}

// openFolder makes dir, or takes one that an earlier demo made and empties it. Any other folder with content is
// refused, and so is one in which another demo runs.
func openFolder(dir string) (_ *folder, emptied bool, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, writable(err)
	}
	own := len(entries) == 0
	for _, e := range entries {
		own = own || e.Name() == marker
	}
	if !own {
		return nil, false, cradle.Errorf(cradle.Conflict, "folder %s has content that the demo did not make", dir).
			WithHint("name another folder with --dir (make demo DIR=...)")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, false, writable(err)
	}
	f := &folder{dir: dir}
	if f.lock, err = os.OpenFile(f.path(marker), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, false, writable(err)
	}
	if err := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, false, errors.Join(cradle.Errorf(cradle.Conflict, "another demo runs in %s", dir).
			WithHint("stop it with Ctrl-C, or name another folder with --dir (make demo DIR=...)"), f.lock.Close())
	}
	for _, e := range entries {
		if e.Name() == marker {
			continue
		}
		emptied = true
		if err := os.RemoveAll(f.path(e.Name())); err != nil {
			return nil, false, errors.Join(writable(err), f.close())
		}
	}
	for _, d := range []string{"logs", "tpms", "units"} {
		if err := os.MkdirAll(f.path(d), 0o755); err != nil {
			return nil, false, errors.Join(writable(err), f.close())
		}
	}
	return f, emptied, nil
}

func (f *folder) path(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

func (f *folder) write(name, text string) error {
	return os.WriteFile(f.path(name), []byte(text), 0o644)
}

func (f *folder) close() error { return f.lock.Close() }

// writable explains an error of the file system.
func writable(err error) error {
	hint := "name a folder that you may write to with --dir (make demo DIR=...)"
	if errors.Is(err, syscall.ENOSPC) {
		hint = "make room on that disk, or name a folder elsewhere with --dir"
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		return cradle.Errorf(cradle.Invalid, "folder: %s: %v", strings.TrimSpace(p.Path), p.Err).WithHint("%s", hint)
	}
	return cradle.Errorf(cradle.Invalid, "folder: %v", err).WithHint("%s", hint)
}
