package provisioningdb

import (
	"cmp"
	"context"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provisioning"
)

// LoadRegistrations is the import path of a fleet that exists already: it stores registrations as they
// are, in one transaction, and orders no delivery, since the hub knows the devices (hubdb.Store.LoadDevices).
// Conflict when one of them is there already; then nothing is stored.
func (d *DB) LoadRegistrations(ctx context.Context, rs []provisioning.Registration) error {
	rows := make([][]any, len(rs))
	for i := range rs {
		r := &rs[i]
		rows[i] = []any{r.ID, r.Group, r.Account, r.Hub, r.Status, r.Substatus, r.Blocked, r.Operation, r.PrevOperation, r.Thumbprint[:],
			micros(r.NotBefore), micros(r.Newest), int64(flag(r.Delivered)), int64(r.ErrorCode), r.ErrorMessage, r.Version, micros(r.Created), micros(r.Updated),
			string(cmp.Or(r.Kind, provisioning.X509CA))}
	}
	err := d.db.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		return tx.InsertMany("registration", []string{"id", "group_id", "account", "hub", "status", "substatus", "blocked", "operation", "prev_operation",
			"thumbprint", "not_before", "newest", "delivered", "error_code", "error_message", "version", "created_at", "updated_at", "kind"}, rows)
	})
	if errors.Is(err, sqldb.ErrUnique) {
		return &cradle.Error{Kind: cradle.Conflict, Detail: "a registration of these is there already", Err: err}
	}
	return err
}
