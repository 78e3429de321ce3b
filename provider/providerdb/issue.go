package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const certColumns = `c.digest, c.serial, c.account, c.device, c.profile, c.authority, c.der, c.not_before, c.not_after, c.slot, c.intent, c.issued, c.revoked, c.reason, c.lineage, c.superseded`

// certFields are the places that certColumns fill; done converts the times afterwards.
func certFields(c *provider.Certificate) (fields []any, done func()) {
	t := new([5]int64)
	return []any{&c.Digest, &c.Serial, &c.Account, &c.Device, &c.Profile, &c.Authority, &c.DER, &t[0], &t[1], &c.Slot, &c.Intent, &t[2], &t[3], &c.Reason, &c.Lineage, &t[4]},
		func() {
			c.NotBefore, c.NotAfter, c.Issued, c.Revoked, c.Superseded = fromMicros(t[0]), fromMicros(t[1]), fromMicros(t[2]), fromMicros(t[3]), fromMicros(t[4])
		}
}

func scanCert(r row, c *provider.Certificate) error {
	fields, done := certFields(c)
	err := r.Scan(fields...)
	done()
	return err
}

const intentColumns = `id, account, device, profile, operation, authority, auth_cert, auth_profile, csr, spki, challenge, serial, epoch, created, replica, lineage, state, certificate, reason`

func intentValues(i *provider.Intent) []any {
	return []any{i.ID, i.Account, i.Device, i.Profile, i.Operation, i.Authority, i.AuthCert, i.AuthProfile, i.CSR, i.SPKI, i.Challenge, i.Serial,
		i.Epoch, micros(i.Created), i.Replica, i.Lineage}
}

// asksIntent are the columns of a Many for intentValues; claims inserts what it asks, from rows that mayBegin. A public key
// stays the device's also when no certificate comes of the intent: its holder proved to have it.
const asksIntent = `id text, account text, device text, profile text, operation text, authority text, auth_cert text, auth_profile text, csr text, spki text,` +
	` challenge text, serial text, epoch bigint, created bigint, replica text, lineage text`

func claims(from, mayBegin string) string {
	return `,
	k AS (INSERT INTO device_keys (spki, account, device) SELECT spki, account, device FROM ` + from + `
		ON CONFLICT (spki) DO UPDATE SET spki = excluded.spki RETURNING spki, account, device),
	i AS (INSERT INTO intents (` + intentColumns + `)
		SELECT id, account, device, profile, operation, authority, auth_cert, auth_profile, csr, spki, challenge, serial, epoch, created, replica, lineage, 'open', '', ''
		FROM ` + from + ` WHERE ` + mayBegin + ` AND (` + ownsKey + `) IS TRUE ON CONFLICT (challenge) DO NOTHING RETURNING id)`
}

const (
	ownsKey = `(spki, account, device) IN (SELECT spki, account, device FROM k)`
	begun   = `CASE WHEN id IN (SELECT id FROM i) THEN 1 ELSE 0 END`
	owner   = `CASE WHEN ` + ownsKey + ` THEN account || '/' || device ELSE '' END`
)

var spendMany = sqldb.NewMany(asksIntent, claims("asked", "true")+` SELECT n, `+begun+`, `+owner+` FROM asked`)

// insertKey claims a public key for a device and returns whose it is.
const insertKey = ` ON CONFLICT (spki) DO UPDATE SET spki = excluded.spki RETURNING account || '/' || device`

func ownKey(i *provider.Intent, owner string) error {
	if owner == string(i.Account)+"/"+string(i.Device) {
		return nil
	}
	return cradle.Errorf(cradle.Forbidden, "the CSR's key belongs to another device").WithHint("make a new key: each device has its own")
}

// spend claims the key and inserts the intent, which spends its challenge. It reports false when the challenge was
// spent before.
func spend(tx *sqldb.Tx, i *provider.Intent) (bool, error) {
	var owner string
	if tx.Engine() == sqldb.PostgreSQL {
		var spent int64
		err := tx.AskMany(spendMany, intentValues(i)...).Scan(&spent, &owner)
		if err == nil {
			err = ownKey(i, owner)
		}
		return spent == 1, err
	}
	// SQLite keeps what a statement returns in a table of its own, so a key that is new is not asked for.
	n, err := tx.Exec(`INSERT INTO device_keys (spki, account, device) VALUES (?, ?, ?) ON CONFLICT (spki) DO NOTHING`, i.SPKI, i.Account, i.Device)
	if err == nil && n == 0 {
		err = tx.QueryRow(`SELECT account || '/' || device FROM device_keys WHERE spki = ?`, i.SPKI).Scan(&owner)
		if err == nil {
			err = ownKey(i, owner)
		}
	}
	if err != nil {
		return false, err
	}
	n, err = tx.Exec(`INSERT INTO intents (`+intentColumns+`)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', '', '') ON CONFLICT (challenge) DO NOTHING`, intentValues(i)...)
	return n == 1, err
}

