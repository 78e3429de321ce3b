package hubdb

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// A place in table events: the hub's number above, the cursor below.
const cursorBits = 44

const maxCursor = 1<<cursorBits - 1

func place(h int64, c hub.Cursor) int64 { return h<<cursorBits | int64(min(c, maxCursor)) }

// AppendEvents implements hub.Store. The update of last_event comes first: its row lock is held until the
// commit, so cursors become visible in their order.
func (s *Store) AppendEvents(ctx context.Context, name hub.Name, events []hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil || len(events) == 0 {
		return err
	}
	return s.db.UpdateKey(ctx, string(name), func(ctx context.Context, tx *sqldb.Tx) error {
		var last int64
		err := tx.QueryRow(`UPDATE hubs SET last_event = last_event + ? WHERE id = ? RETURNING last_event`,
			int64(len(events)), h).Scan(&last)
		if err != nil {
			return fmt.Errorf("reserving cursors: %w", err)
		}
		if last > maxCursor {
			return fmt.Errorf("hub %s has used up its cursors", name)
		}
		first := place(h, hub.Cursor(last-int64(len(events))+1))
		for i := range events {
			e := &events[i]
			body := e.Body
			if body == nil {
				body = []byte{}
			}
			if err := tx.Queue(`INSERT INTO events (place, device, enqueued, properties, body) VALUES (?, ?, ?, ?, ?)`,
				first+int64(i), string(e.Device), micros(e.Enqueued), e.Properties.Encode(), body); err != nil {
				return err
			}
		}
		return nil
	})
}

// pageSize bounds the bytes of bodies in one page, roughly; at least one event is always returned.
const pageSize = 8 << 20

// Events implements hub.Store.
func (s *Store) Events(ctx context.Context, name hub.Name, after hub.Cursor, limit int) ([]hub.Event, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []hub.Event
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out = nil
		rows, err := tx.Query(`SELECT place, device, enqueued, properties, body FROM events
			WHERE place > ? AND place <= ? ORDER BY place LIMIT ?`, place(h, after), place(h, math.MaxInt64), int64(limit))
		if err != nil {
			return err
		}
		defer rows.Close()
		for size := 0; size < pageSize && rows.Next(); {
			var e hub.Event
			var at, enqueued int64
			var bag string
			if err := rows.Scan(&at, &e.Device, &enqueued, &bag, &e.Body); err != nil {
				return err
			}
			e.Cursor, e.Enqueued = hub.Cursor(at&maxCursor), fromMicros(enqueued)
			if e.Properties, err = iothub.ParseBag(bag); err != nil {
				return fmt.Errorf("event %d: %v", at, err)
			}
			size += len(e.Body) + len(bag)
			out = append(out, e)
		}
		return rows.Err()
	})
	return out, err
}

// TrimEvents implements hub.Store. Enqueued times ascend with the cursor but for clock steps; it stops at
// the first event that is young enough.
func (s *Store) TrimEvents(ctx context.Context, name hub.Name, before time.Time, limit int) (int, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return 0, err
	}
	var n int64
	err = s.db.UpdateKey(ctx, string(name), func(ctx context.Context, tx *sqldb.Tx) error {
		n = 0
		rows, err := tx.Query(`SELECT place, enqueued FROM events WHERE place > ? AND place <= ? ORDER BY place LIMIT ?`,
			place(h, 0), place(h, math.MaxInt64), int64(limit))
		if err != nil {
			return err
		}
		last := int64(-1)
		for rows.Next() {
			var at, enqueued int64
			if err := rows.Scan(&at, &enqueued); err != nil {
				rows.Close()
				return err
			}
			if enqueued >= micros(before) {
				break
			}
			last = at
		}
		if err := rows.Close(); err != nil {
			return err
		}
		if last < 0 {
			return nil
		}
		n, err = tx.Exec(`DELETE FROM events WHERE place > ? AND place <= ?`, place(h, 0), last)
		return err
	})
	return int(n), err
}
