package provisioningdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provisioning"
)

const registrationColumns = `id, group_id, account, hub, status, substatus, blocked, operation, prev_operation,
	thumbprint, not_before, newest, delivered, error_code, error_message, version, created_at, updated_at,
	kind, device, secrets, token, prev_token, payload, facts, move, issuance`

// joinedColumns are registrationColumns of a table named r.
var joinedColumns = "r." + strings.Join(strings.Fields(registrationColumns), " r.")

// behind scans further columns behind those that are asked for.
type behind struct {
	row
	more []any
}

func (b behind) Scan(dest ...any) error { return b.row.Scan(append(dest, b.more...)...) }

func (d *DB) scanRegistration(s row) (provisioning.Registration, error) {
	var r provisioning.Registration
	var thumbprint, secrets, token, prevToken []byte
	var notBefore, newest, created, updated int64
	var delivered int
	var move, issuance string
	err := s.Scan(&r.ID, &r.Group, &r.Account, &r.Hub, &r.Status, &r.Substatus, &r.Blocked, &r.Operation, &r.PrevOperation,
		&thumbprint, &notBefore, &newest, &delivered, &r.ErrorCode, &r.ErrorMessage, &r.Version, &created, &updated,
		&r.Kind, &r.Device, &secrets, &token, &prevToken, &r.Payload, &r.Facts, &move, &issuance)
	copy(r.Thumbprint[:], thumbprint)
	r.NotBefore, r.Newest, r.Created, r.Updated = fromMicros(notBefore), fromMicros(newest), fromMicros(created), fromMicros(updated)
	r.Delivered = delivered != 0
	r.Token, r.PrevToken = string(token), string(prevToken)
	if err == nil && len(secrets) > 0 {
		err = d.openSecrets(&r, secrets)
	}
	if err == nil && issuance != "" {
		err = openIssuance(&r, issuance)
	}
	if err == nil && move != "" {
		err = json.Unmarshal([]byte(move), &r.Move)
	}
	return r, err
}

// moveColumn is empty for nearly every registration.
func moveColumn(r *provisioning.Registration) string {
	if r.Move == (provisioning.Move{}) {
		return ""
	}
	b, err := json.Marshal(r.Move)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return string(b)
}

// blob is nil for an empty value.
func blob(s string) any {
	if s == "" {
		return nil
	}
	return []byte(s)
}

const selectRegistration = `SELECT ` + registrationColumns + ` FROM registration WHERE id = ?`

