package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cradle-iot/cradle/internal/sqldb"
)

// OpenIntents implements provider.Watch.
func (d *DB) OpenIntents(ctx context.Context) (n int64, oldest time.Time, err error) {
	err = d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		var created int64
		if err := tx.QueryRow(`SELECT COUNT(*), COALESCE(MIN(created), 0) FROM intents WHERE state = 'open'`).Scan(&n, &created); err != nil {
			return err
		}
		oldest = fromMicros(created)
		return nil
	})
	return n, oldest, err
}

// CRLsDue implements provider.Watch.
func (d *DB) CRLsDue(ctx context.Context, now time.Time) (n int64, end time.Time, err error) {
	err = d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		var next int64
		if err := tx.QueryRow(`SELECT COUNT(*) FROM crl_shards WHERE wanted > made`).Scan(&n); err != nil {
			return err
		}
		err := tx.QueryRow(`SELECT next_update FROM crl_shards WHERE next_update > 0 AND last_expiry > ? ORDER BY next_update LIMIT 1`, micros(now)).Scan(&next)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		end = fromMicros(next)
		return nil
	})
	return n, end, err
}

// Stats says how busy the store is.
func (d *DB) Stats() sqldb.Stats { return d.db.Stats() }

// Writable says whether the store takes writes, and if not, why (sqldb.DB.Writable).
func (d *DB) Writable(ctx context.Context) error { return d.db.Writable(ctx) }
