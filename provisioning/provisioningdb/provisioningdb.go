// Package provisioningdb keeps the provisioning service's groups, registrations and outbox in SQL, on
// SQLite or PostgreSQL: it is the provisioning.Store.
//
// On PostgreSQL it runs READ COMMITTED. Every decision about a registration rests on its row, which is
// read FOR UPDATE; a row that does not exist yet is guarded by its primary key. Rows are always locked in
// the order registration, outbox.
package provisioningdb

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provisioning"
)

//go:embed migrations
var files embed.FS

// Migrations of both engines.
func Migrations() fs.FS {
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return sub
}

// DB is a provisioning.Store.
type DB struct {
	db    *sqldb.DB
	vault Vault

	groups sync.Map // by id, *provisioning.Group: as Change read them last; they are not changed
}

var _ provisioning.Store = (*DB)(nil)

// Open opens and migrates the store. url is a file path or a postgres:// URL, where the tables get the
// schema "provisioning".
func Open(ctx context.Context, url string) (*DB, error) {
	db, err := sqldb.Open(ctx, sqldb.Config{URL: url, Schema: "provisioning", Migrations: Migrations(), ReadCommitted: true})
	if err != nil {
		return nil, fmt.Errorf("opening the provisioning store: %w", err)
	}
	return &DB{db: db, vault: plain{}}, nil
}

// Seal makes the store seal symmetric keys with v. It is called before the store is used, always or never.
func (d *DB) Seal(v Vault) *DB {
	d.vault = v
	return d
}

// Close ends the store.
func (d *DB) Close() error { return d.db.Close() }

// Stats says how busy the store is.
func (d *DB) Stats() sqldb.Stats { return d.db.Stats() }