// standing reads, in the statement that locks device d, what its next intent rests on: whether a set of the account is
// being changed, whether the client's certificate stands as it is remembered to, and of a request without evidence what
// would refuse it. What it compares with is given by value, in the order of standingValues.
// It has no EXISTS: for that PostgreSQL may read a whole table into a hash, which is the quickest while it is small.
func standing(proved, rests bool, value func(name string) string) string {
	columns := `d.state, d.epoch AS now, ` + running + ` AS busy, `
	if rests {
		columns += `CASE WHEN (SELECT 1 FROM certificates a WHERE a.serial = ` + value("rests_serial") + ` AND a.digest = ` + value("auth_cert") + ` AND a.slot = ` + value("rests_slot") + ` AND a.revoked = 0) = 1
			AND (SELECT 1 FROM quarantines q WHERE q.account = d.account AND q.device = d.id AND q.lineage = ` + value("rests_lineage") + `) IS NULL THEN 0 ELSE 1 END AS stale`
	} else {
		columns += `0 AS stale`
	}
	if proved {
		return columns + `, 0 AS quarantined, 0 AS proved`
	}
	return columns + `,
		COALESCE((SELECT 1 FROM quarantines q WHERE q.account = d.account AND q.device = d.id AND q.lineage = ` + value("lineage") + `), 0) AS quarantined,
		COALESCE((SELECT 1 FROM certificates c WHERE c.account = d.account AND c.device = d.id AND c.lineage = ` + value("profile") + ` LIMIT 1), 0) AS proved`
}

func standingValues(i *provider.Intent) (args []any) {
	if i.Rests != nil {
		args = append(args, i.Rests.Serial, i.AuthCert, i.Rests.Slot, i.Rests.Lineage)
	}
	if !i.Proved() {
		args = append(args, i.Lineage, i.Profile)
	}
	return args
}

// spendForMany are by whether there is evidence and whether the client's record was remembered.
var spendForMany = func() map[[2]bool]*sqldb.Many {
	all := map[[2]bool]*sqldb.Many{}
	for _, v := range [][2]bool{{}, {true, false}, {false, true}, {true, true}} {
		proved, rests := v[0], v[1]
		asks := asksIntent
		if rests {
			asks += `, rests_serial text, rests_slot text, rests_lineage text`
		}
		// The states are those that mayIssue allows.
		all[v] = sqldb.NewMany(asks, `,
			d AS (SELECT asked.*, `+standing(proved, rests, func(name string) string { return "asked." + name })+`
				FROM asked, devices d WHERE d.account = asked.account AND d.id = asked.device FOR UPDATE OF d)`+
			claims("d", `now = epoch AND busy = 0 AND stale = 0 AND quarantined = 0 AND proved = 0 AND state IN ('accepted', 'active')`)+`
			SELECT n, state, now, busy, stale, quarantined, proved, `+begun+`, `+owner+` FROM d`)
	}
	return all
}()

// spendFor locks the intent's device, says how it stands and, if it may have certificates, spends the challenge.
func spendFor(tx *sqldb.Tx, i *provider.Intent, dev *provider.Device) (fresh bool, err error) {
	var busy, stale, quarantined, proved, spent int64
	owner := string(i.Account) + "/" + string(i.Device)
	postgres := tx.Engine() == sqldb.PostgreSQL
	if postgres { // in one round trip
		args := intentValues(i)
		if i.Rests != nil {
			args = append(args, i.Rests.Serial, i.Rests.Slot, i.Rests.Lineage)
		}
		err = tx.AskMany(spendForMany[[2]bool{i.Proved(), i.Rests != nil}], args...).
			Scan(&dev.State, &dev.Epoch, &busy, &stale, &quarantined, &proved, &spent, &owner)
	} else {
		err = tx.QueryRow(`SELECT `+standing(i.Proved(), i.Rests != nil, func(string) string { return "?" })+` FROM devices d WHERE d.account = ? AND d.id = ?`,
			append(standingValues(i), i.Account, i.Device)...).Scan(&dev.State, &dev.Epoch, &busy, &stale, &quarantined, &proved)
	}
	if err == nil {
		err = mayIssue(i, dev)
		if i.Rests != nil && (err != nil || stale != 0) {
			err = provider.ErrStale
		}
	}
	if err == nil && busy != 0 {
		err = deviceNotInSet(tx, i)
	}
	if err == nil {
		err = withoutEvidence(i, quarantined != 0, proved != 0)
	}
	if err == nil {
		err = ownKey(i, owner)
	}
	if err != nil {
		return false, err
	}
	if !postgres || busy != 0 {
		return spend(tx, i)
	}
	return spent == 1, nil
}

