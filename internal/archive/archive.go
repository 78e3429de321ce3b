// Package archive writes files with a manifest into one compressed file, and takes them out of it again only when all
// of them are as they were: a tar (POSIX.1-2001) of manifest.json and the files, with gzip around it.
package archive

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cradle-iot/cradle"
)

// File is one file of an archive.
type File struct {
	Name   string      `json:"name"` // with slashes, relative
	Mode   fs.FileMode `json:"mode"`
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"`

	path string
}

// manifest is the first member.
type manifest[T any] struct {
	Kind  string `json:"kind"`
	About T      `json:"about"`
	Files []File `json:"files"`
}

const (
	manifestName = "manifest.json"
	maxManifest  = 16 << 20
)

// Add digests the file at path, to be put into an archive under name.
func Add(name, path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	return File{Name: name, Mode: st.Mode().Perm(), Size: n, SHA256: hex.EncodeToString(h.Sum(nil)), path: path}, err
}

// Write makes the archive out, of mode 0600, which must not exist; it gets its name when it is whole and durable. kind says what
// it is an archive of, about whatever the reader needs to know before he unpacks it.
func Write[T any](out, kind string, about T, files []File, progress func(done, total int64)) (err error) {
	if _, err := os.Lstat(out); err == nil {
		return cradle.Errorf(cradle.Conflict, "%s exists already", out).WithHint("choose another file with --out")
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".archive-*") // 0600
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err).WithHint("choose a file in a folder you may write to with --out")
	}
	defer os.Remove(f.Name())
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	z, err := gzip.NewWriterLevel(buf, gzip.BestSpeed)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	head, err := json.MarshalIndent(manifest[T]{kind, about, files}, "", "  ")
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: manifestName, Mode: 0o600, Size: int64(len(head))}); err != nil {
		return err
	}
	if _, err := t.Write(head); err != nil {
		return err
	}
	var done, total int64
	for _, m := range files {
		total += m.Size
	}
	for _, m := range files {
		if err := put(t, m); err != nil {
			return fmt.Errorf("archiving %s: %w", m.Name, err)
		}
		if done += m.Size; progress != nil {
			progress(done, total)
		}
	}
	if err := errors.Join(t.Close(), z.Close(), buf.Flush(), f.Sync()); err != nil {
		return fmt.Errorf("writing %s: %w", out, err)
	}
	if err := os.Link(f.Name(), out); err != nil { // refuses what came there meanwhile
		return fmt.Errorf("writing %s: %w", out, err)
	}
	return nil
}

func put(t *tar.Writer, m File) error {
	in, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: m.Name, Mode: int64(m.Mode), Size: m.Size}); err != nil {
		return err
	}
	_, err = io.CopyN(t, in, m.Size)
	return err
}

// Archive is an open archive.
type Archive[T any] struct {
	About T
	Files []File
	f     *os.File
	t     *tar.Reader
	z     *gzip.Reader
}

// Open reads the manifest. Damage is Invalid.
func Open[T any](path, kind string) (*Archive[T], error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "%v", err)
	}
	a, err := open[T](f, path, kind)
	if err != nil {
		f.Close()
	}
	return a, err
}

func damaged(path, format string, args ...any) error {
	return cradle.Errorf(cradle.Invalid, "%s is damaged or no archive of cradle: %s", path, fmt.Sprintf(format, args...))
}

func open[T any](f *os.File, path, kind string) (*Archive[T], error) {
	z, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return nil, damaged(path, "%v", err)
	}
	a := &Archive[T]{f: f, z: z, t: tar.NewReader(z)}
	h, err := a.t.Next()
	if err != nil || h.Name != manifestName || h.Size > maxManifest {
		return nil, damaged(path, "it has no manifest")
	}
	b, err := io.ReadAll(a.t)
	if err != nil {
		return nil, damaged(path, "%v", err)
	}
	var m manifest[T]
	if err := json.Unmarshal(b, &m); err != nil || m.Kind != kind {
		return nil, damaged(path, "its manifest is not that of a %s", kind)
	}
	for _, file := range m.Files {
		if !filepath.IsLocal(file.Name) || strings.Contains(file.Name, "\\") || filepath.Clean(file.Name) != file.Name {
			return nil, damaged(path, "it holds a file %q", file.Name)
		}
	}
	a.About, a.Files = m.About, m.Files
	return a, nil
}

// Extract writes the files below dir and compares each with the manifest; the first that differs, or is missing, ends it.
func (a *Archive[T]) Extract(dir string, progress func(done, total int64)) error {
	path := a.f.Name()
	var done, total int64
	for _, m := range a.Files {
		total += m.Size
	}
	for _, m := range a.Files {
		h, err := a.t.Next()
		if err != nil || h.Name != m.Name || h.Size != m.Size || h.Typeflag != tar.TypeReg {
			return damaged(path, "%s is missing or not as long as it was", m.Name)
		}
		if err := extract(a.t, filepath.Join(dir, m.Name), m, path); err != nil {
			return err
		}
		if done += m.Size; progress != nil {
			progress(done, total)
		}
	}
	if _, err := a.t.Next(); err != io.EOF {
		return damaged(path, "there is more in it than its manifest says")
	}
	if n, err := io.Copy(io.Discard, a.z); err != nil || n > 0 { // also the checksum of gzip
		return damaged(path, "there is more in it than its manifest says, or %v", err)
	}
	return nil
}

func extract(in io.Reader, to string, m File, archive string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, m.Mode.Perm()&0o755)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), in)
	if err != nil {
		f.Close()
		return damaged(archive, "%s: %v", m.Name, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != m.SHA256 {
		return damaged(archive, "%s is not as it was", m.Name)
	}
	return nil
}

// Close ends reading.
func (a *Archive[T]) Close() error { return a.f.Close() }