func (d *DB) getRegistration(tx *sqldb.Tx, id provisioning.RegistrationID, lock string) (*provisioning.Registration, error) {
	r, err := d.scanRegistration(tx.QueryRow(selectRegistration+lock, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &r, nil
}

func noRegistration(id provisioning.RegistrationID) error {
	return cradle.Errorf(cradle.NotFound, "registration %q does not exist", id)
}

func (d *DB) insertRegistration(tx *sqldb.Tx, r *provisioning.Registration) error {
	values := []any{string(r.ID), r.Group, string(r.Account), r.Hub, string(r.Status), r.Substatus, string(r.Blocked), r.Operation, r.PrevOperation,
		r.Thumbprint[:], micros(r.NotBefore), micros(r.Newest), flag(r.Delivered), r.ErrorCode, r.ErrorMessage, r.Version, micros(r.Created), micros(r.Updated),
		string(r.Kind), string(r.Device), d.sealSecrets(r), blob(r.Token), blob(r.PrevToken), r.Payload, r.Facts, moveColumn(r), issuanceText(r)}
	if tx.Engine() == sqldb.PostgreSQL {
		tx.QueueMany(insertRegistrations, values...)
		return nil
	}
	return tx.Queue(`INSERT INTO registration (`+registrationColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, values...)
}

var insertRegistrations = sqldb.NewMany(`id text, group_id text, account text, hub text, status text, substatus text, blocked text, operation text, prev_operation text,`+
	` thumbprint bytea, not_before bigint, newest bigint, delivered bigint, error_code bigint, error_message text, version bigint, created_at bigint, updated_at bigint,`+
	` kind text, device text, secrets bytea, token bytea, prev_token bytea, payload text, facts text, move text, issuance text`,
	` INSERT INTO registration (`+registrationColumns+`) SELECT `+registrationColumns+` FROM asked`)

const changeRegistration = `UPDATE registration SET group_id = ?, account = ?, hub = ?, status = ?, substatus = ?, blocked = ?, operation = ?,
	prev_operation = ?, thumbprint = ?, not_before = ?, newest = ?, delivered = ?, error_code = ?, error_message = ?, version = ?, updated_at = ?,
	kind = ?, device = ?, secrets = ?, token = ?, prev_token = ?, payload = ?, facts = ?, move = ?, issuance = ?
	WHERE id = ?`

func (d *DB) changeValues(r *provisioning.Registration) []any {
	return []any{r.Group, string(r.Account), r.Hub, string(r.Status), r.Substatus, string(r.Blocked), r.Operation,
		r.PrevOperation, r.Thumbprint[:], micros(r.NotBefore), micros(r.Newest), flag(r.Delivered), r.ErrorCode, r.ErrorMessage, r.Version, micros(r.Updated),
		string(r.Kind), string(r.Device), d.sealSecrets(r), blob(r.Token), blob(r.PrevToken), r.Payload, r.Facts, moveColumn(r), issuanceText(r), string(r.ID)}
}

// outcome is the change of a registration whose hub has been told: mostly of few columns, none of which is in an index.
func (d *DB) outcome(before, after *provisioning.Registration) (change string, values []any, few bool) {
	r := *before
	r.Status, r.Substatus, r.Delivered, r.ErrorCode, r.ErrorMessage = after.Status, after.Substatus, after.Delivered, after.ErrorCode, after.ErrorMessage
	r.Move, r.Version, r.Updated = after.Move, after.Version, after.Updated
	if r != *after {
		return changeRegistration, d.changeValues(after), false
	}
	return `UPDATE registration SET status = ?, substatus = ?, delivered = ?, error_code = ?, error_message = ?, move = ?, version = ?, updated_at = ? WHERE id = ?`,
		[]any{string(r.Status), r.Substatus, flag(r.Delivered), r.ErrorCode, r.ErrorMessage, moveColumn(&r), r.Version, micros(r.Updated), string(r.ID)}, true
}

func (d *DB) updateRegistration(tx *sqldb.Tx, r *provisioning.Registration) error {
	return tx.Queue(changeRegistration, d.changeValues(r)...)
}

// Registration implements provisioning.Store.
func (d *DB) Registration(ctx context.Context, id provisioning.RegistrationID) (provisioning.Registration, error) {
	var out *provisioning.Registration
	err := d.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		out, err = d.getRegistration(tx, id, "")
		return err
	})
	if err == nil && out == nil {
		err = noRegistration(id)
	}
	if err != nil {
		return provisioning.Registration{}, err
	}
	return *out, nil
}

// Registrations implements provisioning.Store.
func (d *DB) Registrations(ctx context.Context, group string, after provisioning.RegistrationID, limit int) ([]provisioning.Registration, error) {
	return sqldb.List(ctx, d.db, d.scanRegistration, `SELECT `+registrationColumns+` FROM registration WHERE group_id = ? AND id > ? ORDER BY id LIMIT ?`, group, string(after), limit)
}

// BlockedRegistrations implements provisioning.Store.
func (d *DB) BlockedRegistrations(ctx context.Context, after provisioning.RegistrationID, limit int) ([]provisioning.Registration, error) {
	return sqldb.List(ctx, d.db, d.scanRegistration, `SELECT `+registrationColumns+` FROM registration WHERE blocked <> '' AND id > ? ORDER BY id LIMIT ?`, string(after), limit)
}

