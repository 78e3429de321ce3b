package hubdb

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"time"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

// Stream implements hub.Stream.
func (s *Store) Stream(ctx context.Context, name hub.Name) (*hub.StreamState, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var st hub.StreamState
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		st = hub.StreamState{}
		if err := tx.QueryRow(`SELECT last_event, event_bytes FROM hubs WHERE id = ?`, h).Scan(&st.Last, &st.Bytes); err != nil {
			return err
		}
		var at, enqueued int64
		err := tx.QueryRow(`SELECT place, enqueued FROM events WHERE place > ? AND place <= ? ORDER BY place LIMIT 1`,
			place(h, 0), place(h, math.MaxInt64)).Scan(&at, &enqueued)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		st.First, st.Oldest = hub.Cursor(at&maxCursor), fromMicros(enqueued)
		return err
	})
	return &st, err
}

// TrimEvents implements hub.Stream. Enqueued times ascend with the cursor but for clock steps; it stops at the
// first event that is to stay.
func (s *Store) TrimEvents(ctx context.Context, name hub.Name, t hub.Trim, limit int) (hub.Trimmed, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return hub.Trimmed{}, err
	}
	var out hub.Trimmed
	err = s.db.UpdateKey(ctx, string(name), func(ctx context.Context, tx *sqldb.Tx) error {
		out = hub.Trimmed{}
		var have, freed int64
		// Taken first, as AppendEvents does: whoever holds the hub's row goes before.
		if err := tx.QueryRow(`SELECT event_bytes FROM hubs WHERE id = ? FOR UPDATE`, h).Scan(&have); err != nil {
			return err
		}
		rows, err := tx.Query(`SELECT place, enqueued, length(body) + length(properties) FROM events WHERE place > ? AND place <= ? ORDER BY place LIMIT ?`,
			place(h, 0), place(h, math.MaxInt64), int64(limit))
		if err != nil {
			return err
		}
		last := int64(-1)
		for rows.Next() {
			var at, enqueued, size int64
			if err := rows.Scan(&at, &enqueued, &size); err != nil {
				rows.Close()
				return err
			}
			held := hub.Cursor(at&maxCursor) > t.Held
			over := t.Size > 0 && have-freed > t.Size
			if !over && (held || enqueued >= micros(t.Before)) {
				break
			}
			if last = at; held {
				out.Held++
			}
			out.Events++
			freed += size + eventOverhead
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		if last < 0 {
			return nil
		}
		if _, err := tx.Exec(`DELETE FROM events WHERE place > ? AND place <= ?`, place(h, 0), last); err != nil {
			return err
		}
		return tx.Queue(`UPDATE hubs SET event_bytes = event_bytes - ? WHERE id = ?`, freed, h)
	})
	return out, err
}

// Relays implements hub.Stream.
func (s *Store) Relays(ctx context.Context, name hub.Name) ([]hub.Relay, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	return sqldb.List(ctx, s.db, func(row sqldb.Row) (r hub.Relay, err error) {
		var seen int64
		err = row.Scan(&r.Name, &r.Cursor, &seen)
		r.Seen = fromMicros(seen)
		return r, err
	}, `SELECT name, cursor, seen FROM relays WHERE hub = ? ORDER BY name`, h)
}

// PutRelay implements hub.Stream.
func (s *Store) PutRelay(ctx context.Context, name hub.Name, r hub.Relay) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.Queue(`INSERT INTO relays (hub, name, cursor, seen) VALUES (?, ?, ?, ?) ON CONFLICT (hub, name) DO UPDATE SET
			cursor = CASE WHEN excluded.cursor > relays.cursor THEN excluded.cursor ELSE relays.cursor END, seen = excluded.seen`,
			h, r.Name, int64(r.Cursor), micros(r.Seen))
	})
}

// Lease implements hub.Stream.
func (s *Store) Lease(ctx context.Context, name, holder string, now, until time.Time) (bool, error) {
	var held bool
	err := s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO leases (name, holder, until) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
			WHERE leases.holder = excluded.holder OR leases.until < ?`, name, holder, micros(until), micros(now))
		held = n > 0
		return err
	})
	return held, err
}
