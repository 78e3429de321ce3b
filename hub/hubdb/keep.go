package hubdb

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// KeptSession implements hub.Sessions.
func (s *Store) KeptSession(ctx context.Context, name hub.Name, device cradle.DeviceID, module iothub.ModuleID) (hub.Subscriptions, bool, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return 0, false, err
	}
	var bits int64
	err = s.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT subscriptions FROM kept_sessions WHERE hub = ? AND device = ? AND module = ?`,
			h, string(device), string(module)).Scan(&bits)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return hub.Subscriptions(bits), err == nil, err
}

// KeepSession implements hub.Sessions.
func (s *Store) KeepSession(ctx context.Context, name hub.Name, device cradle.DeviceID, module iothub.ModuleID, generation string, subs hub.Subscriptions) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	var refusal error
	err = s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if refusal, err = holdOwner(tx, h, device, module, generation); err != nil || refusal != nil {
			return err
		}
		return tx.Queue(`INSERT INTO kept_sessions (hub, device, module, subscriptions) VALUES (?, ?, ?, ?)
			ON CONFLICT (hub, device, module) DO UPDATE SET subscriptions = excluded.subscriptions`,
			h, string(device), string(module), int64(subs))
	})
	if err == nil {
		err = refusal
	}
	return err
}

// ForgetSession implements hub.Sessions.
func (s *Store) ForgetSession(ctx context.Context, name hub.Name, device cradle.DeviceID, module iothub.ModuleID) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.Queue(`DELETE FROM kept_sessions WHERE hub = ? AND device = ? AND module = ?`, h, string(device), string(module))
	})
}
