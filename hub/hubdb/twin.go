package hubdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

const twinColumns = `version, writes, tags, desired, desired_meta, desired_version, reported, reported_meta, reported_version`

func scanTwin(scan func(...any) error) (*hub.Twin, error) {
	var t hub.Twin
	var tags, desired, desiredMeta, reported, reportedMeta string
	err := scan(&t.Version, &t.Writes, &tags, &desired, &desiredMeta, &t.Desired.Version, &reported, &reportedMeta, &t.Report.Version)
	if err != nil {
		return nil, err
	}
	t.Tags.Version = 1
	for _, f := range []struct {
		from string
		to   *map[string]any
	}{{tags, &t.Tags.Values}, {desired, &t.Desired.Values}, {desiredMeta, &t.Desired.Meta}, {reported, &t.Report.Values}, {reportedMeta, &t.Report.Meta}} {
		d := json.NewDecoder(strings.NewReader(f.from))
		d.UseNumber()
		if err := d.Decode(f.to); err != nil {
			return nil, fmt.Errorf("twin in the store: %v", err)
		}
	}
	return &t, nil
}

func text(v map[string]any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func twinValues(t *hub.Twin) ([]any, error) {
	var texts [5]string
	for i, v := range []map[string]any{t.Tags.Values, t.Desired.Values, t.Desired.Meta, t.Report.Values, t.Report.Meta} {
		s, err := text(v)
		if err != nil {
			return nil, err
		}
		texts[i] = s
	}
	return []any{t.Version, t.Writes, texts[0], texts[1], texts[2], t.Desired.Version, texts[3], texts[4], t.Report.Version}, nil
}

// Twin implements hub.Twins.
func (s *Store) Twin(ctx context.Context, name hub.Name, device cradle.DeviceID, module iothub.ModuleID) (*hub.Twin, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var t *hub.Twin
	err = s.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		t, err = scanTwin(tx.QueryRow(`SELECT `+twinColumns+` FROM twins WHERE hub = ? AND device = ? AND module = ?`,
			h, string(device), string(module)).Scan)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return t, err
}

// PutTwin implements hub.Twins. The owner's row is held until the commit, so that a twin cannot come into being
// while its owner goes.
func (s *Store) PutTwin(ctx context.Context, name hub.Name, device cradle.DeviceID, module iothub.ModuleID, generation string, t *hub.Twin, was int64, notes ...hub.Event) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	values, err := twinValues(t)
	if err != nil {
		return err
	}
	var refusal error
	err = s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		refusal = nil
		if refusal, err = holdOwner(tx, h, device, module, generation); err != nil || refusal != nil {
			return err
		}
		var n int64
		var err error
		if was <= 1 {
			n, err = tx.Exec(`INSERT INTO twins (hub, device, module, `+twinColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (hub, device, module) DO NOTHING`, append([]any{h, string(device), string(module)}, values...)...)
		} else {
			n, err = tx.Exec(`UPDATE twins SET version = ?, writes = ?, tags = ?, desired = ?, desired_meta = ?, desired_version = ?,
				reported = ?, reported_meta = ?, reported_version = ? WHERE hub = ? AND device = ? AND module = ? AND version = ?`,
				append(append([]any{}, values...), h, string(device), string(module), was)...)
		}
		if err == nil && n == 0 {
			refusal = cradle.Errorf(cradle.Conflict, "the twin of %q has another version", device)
			return nil
		}
		if err == nil {
			err = appendEvents(tx, h, notes)
		}
		return err
	})
	if err == nil {
		err = refusal
	}
	return err
}

// holdOwner locks the row of a device or module of a generation ("" is any) against deletion; refusal is NotFound.
func holdOwner(tx *sqldb.Tx, h int64, device cradle.DeviceID, module iothub.ModuleID, generation string) (refusal, err error) {
	var have string
	if module == "" {
		refusal = noDevice(device)
		err = tx.QueryRow(`SELECT generation FROM devices WHERE hub = ? AND id = ? FOR SHARE`, h, string(device)).Scan(&have)
	} else {
		refusal = hub.ModuleNotFound(device, module)
		err = tx.QueryRow(`SELECT generation FROM modules WHERE hub = ? AND device = ? AND id = ? FOR SHARE`, h, string(device), string(module)).Scan(&have)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return refusal, nil
	case err != nil:
		return nil, err
	case generation != "" && have != generation:
		return refusal, nil
	}
	return nil, nil
}

// forgetModule removes what hangs off a module, in the transaction that removes the module.
func forgetModule(tx *sqldb.Tx, h int64, device cradle.DeviceID, module iothub.ModuleID) error {
	if err := tx.Queue(`DELETE FROM twins WHERE hub = ? AND device = ? AND module = ?`, h, string(device), string(module)); err != nil {
		return err
	}
	return tx.Queue(`DELETE FROM kept_sessions WHERE hub = ? AND device = ? AND module = ?`, h, string(device), string(module))
}
