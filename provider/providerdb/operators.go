package providerdb

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const operatorColumns = `account, name, role, token, hash, created, expires, last_used`

func scanOperator(r row, o *provider.Operator) error {
	var created, expires, used int64
	err := r.Scan(&o.Account, &o.Name, &o.Role, &o.ID, &o.Hash, &created, &expires, &used)
	o.Created, o.Expires, o.LastUsed = fromMicros(created), fromMicros(expires), fromMicros(used)
	return err
}

// AddOperator implements provider.Operators.
func (d *DB) AddOperator(ctx context.Context, o provider.Operator, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO operators (`+operatorColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (account, name) DO NOTHING`,
			o.Account, o.Name, o.Role, o.ID, o.Hash, micros(o.Created), micros(o.Expires))
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "there is an operator %q already", o.Name).WithHint("remove the one there is, or choose another name")
		}
		return appendLeaf(tx, leaf)
	})
}

// RemoveOperator implements provider.Operators.
func (d *DB) RemoveOperator(ctx context.Context, account cradle.AccountID, name string, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`DELETE FROM operators WHERE account = ? AND name = ?`, account, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return notFound("operator", name)
		}
		return appendLeaf(tx, leaf)
	})
}

// OperatorByToken implements provider.Operators.
func (d *DB) OperatorByToken(ctx context.Context, id string) (provider.Operator, error) {
	return one(ctx, d, scanOperator, notFound("operator with token", id), `SELECT `+operatorColumns+` FROM operators WHERE token = ?`, id)
}

// OperatorList implements provider.Operators.
func (d *DB) OperatorList(ctx context.Context) ([]provider.Operator, error) {
	return collect(ctx, d, scanOperator, `SELECT `+operatorColumns+` FROM operators ORDER BY account, name`)
}

// UsedOperator implements provider.Operators.
func (d *DB) UsedOperator(ctx context.Context, id string, at time.Time) error {
	return d.update(ctx, "", func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE operators SET last_used = ? WHERE token = ? AND last_used < ?`, micros(at), id, micros(at))
		return err
	})
}
