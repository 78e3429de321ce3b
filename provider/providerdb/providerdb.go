// Package providerdb keeps the provider's records on SQLite or PostgreSQL: it fills provider.Store.
//
// The schema is in migrations/, one readable SQL file per engine. On PostgreSQL transactions run at READ
// COMMITTED: whatever row a decision rests on is locked by FOR UPDATE first, in the order order, device,
// log head. Updates of one account share a writer, so that its log head is contended only between
// replicas.
package providerdb

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

//go:embed migrations
var migrations embed.FS

// DB is the provider's store.
type DB struct {
	db       *sqldb.DB
	stations stations
}

var _ provider.Store = (*DB)(nil)

// Open opens and migrates the store: a SQLite file's path or a postgres:// URL.
func Open(ctx context.Context, url string) (*DB, error) {
	m, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqldb.Open(ctx, sqldb.Config{URL: url, Schema: "provider", Migrations: m, ReadCommitted: true})
	if err != nil {
		return nil, err
	}
	return &DB{db: db}, nil
}

// Close ends the store.
func (d *DB) Close() error { return d.db.Close() }

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

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// blob is b for a column that may not be NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return string(b)
}

func notFound(what string, id any) error { return cradle.Errorf(cradle.NotFound, "no %s %q", what, id) }

// update runs fn under the account's writer.
func (d *DB) update(ctx context.Context, key string, fn func(tx *sqldb.Tx) error) error {
	return d.db.UpdateKey(ctx, key, func(_ context.Context, tx *sqldb.Tx) error { return fn(tx) })
}

// updateDevice is update for a function about one device (sqldb.DB.UpdateApart).
func (d *DB) updateDevice(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, fn func(tx *sqldb.Tx) error) error {
	return d.db.UpdateApart(ctx, string(account), string(account)+"/"+string(id), func(_ context.Context, tx *sqldb.Tx) error { return fn(tx) })
}

// collect reads all rows of a query.
func collect[T any](ctx context.Context, d *DB, scan func(interface{ Scan(...any) error }, *T) error, query string, args ...any) ([]T, error) {
	var out []T
	err := d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		out = nil
		return each(tx, scan, func(v *T) error { out = append(out, *v); return nil }, query, args...)
	})
	return out, err
}

func each[T any](tx *sqldb.Tx, scan func(interface{ Scan(...any) error }, *T) error, do func(*T) error, query string, args ...any) error {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var v T
		if err := scan(rows, &v); err != nil {
			return err
		}
		if err := do(&v); err != nil {
			return err
		}
	}
	return rows.Err()
}

// one finds one row by its keys; missing is the error when there is none.
func one[T any](ctx context.Context, d *DB, scan func(interface{ Scan(...any) error }, *T) error, missing error, query string, args ...any) (T, error) {
	var out T
	err := d.db.Find(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		return scan(tx.QueryRow(query, args...), &out)
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = missing
	}
	return out, err
}

// Begun tells whether an installation was begun in this store: whether it holds what a key-encryption key sealed.
func (d *DB) Begun(ctx context.Context) (begun bool, err error) {
	err = d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		var n int
		err := tx.QueryRow(`SELECT count(*) FROM secrets`).Scan(&n)
		begun = n > 0
		return err
	})
	return begun, err
}

