package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const approvalColumns = `id, account, request, profile, device, client, subject, spki, csr, state, reason, asked, decided, expires`

func scanApproval(r row, a *provider.Approval) error {
	var asked, decided, expires int64
	err := r.Scan(&a.ID, &a.Account, &a.Request, &a.Profile, &a.Device, &a.Client, &a.Subject, &a.SPKI, &a.CSR, &a.State, &a.Reason, &asked, &decided, &expires)
	a.Asked, a.Decided, a.Expires = fromMicros(asked), fromMicros(decided), fromMicros(expires)
	return err
}

// AskApproval implements provider.Approvals.
func (d *DB) AskApproval(ctx context.Context, a provider.Approval, max int64, leaf ledger.Leaf) (provider.Approval, error) {
	var out provider.Approval
	find := func(tx *sqldb.Tx) error {
		return scanApproval(tx.QueryRow(`SELECT `+approvalColumns+` FROM approvals WHERE request = ? AND expires > ?`, a.Request, micros(a.Asked)), &out)
	}
	err := d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error { return find(tx) })
	if !errors.Is(err, sql.ErrNoRows) {
		return out, err
	}
	err = d.update(ctx, string(a.Account), func(tx *sqldb.Tx) error {
		err := find(tx)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		var owner string // nobody has to look at what could not be issued
		switch err := tx.QueryRow(`SELECT account || '/' || device FROM device_keys WHERE spki = ?`, a.SPKI).Scan(&owner); {
		case err == nil:
			if err := ownKey(&provider.Intent{Account: a.Account, Device: a.Device}, owner); err != nil {
				return err
			}
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		var waiting int64
		if err := tx.QueryRow(`SELECT count(*) FROM approvals WHERE account = ? AND state = ? AND expires > ?`, a.Account, provider.Waiting, micros(a.Asked)).Scan(&waiting); err != nil {
			return err
		}
		if waiting >= max {
			return cradle.Errorf(cradle.Busy, "%d enrolments of account %s wait for approval already", waiting, a.Account).
				WithHint("cradle approval list --account %s", a.Account).After(10 * time.Minute)
		}
		if _, err := tx.Exec(`DELETE FROM approvals WHERE request = ?`, a.Request); err != nil { // expired
			return err
		}
		out = a
		if _, err := tx.Exec(`INSERT INTO approvals (`+approvalColumns+`, intent) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '')`,
			a.ID, a.Account, a.Request, a.Profile, a.Device, a.Client, a.Subject, a.SPKI, a.CSR, a.State, a.Reason, micros(a.Asked), micros(a.Decided), micros(a.Expires)); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
	if errors.Is(err, sqldb.ErrUnique) { // another replica was first
		err = d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error { return find(tx) })
	}
	return out, err
}

// useApproval spends an approval for an intent. The one that used it before may have ended without a certificate, or
// with one whose answer was lost: until it expires it holds for the same key again.
func useApproval(tx *sqldb.Tx, i *provider.Intent) error {
	n, err := tx.Exec(`UPDATE approvals SET state = ?, intent = ?, expires = ? WHERE id = ? AND expires > ? AND state IN (?, ?)`,
		provider.Used, i.ID, micros(i.Created.Add(provider.ReplayFor)), i.Approval, micros(i.Created), provider.Approved, provider.Used)
	if err == nil && n == 0 {
		err = cradle.Errorf(cradle.Conflict, "the approval %s is over", i.Approval).WithHint("send the request again")
	}
	return err
}

// Approval implements provider.Approvals.
func (d *DB) Approval(ctx context.Context, id string) (provider.Approval, error) {
	return one(ctx, d, scanApproval, notFound("approval", id), `SELECT `+approvalColumns+` FROM approvals WHERE id = ?`, id)
}

// ApprovalList implements provider.Approvals.
func (d *DB) ApprovalList(ctx context.Context, account cradle.AccountID, state provider.ApprovalState) ([]provider.Approval, error) {
	return collect(ctx, d, scanApproval, `SELECT `+approvalColumns+` FROM approvals WHERE account = ? AND (state = ? OR ? = '') ORDER BY asked, id`, account, state, state)
}

// DecideApproval implements provider.Approvals.
func (d *DB) DecideApproval(ctx context.Context, a provider.Approval, leaf ledger.Leaf) error {
	return d.update(ctx, string(a.Account), func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`UPDATE approvals SET state = ?, reason = ?, decided = ?, expires = ? WHERE id = ? AND state = ? AND expires > ?`,
			a.State, a.Reason, micros(a.Decided), micros(a.Expires), a.ID, provider.Waiting, micros(a.Decided))
		if err != nil {
			return err
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "approval %s does not wait any more", a.ID).WithHint("cradle approval list --account %s", a.Account)
		}
		return appendLeaf(tx, leaf)
	})
}

// ForgetApprovals implements provider.Approvals.
func (d *DB) ForgetApprovals(ctx context.Context, t time.Time) error {
	return d.update(ctx, "", func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`DELETE FROM approvals WHERE expires < ?`, micros(t))
		return err
	})
}
