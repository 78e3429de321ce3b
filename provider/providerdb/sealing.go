package providerdb

import (
	"context"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// seal hides a certificate that was just placed until it is used.
func seal(tx *sqldb.Tx, c *provider.Certificate) error {
	if err := tx.Queue(`UPDATE certificates SET slot = ? WHERE serial = ?`, provider.Sealed, c.Serial); err != nil {
		return err
	}
	return tx.Queue(`INSERT INTO commitments (certificate, salt, opened) VALUES (?, ?, 0)`, c.Digest, c.Salt)
}

// Salt implements provider.Sealing.
func (d *DB) Salt(ctx context.Context, digest string) ([]byte, error) {
	scan := func(r row, b *[]byte) error { return r.Scan(b) }
	return one(ctx, d, scan, notFound("commitment", digest), `SELECT salt FROM commitments WHERE certificate = ?`, digest)
}

// Unseal implements provider.Sealing.
func (d *DB) Unseal(ctx context.Context, c provider.Certificate, leaf ledger.Leaf) error {
	return d.update(ctx, string(c.Account), func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`UPDATE commitments SET opened = ? WHERE certificate = ? AND opened = 0`, micros(leaf.Time), c.Digest)
		if err != nil || n == 0 {
			return err
		}
		if _, err := tx.Exec(`UPDATE certificates SET slot = ?, superseded = ? WHERE account = ? AND device = ? AND lineage = ? AND slot = ?`,
			provider.Superseded, micros(leaf.Time), c.Account, c.Device, c.Lineage, provider.Current); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE certificates SET slot = ? WHERE serial = ? AND slot = ?`, provider.Current, c.Serial, provider.Sealed); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}
