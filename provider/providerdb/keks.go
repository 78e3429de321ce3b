package providerdb

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// SetKEK implements provider.KEKs.
func (d *DB) SetKEK(ctx context.Context, account cradle.AccountID, id string, sealed []byte, leaf ledger.Leaf) error {
	return d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`DELETE FROM keks WHERE account = ? AND id = ?`, account, id); err != nil {
			return err
		}
		if sealed != nil {
			if _, err := tx.Exec(`INSERT INTO keks (account, id, sealed, created) VALUES (?, ?, ?, ?)`, account, id, sealed, micros(time.Now())); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
}

// KEK implements provider.KEKs.
func (d *DB) KEK(ctx context.Context, account cradle.AccountID, id string) ([]byte, error) {
	scan := func(r row, b *[]byte) error { return r.Scan(b) }
	return one(ctx, d, scan, notFound("key-encryption key", id), `SELECT sealed FROM keks WHERE account = ? AND id = ?`, account, id)
}

// KEKList implements provider.KEKs.
func (d *DB) KEKList(ctx context.Context, account cradle.AccountID) ([]string, error) {
	scan := func(r row, s *string) error { return r.Scan(s) }
	return collect(ctx, d, scan, `SELECT id FROM keks WHERE account = ? ORDER BY id`, account)
}
