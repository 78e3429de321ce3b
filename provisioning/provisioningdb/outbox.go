package provisioningdb

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provisioning"
)

// putDelivery writes a row, or renews the one there is, and reports whether the lease is ours. Another
// owner's lease stays: that owner finds the new version when it settles.
func putDelivery(tx *sqldb.Tx, d provisioning.Delivery, l provisioning.Lease) (ours bool, err error) {
	var owner string
	err = tx.QueryRow(insertDelivery+` ON CONFLICT (hub, registration_id) DO UPDATE SET version = excluded.version, due_at = excluded.due_at,
			owner = CASE WHEN outbox.owner = excluded.owner OR outbox.leased_until <= excluded.due_at THEN excluded.owner ELSE outbox.owner END,
			leased_until = CASE WHEN outbox.owner = excluded.owner OR outbox.leased_until <= excluded.due_at THEN excluded.leased_until ELSE outbox.leased_until END
		RETURNING owner`, deliveryValues(d, l)...).Scan(&owner)
	return err == nil && l.Owner != "" && owner == l.Owner, err
}

const insertDelivery = `INSERT INTO outbox (hub, registration_id, version, due_at, attempts, last_error, owner, leased_until) VALUES (?, ?, ?, ?, 0, '', ?, ?)`

func deliveryValues(d provisioning.Delivery, l provisioning.Lease) []any {
	var until int64
	if l.Owner != "" {
		until = micros(l.Until)
	}
	return []any{d.Hub, string(d.Registration.ID), d.Version, micros(l.Now), l.Owner, until}
}

// newDelivery writes the row of a registration that was made in this transaction.
func newDelivery(tx *sqldb.Tx, d provisioning.Delivery, l provisioning.Lease) error {
	if tx.Engine() == sqldb.PostgreSQL {
		tx.QueueMany(insertDeliveries, deliveryValues(d, l)...)
		return nil
	}
	return tx.Queue(insertDelivery, deliveryValues(d, l)...)
}

var insertDeliveries = sqldb.NewMany(`hub text, registration_id text, version bigint, due_at bigint, owner text, leased_until bigint`,
	` INSERT INTO outbox (hub, registration_id, version, due_at, attempts, last_error, owner, leased_until)
	SELECT hub, registration_id, version, due_at, 0, '', owner, leased_until FROM asked`)

const (
	dueRows = ` FROM outbox WHERE hub = ? AND due_at <= ? AND leased_until <= ?`
	oneRow  = ` WHERE hub = ? AND registration_id = ?`
)

