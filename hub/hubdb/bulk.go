package hubdb

import (
	"context"
	"errors"
	"strings"

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
		rows[i] = append([]any{h}, s.deviceValues(name, &ds[i])...)
	}
	columns := strings.FieldsFunc("hub, "+deviceColumns, func(r rune) bool { return strings.ContainsRune(", \t\n", r) })
	err = s.db.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error { return tx.InsertMany("devices", columns, rows) })
	if errors.Is(err, sqldb.ErrUnique) {
		return &cradle.Error{Kind: cradle.Conflict, Detail: "a device of these is registered already", Err: err}
	}
	return err
}
