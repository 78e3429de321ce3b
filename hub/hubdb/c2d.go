package hubdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// mailKey puts the writings of one device's mailbox in a row.
func mailKey(name hub.Name, device cradle.DeviceID) string {
	return string(name) + "/" + string(device)
}

// Enqueue implements hub.Mailbox. The device's row is held, so that two cannot both be the last one allowed.
func (s *Store) Enqueue(ctx context.Context, name hub.Name, m *hub.C2D, limit int) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	body := m.Body
	if body == nil {
		body = []byte{}
	}
	var refusal error
	err = s.db.UpdateKey(ctx, mailKey(name, m.Device), func(ctx context.Context, tx *sqldb.Tx) error {
		refusal = nil
		var n int64
		err := tx.QueryRow(`SELECT 1 FROM devices WHERE hub = ? AND id = ? FOR UPDATE`, h, string(m.Device)).Scan(&n)
		if errors.Is(err, sql.ErrNoRows) {
			refusal = noDevice(m.Device)
			return nil
		} else if err != nil {
			return err
		}
		count := func() error {
			return tx.QueryRow(`SELECT count(*) FROM c2d WHERE hub = ? AND device = ?`, h, string(m.Device)).Scan(&n)
		}
		if err := count(); err != nil {
			return err
		}
		if n >= int64(limit) { // those that have expired do not count, nor stay
			if err := expire(tx, h, m.Device, m.Enqueued); err != nil {
				return err
			}
			if err := count(); err != nil {
				return err
			}
		}
		if n >= int64(limit) {
			refusal = cradle.Errorf(cradle.Forbidden, "%d messages wait for device %q", n, m.Device)
			return nil
		}
		return tx.QueryRow(`INSERT INTO c2d (hub, device, properties, ack, body, enqueued, expires, deliveries, lock, locked_until)
			VALUES (?, ?, ?, ?, ?, ?, ?, 0, '', 0) RETURNING seq`,
			h, string(m.Device), m.Properties.Encode(), int64(m.Ack), body, micros(m.Enqueued), micros(m.Expires)).Scan(&m.Sequence)
	})
	if err == nil {
		err = refusal
	}
	return err
}