// mayIssue refuses an intent for a device that is not made, is blocked, or has changed since it was judged.
func mayIssue(i *provider.Intent, dev *provider.Device) error {
	switch {
	case dev.State == cradle.Made:
		return cradle.Errorf(cradle.Forbidden, "device %s is not accepted yet", i.Device).WithHint("cradle lot list; cradle lot accept ID")
	case dev.State.Blocked():
		return cradle.Errorf(cradle.Forbidden, "device %s is %s", i.Device, dev.State)
	case dev.Epoch != i.Epoch:
		return cradle.Errorf(cradle.Conflict, "the standing of device %s changed meanwhile", i.Device).WithHint("try again")
	}
	return nil
}

// respend looks at who spent the challenge: the same request gets its certificate again, or, when its
// intent was voided, the right to go on under the new intent. A request without a challenge whose certificate is
// older than i.ReplayAfter, or no longer good, is a new one.
func respend(tx *sqldb.Tx, i *provider.Intent, out *provider.Begun) error {
	var id, state, cert string
	var old provider.Intent
	err := tx.QueryRow(`SELECT id, account, device, profile, operation, auth_cert, csr, lineage, state, certificate FROM intents WHERE challenge = ? FOR UPDATE`, i.Challenge).
		Scan(&id, &old.Account, &old.Device, &old.Profile, &old.Operation, &old.AuthCert, &old.CSR, &old.Lineage, &state, &cert)
	if errors.Is(err, sql.ErrNoRows) {
		return cradle.Errorf(cradle.Busy, "the challenge is being spent").WithHint("try again")
	}
	if err != nil {
		return err
	}
	if old.Account != i.Account || old.Device != i.Device || old.Profile != i.Profile || old.Operation != i.Operation || old.AuthCert != i.AuthCert || old.CSR != i.CSR && i.Proved() {
		return cradle.Errorf(cradle.Conflict, "the challenge was spent by another request").WithHint("ask for a fresh nonce")
	}
	switch state {
	case "open":
		return cradle.Errorf(cradle.Busy, "this very request is being worked on").WithHint("send it again in a moment")
	case "done":
		out.Replay = new(provider.Certificate)
		if err := scanCert(tx.QueryRow(`SELECT `+certColumns+` FROM certificates c WHERE c.account = ? AND c.device = ? AND c.lineage = ? AND c.digest = ?`, i.Account, i.Device, old.Lineage, cert), out.Replay); err != nil {
			return err
		}
		if r := out.Replay; i.Proved() || r.Issued.After(i.ReplayAfter) && r.Revoked.IsZero() && r.Slot != provider.Superseded {
			return nil
		}
		out.Replay = nil
		if _, err := tx.Exec(`UPDATE intents SET challenge = ? WHERE id = ?`, "over/"+id, id); err != nil {
			return err
		}
		fresh, err := spend(tx, i)
		if err == nil && !fresh {
			err = cradle.Errorf(cradle.Busy, "this very request is being worked on").WithHint("send it again in a moment")
		}
		return err
	}
	_, err = tx.Exec(`UPDATE intents SET id = ?, authority = ?, auth_profile = ?, csr = ?, spki = ?, serial = ?, epoch = ?, state = 'open', reason = '', created = ?, replica = ?, lineage = ? WHERE id = ?`,
		i.ID, i.Authority, i.AuthProfile, i.CSR, i.SPKI, i.Serial, i.Epoch, micros(i.Created), i.Replica, i.Lineage, id)
	return err
}

