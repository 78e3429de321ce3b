package hubdb

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// ended is a message that ends, with what its feedback says.
type ended struct {
	seq     int64
	device  cradle.DeviceID
	ack     hub.Ack
	bag     string
	outcome hub.Outcome
	at      time.Time
}

// tell writes the feedback of a message whose row the same transaction removes, if the sender wants it. What a device has of it
// is bounded.
func tell(tx *sqldb.Tx, h int64, e ended, now time.Time) error {
	if !e.ack.Wants(e.outcome) {
		return nil
	}
	bag, err := iothub.ParseBag(e.bag)
	if err != nil {
		return fmt.Errorf("message to %s: %v", e.device, err)
	}
	id, _ := bag.Get(iothub.PropMessageID)
	if err := tx.Queue(`INSERT INTO feedback (hub, device, generation, message, outcome, at, created, lock, locked_until)
		SELECT hub, id, generation, ?, ?, ?, ?, '', 0 FROM devices WHERE hub = ? AND id = ?`,
		id, int64(e.outcome), micros(e.at), micros(now), h, string(e.device)); err != nil {
		return err
	}
	return tx.Queue(`DELETE FROM feedback WHERE hub = ? AND device = ? AND seq <= (SELECT seq FROM feedback WHERE hub = ? AND device = ?
		ORDER BY seq DESC LIMIT 1 OFFSET ?)`, h, string(e.device), h, string(e.device), int64(hub.MaxFeedback))
}

// expire removes messages of one device, or with "" of all whose senders wait for it, that nobody took in time. It stops after
// some.
func expire(tx *sqldb.Tx, h int64, device cradle.DeviceID, now time.Time) error {
	which, args := `ack >= 2`, []any{h, micros(now)}
	if device != "" {
		which, args = `device = ?`, append(args, string(device))
	}
	rows, err := tx.Query(`DELETE FROM c2d WHERE seq IN (SELECT seq FROM c2d WHERE hub = ? AND expires <= ? AND `+which+` ORDER BY expires LIMIT 256)
		RETURNING seq, device, ack, properties, expires`, args...)
	if err != nil {
		return err
	}
	_, err = endAll(tx, h, rows, now, hub.Expired)
	return err
}

// endAll tells of messages that were removed, whose number, device, ack, properties and expiry are in rows, and counts them. One
// that had expired ended then.
func endAll(tx *sqldb.Tx, h int64, rows sqldb.Rows, now time.Time, o hub.Outcome) (int, error) {
	var gone []ended
	for rows.Next() {
		e := ended{outcome: o, at: now}
		var expires int64
		if err := rows.Scan(&e.seq, &e.device, &e.ack, &e.bag, &expires); err != nil {
			rows.Close()
			return 0, err
		}
		if end := fromMicros(expires); !end.After(now) {
			e.outcome, e.at = hub.Expired, end
		}
		gone = append(gone, e)
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return 0, err
	}
	slices.SortFunc(gone, func(a, b ended) int { return cmp.Compare(a.seq, b.seq) })
	for _, e := range gone {
		if err := tell(tx, h, e, now); err != nil {
			return 0, err
		}
	}
	return len(gone), nil
}

// TakeFeedback implements hub.Feedbacks.
func (s *Store) TakeFeedback(ctx context.Context, name hub.Name, now time.Time, lock string, until time.Time) ([]hub.Feedback, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []hub.Feedback
	err = s.db.UpdateKey(ctx, feedbackKey(name), func(ctx context.Context, tx *sqldb.Tx) error {
		out = nil
		if err := expire(tx, h, "", now); err != nil {
			return err
		}
		if err := tx.Queue(`DELETE FROM feedback WHERE hub = ? AND created <= ?`, h, micros(now.Add(-hub.FeedbackLife))); err != nil {
			return err
		}
		rows, err := tx.Query(`SELECT seq, device, generation, message, outcome, at FROM feedback WHERE hub = ? AND locked_until <= ?
			ORDER BY created, seq LIMIT ? FOR UPDATE SKIP LOCKED`, h, micros(now), int64(hub.FeedbackBatch))
		if err != nil {
			return err
		}
		var seqs []int64
		for rows.Next() {
			var f hub.Feedback
			var seq, at int64
			if err := rows.Scan(&seq, &f.Device, &f.Generation, &f.Message, &f.Outcome, &at); err != nil {
				rows.Close()
				return err
			}
			f.At = fromMicros(at)
			seqs, out = append(seqs, seq), append(out, f)
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		for _, seq := range seqs {
			if err := tx.Queue(`UPDATE feedback SET lock = ?, locked_until = ? WHERE seq = ?`, lock, micros(until), seq); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func feedbackKey(name hub.Name) string { return "feedback/" + string(name) }

// SettleFeedback implements hub.Feedbacks.
func (s *Store) SettleFeedback(ctx context.Context, name hub.Name, lock string) error {
	return s.unlockFeedback(ctx, name, lock, `DELETE FROM feedback WHERE hub = ? AND lock = ? AND lock <> ''`)
}

// ReleaseFeedback implements hub.Feedbacks.
func (s *Store) ReleaseFeedback(ctx context.Context, name hub.Name, lock string) error {
	return s.unlockFeedback(ctx, name, lock, `UPDATE feedback SET lock = '', locked_until = 0 WHERE hub = ? AND lock = ? AND lock <> ''`)
}

func (s *Store) unlockFeedback(ctx context.Context, name hub.Name, lock, query string) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	var n int64
	err = s.db.UpdateKey(ctx, feedbackKey(name), func(ctx context.Context, tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(query, h, lock)
		return err
	})
	if err == nil && n == 0 {
		return cradle.Errorf(cradle.NotFound, "no feedback has this lock")
	}
	return err
}
