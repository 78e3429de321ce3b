package hubdb

import (
	"context"
	"fmt"
	"math"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// A place in table events: the hub's number above, the cursor below.
const cursorBits = 44

const maxCursor = 1<<cursorBits - 1

// eventOverhead is what an event takes up beside its body and properties, in hubs.event_bytes.
const eventOverhead = 64

func place(h int64, c hub.Cursor) int64 { return h<<cursorBits | int64(min(c, maxCursor)) }

// AppendEvents implements hub.Store. The update of last_event comes first: its row lock is held until the
// commit, so cursors become visible in their order.
func (s *Store) AppendEvents(ctx context.Context, name hub.Name, events []hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil || len(events) == 0 {
		return err
	}
	return s.db.UpdateKey(ctx, string(name), func(ctx context.Context, tx *sqldb.Tx) error { return appendEvents(tx, h, events) })
}

// appendEvents puts events into a hub's stream, as a part of a transaction.
func appendEvents(tx *sqldb.Tx, h int64, events []hub.Event) error {
	if len(events) == 0 {
		return nil
	}
	bags, size := make([]string, len(events)), int64(0)
	for i := range events {
		bags[i] = events[i].Properties.Encode()
		size += int64(len(events[i].Body)+len(bags[i])) + eventOverhead
	}
	var last int64
	err := tx.QueryRow(`UPDATE hubs SET last_event = last_event + ?, event_bytes = event_bytes + ? WHERE id = ? RETURNING last_event`,
		int64(len(events)), size, h).Scan(&last)
	if err != nil {
		return fmt.Errorf("reserving cursors: %w", err)
	}
	if last > maxCursor {
		return fmt.Errorf("hub %d has used up its cursors", h)
	}
	first := place(h, hub.Cursor(last-int64(len(events))+1))
	for i := range events {
		e := &events[i]
		body := e.Body
		if body == nil {
			body = []byte{}
		}
		if err := tx.Queue(`INSERT INTO events (place, device, enqueued, properties, body) VALUES (?, ?, ?, ?, ?)`,
			first+int64(i), string(e.Device), micros(e.Enqueued), bags[i], body); err != nil {
			return err
		}
	}
	return nil
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

// Notices implements hub.Noticing.
func (s *Store) Notices(ctx context.Context, name hub.Name) (hub.Notices, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return 0, err
	}
	var n hub.Notices
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT notices FROM hubs WHERE id = ?`, h).Scan(&n)
	})
	return n, err
}

// SetNotices implements hub.Noticing.
func (s *Store) SetNotices(ctx context.Context, name hub.Name, n hub.Notices) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.Queue(`UPDATE hubs SET notices = ? WHERE id = ?`, int64(n), h)
	})
}