// Waiting implements hub.Mailbox.
func (s *Store) Waiting(ctx context.Context, name hub.Name, device cradle.DeviceID, now time.Time) (int, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return 0, err
	}
	var n int64
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT count(*) FROM c2d WHERE hub = ? AND device = ? AND expires > ?`, h, string(device), micros(now)).Scan(&n)
	})
	return int(n), err
}

// Take implements hub.Mailbox.
func (s *Store) Take(ctx context.Context, name hub.Name, device cradle.DeviceID, now time.Time, maxDeliveries int, t hub.Taking) ([]hub.C2D, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []hub.C2D
	err = s.db.UpdateKey(ctx, mailKey(name, device), func(ctx context.Context, tx *sqldb.Tx) error {
		out = nil
		free, dead, err := freeMail(tx, h, device, now, maxDeliveries, t)
		if err != nil {
			return err
		}
		for _, e := range dead {
			if err := tx.Queue(`DELETE FROM c2d WHERE seq = ?`, e.seq); err != nil {
				return err
			}
			if err := tell(tx, h, e, now); err != nil {
				return err
			}
		}
		for i := range free {
			m := &free[i]
			m.Device, m.Lock = device, t.Owner+" "+strconv.FormatInt(m.Sequence, 10)
			m.Deliveries++
			if err := tx.Queue(`UPDATE c2d SET deliveries = ?, lock = ?, locked_until = ? WHERE seq = ?`,
				int64(m.Deliveries), m.Lock, micros(t.Until), m.Sequence); err != nil {
				return err
			}
		}
		out = free
		return nil
	})
	return out, err
}

// freeMail reads, and locks, the messages that may be taken and those that end now.
func freeMail(tx *sqldb.Tx, h int64, device cradle.DeviceID, now time.Time, maxDeliveries int, t hub.Taking) (free []hub.C2D, dead []ended, err error) {
	rows, err := tx.Query(`SELECT seq, properties, ack, body, enqueued, expires, deliveries, lock, locked_until FROM c2d
		WHERE hub = ? AND device = ? ORDER BY seq FOR UPDATE`, h, string(device))
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var m hub.C2D
		var bag, lock string
		var enqueued, expires, until int64
		if err := rows.Scan(&m.Sequence, &bag, &m.Ack, &m.Body, &enqueued, &expires, &m.Deliveries, &lock, &until); err != nil {
			return nil, nil, err
		}
		m.Enqueued, m.Expires = fromMicros(enqueued), fromMicros(expires)
		if !m.Expires.After(now) {
			dead = append(dead, ended{m.Sequence, device, m.Ack, bag, hub.Expired, m.Expires})
			continue
		}
		if !t.MayTake(lock, fromMicros(until), now) {
			continue
		}
		if m.Deliveries >= maxDeliveries {
			dead = append(dead, ended{m.Sequence, device, m.Ack, bag, hub.DeliveredTooOften, now})
			continue
		}
		if len(free) == t.Max {
			continue
		}
		if m.Properties, err = iothub.ParseBag(bag); err != nil {
			return nil, nil, fmt.Errorf("message %d: %v", m.Sequence, err)
		}
		free = append(free, m)
	}
	return free, dead, rows.Err()
}

// Settle implements hub.Mailbox.
func (s *Store) Settle(ctx context.Context, name hub.Name, device cradle.DeviceID, lock string, o hub.Outcome, now time.Time) error {
	return s.unlock(ctx, name, device, lock, func(tx *sqldb.Tx, h, seq int64) (bool, error) {
		e := ended{device: device, outcome: o, at: now}
		err := tx.QueryRow(`DELETE FROM c2d WHERE seq = ? AND hub = ? AND device = ? AND lock = ? RETURNING ack, properties`, seq, h, string(device), lock).Scan(&e.ack, &e.bag)
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		return true, tell(tx, h, e, now)
	})
}

// Release implements hub.Mailbox.
func (s *Store) Release(ctx context.Context, name hub.Name, device cradle.DeviceID, lock string) error {
	return s.unlock(ctx, name, device, lock, func(tx *sqldb.Tx, h, seq int64) (bool, error) {
		n, err := tx.Exec(`UPDATE c2d SET lock = '', locked_until = 0 WHERE seq = ? AND hub = ? AND device = ? AND lock = ?`, seq, h, string(device), lock)
		return n > 0, err
	})
}

// unlock calls fn with the number of the message that a lock names; it says whether the message had the lock.
func (s *Store) unlock(ctx context.Context, name hub.Name, device cradle.DeviceID, lock string, fn func(tx *sqldb.Tx, h, seq int64) (bool, error)) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	_, number, _ := strings.Cut(lock, " ")
	seq, err := strconv.ParseInt(number, 10, 64)
	had := false
	if err == nil {
		err = s.db.UpdateKey(ctx, mailKey(name, device), func(ctx context.Context, tx *sqldb.Tx) (err error) {
			had, err = fn(tx, h, seq)
			return err
		})
		if err != nil {
			return err
		}
	}
	if !had {
		return cradle.Errorf(cradle.NotFound, "no message of device %q has this lock", device)
	}
	return nil
}

// Purge implements hub.Mailbox.
func (s *Store) Purge(ctx context.Context, name hub.Name, device cradle.DeviceID, now time.Time) (int, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return 0, err
	}
	n := 0
	err = s.db.UpdateKey(ctx, mailKey(name, device), func(ctx context.Context, tx *sqldb.Tx) error {
		rows, err := tx.Query(`DELETE FROM c2d WHERE hub = ? AND device = ? RETURNING seq, device, ack, properties, expires`, h, string(device))
		if err != nil {
			return err
		}
		n, err = endAll(tx, h, rows, now, hub.ThrownAway)
		return err
	})
	return n, err
}
