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

const (
	moduleColumns = `device, id, generation, etag, managed_by, auth, primary_key, secondary_key, primary_thumb, secondary_thumb, created, updated, sealed`
	insertModule  = `INSERT INTO modules (hub, ` + moduleColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

func (s *Store) moduleValues(name hub.Name, m *hub.Module) []any {
	primary, secondary := s.seal(modulePlace(name, m.Device, m.ID), m.Auth.Primary, m.Auth.Secondary)
	return []any{string(m.Device), string(m.ID), m.Generation, m.ETag, m.ManagedBy, m.Auth.Type, primary, secondary,
		m.Primary, m.Secondary, micros(m.Created), micros(m.Updated), int64(1)}
}

// scanModule reads a row and leaves its keys as they are.
func scanModule(scan func(...any) error) (m *hub.Module, sealed int64, err error) {
	m = &hub.Module{}
	var created, updated int64
	err = scan(&m.Device, &m.ID, &m.Generation, &m.ETag, &m.ManagedBy, &m.Auth.Type, &m.Auth.Primary, &m.Auth.Secondary,
		&m.Primary, &m.Secondary, &created, &updated, &sealed)
	m.Created, m.Updated = fromMicros(created), fromMicros(updated)
	return m, sealed, err
}

// scanOpenModule reads a row with its keys.
func (s *Store) scanOpenModule(name hub.Name, scan func(...any) error) (*hub.Module, error) {
	m, sealed, err := scanModule(scan)
	if err == nil {
		err = s.open(modulePlace(name, m.Device, m.ID), sealed, &m.Auth.Primary, &m.Auth.Secondary)
	}
	return m, err
}

// Module implements hub.Modules.
func (s *Store) Module(ctx context.Context, name hub.Name, device cradle.DeviceID, id iothub.ModuleID) (*hub.Module, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var m *hub.Module
	err = s.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		m, err = s.scanOpenModule(name, tx.QueryRow(`SELECT `+moduleColumns+` FROM modules WHERE hub = ? AND device = ? AND id = ?`, h, string(device), string(id)).Scan)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hub.ModuleNotFound(device, id)
	} else if err != nil {
		return nil, err
	}
	return m, nil
}

// Modules implements hub.Modules.
func (s *Store) Modules(ctx context.Context, name hub.Name, device cradle.DeviceID) ([]hub.Module, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	return sqldb.List(ctx, s.db, func(r sqldb.Row) (hub.Module, error) {
		m, err := s.scanOpenModule(name, r.Scan)
		return *m, err
	}, `SELECT `+moduleColumns+` FROM modules WHERE hub = ? AND device = ? ORDER BY id`, h, string(device))
}

// InsertModule implements hub.Modules. The row of the device is locked while its modules are counted, so
// that two inserts cannot both be the last one allowed, and a delete of the device waits.
func (s *Store) InsertModule(ctx context.Context, name hub.Name, m *hub.Module, notes ...hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	values := append([]any{h}, s.moduleValues(name, m)...)
	var refusal error
	err = s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		refusal = nil
		var one, count, same int64
		err := tx.QueryRow(`SELECT 1 FROM devices WHERE hub = ? AND id = ? FOR UPDATE`, h, string(m.Device)).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			refusal = noDevice(m.Device)
			return nil
		} else if err != nil {
			return err
		}
		err = tx.QueryRow(`SELECT count(*), COALESCE(sum(CASE WHEN id = ? THEN 1 ELSE 0 END), 0) FROM modules WHERE hub = ? AND device = ?`,
			string(m.ID), h, string(m.Device)).Scan(&count, &same)
		switch {
		case err != nil:
			return err
		case same > 0:
			refusal = cradle.Errorf(cradle.Conflict, "device %q has a module %q", m.Device, m.ID).WithHint("update it with If-Match")
			return nil
		case count >= hub.MaxModules:
			refusal = cradle.Errorf(cradle.TooLarge, "device %q has %d modules, more are not allowed", m.Device, count)
			return nil
		}
		if err := tx.Queue(insertModule, values...); err != nil {
			return err
		}
		return appendEvents(tx, h, notes)
	})
	if err == nil {
		err = refusal
	}
	return err
}

// swapModule runs a statement that touches the module with the right ETag, and says why it touched none.
func (s *Store) swapModule(ctx context.Context, h int64, device cradle.DeviceID, id iothub.ModuleID, then func(*sqldb.Tx) error, query string, args ...any) error {
	var n, exists int64
	err := s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		exists = 0
		if n, err = tx.Exec(query, args...); err != nil {
			return err
		}
		if n > 0 {
			return then(tx)
		}
		return tx.QueryRow(`SELECT count(*) FROM modules WHERE hub = ? AND device = ? AND id = ?`, h, string(device), string(id)).Scan(&exists)
	})
	switch {
	case err != nil || n > 0:
		return err
	case exists == 0:
		return hub.ModuleNotFound(device, id)
	}
	return cradle.Errorf(cradle.Conflict, "module %q of device %q has another ETag", id, device)
}

// UpdateModule implements hub.Modules.
func (s *Store) UpdateModule(ctx context.Context, name hub.Name, m *hub.Module, etag string) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	v := append(s.moduleValues(name, m)[2:], h, string(m.Device), string(m.ID), etag)
	nothing := func(*sqldb.Tx) error { return nil }
	return s.swapModule(ctx, h, m.Device, m.ID, nothing, `UPDATE modules SET generation = ?, etag = ?, managed_by = ?, auth = ?, primary_key = ?,
		secondary_key = ?, primary_thumb = ?, secondary_thumb = ?, created = ?, updated = ?, sealed = ? WHERE hub = ? AND device = ? AND id = ? AND etag = ?`, v...)
}

// DeleteModule implements hub.Modules.
func (s *Store) DeleteModule(ctx context.Context, name hub.Name, device cradle.DeviceID, id iothub.ModuleID, etag string, notes ...hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	forget := func(tx *sqldb.Tx) error {
		if err := forgetModule(tx, h, device, id); err != nil {
			return err
		}
		return appendEvents(tx, h, notes)
	}
	return s.swapModule(ctx, h, device, id, forget, `DELETE FROM modules WHERE hub = ? AND device = ? AND id = ? AND etag = ?`, h, string(device), string(id), etag)
}
