package providerdb

import (
	"context"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// StoreRegistrar implements provider.Registrars.
func (d *DB) StoreRegistrar(ctx context.Context, c provider.Certificate, spki string, leaf ledger.Leaf) error {
	return d.update(ctx, string(c.Account), func(tx *sqldb.Tx) error {
		var held string // Barrier
		if err := tx.QueryRow(`SELECT id FROM accounts WHERE id = ? FOR SHARE`, c.Account).Scan(&held); err != nil {
			return err
		}
		var owner string
		if err := tx.QueryRow(`INSERT INTO device_keys (spki, account, device) VALUES (?, ?, ?)`+insertKey, spki, c.Account, c.Device).Scan(&owner); err != nil {
			return err
		}
		if owner != string(c.Account)+"/"+string(c.Device) {
			return cradle.Errorf(cradle.Forbidden, "the CSR's key belongs to a device or to another registration authority").WithHint("make a new key")
		}
		if _, err := tx.Exec(`INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason, lineage)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, 0, '', ?)`,
			c.Digest, c.Serial, c.Account, c.Device, c.Profile, c.Authority, c.DER, micros(c.NotBefore), micros(c.NotAfter), c.Slot, micros(c.Issued), c.Lineage); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}

// Registrars implements provider.Registrars.
func (d *DB) Registrars(ctx context.Context, account cradle.AccountID) ([]provider.Certificate, error) {
	return collect(ctx, d, scanCert, `SELECT `+certColumns+` FROM certificates c WHERE c.account = ? AND c.profile = 'registration-authority' ORDER BY c.issued, c.digest`, account)
}
