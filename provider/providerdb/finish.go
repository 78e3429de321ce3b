package providerdb

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// FinishIssue implements provider.Issuance.
func (d *DB) FinishIssue(ctx context.Context, intent string, c provider.Certificate, leaf ledger.Leaf) error {
	var lost error // set when the intent ends void instead: that is stored too
	err := d.updateDevice(ctx, c.Account, c.Device, func(tx *sqldb.Tx) error {
		lost = nil
		x := closing{c: &c, dev: provider.Device{ID: c.Device, Account: c.Account}}
		if err := x.close(tx, intent); err != nil {
			return err
		}
		if x.dev.Epoch != x.epoch || x.dev.State.Blocked() {
			lost = cradle.Errorf(cradle.Conflict, "device %s became %s meanwhile", c.Device, x.dev.State)
			_, err := tx.Exec(`UPDATE intents SET state = 'void', certificate = '', reason = 'device changed' WHERE id = ?`, intent)
			return err
		}
		if err := x.place(tx); err != nil {
			return err
		}
		if c.Salt != nil {
			if err := seal(tx, &c); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
	return errors.Join(err, lost)
}

// closing is an intent on its way from open to done.
type closing struct {
	c           *provider.Certificate
	epoch       int64          // that the intent rests on,
	authProfile cradle.Profile // and of the certificate that authenticated it
	dev         provider.Device
	earlier     bool // the device has certificates of this lineage
}

// An open intent is sought by its id, not among those that are open.
var closeMany = sqldb.NewMany(`account text, device text, digest text, intent text, lineage text`, `,
	d AS (SELECT asked.*, d.state, d.epoch FROM asked, devices d WHERE d.account = asked.account AND d.id = asked.device FOR UPDATE OF d)
	UPDATE intents i SET state = 'done', certificate = d.digest FROM d WHERE i.id = d.intent AND i.state <> 'done' AND i.state <> 'void'
	RETURNING d.n, i.epoch, i.auth_profile, d.state, d.epoch,
		(SELECT 1 FROM certificates c WHERE c.account = d.account AND c.device = d.device AND c.lineage = d.lineage LIMIT 1) IS NOT NULL`)

// close ends an open intent with its certificate, locks its device and looks at the device's standing now.
func (x *closing) close(tx *sqldb.Tx, intent string) error {
	var err error
	if tx.Engine() == sqldb.PostgreSQL {
		err = tx.AskMany(closeMany, x.dev.Account, x.dev.ID, x.c.Digest, intent, x.c.Lineage).
			Scan(&x.epoch, &x.authProfile, &x.dev.State, &x.dev.Epoch, &x.earlier)
	} else {
		var n int64
		n, err = tx.Exec(`UPDATE intents SET state = 'done', certificate = ? WHERE id = ? AND state = 'open'`, x.c.Digest, intent)
		if err == nil && n == 0 {
			err = sql.ErrNoRows
		}
		if err == nil {
			err = tx.QueryRow(`SELECT i.epoch, i.auth_profile, d.state, d.epoch, EXISTS (SELECT 1 FROM certificates WHERE account = d.account AND device = d.id AND lineage = ?)
				FROM intents i CROSS JOIN devices d WHERE i.id = ? AND d.account = ? AND d.id = ?`, x.c.Lineage, intent, x.dev.Account, x.dev.ID).
				Scan(&x.epoch, &x.authProfile, &x.dev.State, &x.dev.Epoch, &x.earlier)
		}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return cradle.Errorf(cradle.Conflict, "the intent was voided meanwhile").WithHint("try again")
	}
	return err
}

// place stores the certificate in its slot and brings the device up to date: on PostgreSQL in one statement.
func (x *closing) place(tx *sqldb.Tx) error {
	c := x.c
	var do placement
	switch c.Profile {
	case cradle.IDevID:
		do = isIDevID
	case cradle.IAK:
		do = isIAK
	default:
		if c.Profile == cradle.LDevID && x.dev.State == cradle.Accepted {
			do |= activates
		}
		if !c.Proved() { // which of several is in use is known only when it is seen (docs/decisions/0015)
			break
		}
		if !x.earlier { // there is nothing that it supersedes, or heals
			break
		}
		do |= supersedes
		if x.authProfile != c.Profile { // attested afresh
			do |= heals
		}
	}
	// The first certificate of a device and lineage is current at once; a later one waits to be seen in use.
	slot := provider.Current
	if x.earlier {
		slot = provider.Next
	}
	values := []any{c.Digest, c.Serial, c.Account, c.Device, c.Profile, c.Authority, c.DER, micros(c.NotBefore), micros(c.NotAfter), c.Intent, micros(c.Issued), c.Lineage, slot}
	if tx.Engine() == sqldb.PostgreSQL {
		tx.QueueMany(placements[do], values...)
		return nil
	}
	var err error
	also := func(on placement, query string, args ...any) {
		if err == nil && do&on != 0 {
			err = tx.Queue(query, args...)
		}
	}
	also(isIDevID, `UPDATE devices SET idevid_cert = ? WHERE account = ? AND id = ?`, c.Digest, c.Account, c.Device)
	also(isIAK, `UPDATE devices SET iak_cert = ? WHERE account = ? AND id = ?`, c.Digest, c.Account, c.Device)
	also(activates, `UPDATE devices SET state = 'active' WHERE account = ? AND id = ? AND state = 'accepted'`, c.Account, c.Device)
	also(supersedes, `UPDATE certificates SET slot = 'superseded', superseded = ? WHERE account = ? AND device = ? AND lineage = ? AND slot = 'next'`,
		micros(c.Issued), c.Account, c.Device, c.Lineage)
	also(heals, `DELETE FROM quarantines WHERE account = ? AND device = ? AND lineage = ?`, c.Account, c.Device, c.Lineage)
	if err != nil {
		return err
	}
	return tx.Queue(`INSERT INTO certificates (`+placed+`, revoked, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '')`, values...)
}

// placement is what a certificate changes besides being stored.
type placement int

const (
	isIDevID placement = 1 << iota
	isIAK
	activates
	supersedes
	heals
	allPlacements
)

const placed = `digest, serial, account, device, profile, authority, der, not_before, not_after, intent, issued, lineage, slot`

// placements do each on PostgreSQL.
var placements = func() (all [allPlacements]*sqldb.Many) {
	for do := range allPlacements {
		steps := ""
		also := func(on placement, name, step string) {
			if do&on != 0 {
				steps += ",\n" + name + " AS (" + step + ")"
			}
		}
		const device = ` FROM asked WHERE d.account = asked.account AND d.id = asked.device`
		also(isIDevID, "idevid", `UPDATE devices d SET idevid_cert = asked.digest`+device)
		also(isIAK, "iak", `UPDATE devices d SET iak_cert = asked.digest`+device)
		also(activates, "active", `UPDATE devices d SET state = 'active'`+device+` AND d.state = 'accepted'`)
		also(supersedes, "old", `UPDATE certificates c SET slot = 'superseded', superseded = a.issued FROM (SELECT issued,
				(SELECT serial FROM certificates c WHERE c.account = asked.account AND c.device = asked.device AND c.lineage = asked.lineage AND c.slot = 'next' LIMIT 1) AS serial
				FROM asked) a WHERE c.serial = a.serial`)
		also(heals, "healed", `DELETE FROM quarantines q USING asked WHERE q.account = asked.account AND q.device = asked.device AND q.lineage = asked.lineage`)
		all[do] = sqldb.NewMany(`digest text, serial text, account text, device text, profile text, authority text, der bytea, not_before bigint, not_after bigint,`+
			` intent text, issued bigint, lineage text, slot text`, steps+`
			INSERT INTO certificates (`+placed+`, revoked, reason) SELECT `+placed+`, 0, '' FROM asked`)
	}
	return all
}()
