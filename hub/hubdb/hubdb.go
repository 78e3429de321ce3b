// Package hubdb keeps the hubs' tables on SQLite or PostgreSQL (hub.Store). Both engines share the SQL
// of this package; they differ in their schemas, migrations/sqlite and migrations/postgres.
package hubdb

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

//go:embed migrations
var migrations embed.FS

// schema is the PostgreSQL schema that holds the tables.
const schema = "hub"

// Store is a hub.Store.
type Store struct {
	db    *sqldb.DB
	vault Vault

	mu  sync.RWMutex
	ids map[hub.Name]int64 // hubs are never removed
}

var _ hub.Store = (*Store)(nil)

// Open opens, and if needed makes or migrates, the tables at a URL (see sqldb.Config). Keys are sealed by v; nil is for who
// neither reads nor writes rows that have keys.
func Open(ctx context.Context, url string, v Vault) (*Store, error) {
	m, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	// ReadCommitted: every decision here is a single statement, or repeated in the WHERE of the writing one.
	db, err := sqldb.Open(ctx, sqldb.Config{URL: url, Schema: schema, Migrations: m, ReadCommitted: true})
	if err != nil {
		return nil, err
	}
	if v == nil {
		v = shut{}
	}
	return &Store{db: db, vault: v, ids: map[hub.Name]int64{}}, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Stats says how busy the store is.
func (s *Store) Stats() sqldb.Stats { return s.db.Stats() }

// Writable says whether the store takes writes, and if not, why (sqldb.DB.Writable).
func (s *Store) Writable(ctx context.Context) error { return s.db.Writable(ctx) }

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(v int64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMicro(v).UTC()
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// blob is b for a column that is not null.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// unblob is the inverse of blob.
func unblob(b *[]byte) {
	if len(*b) == 0 {
		*b = nil
	}
}

// CreateHub implements hub.Store.
func (s *Store) CreateHub(ctx context.Context, name hub.Name, policies []hub.Policy, now time.Time) error {
	var exists bool
	err := s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		exists = false
		var id int64
		err := tx.QueryRow(`INSERT INTO hubs (name, created) VALUES (?, ?) ON CONFLICT (name) DO NOTHING RETURNING id`,
			string(name), micros(now)).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			exists = true
			return nil
		} else if err != nil {
			return err
		}
		for _, p := range policies {
			primary, secondary := s.seal(policyPlace(name, p.Name), p.Primary, p.Secondary)
			if err := tx.Queue(`INSERT INTO policies (hub, name, primary_key, secondary_key, rights, sealed) VALUES (?, ?, ?, ?, ?, 1)`,
				id, p.Name, primary, secondary, int64(p.Rights)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && exists {
		return cradle.Errorf(cradle.Conflict, "hub %s exists", name)
	}
	return err
}

// Hubs implements hub.Store.
func (s *Store) Hubs(ctx context.Context) ([]hub.Name, error) {
	return sqldb.List(ctx, s.db, func(r sqldb.Row) (n hub.Name, err error) {
		return n, r.Scan(&n)
	}, `SELECT name FROM hubs ORDER BY name`)
}

// hubID returns the number of a hub.
func (s *Store) hubID(ctx context.Context, name hub.Name) (int64, error) {
	s.mu.RLock()
	id, ok := s.ids[name]
	s.mu.RUnlock()
	if ok {
		return id, nil
	}
	err := s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT id FROM hubs WHERE name = ?`, string(name)).Scan(&id)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, cradle.Errorf(cradle.NotFound, "there is no hub %.64q", name)
	} else if err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.ids[name] = id
	s.mu.Unlock()
	return id, nil
}

// Policies implements hub.Store.
func (s *Store) Policies(ctx context.Context, name hub.Name) ([]hub.Policy, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	return sqldb.List(ctx, s.db, func(r sqldb.Row) (p hub.Policy, err error) {
		var sealed int64
		if err := r.Scan(&p.Name, &p.Primary, &p.Secondary, &p.Rights, &sealed); err != nil {
			return p, err
		}
		return p, s.open(policyPlace(name, p.Name), sealed, &p.Primary, &p.Secondary)
	}, `SELECT name, primary_key, secondary_key, rights, sealed FROM policies WHERE hub = ? ORDER BY name`, h)
}
