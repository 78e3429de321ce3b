package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/keys/keystore"
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

// UsePermit implements provider.Permits.
func (d *DB) UsePermit(ctx context.Context, intent, front string, at time.Time) (provider.Intent, error) {
	var i provider.Intent
	err := d.update(ctx, "", func(tx *sqldb.Tx) error {
		i = provider.Intent{}
		var state, cert, reason string
		var created int64
		err := tx.QueryRow(`SELECT `+intentColumns+` FROM intents WHERE id = ? FOR UPDATE`, intent).Scan(&i.ID, &i.Account, &i.Device, &i.Profile, &i.Operation,
			&i.Authority, &i.AuthCert, &i.AuthProfile, &i.CSR, &i.SPKI, &i.Challenge, &i.Serial, &i.Epoch, &created, &i.Replica, &i.Lineage, &state, &cert, &reason)
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("intent", intent)
		}
		if err != nil {
			return err
		}
		i.Created = fromMicros(created)
		if state != "open" {
			return cradle.Errorf(cradle.Conflict, "the intent is %s", state)
		}
		n, err := tx.Exec(`INSERT INTO permits (intent, front, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, intent, front, micros(at))
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "the permit was spent before")
		}
		err = tx.QueryRow(`SELECT id FROM approvals WHERE intent = ?`, intent).Scan(&i.Approval)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return i, err
}

// ResealKey implements provider.Permits.
func (d *DB) ResealKey(ctx context.Context, k keystore.Key) error {
	return d.update(ctx, "", func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`UPDATE authorities SET sealed_key = ? WHERE key_ref = ?`, blob(k.Sealed), k.Ref); err != nil {
			return err
		}
		_, err := tx.Exec(`UPDATE pending_keys SET sealed_key = ? WHERE key_ref = ?`, blob(k.Sealed), k.Ref)
		return err
	})
}