// Writable says whether the store takes writes, and if not, why (sqldb.DB.Writable).
func (d *DB) Writable(ctx context.Context) error { return d.db.Writable(ctx) }

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Identity implements provisioning.Store.
func (d *DB) Identity(ctx context.Context, fresh provisioning.Identity) (provisioning.Identity, error) {
	var out provisioning.Identity
	err := d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO identity (one, id_scope, service_key, created_at) VALUES (1, ?, ?, ?) ON CONFLICT (one) DO NOTHING`,
			fresh.IDScope, fresh.ServiceKey, micros(fresh.Created))
		if err != nil {
			return err
		}
		var created int64
		out = provisioning.Identity{}
		err = tx.QueryRow(`SELECT id_scope, service_key, created_at FROM identity`).Scan(&out.IDScope, &out.ServiceKey, &created)
		out.Created = fromMicros(created)
		return err
	})
	return out, err
}

const groupColumns = `id, etag, kind, primary_der, secondary_der, primary_key, secondary_key, units, terms, created_at, updated_at`

type row = sqldb.Row

func (d *DB) scanGroup(r row) (provisioning.Group, error) {
	var g provisioning.Group
	var units, terms string
	var created, updated int64
	if err := r.Scan(&g.ID, &g.ETag, &g.Kind, &g.Primary, &g.Secondary, &g.PrimaryKey, &g.SecondaryKey, &units, &terms, &created, &updated); err != nil {
		return g, err
	}
	g.Created, g.Updated = fromMicros(created), fromMicros(updated)
	if err := json.Unmarshal([]byte(terms), &g.Terms); err != nil {
		return g, fmt.Errorf("terms of group %q: %w", g.ID, err)
	}
	if units != "" {
		if err := json.Unmarshal([]byte(units), &g.Units); err != nil {
			return g, fmt.Errorf("units of group %q: %w", g.ID, err)
		}
	}
	return g, d.openKeys("group/"+g.ID, &g.Attestation)
}

func (d *DB) getGroup(tx *sqldb.Tx, id, lock string) (*provisioning.Group, error) {
	g, err := d.scanGroup(tx.QueryRow(`SELECT `+groupColumns+` FROM enrollment_group WHERE id = ?`+lock, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &g, nil
}

func noGroup(id string) error {
	return cradle.Errorf(cradle.NotFound, "enrolment group %q does not exist", id)
}

// Groups implements provisioning.Store.
func (d *DB) Groups(ctx context.Context) ([]provisioning.Group, error) {
	return sqldb.List(ctx, d.db, d.scanGroup, `SELECT `+groupColumns+` FROM enrollment_group ORDER BY id`)
}

// Group implements provisioning.Store.
func (d *DB) Group(ctx context.Context, id string) (provisioning.Group, error) {
	var out *provisioning.Group
	err := d.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		out, err = d.getGroup(tx, id, "")
		return err
	})
	if err == nil && out == nil {
		err = noGroup(id)
	}
	if err != nil {
		return provisioning.Group{}, err
	}
	return *out, nil
}

// PutGroup implements provisioning.Store.
func (d *DB) PutGroup(ctx context.Context, id string, change func(*provisioning.Group) (provisioning.Group, error)) (provisioning.Group, error) {
	var out provisioning.Group
	err := again(func() error {
		return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			cur, err := d.getGroup(tx, id, " FOR UPDATE")
			if err != nil {
				return err
			}
			if out, err = change(cur); err != nil {
				return err
			}
			if cur != nil && out.ETag == cur.ETag {
				return nil
			}
			for _, ca := range out.CAs() {
				var other string
				err := tx.QueryRow(`SELECT group_id FROM signing_certificate WHERE thumbprint = ? AND group_id <> ?`, ca[:], id).Scan(&other)
				if err == nil {
					return cradle.Errorf(cradle.Conflict, "signing certificate %s is already registered in enrolment group %q", ca, other).
						WithHint("use that group, or delete it first")
				}
				if !errors.Is(err, sql.ErrNoRows) {
					return err
				}
			}
			terms, err := json.Marshal(out.Terms)
			if err != nil {
				return err
			}
			units := ""
			if out.Kind == provisioning.TPMUnits {
				b, err := json.Marshal(out.Units)
				if err != nil {
					return err
				}
				units = string(b)
			}
			primary := out.Primary
			if primary == nil {
				primary = []byte{}
			}
			key1, key2 := d.sealKeys("group/"+id, &out.Attestation)
			values := []any{out.ETag, string(out.Kind), primary, out.Secondary, key1, key2, units, string(terms), micros(out.Created), micros(out.Updated), id}
			if cur == nil {
				_, err = tx.Exec(`INSERT INTO enrollment_group (etag, kind, primary_der, secondary_der, primary_key, secondary_key, units, terms, created_at, updated_at, id)
					VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, values...)
			} else {
				_, err = tx.Exec(`UPDATE enrollment_group SET etag = ?, kind = ?, primary_der = ?, secondary_der = ?, primary_key = ?, secondary_key = ?, units = ?,
					terms = ?, created_at = ?, updated_at = ? WHERE id = ?`, values...)
			}
			if err != nil {
				return err
			}
			if _, err := tx.Exec(`DELETE FROM signing_certificate WHERE group_id = ?`, id); err != nil {
				return err
			}
			for _, ca := range out.CAs() {
				if _, err := tx.Exec(`INSERT INTO signing_certificate (thumbprint, group_id) VALUES (?, ?)`, ca[:], id); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return out, err
}

// DeleteGroup implements provisioning.Store.
func (d *DB) DeleteGroup(ctx context.Context, id string, check func(provisioning.Group) error) error {
	return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		g, err := d.getGroup(tx, id, " FOR UPDATE")
		if err != nil {
			return err
		}
		if g == nil {
			return noGroup(id)
		}
		if err := check(*g); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM enrollment_group WHERE id = ?`, id)
		return err
	})
}

// again repeats what lost a race for a primary key: the second time it finds the winner's row.
func again(f func() error) error {
	err := f()
	for range 3 {
		if !errors.Is(err, sqldb.ErrUnique) {
			return err
		}
		err = f()
	}
	return err
}
