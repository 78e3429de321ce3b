package providerdb

import (
	"context"
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

// Stats says how busy the store is.
func (d *DB) Stats() sqldb.Stats { return d.db.Stats() }
