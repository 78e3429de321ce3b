package provisioningdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provisioning"
)

var enrollmentColumns = []string{"id", "etag", "device", "account", "kind", "primary_der", "secondary_der", "primary_key", "secondary_key",
	"endorsement", "storage_root", "terms", "info", "created_at", "updated_at"}

const selectEnrollment = `SELECT id, etag, device, account, kind, primary_der, secondary_der, primary_key, secondary_key, endorsement, storage_root,
	terms, info, created_at, updated_at FROM enrollment`

func (d *DB) scanEnrollment(r row) (provisioning.Enrollment, error) {
	var e provisioning.Enrollment
	var terms, info string
	var created, updated int64
	if err := r.Scan(&e.ID, &e.ETag, &e.Device, &e.Account, &e.Kind, &e.Primary, &e.Secondary, &e.PrimaryKey, &e.SecondaryKey,
		&e.Attestation.TPM.Endorsement, &e.Attestation.TPM.StorageRoot, &terms, &info, &created, &updated); err != nil {
		return e, err
	}
	e.Created, e.Updated = fromMicros(created), fromMicros(updated)
	if info != "" {
		e.Info = json.RawMessage(info)
	}
	if err := json.Unmarshal([]byte(terms), &e.Terms); err != nil {
		return e, fmt.Errorf("terms of enrolment %q: %w", e.ID, err)
	}
	return e, d.openKeys("enrollment/"+string(e.ID), &e.Attestation)
}

// enrollmentValues are in the order of enrollmentColumns.
func (d *DB) enrollmentValues(e *provisioning.Enrollment) ([]any, error) {
	terms, err := json.Marshal(e.Terms)
	if err != nil {
		return nil, err
	}
	primary, secondary := d.sealKeys("enrollment/"+string(e.ID), &e.Attestation)
	return []any{string(e.ID), e.ETag, string(e.Device), string(e.Account), string(e.Kind), orNil(e.Primary), orNil(e.Secondary), primary, secondary,
		orNil(e.Attestation.TPM.Endorsement), orNil(e.Attestation.TPM.StorageRoot), string(terms), string(e.Info), micros(e.Created), micros(e.Updated)}, nil
}

// orNil is b, but nothing as SQL has it when it is empty.
func orNil(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

func (d *DB) getEnrollment(tx *sqldb.Tx, id provisioning.RegistrationID, lock string) (*provisioning.Enrollment, error) {
	e, err := d.scanEnrollment(tx.QueryRow(selectEnrollment+` WHERE id = ?`+lock, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &e, nil
}

func noEnrollment(id provisioning.RegistrationID) error {
	return cradle.Errorf(cradle.NotFound, "individual enrolment %q does not exist", id)
}

// Enrollment implements provisioning.Enrollments.
func (d *DB) Enrollment(ctx context.Context, id provisioning.RegistrationID) (provisioning.Enrollment, error) {
	var out *provisioning.Enrollment
	err := d.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		out, err = d.getEnrollment(tx, id, "")
		return err
	})
	if err == nil && out == nil {
		err = noEnrollment(id)
	}
	if err != nil {
		return provisioning.Enrollment{}, err
	}
	return *out, nil
}

// EnrollmentPage implements provisioning.Enrollments.
func (d *DB) EnrollmentPage(ctx context.Context, after provisioning.RegistrationID, limit int) ([]provisioning.Enrollment, error) {
	return sqldb.List(ctx, d.db, d.scanEnrollment, selectEnrollment+` WHERE id > ? ORDER BY id LIMIT ?`, string(after), limit)
}

const anyEnrollment = `EXISTS (SELECT 1 FROM enrollment)`

// AnyEnrollment implements provisioning.Enrollments.
func (d *DB) AnyEnrollment(ctx context.Context) (bool, error) {
	var n int
	err := d.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT CASE WHEN ` + anyEnrollment + ` THEN 1 ELSE 0 END`).Scan(&n)
	})
	return n != 0, err
}

// PutEnrollment implements provisioning.Enrollments.
func (d *DB) PutEnrollment(ctx context.Context, id provisioning.RegistrationID, change func(*provisioning.Enrollment) (provisioning.Enrollment, error)) (provisioning.Enrollment, error) {
	var out provisioning.Enrollment
	err := again(func() error {
		return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			cur, err := d.getEnrollment(tx, id, " FOR UPDATE")
			if err != nil {
				return err
			}
			if out, err = change(cur); err != nil {
				return err
			}
			if cur != nil && out.ETag == cur.ETag {
				return nil
			}
			values, err := d.enrollmentValues(&out)
			if err != nil {
				return err
			}
			if cur == nil {
				_, err = tx.Exec(`INSERT INTO enrollment (id, etag, device, account, kind, primary_der, secondary_der, primary_key, secondary_key, endorsement,
					storage_root, terms, info, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, values...)
			} else {
				_, err = tx.Exec(`UPDATE enrollment SET etag = ?, device = ?, account = ?, kind = ?, primary_der = ?, secondary_der = ?, primary_key = ?,
					secondary_key = ?, endorsement = ?, storage_root = ?, terms = ?, info = ?, created_at = ?, updated_at = ? WHERE id = ?`,
					append(values[1:], values[0])...)
			}
			return err
		})
	})
	return out, err
}

// DeleteEnrollment implements provisioning.Enrollments.
func (d *DB) DeleteEnrollment(ctx context.Context, id provisioning.RegistrationID, check func(provisioning.Enrollment) error) error {
	return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		e, err := d.getEnrollment(tx, id, " FOR UPDATE")
		if err != nil {
			return err
		}
		if e == nil {
			return noEnrollment(id)
		}
		if err := check(*e); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM enrollment WHERE id = ?`, string(id))
		return err
	})
}

// AddEnrollments implements provisioning.Enrollments. Of a batch of which nothing is there yet, as a rule of an import, it
// makes one statement.
func (d *DB) AddEnrollments(ctx context.Context, es []provisioning.Enrollment) (int, error) {
	rows := make([][]any, len(es))
	for i := range es {
		values, err := d.enrollmentValues(&es[i])
		if err != nil {
			return 0, err
		}
		rows[i] = values
	}
	err := d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.InsertMany("enrollment", enrollmentColumns, rows)
	})
	if err == nil {
		return len(es), nil
	}
	if !errors.Is(err, sqldb.ErrUnique) {
		return 0, err
	}
	added := 0
	err = again(func() error {
		return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			added = 0
			for _, values := range rows {
				n, err := tx.Exec(`INSERT INTO enrollment (id, etag, device, account, kind, primary_der, secondary_der, primary_key, secondary_key, endorsement,
					storage_root, terms, info, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`, values...)
				if err != nil {
					return err
				}
				added += int(n)
			}
			return nil
		})
	})
	return added, err
}
