package hubdb

import (
	"context"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

// LoadDevices is the import path of a registry that exists already: it stores entries as they are, in one
// transaction. Conflict when one of them is there already; then nothing is stored.
func (s *Store) LoadDevices(ctx context.Context, name hub.Name, ds []hub.Device) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	rows := make([][]any, len(ds))
	for i := range ds {
		d := &ds[i]
		rows[i] = []any{h, d.ID, d.Generation, d.ETag, flag(d.Disabled), d.Reason, micros(d.StatusChanged), d.Primary, d.Secondary,
			flag(d.IoTEdge), micros(d.Created), micros(d.Updated)}
	}
	err = s.db.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		return tx.InsertMany("devices", []string{"hub", "id", "generation", "etag", "disabled", "reason", "status_changed", "primary_thumb",
			"secondary_thumb", "iot_edge", "created", "updated"}, rows)
	})
	if errors.Is(err, sqldb.ErrUnique) {
		return &cradle.Error{Kind: cradle.Conflict, Detail: "a device of these is registered already", Err: err}
	}
	return err
}
