package providerdb

import (
	"context"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const pendingColumns = `id, kind, account, oem, class, common_name, spki, key_ref, sealed_key, created`

func scanPending(r row, k *provider.PendingKey) error {
	var created int64
	err := r.Scan(&k.ID, &k.Kind, &k.Account, &k.OEM, &k.Class, &k.CommonName, &k.SPKI, &k.Key.Ref, &k.Key.Sealed, &created)
	k.Created = fromMicros(created)
	return err
}

func insertPending(tx *sqldb.Tx, k *provider.PendingKey) (int64, error) {
	return tx.Exec(`INSERT INTO pending_keys (`+pendingColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		k.ID, k.Kind, k.Account, k.OEM, k.Class, k.CommonName, k.SPKI, k.Key.Ref, blob(k.Key.Sealed), micros(k.Created))
}

// AddPendingKey implements provider.Directory.
func (d *DB) AddPendingKey(ctx context.Context, k provider.PendingKey, leaf ledger.Leaf) (provider.PendingKey, error) {
	var out provider.PendingKey
	err := d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		n, err := insertPending(tx, &k)
		if err != nil {
			return err
		}
		if err := scanPending(tx.QueryRow(`SELECT `+pendingColumns+` FROM pending_keys WHERE kind = ? AND account = ? AND oem = ? AND class = ?`,
			k.Kind, k.Account, k.OEM, k.Class), &out); err != nil || n == 0 {
			return err
		}
		return appendLeaf(tx, leaf)
	})
	return out, err
}

// PendingKeys implements provider.Directory.
func (d *DB) PendingKeys(ctx context.Context) ([]provider.PendingKey, error) {
	return collect(ctx, d, scanPending, `SELECT `+pendingColumns+` FROM pending_keys ORDER BY id`)
}

// InstallAuthorities implements provider.Directory.
func (d *DB) InstallAuthorities(ctx context.Context, cas []provider.Authority, crosses map[string][][]byte, leaf ledger.Leaf) error {
	err := d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		for i := range cas {
			a := &cas[i]
			if _, err := tx.Exec(`UPDATE authorities SET state = ? WHERE kind = ? AND account = ? AND oem = ? AND class = ? AND state = ?`,
				provider.SupersededCA, a.Kind, a.Account, a.OEM, a.Class, provider.ActiveCA); err != nil {
				return err
			}
			if err := insertAuthority(tx, a); err != nil {
				return err
			}
			if _, err := tx.Exec(`DELETE FROM pending_keys WHERE kind = ? AND account = ? AND oem = ? AND class = ? AND key_ref = ?`,
				a.Kind, a.Account, a.OEM, a.Class, a.Key.Ref); err != nil {
				return err
			}
		}
		for id, c := range crosses {
			if _, err := tx.Exec(`UPDATE authorities SET crosses = ? WHERE id = ?`, jsonText(c), id); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
	if errors.Is(err, sqldb.ErrUnique) {
		return &cradle.Error{Kind: cradle.Conflict, Detail: "one of these certificates is installed already, or another was installed at this moment", Err: err}
	}
	return err
}