// Secret implements provider.Setup.
func (d *DB) Secret(ctx context.Context, name string, fresh []byte) ([]byte, error) {
	var out []byte
	err := d.update(ctx, "", func(tx *sqldb.Tx) error {
		out = nil
		if _, err := tx.Exec(`INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`, name, fresh); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT value FROM secrets WHERE name = ?`, name).Scan(&out)
	})
	return out, err
}

type row = interface{ Scan(...any) error }

const accountColumns = `id, region, order_key, profiles, cas, created`

func scanAccount(r row, a *provider.Account) error {
	var profiles, cas string
	var created int64
	if err := r.Scan(&a.ID, &a.Region, &a.OrderKey, &profiles, &cas, &created); err != nil {
		return err
	}
	a.Created = fromMicros(created)
	return errors.Join(json.Unmarshal([]byte(profiles), &a.Profiles), json.Unmarshal([]byte(cas), &a.CAs))
}

// CreateAccount implements provider.Directory.
func (d *DB) CreateAccount(ctx context.Context, a provider.Account, cas []provider.Authority, waiting []provider.PendingKey, leaf ledger.Leaf) error {
	return d.update(ctx, string(a.ID), func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO accounts (`+accountColumns+`) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			a.ID, a.Region, a.OrderKey, jsonText(a.Profiles), jsonText(a.CAs), micros(a.Created))
		if err != nil {
			return err
		}
		if n == 0 {
			return provider.AccountExists(a.ID)
		}
		if err := createLog(tx, string(a.ID)); err != nil {
			return err
		}
		for i := range cas {
			if err := insertAuthority(tx, &cas[i]); err != nil {
				return err
			}
		}
		for i := range waiting {
			if _, err := insertPending(tx, &waiting[i]); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
}

// Account implements provider.Directory.
func (d *DB) Account(ctx context.Context, id cradle.AccountID) (provider.Account, error) {
	return one(ctx, d, scanAccount, notFound("account", id), `SELECT `+accountColumns+` FROM accounts WHERE id = ?`, id)
}

// Accounts implements provider.Directory.
func (d *DB) Accounts(ctx context.Context) ([]provider.Account, error) {
	return collect(ctx, d, scanAccount, `SELECT `+accountColumns+` FROM accounts ORDER BY id`)
}

func scanOEM(r row, o *provider.OEM) error {
	var created int64
	err := r.Scan(&o.ID, &o.OrderKey, &o.LotKey, &created)
	o.Created = fromMicros(created)
	return err
}

// CreateOEM implements provider.Directory.
func (d *DB) CreateOEM(ctx context.Context, o provider.OEM, cas []provider.Authority, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO oems (id, order_key, lot_key, created) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			o.ID, o.OrderKey, o.LotKey, micros(o.Created))
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "OEM %q exists already", o.ID)
		}
		for i := range cas {
			if err := insertAuthority(tx, &cas[i]); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
}

// OEM implements provider.Directory.
func (d *DB) OEM(ctx context.Context, id cradle.OEMID) (provider.OEM, error) {
	return one(ctx, d, scanOEM, notFound("OEM", id), `SELECT id, order_key, lot_key, created FROM oems WHERE id = ?`, id)
}

// OEMs implements provider.Directory.
func (d *DB) OEMs(ctx context.Context) ([]provider.OEM, error) {
	return collect(ctx, d, scanOEM, `SELECT id, order_key, lot_key, created FROM oems ORDER BY id`)
}

const authorityColumns = `id, kind, account, oem, class, cert, chain, crosses, key_ref, sealed_key, state, created`

func scanAuthority(r row, a *provider.Authority) error {
	var chain, crosses string
	var created int64
	if err := r.Scan(&a.ID, &a.Kind, &a.Account, &a.OEM, &a.Class, &a.Cert, &chain, &crosses, &a.Key.Ref, &a.Key.Sealed, &a.State, &created); err != nil {
		return err
	}
	a.Created = fromMicros(created)
	return errors.Join(json.Unmarshal([]byte(chain), &a.Chain), json.Unmarshal([]byte(crosses), &a.Cross))
}

func insertAuthority(tx *sqldb.Tx, a *provider.Authority) error {
	_, err := tx.Exec(`INSERT INTO authorities (`+authorityColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		a.ID, a.Kind, a.Account, a.OEM, a.Class, a.Cert, jsonText(a.Chain), jsonText(a.Cross), a.Key.Ref, blob(a.Key.Sealed), a.State, micros(a.Created))
	if err != nil {
		return fmt.Errorf("storing %s CA: %w", a.Kind, err)
	}
	return nil
}

// AddAuthority implements provider.Directory.
func (d *DB) AddAuthority(ctx context.Context, a provider.Authority, leaf ledger.Leaf) (provider.Authority, error) {
	var out provider.Authority
	find := func(tx *sqldb.Tx) error {
		return scanAuthority(tx.QueryRow(`SELECT `+authorityColumns+` FROM authorities WHERE kind = ? AND account = ? AND oem = ? AND class = ? AND state = ?`,
			a.Kind, a.Account, a.OEM, a.Class, provider.ActiveCA), &out)
	}
	err := d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		err := find(tx)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		out = a
		if err := insertAuthority(tx, &a); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
	if errors.Is(err, sqldb.ErrUnique) { // another replica was first
		err = d.db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error { return find(tx) })
	}
	return out, err
}

// Authorities implements provider.Directory.
func (d *DB) Authorities(ctx context.Context) ([]provider.Authority, error) {
	return collect(ctx, d, scanAuthority, `SELECT `+authorityColumns+` FROM authorities ORDER BY id`)
}

const anchorColumns = `fingerprint, maker, tier, cert, distrusted, imported`

func scanAnchor(r row, a *provider.Anchor) error {
	var distrusted, imported int64
	err := r.Scan(&a.Fingerprint, &a.Maker, &a.Tier, &a.Cert, &distrusted, &imported)
	a.Distrusted, a.Imported = distrusted != 0, fromMicros(imported)
	return err
}

// ImportAnchors implements provider.Directory.
func (d *DB) ImportAnchors(ctx context.Context, anchors []provider.Anchor, leaf ledger.Leaf) (int, error) {
	added := 0
	err := d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		added = 0
		for _, a := range anchors {
			n, err := tx.Exec(`INSERT INTO anchors (`+anchorColumns+`) VALUES (?, ?, ?, ?, 0, ?) ON CONFLICT (fingerprint) DO NOTHING`,
				a.Fingerprint, a.Maker, a.Tier, a.Cert, micros(a.Imported))
			if err != nil {
				return err
			}
			added += int(n)
			if n == 1 {
				continue
			}
			var have provider.Anchor
			if err := scanAnchor(tx.QueryRow(`SELECT `+anchorColumns+` FROM anchors WHERE fingerprint = ?`, a.Fingerprint), &have); err != nil {
				return err
			}
			if have.Maker != a.Maker || have.Tier != a.Tier {
				return cradle.Errorf(cradle.Conflict, "certificate %s is stored under maker %q, tier %q", a.Fingerprint, have.Maker, have.Tier).
					WithHint("import it under the same maker and tier")
			}
		}
		if added == 0 {
			return nil
		}
		return appendLeaf(tx, leaf)
	})
	return added, err
}

// Anchors implements provider.Directory.
func (d *DB) Anchors(ctx context.Context) ([]provider.Anchor, error) {
	return collect(ctx, d, scanAnchor, `SELECT `+anchorColumns+` FROM anchors ORDER BY fingerprint`)
}
