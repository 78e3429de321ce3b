package providerdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const orderColumns = `id, account, oem, jws, quantity, used, state, reason, created`

func scanOrder(r row, o *provider.Order) error {
	var created int64
	err := r.Scan(&o.ID, &o.Account, &o.OEM, &o.JWS, &o.Quantity, &o.Used, &o.State, &o.Reason, &created)
	o.Created = fromMicros(created)
	return err
}

// CreateOrder implements provider.Orders.
func (d *DB) CreateOrder(ctx context.Context, o provider.Order, leaf ledger.Leaf) error {
	return d.update(ctx, string(o.Account), func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO orders (`+orderColumns+`) VALUES (?, ?, ?, ?, ?, 0, ?, '', ?) ON CONFLICT (id) DO NOTHING`,
			o.ID, o.Account, o.OEM, o.JWS, o.Quantity, o.State, micros(o.Created))
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "order %q exists already", o.ID).WithHint("orders never change; give a new one another id")
		}
		return appendLeaf(tx, leaf)
	})
}

// Order implements provider.Orders.
func (d *DB) Order(ctx context.Context, id cradle.OrderID) (provider.Order, error) {
	return one(ctx, d, scanOrder, notFound("order", id), `SELECT `+orderColumns+` FROM orders WHERE id = ?`, id)
}

// Orders implements provider.Orders.
func (d *DB) Orders(ctx context.Context, account cradle.AccountID) ([]provider.Order, error) {
	return collect(ctx, d, scanOrder, `SELECT `+orderColumns+` FROM orders WHERE account = ? ORDER BY created, id`, account)
}

// lockedOrder is an order that nobody else changes before the transaction ends. The functions of one
// batch share it: it is read and locked once, its count of units written once. Who changes
// the row otherwise changes the fields here too.
type lockedOrder struct {
	provider.Order
	stored int64 // Used in the row
}

func lockOrder(tx *sqldb.Tx, id cradle.OrderID) (*lockedOrder, error) {
	v, err := tx.Carry("order "+string(id), func(tx *sqldb.Tx) (any, error) {
		o := new(lockedOrder)
		err := scanOrder(tx.QueryRow(`SELECT `+orderColumns+` FROM orders WHERE id = ? FOR UPDATE`, id), &o.Order)
		if errors.Is(err, sql.ErrNoRows) {
			err = notFound("order", id)
		}
		o.stored = o.Used
		return o, err
	}, func(tx *sqldb.Tx, v any) error {
		o := v.(*lockedOrder)
		if o.Used == o.stored {
			return nil
		}
		return tx.Queue(`UPDATE orders SET used = ? WHERE id = ?`, o.Used, o.ID)
	})
	if err != nil {
		return nil, err
	}
	return v.(*lockedOrder), nil
}

// OpenOrder implements provider.Orders.
func (d *DB) OpenOrder(ctx context.Context, id cradle.OrderID, jws []byte, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		o, err := lockOrder(tx, id)
		if err != nil {
			return err
		}
		switch o.State {
		case provider.OrderOpen:
			return nil
		case provider.OrderSigned:
		default:
			return cradle.Errorf(cradle.Conflict, "order %q is %s", id, o.State)
		}
		if _, err := tx.Exec(`UPDATE orders SET state = ?, jws = ? WHERE id = ?`, provider.OrderOpen, jws, id); err != nil {
			return err
		}
		o.State, o.JWS = provider.OrderOpen, jws
		return appendLeaf(tx, leaf)
	})
}

// WithdrawOrder implements provider.Orders.
func (d *DB) WithdrawOrder(ctx context.Context, id cradle.OrderID, reason string, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		o, err := lockOrder(tx, id)
		if err != nil {
			return err
		}
		if o.State != provider.OrderSigned && o.State != provider.OrderOpen {
			return cradle.Errorf(cradle.Conflict, "order %q is %s", id, o.State)
		}
		if _, err := tx.Exec(`UPDATE orders SET state = ?, reason = ? WHERE id = ?`, provider.OrderWithdrawn, reason, id); err != nil {
			return err
		}
		o.State, o.Reason = provider.OrderWithdrawn, reason
		return appendLeaf(tx, leaf)
	})
}

const lotColumns = `id, account, oem, order_id, report, custody, head, units, state, findings, closed, accepted`

func scanLot(r row, l *provider.Lot) error {
	var findings string
	var closed, accepted int64
	if err := r.Scan(&l.ID, &l.Account, &l.OEM, &l.Order, &l.Report, &l.Custody, &l.Head, &l.Units, &l.State, &findings, &closed, &accepted); err != nil {
		return err
	}
	l.Closed, l.Accepted = fromMicros(closed), fromMicros(accepted)
	return json.Unmarshal([]byte(findings), &l.Findings)
}

// CreateLot implements provider.Orders.
func (d *DB) CreateLot(ctx context.Context, l provider.Lot, devices []cradle.DeviceID, leaf ledger.Leaf) (provider.Lot, error) {
	var out provider.Lot
	err := d.update(ctx, string(l.Account), func(tx *sqldb.Tx) error {
		out = provider.Lot{}
		if _, err := lockOrder(tx, l.Order); err != nil {
			return err
		}
		digest := ca.Digest(l.Report)
		err := scanLot(tx.QueryRow(`SELECT `+lotColumns+` FROM lots WHERE report_digest = ?`, digest), &out)
		if !errors.Is(err, sql.ErrNoRows) {
			return err // nil: the same report again
		}
		out = l
		n, err := tx.Exec(`INSERT INTO lots (`+lotColumns+`, report_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			l.ID, l.Account, l.OEM, l.Order, l.Report, l.Custody, l.Head, l.Units, l.State, jsonText(l.Findings), micros(l.Closed), micros(l.Accepted), digest)
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "lot %q exists already with another report", l.ID)
		}
		if err := fillLot(tx, l, devices); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
	return out, err
}