// DeleteRegistration implements provisioning.Store.
func (d *DB) DeleteRegistration(ctx context.Context, id provisioning.RegistrationID, check func(provisioning.Registration) error) error {
	return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		r, err := d.getRegistration(tx, id, " FOR UPDATE")
		if err != nil {
			return err
		}
		if r == nil {
			return noRegistration(id)
		}
		if err := check(*r); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM registration WHERE id = ?`, string(id)) // the outbox's rows go with it
		return err
	})
}

// enrolled is what the registrations of a commit that name one group share.
type enrolled struct {
	group *provisioning.Group // nil: there is no such group
	any   bool                // there may be individual enrolments
}

// getEnrolled reads a group again only where its ETag is not that of the group read last.
func (d *DB) getEnrolled(tx *sqldb.Tx, group string) (enrolled, error) {
	var etag string
	var n int
	err := tx.QueryRow(`SELECT etag, CASE WHEN `+anyEnrollment+` THEN 1 ELSE 0 END FROM enrollment_group WHERE id = ?`, group).Scan(&etag, &n)
	if errors.Is(err, sql.ErrNoRows) {
		d.groups.Delete(group)
		return enrolled{any: true}, nil
	}
	if err != nil {
		return enrolled{}, err
	}
	if known, ok := d.groups.Load(group); ok && known.(*provisioning.Group).ETag == etag {
		return enrolled{known.(*provisioning.Group), n != 0}, nil
	}
	g, err := d.getGroup(tx, group, "")
	if err != nil || g == nil {
		return enrolled{any: true}, err
	}
	d.groups.Store(group, g)
	return enrolled{g, n != 0}, nil
}

// Change implements provisioning.Store.
func (d *DB) Change(ctx context.Context, id provisioning.RegistrationID, group string, step provisioning.Step, lease provisioning.Lease) (provisioning.Registration, []provisioning.Delivery, error) {
	var out provisioning.Registration
	var ds []provisioning.Delivery
	err := again(func() error {
		return d.db.UpdateApart(ctx, "", string(id), func(ctx context.Context, tx *sqldb.Tx) error {
			out, ds = provisioning.Registration{}, nil
			by := enrolled{any: true}
			if group != "" {
				// Registrations that share a commit share the reading. A group that is changed in the same
				// commit has answered nobody yet: they count as before that change.
				v, err := tx.Carry("group "+group, func(tx *sqldb.Tx) (any, error) { return d.getEnrolled(tx, group) },
					func(*sqldb.Tx, any) error { return nil })
				if err != nil {
					return err
				}
				by = v.(enrolled)
			}
			var individual *provisioning.Enrollment
			if by.any {
				var err error
				if individual, err = d.getEnrollment(tx, id, ""); err != nil {
					return err
				}
			}
			cur, err := d.getRegistration(tx, id, " FOR UPDATE")
			if err != nil {
				return err
			}
			o, err := step(cur, provisioning.Enrolled{Individual: individual, Group: by.group})
			if err != nil {
				return err
			}
			if o.Registration == nil {
				if cur == nil {
					return noRegistration(id)
				}
				out = *cur
				return nil
			}
			out = *o.Registration
			if cur == nil {
				err = d.insertRegistration(tx, &out)
			} else {
				err = d.updateRegistration(tx, &out)
			}
			if err != nil {
				return err
			}
			for _, hub := range o.Deliver {
				dv := provisioning.Delivery{Hub: hub, Registration: out, Version: out.Version}
				ours := lease.Owner != ""
				if cur == nil { // nobody else can have put one
					err = newDelivery(tx, dv, lease)
				} else {
					ours, err = putDelivery(tx, dv, lease)
				}
				if err != nil {
					return err
				}
				if ours {
					ds = append(ds, dv)
				}
			}
			return nil
		})
	})
	return out, ds, err
}