// BeginIssue implements provider.Issuance.
func (d *DB) BeginIssue(ctx context.Context, i *provider.Intent, birth *provider.Birth, promote cradle.CertSerial) (provider.Begun, error) {
	var out provider.Begun
	want := *i
	err := d.updateDevice(ctx, i.Account, i.Device, func(tx *sqldb.Tx) error {
		out = provider.Begun{}
		*i = want
		var fresh bool
		var err error
		switch {
		case birth != nil && birth.Device.Origin != "":
			fresh, err = arrive(tx, i, birth.Device, &out)
		case birth != nil:
			look, err := reserve(tx, i.Profile, birth.Device, &out)
			if err == nil && look {
				err = notInSet(tx, &out.Device)
			}
			if err != nil {
				return err
			}
			i.Epoch = out.Device.Epoch
			if s := out.Device.State; s.Blocked() {
				return blocked(i, s)
			}
			if !i.Proved() {
				if err := unproved(tx, i); err != nil {
					return err
				}
			}
			if fresh, err = spend(tx, i); err != nil {
				return err
			}
		default:
			out.Device.Account, out.Device.ID = i.Account, i.Device
			fresh, err = spendFor(tx, i, &out.Device)
			if errors.Is(err, sql.ErrNoRows) {
				return notFound("device", i.Device)
			}
		}
		if err != nil {
			return err
		}
		if !fresh {
			if err := respend(tx, i, &out); err != nil || out.Replay != nil {
				return err
			}
		}
		if birth != nil && birth.Device.Origin == "" {
			return existing(tx, i, &out)
		}
		if i.Approval != "" {
			if err := useApproval(tx, i); err != nil {
				return err
			}
		}
		if promote != "" {
			return promoteCert(tx, promote, i.Created)
		}
		return nil
	})
	return out, err
}

// promoteCert makes the certificate in slot next current, and the former current superseded: it was seen in use. The
// device is locked.
func promoteCert(tx *sqldb.Tx, serial cradle.CertSerial, at time.Time) error {
	return tx.Queue(`UPDATE certificates AS c SET slot = CASE WHEN c.serial = n.serial THEN 'current' ELSE 'superseded' END,
			superseded = CASE WHEN c.serial = n.serial THEN c.superseded ELSE CAST(? AS BIGINT) END
		FROM certificates n WHERE n.serial = ? AND n.slot = 'next' AND c.account = n.account AND c.device = n.device AND c.lineage = n.lineage
			AND c.slot IN ('current', 'next') AND (c.slot = 'current' OR c.serial = n.serial)`, micros(at), serial)
}

// existing finds the certificate that the unit got for this very key before; the intent then ends with it.
func existing(tx *sqldb.Tx, i *provider.Intent, out *provider.Begun) error {
	digest := out.Device.IDevIDCert
	if i.Profile == cradle.IAK {
		digest = out.Device.IAKCert
	}
	if digest == "" {
		return nil
	}
	var spki string
	var c provider.Certificate
	fields, done := certFields(&c)
	err := tx.QueryRow(`SELECT `+certColumns+`, i.spki FROM certificates c JOIN intents i ON i.id = c.intent WHERE c.account = ? AND c.device = ? AND c.lineage = ? AND c.digest = ?`,
		i.Account, i.Device, i.Lineage, digest).Scan(append(fields, &spki)...)
	if err != nil {
		return err
	}
	done()
	if spki != i.SPKI {
		return cradle.Errorf(cradle.Forbidden, "device %s has its %s certificate for another key already", i.Device, i.Profile).
			WithHint("the TPM derives the same key again; another key is another unit")
	}
	out.Existing = &c
	_, err = tx.Exec(`UPDATE intents SET state = 'done', certificate = ? WHERE id = ?`, digest, i.ID)
	return err
}

// VoidIssue implements provider.Issuance.
func (d *DB) VoidIssue(ctx context.Context, intent, reason string) error {
	return d.update(ctx, "", func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE intents SET state = 'void', reason = ? WHERE id = ? AND state = 'open'`, reason, intent)
		return err
	})
}

// VoidOpen implements provider.Issuance.
func (d *DB) VoidOpen(ctx context.Context, before time.Time, replica string) (n int64, err error) {
	err = d.update(ctx, "", func(tx *sqldb.Tx) error {
		n, err = tx.Exec(`UPDATE intents SET state = 'void', reason = 'left open' WHERE state = 'open' AND (created < ? OR replica = ?)`, micros(before), replica)
		return err
	})
	return n, err
}

// StoreStation implements provider.Issuance.
func (d *DB) StoreStation(ctx context.Context, order cradle.OrderID, c provider.Certificate, leaf ledger.Leaf) error {
	return d.update(ctx, string(c.Account), func(tx *sqldb.Tx) error {
		if _, err := lockOrder(tx, order); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason, lineage)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, 0, '', ?)`,
			c.Digest, c.Serial, c.Account, order, c.Profile, c.Authority, c.DER, micros(c.NotBefore), micros(c.NotAfter), provider.Current, micros(c.Issued), c.Lineage); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}