// fillLot puts units into their lot, and accepts them with it when it is accepted already.
func fillLot(tx *sqldb.Tx, l provider.Lot, devices []cradle.DeviceID) error {
	state := cradle.Made
	if l.State == "accepted" {
		state = cradle.Accepted
	}
	const put = `UPDATE devices SET lot = ?, state = ? WHERE account = ? AND order_id = ? AND state = ? AND lot = '' AND id = `
	var n int64
	if tx.Engine() == sqldb.PostgreSQL {
		var err error
		if n, err = tx.Exec(put+`ANY (?)`, l.ID, state, l.Account, l.Order, cradle.Made, devices); err != nil {
			return err
		}
	} else {
		for _, id := range devices {
			one, err := tx.Exec(put+`?`, l.ID, state, l.Account, l.Order, cradle.Made, id)
			if err != nil {
				return err
			}
			n += one
		}
	}
	if n == int64(len(devices)) {
		return nil
	}
	for _, id := range devices {
		var in int64
		if err := tx.QueryRow(`SELECT count(*) FROM devices WHERE account = ? AND id = ? AND lot = ?`, l.Account, id, l.ID).Scan(&in); err != nil {
			return err
		}
		if in == 0 {
			return cradle.Errorf(cradle.Conflict, "device %s is not a unit of order %s that waits for its lot", id, l.Order).
				WithHint("it may be in another lot already: cradle device show %s", id)
		}
	}
	return cradle.Errorf(cradle.Conflict, "the lot names a device twice")
}

// acceptDevices moves the units of a lot made -> accepted; a device that was revoked meanwhile stays so.
func acceptDevices(tx *sqldb.Tx, l provider.Lot) error {
	_, err := tx.Exec(`UPDATE devices SET state = ? WHERE account = ? AND order_id = ? AND lot = ? AND state = ?`,
		cradle.Accepted, l.Account, l.Order, l.ID, cradle.Made)
	return err
}

// AcceptLot implements provider.Orders.
func (d *DB) AcceptLot(ctx context.Context, id cradle.LotID, custody []byte, leaf ledger.Leaf) (provider.Lot, error) {
	var out provider.Lot
	err := d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		out = provider.Lot{}
		err := scanLot(tx.QueryRow(`SELECT `+lotColumns+` FROM lots WHERE id = ? FOR UPDATE`, id), &out)
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("lot", id)
		}
		if err != nil || out.State == "accepted" {
			return err
		}
		out.State, out.Accepted, out.Custody = "accepted", leaf.Time, custody
		if _, err := tx.Exec(`UPDATE lots SET state = ?, accepted = ?, custody = ? WHERE id = ?`, out.State, micros(out.Accepted), custody, id); err != nil {
			return err
		}
		if err := acceptDevices(tx, out); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
	return out, err
}

// Lot implements provider.Orders.
func (d *DB) Lot(ctx context.Context, id cradle.LotID) (provider.Lot, error) {
	return one(ctx, d, scanLot, notFound("lot", id), `SELECT `+lotColumns+` FROM lots WHERE id = ?`, id)
}

// Lots implements provider.Orders.
func (d *DB) Lots(ctx context.Context, account cradle.AccountID) ([]provider.Lot, error) {
	return collect(ctx, d, scanLot, `SELECT `+lotColumns+` FROM lots WHERE account = ? ORDER BY closed, id`, account)
}