// Due implements provisioning.Outbox.
func (d *DB) Due(ctx context.Context, hub string, l provisioning.Lease, limit int) ([]provisioning.Delivery, error) {
	now := micros(l.Now)
	any := false
	err := d.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error { // an idle outbox costs no write
		var one int
		err := tx.QueryRow(`SELECT 1`+dueRows+` LIMIT 1`, hub, now, now).Scan(&one)
		if any = err == nil; errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil || !any {
		return nil, err
	}
	var out []provisioning.Delivery
	err = d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out = nil
		rows, err := tx.Query(`SELECT registration_id, version, attempts`+dueRows+` ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED`, hub, now, now, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			dv := provisioning.Delivery{Hub: hub}
			if err := rows.Scan(&dv.Registration.ID, &dv.Version, &dv.Attempts); err != nil {
				return err
			}
			out = append(out, dv)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		rows.Close()
		for i := range out {
			r, err := d.getRegistration(tx, out[i].Registration.ID, "")
			if err != nil {
				return err
			}
			out[i].Registration = *r // the outbox's foreign key
		}
		for _, dv := range out {
			if err := tx.Queue(`UPDATE outbox SET owner = ?, leased_until = ?`+oneRow, l.Owner, micros(l.Until), hub, string(dv.Registration.ID)); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// errMoved says that a row is not as the delivery knew it.
var errMoved = errors.New("the delivery is not what it was")

// Settle implements provisioning.Outbox. Mostly nothing has happened since the delivery was taken; then it need not be read.
func (d *DB) Settle(ctx context.Context, dv provisioning.Delivery, l provisioning.Lease, done provisioning.Settled) (*provisioning.Registration, *provisioning.Delivery, error) {
	settled, err := d.settleUnread(ctx, dv, l, done)
	if !errors.Is(err, errMoved) {
		return settled, nil, err
	}
	return d.settle(ctx, dv, l, done)
}

// settleUnread ends a delivery whose row and registration have still its version, and whose lease is ours.
func (d *DB) settleUnread(ctx context.Context, dv provisioning.Delivery, l provisioning.Lease, done provisioning.Settled) (*provisioning.Registration, error) {
	if dv.Registration.Version != dv.Version || l.Owner == "" {
		return nil, errMoved
	}
	after, further := done(dv.Registration)
	change, values, few := d.outcome(&dv.Registration, &after)
	query, args := `DELETE FROM outbox`+oneRow+` AND version = ? AND owner = ?`, []any{dv.Hub, string(after.ID), dv.Version, l.Owner}
	changed := after != dv.Registration
	err := d.db.UpdateApart(ctx, "", string(after.ID), func(ctx context.Context, tx *sqldb.Tx) error {
		if changed && few && tx.Engine() == sqldb.PostgreSQL {
			err := tx.AskMany(settleMany, append(values, dv.Version, dv.Hub, l.Owner)...).Scan()
			if errors.Is(err, sql.ErrNoRows) {
				err = errMoved
			}
			if err != nil {
				return err
			}
			return putFurther(tx, after, further, l.Now)
		}
		if changed && tx.Engine() == sqldb.PostgreSQL {
			// Both in one, the registration's row locked first. The outbox's row is named by its key: joined to r it would be
			// looked for among all of a hub's, dead ones included.
			query = `WITH r AS (` + change + ` AND version = ? RETURNING id) DELETE FROM outbox` + oneRow + ` AND version = ? AND owner = ? AND EXISTS (SELECT 1 FROM r)`
			args = append(values, dv.Version, dv.Hub, string(after.ID), dv.Version, l.Owner)
		} else if changed {
			n, err := tx.Exec(change+` AND version = ?`, append(values, dv.Version)...)
			if err != nil || n == 0 {
				return cmp.Or(err, errMoved)
			}
		}
		n, err := tx.Exec(query, args...)
		if err == nil && n == 0 {
			err = errMoved
		}
		if err != nil {
			return err
		}
		return putFurther(tx, after, further, l.Now)
	})
	return &after, err
}

// settleMany is settleUnread for the changes of few columns.
var settleMany = sqldb.NewMany(`status text, substatus text, delivered bigint, error_code bigint, error_message text, move text, version bigint, updated_at bigint,`+
	` id text, was bigint, hub text, owner text`, `,
	r AS (UPDATE registration r SET status = asked.status, substatus = asked.substatus, delivered = asked.delivered, error_code = asked.error_code,
		error_message = asked.error_message, move = asked.move, version = asked.version, updated_at = asked.updated_at
		FROM asked WHERE r.id = asked.id AND r.version = asked.was RETURNING r.id),
	o AS (SELECT n, id, hub, was, owner FROM asked WHERE (id IN (SELECT id FROM r)) IS TRUE)
	DELETE FROM outbox USING o WHERE outbox.registration_id = o.id AND outbox.hub = o.hub AND outbox.version = o.was AND outbox.owner = o.owner RETURNING o.n`,
)

func (d *DB) settle(ctx context.Context, dv provisioning.Delivery, l provisioning.Lease, done provisioning.Settled) (*provisioning.Registration, *provisioning.Delivery, error) {
	var out *provisioning.Delivery
	var settled *provisioning.Registration
	id := string(dv.Registration.ID)
	err := d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out, settled = nil, nil
		var version, until int64
		var owner string
		next := provisioning.Delivery{Hub: dv.Hub}
		r, err := d.scanRegistration(behind{tx.QueryRow(`SELECT `+joinedColumns+`, o.version, o.attempts, o.owner, o.leased_until
			FROM registration r JOIN outbox o ON o.registration_id = r.id WHERE r.id = ? AND o.hub = ? FOR UPDATE`, id, dv.Hub),
			[]any{&version, &next.Attempts, &owner, &until}})
		next.Registration = r
		switch {
		case errors.Is(err, sql.ErrNoRows): // settled, or deleted with its registration
			return nil
		case err != nil:
			return err
		case owner != "" && owner != l.Owner && until > micros(l.Now):
			return nil
		case version != dv.Version:
			next.Version = version
			_, err := tx.Exec(`UPDATE outbox SET owner = ?, leased_until = ?`+oneRow, l.Owner, micros(l.Until), dv.Hub, id)
			out = &next
			return err
		}
		after, further := done(r)
		settled = &after
		if after != r {
			if err := d.updateRegistration(tx, &after); err != nil {
				return err
			}
		}
		if err := tx.Queue(`DELETE FROM outbox`+oneRow, dv.Hub, id); err != nil {
			return err
		}
		return putFurther(tx, after, further, l.Now)
	})
	if err != nil {
		return nil, nil, err
	}
	return settled, out, nil
}

// putFurther writes rows that nobody has leased.
func putFurther(tx *sqldb.Tx, r provisioning.Registration, hubs []string, now time.Time) error {
	for _, hub := range hubs {
		if _, err := putDelivery(tx, provisioning.Delivery{Hub: hub, Registration: r, Version: r.Version}, provisioning.Lease{Now: now}); err != nil {
			return err
		}
	}
	return nil
}

// Postpone implements provisioning.Outbox.
func (d *DB) Postpone(ctx context.Context, dv provisioning.Delivery, owner string, due time.Time, reason string) error {
	return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE outbox SET owner = '', leased_until = 0, due_at = ?, attempts = attempts + 1, last_error = ?`+oneRow+` AND owner = ?`,
			micros(due), reason, dv.Hub, string(dv.Registration.ID), owner)
		return err
	})
}

// Release implements provisioning.Outbox.
func (d *DB) Release(ctx context.Context, owner string) error {
	return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE outbox SET owner = '', leased_until = 0 WHERE owner = ?`, owner)
		return err
	})
}

// Pending implements provisioning.Outbox.
func (d *DB) Pending(ctx context.Context) (int, error) {
	var n int
	err := d.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT count(*) FROM outbox`).Scan(&n)
	})
	return n, err
}
