package providerdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// comeMany makes devices that come by a credential and begins their intents: those of a name or TPM that is there already bring
// no row. A new device has no certificates and is in no quarantine.
var comeMany = sqldb.NewMany(asksIntent+`, unit text, tier text, maker text, anchor text, ek_digest text, ek_cert bytea, iak bytea, state text, born bigint, origin text`, `,
	b AS (INSERT INTO devices (account, id, oem, order_id, lot, serial, tier, maker, anchor, ek_digest, ek_cert, iak, idevid_cert, iak_cert, state, epoch, reason, created, origin)
		SELECT account, device, '', '', '', unit, tier, maker, anchor, ek_digest, ek_cert, iak, '', '', state, 0, '', born, origin FROM asked
		ON CONFLICT DO NOTHING RETURNING account, id),
	d AS (SELECT asked.*, CASE WHEN EXISTS (SELECT 1 FROM revocation_jobs j WHERE j.account = asked.account AND j.state = 'running') THEN 1 ELSE 0 END AS busy
		FROM asked WHERE ((account, device) IN (SELECT account, id FROM b)) IS TRUE)`+claims("d", "busy = 0")+`
	SELECT n, busy, `+begun+`, `+owner+` FROM d`)

// arrive begins the intent of a device that comes by a credential: it makes the device, or finds the one that came by it before.
func arrive(tx *sqldb.Tx, i *provider.Intent, want provider.Device, out *provider.Begun) (fresh bool, err error) {
	out.Device = want
	values := []any{want.Serial, want.Tier, want.Maker, want.Anchor, want.EKDigest, nonNil(want.EKCert), nonNil(want.IAK), want.State, micros(want.Created), want.Origin}
	var busy, spent int64
	if tx.Engine() == sqldb.PostgreSQL {
		if err := holdAccount(tx, want.Account); err != nil {
			return false, err
		}
		var owner string
		err = tx.AskMany(comeMany, append(intentValues(i), values...)...).Scan(&busy, &spent, &owner)
		if err == nil && busy == 0 {
			err = ownKey(i, owner)
		}
	} else {
		var n int64
		n, err = tx.Exec(`INSERT INTO devices (account, id, serial, tier, maker, anchor, ek_digest, ek_cert, iak, state, created, origin, oem, order_id, lot, idevid_cert, iak_cert, epoch, reason)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', '', '', '', 0, '') ON CONFLICT DO NOTHING`, append([]any{want.Account, want.ID}, values...)...)
		if err == nil && n == 0 {
			err = sql.ErrNoRows
		}
		busy = 1 // not known
	}
	if errors.Is(err, sql.ErrNoRows) {
		return cameBefore(tx, i, want, out)
	}
	if err != nil {
		return false, err
	}
	i.Epoch = 0
	if want.EKDigest != "" {
		if err := trusted(tx, &out.Device); err != nil {
			return false, err
		}
		if err := rest(tx, &out.Device); err != nil {
			return false, err
		}
	}
	if busy == 0 {
		return spent == 1, nil
	}
	if err := notInSet(tx, &out.Device); err != nil {
		return false, err
	}
	return spend(tx, i)
}

// holdAccount is what a birth without an order holds (Barrier), once for the batch; what follows sees what is stored then.
// SQLite's writer is alone.
func holdAccount(tx *sqldb.Tx, id cradle.AccountID) error {
	_, err := tx.Carry("account "+string(id), func(tx *sqldb.Tx) (any, error) {
		return nil, tx.Queue(`SELECT id FROM accounts WHERE id = ? FOR SHARE`, id)
	}, func(*sqldb.Tx, any) error { return nil })
	return err
}

// cameBefore is arrive for a name or TPM that is there already.
func cameBefore(tx *sqldb.Tx, i *provider.Intent, want provider.Device, out *provider.Begun) (fresh bool, err error) {
	err = scanDevice(tx.QueryRow(`SELECT `+deviceColumns+` FROM devices d WHERE d.account = ? AND d.id = ? FOR UPDATE`, want.Account, want.ID), &out.Device)
	if errors.Is(err, sql.ErrNoRows) {
		return false, otherUnit(want.EKDigest)
	}
	if err != nil {
		return false, err
	}
	if out.Device.Origin != want.Origin || out.Device.EKDigest != want.EKDigest {
		return false, cradle.Errorf(cradle.Forbidden, "the name %q belongs to a device that did not come by this credential", want.ID).WithHint("ask for another name")
	}
	if err := notInSet(tx, &out.Device); err != nil {
		return false, err
	}
	i.Epoch = out.Device.Epoch
	if s := out.Device.State; s.Blocked() {
		return false, blocked(i, s)
	}
	if !i.Proved() {
		if err := unproved(tx, i); err != nil {
			return false, err
		}
	}
	return spend(tx, i)
}

func blocked(i *provider.Intent, s cradle.DeviceState) error {
	return cradle.Errorf(cradle.Forbidden, "device %s is %s", i.Device, s)
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

var errNoUnit = cradle.Errorf(cradle.NotFound, "no such unit")

// ClientUnit implements provider.Clients. Each unit but the last is sought by itself: for a list SQLite would build a table.
func (d *DB) ClientUnit(ctx context.Context, c provider.ClientCA, units []string, serial cradle.CertSerial, digest string) (provider.FoundUnit, error) {
	scan := func(r row, f *provider.FoundUnit) error {
		var created, recorded int64
		err := r.Scan(append(deviceFields(&f.Device, &created), &f.Unit, &f.Name, &recorded)...)
		f.Device.Created, f.Recorded = fromMicros(created), recorded != 0
		return err
	}
	first, last := units[:len(units)-1], units[len(units)-1]
	args := []any{serial, digest, c.Account, c.ID}
	unit := `?`
	if len(first) > 0 {
		unit = `COALESCE(` + strings.Repeat(`(SELECT unit FROM client_units WHERE ca = ? AND unit = ?), `, len(first)) + `?)`
	}
	for _, u := range first {
		args = append(args, c.ID, u)
	}
	return one(ctx, d, scan, errNoUnit, `SELECT `+deviceOrNone+`, u.unit, u.name,
			COALESCE((SELECT 1 FROM certificates c WHERE c.serial = ? AND c.digest = ?), 0)
		FROM client_units u LEFT JOIN devices d ON d.account = ? AND d.id = u.name WHERE u.ca = ? AND u.unit = `+unit, append(args, last)...)
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
