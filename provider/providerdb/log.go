package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func createLog(tx *sqldb.Tx, log string) error {
	f := new(ledger.Frontier)
	b, err := f.MarshalBinary()
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO logs (log, size, frontier, signed) VALUES (?, 0, ?, 0) ON CONFLICT (log) DO NOTHING`, log, b)
	return err
}

// CreateLog implements provider.Setup.
func (d *DB) CreateLog(ctx context.Context, log string) error {
	return d.update(ctx, log, func(tx *sqldb.Tx) error { return createLog(tx, log) })
}

// appendLeaf adds leaves of one log within the transaction of the records that they belong to. They are written, and
// the log's head locked, at the end of the batch, all that its functions added at once.
func appendLeaf(tx *sqldb.Tx, leaves ...ledger.Leaf) error {
	if len(leaves) == 0 {
		return nil
	}
	log := leaves[0].Log
	v, err := tx.Carry("log "+log, func(*sqldb.Tx) (any, error) { return new([]ledger.Leaf), nil },
		func(tx *sqldb.Tx, v any) error { return saveLeaves(tx, log, *v.(*[]ledger.Leaf)) })
	if err != nil {
		return err
	}
	all := v.(*[]ledger.Leaf)
	*all = append(*all, leaves...)
	tx.Touch()
	return nil
}

func saveLeaves(tx *sqldb.Tx, log string, leaves []ledger.Leaf) error {
	f, err := lockHead(tx, log)
	if err != nil {
		return err
	}
	rows := make([][]any, len(leaves))
	for i, l := range leaves {
		rows[i] = []any{log, f.Size(), l.Data}
		f.Append(l.Hash())
	}
	if err := tx.InsertMany("leaves", []string{"log", "idx", "data"}, rows); err != nil {
		return err
	}
	b, err := f.MarshalBinary()
	if err != nil {
		return err
	}
	return tx.Queue(`UPDATE logs SET size = ?, frontier = ? WHERE log = ?`, f.Size(), b, log)
}

// lockHead returns the frontier of a log.
func lockHead(tx *sqldb.Tx, log string) (*ledger.Frontier, error) {
	var b []byte
	err := tx.QueryRow(`SELECT frontier FROM logs WHERE log = ? FOR UPDATE`, log).Scan(&b)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("internal error: no log %q", log)
	}
	if err != nil {
		return nil, err
	}
	f := new(ledger.Frontier)
	if err := f.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("head of log %s: %w", log, err)
	}
	return f, nil
}

// Append implements provider.Log.
func (d *DB) Append(ctx context.Context, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error { return appendLeaf(tx, leaf) })
}

const headColumns = `log, frontier, signed, checkpoint, public`

func scanHead(r row, h *provider.Head) error {
	var b []byte
	var public int64
	if err := r.Scan(&h.Log, &b, &h.Signed, &h.Checkpoint, &public); err != nil {
		return err
	}
	h.Public = public != 0
	var f ledger.Frontier
	if err := f.UnmarshalBinary(b); err != nil {
		return err
	}
	h.Size, h.Root = f.Size(), f.Root()
	return nil
}

// Heads implements provider.Log.
func (d *DB) Heads(ctx context.Context) ([]provider.Head, error) {
	return collect(ctx, d, scanHead, `SELECT `+headColumns+` FROM logs ORDER BY log`)
}

// GrownHeads implements provider.Log.
func (d *DB) GrownHeads(ctx context.Context) ([]provider.Head, error) {
	return collect(ctx, d, scanHead, `SELECT `+headColumns+` FROM logs WHERE size > signed ORDER BY log`)
}

// SaveCheckpoint implements provider.Log.
func (d *DB) SaveCheckpoint(ctx context.Context, log string, previous, size int64, note []byte, at time.Time) error {
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`UPDATE logs SET signed = ?, checkpoint = ? WHERE log = ? AND signed = ? AND size >= ?`, size, note, log, previous, size)
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "log %s has a newer checkpoint", log)
		}
		_, err = tx.Exec(`INSERT INTO checkpoints (log, size, note, at) VALUES (?, ?, ?, ?)`, log, size, note, micros(at))
		return err
	})
}
