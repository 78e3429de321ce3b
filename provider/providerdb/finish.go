package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	earlier     bool // SQLite: the device has certificates of this lineage
}

// close ends an open intent with its certificate, locks its device and looks at the device's standing now.
func (x *closing) close(tx *sqldb.Tx, intent string) error {
	var err error
	if tx.Engine() == sqldb.PostgreSQL {
		err = tx.QueryRow(`WITH d AS (SELECT state, epoch FROM devices WHERE account = ? AND id = ? FOR UPDATE)
			UPDATE intents i SET state = 'done', certificate = ? FROM d WHERE i.id = ? AND i.state = 'open'
			RETURNING i.epoch, i.auth_profile, d.state, d.epoch`, x.dev.Account, x.dev.ID, x.c.Digest, intent).
			Scan(&x.epoch, &x.authProfile, &x.dev.State, &x.dev.Epoch)
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
	var steps []string
	var args [][]any
	also := func(step string, a ...any) { steps, args = append(steps, step), append(args, a) }
	switch c.Profile {
	case cradle.IDevID:
		also(`UPDATE devices SET idevid_cert = ? WHERE account = ? AND id = ?`, c.Digest, c.Account, c.Device)
	case cradle.IAK:
		also(`UPDATE devices SET iak_cert = ? WHERE account = ? AND id = ?`, c.Digest, c.Account, c.Device)
	default:
		if c.Profile == cradle.LDevID && x.dev.State == cradle.Accepted {
			also(`UPDATE devices SET state = ? WHERE account = ? AND id = ? AND state = ?`, cradle.Active, c.Account, c.Device, cradle.Accepted)
		}
		if !c.Proved() { // which of several is in use is known only when it is seen (docs/decisions/0015)
			break
		}
		if tx.Engine() == sqldb.SQLite && !x.earlier { // there is nothing that it supersedes, or heals
			break
		}
		also(`UPDATE certificates SET slot = ?, superseded = ? WHERE account = ? AND device = ? AND lineage = ? AND slot = ?`,
			provider.Superseded, micros(c.Issued), c.Account, c.Device, c.Lineage, provider.Next)
		if x.authProfile != c.Profile { // attested afresh
			also(`DELETE FROM quarantines WHERE account = ? AND device = ? AND lineage = ?`, c.Account, c.Device, c.Lineage)
		}
	}
	// The first certificate of a device and profile is current at once; a later one waits to be seen in use.
	values := []any{c.Digest, c.Serial, c.Account, c.Device, c.Profile, c.Authority, c.DER, micros(c.NotBefore), micros(c.NotAfter), c.Intent, micros(c.Issued), c.Lineage}
	slot := `?`
	switch {
	case tx.Engine() == sqldb.PostgreSQL:
		slot = `CASE WHEN EXISTS (SELECT 1 FROM certificates WHERE account = ? AND device = ? AND lineage = ?) THEN 'next' ELSE 'current' END`
		values = append(values, c.Account, c.Device, c.Lineage)
	case x.earlier:
		values = append(values, provider.Next)
	default:
		values = append(values, provider.Current)
	}
	also(`INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, intent, issued, revoked, reason, lineage, slot)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', ?, `+slot+`)`, values...)
	if tx.Engine() == sqldb.PostgreSQL {
		return tx.Queue(together(steps), slices.Concat(args...)...)
	}
	for i, s := range steps {
		if err := tx.Queue(s, args[i]...); err != nil {
			return err
		}
	}
	return nil
}

// together makes one statement of several that do not touch the same rows, and see none of each other's changes.
func together(steps []string) string {
	var b strings.Builder
	last := len(steps) - 1
	for i, s := range steps[:last] {
		if i == 0 {
			b.WriteString("WITH ")
		} else {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "s%d AS (%s)", i, s)
	}
	return b.String() + " " + steps[last]
}
