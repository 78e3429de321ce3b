package providerdb

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Restored implements provider.Restores.
func (d *DB) Restored(ctx context.Context) ([]provider.Restored, error) {
	return collect(ctx, d, func(r row, x *provider.Restored) error {
		var at int64
		err := r.Scan(&x.Log, &x.Size, &x.Known, &at)
		x.At = fromMicros(at)
		return err
	}, `SELECT r.log, l.size, r.known, r.at FROM restored r JOIN logs l ON l.log = r.log ORDER BY r.log`)
}

// MarkRestored implements provider.Restores.
func (d *DB) MarkRestored(ctx context.Context, at time.Time) error {
	return d.update(ctx, "", func(tx *sqldb.Tx) error {
		for _, s := range []struct {
			query string
			args  []any
		}{
			{`INSERT INTO restored (log, size, at) SELECT log, size, ? FROM logs WHERE true ON CONFLICT (log) DO NOTHING`, []any{micros(at)}},
			{`DELETE FROM secrets WHERE name = 'challenge-key'`, nil}, // challenges that were spent since cannot be opened any more
			{`UPDATE intents SET state = 'void', reason = 'restored' WHERE state = 'open'`, nil},
			{`UPDATE approvals SET state = 'waiting', decided = 0 WHERE state = 'approved'`, nil}, // perhaps used since
			{`DELETE FROM leases`, nil},
			{`UPDATE crl_shards SET wanted = wanted + 1, replica = ''`, nil}, // nobody issues into a shard that may hold more than the store knows
		} {
			if _, err := tx.Exec(s.query, s.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetKnown implements provider.Restores.
func (d *DB) SetKnown(ctx context.Context, log string, checkpoint []byte) error {
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE restored SET known = ? WHERE log = ?`, checkpoint, log)
		return err
	})
}

// OpenLog implements provider.Restores.
func (d *DB) OpenLog(ctx context.Context, log string, seq int64) error {
	return d.update(ctx, "", func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`DELETE FROM restored WHERE log = ?`, log); err != nil {
			return err
		}
		var head, left int64
		if err := tx.QueryRow(`SELECT seq FROM feed_head WHERE one = 1 FOR UPDATE`).Scan(&head); err != nil {
			return err
		}
		if seq < 0 { // nobody knows how far it was
			seq = head - seq
		}
		if seq > head {
			if _, err := tx.Exec(`UPDATE feed_head SET seq = ? WHERE one = 1`, seq); err != nil {
				return err
			}
			head = seq
		}
		if err := tx.QueryRow(`SELECT count(*) FROM restored`).Scan(&left); err != nil || left > 0 {
			return err
		}
		return fillFeed(tx, head)
	})
}

// fillFeed puts an event about nothing at each number up to head that has none: a feed has no gaps.
func fillFeed(tx *sqldb.Tx, head int64) error {
	have, err := rows(tx, func(r row, n *int64) error { return r.Scan(n) }, `SELECT seq FROM feed ORDER BY seq`)
	if err != nil {
		return err
	}
	next := int64(1)
	for _, n := range append(have, head+1) {
		for ; next < n; next++ {
			if err := insertFeed(tx, &provider.FeedEvent{Seq: next, Reason: "lost in a restore"}); err != nil {
				return err
			}
		}
		next = n + 1
	}
	return nil
}

func insertFeed(tx *sqldb.Tx, e *provider.FeedEvent) error {
	return tx.Queue(`INSERT INTO feed (`+feedColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (seq) DO NOTHING`,
		e.Seq, e.Account, e.Device, e.State, e.Epoch, e.Reason, micros(e.At), e.Certificate, flag(e.Released))
}

// DeclareLost implements provider.Restores.
func (d *DB) DeclareLost(ctx context.Context, log string, leaf func(provider.Head, provider.OutOfUse) (ledger.Leaf, error)) error {
	account := log
	if log == provider.InstallationLog {
		account = ""
	}
	return d.update(ctx, log, func(tx *sqldb.Tx) error {
		var out provider.OutOfUse
		orders, err := rows(tx, func(r row, id *cradle.OrderID) error { return r.Scan(id) }, `SELECT id FROM orders WHERE account = ? AND state = ? ORDER BY id`, account, provider.OrderOpen)
		if err != nil {
			return err
		}
		out.Orders = append([]cradle.OrderID{}, orders...)
		text := func(r row, s *string) error { return r.Scan(s) }
		for _, t := range []struct {
			to           *[]string
			find, change string
		}{
			{&out.Operators, `SELECT name FROM operators WHERE account = ? ORDER BY name`, `DELETE FROM operators WHERE account = ?`},
			{&out.BasicUsers, `SELECT profile || '/' || name FROM basic_users WHERE account = ? AND disabled = 0 ORDER BY profile, name`, `UPDATE basic_users SET disabled = 1, password = '' WHERE account = ?`},
			{&out.ClientCAs, `SELECT id FROM client_cas WHERE account = ? AND disabled = 0 ORDER BY id`, `UPDATE client_cas SET disabled = 1 WHERE account = ?`},
		} {
			found, err := rows(tx, text, t.find, account)
			if err != nil {
				return err
			}
			*t.to = append([]string{}, found...)
			if _, err := tx.Exec(t.change, account); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`DELETE FROM client_units WHERE ca IN (SELECT id FROM client_cas WHERE account = ?)`, account); err != nil {
			return err
		}
		if err := ended(tx, account, &out); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE orders SET state = ? WHERE account = ? AND state = ?`, provider.OrderFrozen, account, provider.OrderOpen); err != nil {
			return err
		}
		var h provider.Head
		if err := scanHead(tx.QueryRow(`SELECT `+headColumns+` FROM logs WHERE log = ?`, log), &h); err != nil {
			return err
		}
		l, err := leaf(h, out)
		if err != nil {
			return err
		}
		return appendLeaf(tx, l)
	})
}

// ended notes what the rows hold now.
func ended(tx *sqldb.Tx, account string, out *provider.OutOfUse) error {
	for _, name := range out.Operators {
		out.Settings = append(out.Settings, (&provider.Operator{Name: name}).Gone())
	}
	users, err := rows(tx, scanBasic, `SELECT `+basicColumns+` FROM basic_users WHERE account = ?`, account)
	if err != nil {
		return err
	}
	for _, u := range users {
		out.Settings = append(out.Settings, u.Setting())
	}
	cas, err := rows(tx, scanClientCA, `SELECT `+clientCAColumns+` FROM client_cas WHERE account = ?`, account)
	for _, c := range cas {
		out.Settings = append(out.Settings, c.Setting(nil))
	}
	return err
}

// ThawOrder implements provider.Restores.
func (d *DB) ThawOrder(ctx context.Context, id cradle.OrderID, used int64, leaf func(provider.Order) (ledger.Leaf, error)) (provider.Order, error) {
	var out provider.Order
	var account string
	if o, err := d.Order(ctx, id); err == nil {
		account = string(o.Account)
	}
	err := d.update(ctx, account, func(tx *sqldb.Tx) error {
		o, err := lockOrder(tx, id)
		if err != nil {
			return err
		}
		switch {
		case o.State != provider.OrderFrozen:
			return cradle.Errorf(cradle.Conflict, "order %s is %s, not frozen", id, o.State)
		case used < o.Used || used > o.Quantity:
			return cradle.Errorf(cradle.Conflict, "%d units of order %s are on record, %d are ordered: %d cannot be right", o.Used, id, o.Quantity, used).
				WithHint("give the number that the OEM has made")
		}
		l, err := leaf(o.Order)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE orders SET state = ? WHERE id = ?`, provider.OrderOpen, id); err != nil {
			return err
		}
		o.State, o.Used = provider.OrderOpen, used
		out = o.Order
		return appendLeaf(tx, l)
	})
	return out, err
}

// Peek reads the heads of the logs and the newest number of the status feed from a SQLite file, of whatever version, that
// nobody has open.
func Peek(ctx context.Context, path string) (heads []provider.Head, feed int64, err error) {
	db, err := sqldb.OpenFile(path)
	if err != nil {
		return nil, 0, err
	}
	defer db.Close()
	if err := db.QueryRowContext(ctx, `SELECT seq FROM feed_head`).Scan(&feed); err != nil {
		return nil, 0, err
	}
	found, err := db.QueryContext(ctx, `SELECT log, size, signed, checkpoint FROM logs ORDER BY log`)
	if err != nil {
		return nil, 0, err
	}
	defer found.Close()
	for found.Next() {
		var h provider.Head
		if err := found.Scan(&h.Log, &h.Size, &h.Signed, &h.Checkpoint); err != nil {
			return nil, 0, err
		}
		heads = append(heads, h)
	}
	return heads, feed, found.Err()
}
