package device

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
)

// record is a value in two files, name.a and name.b, written by turns: a write that is torn by a power
// cut, or a file that rots, leaves the predecessor. Each file is one line of header (magic, version,
// generation, length, SHA-256) and JSON. The higher generation that is whole counts.
type record struct {
	dir, name  string
	generation uint64
	kill       func(step string) error // tests; may be nil
}

const (
	recordMagic   = "cradle-journal"
	recordVersion = 1
	maxRecord     = 4 << 20 // bytes
)

// health says what openRecord found.
type health int

const (
	whole     health = iota
	fresh            // nothing was there
	recovered        // one copy is damaged, the other was taken; it may be one step behind
	lost             // both copies are damaged; they were set aside
)

// openRecord reads the record into v, which is untouched for fresh and lost. It refuses (Conflict) a
// record of a newer version of this program. Damaged copies without a whole one are set aside.
func openRecord(dir, name string, v any) (*record, health, error) {
	r, found, err := peekRecord(dir, name, v)
	if err != nil || found != lost {
		return r, found, err
	}
	for i := range uint64(2) {
		if err := os.Rename(r.path(i), r.path(i)+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, lost, fmt.Errorf("setting the damaged journal aside: %w", err)
		}
	}
	return r, lost, nil
}

// peekRecord is openRecord without changing anything.
func peekRecord(dir, name string, v any) (*record, health, error) {
	r := &record{dir: dir, name: name}
	var best []byte
	damaged := 0
	for i := range uint64(2) {
		b, err := os.ReadFile(r.path(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, lost, fmt.Errorf("reading the journal: %w", err)
		}
		gen, body, err := parseRecord(b)
		switch {
		case cradle.KindOf(err) == cradle.Conflict:
			return nil, lost, err
		case err != nil || gen%2 != i:
			damaged++
		case best == nil || gen > r.generation:
			r.generation, best = gen, body
		}
	}
	switch {
	case best != nil:
		if err := json.Unmarshal(best, v); err != nil {
			return nil, lost, fmt.Errorf("internal error: journal with a good checksum: %w", err)
		}
		if damaged > 0 {
			return r, recovered, nil
		}
		return r, whole, nil
	case damaged > 0:
		return r, lost, nil
	}
	return r, fresh, nil
}

func (r *record) path(generation uint64) string {
	return filepath.Join(r.dir, r.name+[2]string{".a", ".b"}[generation%2])
}

func parseRecord(b []byte) (generation uint64, body []byte, err error) {
	head, body, ok := bytes.Cut(b, []byte{'\n'})
	var magic, sum string
	var version, length int
	if !ok {
		return 0, nil, errors.New("no header")
	}
	if _, err := fmt.Sscanf(string(head), "%s %d %d %d %s", &magic, &version, &generation, &length, &sum); err != nil || magic != recordMagic {
		return 0, nil, errors.New("bad header")
	}
	if want := sha256.Sum256(fmt.Appendf(nil, "%d %s", generation, body)); length != len(body) || sum != hex.EncodeToString(want[:]) {
		return 0, nil, errors.New("bad checksum")
	}
	if version > recordVersion { // only a whole record can say so
		return 0, nil, cradle.Errorf(cradle.Conflict, "the device's journal was written by a newer version of the agent (format %d)", version).
			WithHint("run that version, or newer")
	}
	return generation, body, nil
}

// save writes v as the next generation. It returns after it is durable. On error the predecessor is what
// the next openRecord finds, or, when only the sync failed, v: the caller goes on as before v.
// step names the kill points.
func (r *record) save(step string, v any) error {
	if err := r.point(step + ":write"); err != nil {
		return err
	}
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("internal error: journal: %w", err)
	}
	if len(body) > maxRecord {
		return cradle.Errorf(cradle.TooLarge, "the journal would have %d bytes", len(body))
	}
	gen := r.generation + 1
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", gen, body))
	b := fmt.Appendf(nil, "%s %d %d %d %x\n%s", recordMagic, recordVersion, gen, len(body), sum, body)
	if err := r.write(r.path(gen), b, step); err != nil {
		if errors.Is(err, errKilled) {
			return err
		}
		return fmt.Errorf("writing the journal: %w", err)
	}
	r.generation = gen
	return r.point(step + ":written")
}

// write overwrites in place: the file is the older of the two, which nobody needs any more.
func (r *record) write(path string, b []byte, step string) (err error) {
	_, statErr := os.Stat(path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if r.kill != nil {
		if _, err := f.WriteAt(b[:len(b)/2], 0); err != nil {
			return err
		}
		if err := r.point(step + ":torn"); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(b))); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if statErr != nil {
		return durable.SyncDir(r.dir)
	}
	return nil
}

// errKilled is in the chain of what a kill point returned.
var errKilled = errors.New("stopped at a kill point")

func (r *record) point(step string) error {
	if r.kill == nil {
		return nil
	}
	if err := r.kill(r.name + "/" + step); err != nil {
		return fmt.Errorf("%w %s/%s: %w", errKilled, r.name, step, err)
	}
	return nil
}
