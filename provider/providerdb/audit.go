package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// AddWitness implements provider.Audit.
func (d *DB) AddWitness(ctx context.Context, w provider.Witness, leaf ledger.Leaf) error {
	return d.update(ctx, w.Log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO witnesses (log, name, key, added) VALUES (?, ?, ?, ?) ON CONFLICT (log, name) DO NOTHING`, w.Log, w.Name, w.Key, micros(w.Added))
		if err != nil {
			return err
		}
		if n == 0 {
			var key string
			if err := tx.QueryRow(`SELECT key FROM witnesses WHERE log = ? AND name = ?`, w.Log, w.Name).Scan(&key); err != nil || key == w.Key {
				return err
			}
			return cradle.Errorf(cradle.Conflict, "log %s has a witness %q with another key", w.Log, w.Name).WithHint("remove it first: cradle audit witness remove %s", w.Name)
		}
		return appendLeaf(tx, leaf)
	})
}

// RemoveWitness implements provider.Audit.
func (d *DB) RemoveWitness(ctx context.Context, log, name string, leaf ledger.Leaf) error {
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`DELETE FROM witnesses WHERE log = ? AND name = ?`, log, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return notFound("witness", name)
		}
		return appendLeaf(tx, leaf)
	})
}

func scanWitness(r row, w *provider.Witness) error {
	var added int64
	err := r.Scan(&w.Log, &w.Name, &w.Key, &added)
	w.Added = fromMicros(added)
	return err
}

// Witnesses implements provider.Audit.
func (d *DB) Witnesses(ctx context.Context, log string) ([]provider.Witness, error) {
	return collect(ctx, d, scanWitness, `SELECT log, name, key, added FROM witnesses WHERE log = ? ORDER BY name`, log)
}

// ReplaceCheckpoint implements provider.Audit.
func (d *DB) ReplaceCheckpoint(ctx context.Context, log string, size int64, merge func([]byte) ([]byte, error)) error {
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		var note []byte
		err := tx.QueryRow(`SELECT note FROM checkpoints WHERE log = ? AND size = ? FOR UPDATE`, log, size).Scan(&note)
		if errors.Is(err, sql.ErrNoRows) {
			return cradle.Errorf(cradle.NotFound, "log %s has no checkpoint of size %d", log, size)
		}
		if err != nil {
			return err
		}
		if note, err = merge(note); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE checkpoints SET note = ? WHERE log = ? AND size = ?`, note, log, size); err != nil {
			return err
		}
		_, err = tx.Exec(`UPDATE logs SET checkpoint = ? WHERE log = ? AND signed = ?`, note, log, size)
		return err
	})
}

// SetPublic implements provider.Audit.
func (d *DB) SetPublic(ctx context.Context, log string, public bool, leaf ledger.Leaf) error {
	n := 0
	if public {
		n = 1
	}
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		changed, err := tx.Exec(`UPDATE logs SET public = ? WHERE log = ? AND public <> ?`, n, log, n)
		if err != nil || changed == 0 {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}

// Head implements provider.Audit.
func (d *DB) Head(ctx context.Context, log string) (provider.Head, error) {
	return one(ctx, d, scanHead, notFound("log", log), `SELECT `+headColumns+` FROM logs WHERE log = ?`, log)
}

// Leaves implements provider.Audit.
func (d *DB) Leaves(ctx context.Context, log string, from, to int64) ([][]byte, error) {
	out, err := collect(ctx, d, func(r row, b *[]byte) error { return r.Scan(b) },
		`SELECT data FROM leaves WHERE log = ? AND idx >= ? AND idx < ? ORDER BY idx`, log, from, to)
	if err == nil && int64(len(out)) != to-from {
		err = fmt.Errorf("log %s has %d of the leaves %d to %d: the store was changed from outside", log, len(out), from, to-1)
	}
	return out, err
}

// Hashes implements provider.Audit.
func (d *DB) Hashes(ctx context.Context, log string, level int, from, to int64) (map[int64]ledger.Hash, error) {
	type node struct {
		n    int64
		hash []byte
	}
	nodes, err := collect(ctx, d, func(r row, v *node) error { return r.Scan(&v.n, &v.hash) },
		`SELECT n, hash FROM log_hashes WHERE log = ? AND level = ? AND n >= ? AND n < ?`, log, level, from, to)
	out := map[int64]ledger.Hash{}
	for _, v := range nodes {
		if len(v.hash) != len(ledger.Hash{}) {
			return nil, fmt.Errorf("log %s: hash %d of level %d has %d bytes: the store was changed from outside", log, v.n, level, len(v.hash))
		}
		out[v.n] = ledger.Hash(v.hash)
	}
	return out, err
}

// SaveHashes implements provider.Audit.
func (d *DB) SaveHashes(ctx context.Context, log string, level int, hashes map[int64]ledger.Hash) error {
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		for _, n := range slices.Sorted(maps.Keys(hashes)) {
			h := hashes[n]
			if err := tx.Queue(`INSERT INTO log_hashes (log, level, n, hash) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`, log, level, n, h[:]); err != nil {
				return err
			}
		}
		return nil
	})
}
