package hubdb

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

const deviceColumns = `id, generation, etag, disabled, reason, status_changed, primary_thumb, secondary_thumb, iot_edge, created, updated,
	auth, primary_key, secondary_key, scope, parent, policy, sealed`

func (s *Store) deviceValues(name hub.Name, d *hub.Device) []any {
	primary, secondary := s.seal(devicePlace(name, d.ID), d.Auth.Primary, d.Auth.Secondary)
	return []any{string(d.ID), d.Generation, d.ETag, flag(d.Disabled), d.Reason, micros(d.StatusChanged), d.Primary, d.Secondary,
		flag(d.IoTEdge), micros(d.Created), micros(d.Updated), d.Auth.Type, primary, secondary, d.Scope, d.Parent, d.Policy, int64(1)}
}

// scanDevice reads a row and leaves its keys as they are.
func scanDevice(scan func(...any) error) (d *hub.Device, sealed int64, err error) {
	d = &hub.Device{}
	var disabled, changed, edge, created, updated int64
	err = scan(&d.ID, &d.Generation, &d.ETag, &disabled, &d.Reason, &changed, &d.Primary, &d.Secondary, &edge, &created, &updated,
		&d.Auth.Type, &d.Auth.Primary, &d.Auth.Secondary, &d.Scope, &d.Parent, &d.Policy, &sealed)
	d.Disabled, d.IoTEdge = disabled != 0, edge != 0
	d.StatusChanged, d.Created, d.Updated = fromMicros(changed), fromMicros(created), fromMicros(updated)
	return d, sealed, err
}

// scanOpenDevice reads a row with its keys.
func (s *Store) scanOpenDevice(name hub.Name, scan func(...any) error) (*hub.Device, error) {
	d, sealed, err := scanDevice(scan)
	if err == nil {
		err = s.open(devicePlace(name, d.ID), sealed, &d.Auth.Primary, &d.Auth.Secondary)
	}
	return d, err
}

func noDevice(id cradle.DeviceID) error {
	return cradle.Errorf(cradle.NotFound, "device %.128q is not registered", id)
}

// Device implements hub.Store.
func (s *Store) Device(ctx context.Context, name hub.Name, id cradle.DeviceID) (*hub.Device, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var d *hub.Device
	err = s.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		d, err = s.scanOpenDevice(name, tx.QueryRow(`SELECT `+deviceColumns+` FROM devices WHERE hub = ? AND id = ?`, h, string(id)).Scan)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noDevice(id)
	} else if err != nil {
		return nil, err
	}
	return d, nil
}

// Devices implements hub.Store.
func (s *Store) Devices(ctx context.Context, name hub.Name, after cradle.DeviceID, limit int) ([]hub.Device, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	return sqldb.List(ctx, s.db, func(r sqldb.Row) (hub.Device, error) {
		d, err := s.scanOpenDevice(name, r.Scan)
		return *d, err
	}, `SELECT `+deviceColumns+` FROM devices WHERE hub = ? AND id > ? ORDER BY id LIMIT ?`, h, string(after), int64(limit))
}

// CountDevices implements hub.Store.
func (s *Store) CountDevices(ctx context.Context, name hub.Name) (total, disabled int64, err error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return 0, 0, err
	}
	err = s.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT count(*), CAST(COALESCE(sum(disabled), 0) AS BIGINT) FROM devices WHERE hub = ?`, h).Scan(&total, &disabled)
	})
	return total, disabled, err
}

// insertDevices says of each whether it is new.
var insertDevices = sqldb.NewMany(`hub bigint, id text, generation text, etag text, disabled bigint, reason text, status_changed bigint, primary_thumb text,`+
	` secondary_thumb text, iot_edge bigint, created bigint, updated bigint, auth text, primary_key bytea, secondary_key bytea, scope text, parent text, policy text, sealed bigint`, `,
	d AS (INSERT INTO devices (hub, `+deviceColumns+`) SELECT hub, `+deviceColumns+` FROM asked ON CONFLICT (hub, id) DO NOTHING RETURNING hub, id)
	SELECT n, CASE WHEN (hub, id) IN (SELECT hub, id FROM d) THEN 1 ELSE 0 END FROM asked`)

// InsertDevice implements hub.Store.
func (s *Store) InsertDevice(ctx context.Context, name hub.Name, d *hub.Device, modules []hub.Module, notes ...hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	values := append([]any{h}, s.deviceValues(name, d)...)
	insides := make([][]any, len(modules))
	for i := range modules {
		insides[i] = append([]any{h}, s.moduleValues(name, &modules[i])...)
	}
	var n int64
	// All entries share a writer, hence commits.
	err = s.db.UpdateApart(ctx, "", string(d.ID), func(ctx context.Context, tx *sqldb.Tx) (err error) {
		if tx.Engine() == sqldb.PostgreSQL {
			err = tx.AskMany(insertDevices, values...).Scan(&n)
		} else {
			n, err = tx.Exec(`INSERT INTO devices (hub, `+deviceColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (hub, id) DO NOTHING`, values...)
		}
		for i := 0; i < len(insides) && n > 0 && err == nil; i++ {
			err = tx.Queue(insertModule, insides[i]...)
		}
		if n > 0 && err == nil {
			err = appendEvents(tx, h, notes)
		}
		return err
	})
	if err == nil && n == 0 {
		return cradle.Errorf(cradle.Conflict, "device %q exists", d.ID).WithHint("update it with If-Match")
	}
	return err
}

// swap runs a statement that touches the entry with the right ETag, and says why it touched none.
func (s *Store) swap(ctx context.Context, h int64, id cradle.DeviceID, notes []hub.Event, query string, args ...any) error {
	var n, exists int64
	err := s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		exists = 0
		if n, err = tx.Exec(query, args...); err != nil {
			return err
		}
		if n > 0 {
			return appendEvents(tx, h, notes)
		}
		return tx.QueryRow(`SELECT count(*) FROM devices WHERE hub = ? AND id = ?`, h, string(id)).Scan(&exists)
	})
	switch {
	case err != nil || n > 0:
		return err
	case exists == 0:
		return noDevice(id)
	}
	return cradle.Errorf(cradle.Conflict, "device %q has another ETag", id)
}

// UpdateDevice implements hub.Store.
func (s *Store) UpdateDevice(ctx context.Context, name hub.Name, d *hub.Device, etag string) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	v := append(s.deviceValues(name, d)[1:], h, string(d.ID), etag)
	return s.swap(ctx, h, d.ID, nil, `UPDATE devices SET generation = ?, etag = ?, disabled = ?, reason = ?, status_changed = ?,
		primary_thumb = ?, secondary_thumb = ?, iot_edge = ?, created = ?, updated = ?, auth = ?, primary_key = ?, secondary_key = ?,
		scope = ?, parent = ?, policy = ?, sealed = ? WHERE hub = ? AND id = ? AND etag = ?`, v...)
}

// DeleteDevice implements hub.Store.
func (s *Store) DeleteDevice(ctx context.Context, name hub.Name, id cradle.DeviceID, etag string, notes ...hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	return s.swap(ctx, h, id, notes, `DELETE FROM devices WHERE hub = ? AND id = ? AND etag = ?`, h, string(id), etag)
}
