package providerdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// arrive finds the device that came by this credential before, or makes it.
func arrive(tx *sqldb.Tx, want provider.Device, out *provider.Begun) error {
	find := func() error {
		return scanDevice(tx.QueryRow(`SELECT `+deviceColumns+` FROM devices d WHERE d.account = ? AND d.id = ? FOR UPDATE`, want.Account, want.ID), &out.Device)
	}
	err := find()
	if errors.Is(err, sql.ErrNoRows) {
		var held string // Barrier
		if err := tx.QueryRow(`SELECT id FROM accounts WHERE id = ? FOR SHARE`, want.Account).Scan(&held); err != nil {
			return err
		}
		if want.EKDigest != "" {
			var other cradle.DeviceID
			err := tx.QueryRow(`SELECT id FROM devices WHERE ek_digest = ? AND ek_digest <> ''`, want.EKDigest).Scan(&other)
			if err == nil {
				return otherUnit(want.EKDigest)
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		n, err := tx.Exec(`INSERT INTO devices (account, id, oem, order_id, lot, serial, tier, maker, anchor, ek_digest, ek_cert, iak, idevid_cert, iak_cert, state, epoch, reason, created, origin)
			VALUES (?, ?, '', '', '', ?, ?, ?, ?, ?, ?, ?, '', '', ?, 0, '', ?, ?) ON CONFLICT DO NOTHING`,
			want.Account, want.ID, want.Serial, want.Tier, want.Maker, want.Anchor, want.EKDigest, nonNil(want.EKCert), nonNil(want.IAK), want.State, micros(want.Created), want.Origin)
		if err != nil {
			return err
		}
		if n == 1 {
			out.Device = want
			if want.EKDigest != "" {
				if err := trusted(tx, &out.Device); err != nil {
					return err
				}
			}
			return rest(tx, &out.Device)
		}
		err = find() // another replica was first
		if errors.Is(err, sql.ErrNoRows) {
			return otherUnit(want.EKDigest)
		}
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if out.Device.Origin != want.Origin || out.Device.EKDigest != want.EKDigest {
		return cradle.Errorf(cradle.Forbidden, "the name %q belongs to a device that did not come by this credential", want.ID).WithHint("ask for another name")
	}
	return nil
}

func otherUnit(ek string) error {
	return cradle.Errorf(cradle.Forbidden, "this TPM (EK %s) is another unit already", ek).WithHint("one TPM is one device")
}

func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// unproved refuses a request without evidence in a lineage that is in quarantine, or of a device that got such
// certificates with evidence.
func unproved(tx *sqldb.Tx, i *provider.Intent) error {
	var quarantined, proved int64
	err := tx.QueryRow(`SELECT
		(SELECT count(*) FROM quarantines WHERE account = ? AND device = ? AND lineage = ?),
		CASE WHEN EXISTS (SELECT 1 FROM certificates WHERE account = ? AND device = ? AND lineage = ?) THEN 1 ELSE 0 END`,
		i.Account, i.Device, i.Lineage, i.Account, i.Device, i.Profile).Scan(&quarantined, &proved)
	if err != nil {
		return err
	}
	return withoutEvidence(i, quarantined > 0, proved > 0)
}

// withoutEvidence refuses by what was found of the intent's lineage and device; with evidence nothing is.
func withoutEvidence(i *provider.Intent, quarantined, proved bool) error {
	switch {
	case proved:
		return cradle.Errorf(cradle.Forbidden, "device %s got its %s certificates with evidence and gets none without", i.Device, i.Profile).
			WithHint("put the evidence into the CSR")
	case quarantined:
		return cradle.Errorf(cradle.Forbidden, "the %s credentials of %s are in quarantine: a superseded certificate was used", i.Profile, i.Device).
			WithHint("the account's operator looks into it and lifts it: cradle device heal %s", i.Device)
	}
	return nil
}

const basicColumns = `account, profile, name, password, names, tier, disabled, created`

func scanBasic(r row, u *provider.BasicUser) error {
	var disabled, created int64
	err := r.Scan(&u.Account, &u.Profile, &u.Name, &u.Password, &u.Names, &u.Tier, &disabled, &created)
	u.Disabled, u.Created = disabled != 0, fromMicros(created)
	return err
}

// SetBasicUser implements provider.Clients.
func (d *DB) SetBasicUser(ctx context.Context, u provider.BasicUser, leaf ledger.Leaf) error {
	return d.update(ctx, string(u.Account), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`INSERT INTO basic_users (`+basicColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (account, profile, name) DO UPDATE SET password = excluded.password, names = excluded.names, tier = excluded.tier, disabled = excluded.disabled`,
			u.Account, u.Profile, u.Name, u.Password, u.Names, u.Tier, flag(u.Disabled), micros(u.Created)); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}

// BasicUser implements provider.Clients.
func (d *DB) BasicUser(ctx context.Context, account cradle.AccountID, profile cradle.Profile, name string) (provider.BasicUser, error) {
	return one(ctx, d, scanBasic, notFound("user", name), `SELECT `+basicColumns+` FROM basic_users WHERE account = ? AND profile = ? AND name = ?`, account, profile, name)
}

// BasicUsers implements provider.Clients.
func (d *DB) BasicUsers(ctx context.Context, account cradle.AccountID) ([]provider.BasicUser, error) {
	return collect(ctx, d, scanBasic, `SELECT `+basicColumns+` FROM basic_users WHERE account = ? ORDER BY profile, name`, account)
}

// BasicProfiles implements provider.Clients.
func (d *DB) BasicProfiles(ctx context.Context) ([]provider.BasicUser, error) {
	scan := func(r row, u *provider.BasicUser) error { return r.Scan(&u.Account, &u.Profile) }
	return collect(ctx, d, scan, `SELECT DISTINCT account, profile FROM basic_users WHERE disabled = 0`)
}

const clientCAColumns = `id, account, profile, certs, tier, oem, names, disabled, created`

func scanClientCA(r row, c *provider.ClientCA) error {
	var certs string
	var disabled, created int64
	if err := r.Scan(&c.ID, &c.Account, &c.Profile, &certs, &c.Tier, &c.OEM, &c.Names, &disabled, &created); err != nil {
		return err
	}
	c.Disabled, c.Created = disabled != 0, fromMicros(created)
	return json.Unmarshal([]byte(certs), &c.Certs)
}

// SetClientCA implements provider.Clients.
func (d *DB) SetClientCA(ctx context.Context, c provider.ClientCA, units []provider.ClientUnit, leaf ledger.Leaf) error {
	return d.update(ctx, string(c.Account), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`INSERT INTO client_cas (`+clientCAColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET certs = excluded.certs, tier = excluded.tier, oem = excluded.oem, names = excluded.names, disabled = excluded.disabled`,
			c.ID, c.Account, c.Profile, jsonText(c.Certs), c.Tier, c.OEM, c.Names, flag(c.Disabled), micros(c.Created)); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM client_units WHERE ca = ?`, c.ID); err != nil {
			return err
		}
		rows := make([][]any, len(units))
		for i, u := range units {
			rows[i] = []any{c.ID, u.Unit, u.Name}
		}
		if len(rows) > 0 {
			if err := tx.InsertMany("client_units", []string{"ca", "unit", "name"}, rows); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
}

// ClientCAs implements provider.Clients.
func (d *DB) ClientCAs(ctx context.Context, account cradle.AccountID) ([]provider.ClientCA, error) {
	return collect(ctx, d, scanClientCA, `SELECT `+clientCAColumns+` FROM client_cas WHERE account = ? OR ? = '' ORDER BY account, profile, id`, account, account)
}

// ClientUnit implements provider.Clients.
func (d *DB) ClientUnit(ctx context.Context, c provider.ClientCA, units []string) (provider.ClientUnit, provider.Device, error) {
	type found struct {
		provider.ClientUnit
		provider.Device
	}
	scan := func(r row, f *found) error {
		var created int64
		err := r.Scan(append(deviceFields(&f.Device, &created), &f.Unit, &f.Name)...)
		f.Created = fromMicros(created)
		return err
	}
	all, err := collect(ctx, d, scan, `SELECT `+deviceOrNone+`, u.unit, u.name FROM client_units u LEFT JOIN devices d ON d.account = ? AND d.id = u.name
		WHERE u.ca = ? AND u.unit IN `+places(toAny(units)), append([]any{c.Account, c.ID}, toAny(units)...)...)
	if err != nil {
		return provider.ClientUnit{}, provider.Device{}, err
	}
	for _, u := range units {
		if i := slices.IndexFunc(all, func(f found) bool { return f.Unit == u }); i >= 0 {
			return all[i].ClientUnit, all[i].Device, nil
		}
	}
	return provider.ClientUnit{}, provider.Device{}, cradle.Errorf(cradle.NotFound, "no such unit")
}

// UnitsOf implements provider.Clients.
func (d *DB) UnitsOf(ctx context.Context, account cradle.AccountID, oem cradle.OEMID, serial string) ([]provider.Device, error) {
	return collect(ctx, d, scanDevice, `SELECT `+deviceColumns+` FROM devices d JOIN orders o ON o.id = d.order_id
		WHERE o.account = ? AND o.oem = ? AND d.serial = ? AND d.account = ? AND d.state <> ? LIMIT 2`, account, oem, serial, account, cradle.Made)
}

// Heal implements provider.Clients.
func (d *DB) Heal(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, leaf ledger.Leaf) (n int64, err error) {
	err = d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		var err error
		if n, err = tx.Exec(`DELETE FROM quarantines WHERE account = ? AND device = ? AND lineage LIKE '%/%'`, account, id); err != nil || n == 0 {
			return err
		}
		return appendLeaf(tx, leaf)
	})
	return n, err
}
