package hubdb

import (
	"context"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Vault seals secrets under a key that is not in the database; keys/filekey has one. A value opens only for the name
// for which it was sealed.
type Vault interface {
	Seal(name string, secret []byte) []byte
	Open(name string, sealed []byte) ([]byte, error)
}

// shut is for a store without a vault.
type shut struct{}

func (shut) Seal(name string, _ []byte) []byte {
	panic("internal error: sealing " + name + " without a key-encryption key")
}

func (shut) Open(name string, _ []byte) ([]byte, error) {
	return nil, cradle.Errorf(cradle.Internal, "%s is sealed, and the store was opened without the key-encryption key", name)
}

// keyPlace is the row that keys are sealed for.
type keyPlace struct {
	hub      hub.Name
	kind, id string          // "policy" or "device"
	module   iothub.ModuleID // of the device; empty: its own keys
}

func policyPlace(h hub.Name, policy string) keyPlace { return keyPlace{h, "policy", policy, ""} }

func devicePlace(h hub.Name, id cradle.DeviceID) keyPlace {
	return keyPlace{h, "device", string(id), ""}
}

func modulePlace(h hub.Name, device cradle.DeviceID, id iothub.ModuleID) keyPlace {
	return keyPlace{h, "device", string(device), id}
}

// name is what a slot's key is sealed for. No id has a '/', so that no two have one name.
func (p *keyPlace) name(slot string) string {
	s := "hub/" + string(p.hub) + "/" + p.kind + "/" + p.id
	if p.module != "" {
		s += "/module/" + string(p.module)
	}
	return s + "/" + slot
}

// seal returns the columns of a row's keys; there, no key is no bytes.
func (s *Store) seal(p keyPlace, primary, secondary []byte) (sealed1, sealed2 []byte) {
	one := func(slot string, key []byte) []byte {
		if len(key) == 0 {
			return []byte{}
		}
		return s.vault.Seal(p.name(slot), key)
	}
	return one("primary", primary), one("secondary", secondary)
}

// open is the inverse of seal; a row that says so has keys that are not sealed.
func (s *Store) open(p keyPlace, sealed int64, primary, secondary *[]byte) error {
	one := func(slot string, key *[]byte) (err error) {
		switch {
		case len(*key) == 0:
			*key = nil
		case sealed != 0:
			*key, err = s.vault.Open(p.name(slot), *key)
		}
		return err
	}
	if err := one("primary", primary); err != nil {
		return err
	}
	return one("secondary", secondary)
}

// sealBatch is how many rows a transaction of SealKeys seals.
const sealBatch = 500

// row is one whose keys are not sealed.
type row struct {
	hub                int64
	id, module         string // the policy's, or the device's and its module's
	primary, secondary []byte
}

// sweep is a table as SealKeys reads and writes it.
type sweep struct {
	unsealed string // up to sealBatch rows
	seal     string // one of them
	place    func(hub.Name, *row) keyPlace
}

const noKeysSealed = ` WHERE sealed = 0 AND length(primary_key) + length(secondary_key) > 0`

var sweeps = []sweep{
	{`SELECT hub, name, '', primary_key, secondary_key FROM policies` + noKeysSealed + ` ORDER BY hub, name LIMIT ? FOR UPDATE`,
		`UPDATE policies SET primary_key = ?, secondary_key = ?, sealed = 1 WHERE hub = ? AND name = ? AND '' = ?`,
		func(h hub.Name, r *row) keyPlace { return policyPlace(h, r.id) }},
	{`SELECT hub, id, '', primary_key, secondary_key FROM devices` + noKeysSealed + ` ORDER BY hub, id LIMIT ? FOR UPDATE`,
		`UPDATE devices SET primary_key = ?, secondary_key = ?, sealed = 1 WHERE hub = ? AND id = ? AND '' = ?`,
		func(h hub.Name, r *row) keyPlace { return devicePlace(h, cradle.DeviceID(r.id)) }},
	{`SELECT hub, device, id, primary_key, secondary_key FROM modules` + noKeysSealed + ` ORDER BY hub, device, id LIMIT ? FOR UPDATE`,
		`UPDATE modules SET primary_key = ?, secondary_key = ?, sealed = 1 WHERE hub = ? AND device = ? AND id = ?`,
		func(h hub.Name, r *row) keyPlace {
			return modulePlace(h, cradle.DeviceID(r.id), iothub.ModuleID(r.module))
		}},
}

// SealKeys seals the keys that versions before the vault stored as they are, and returns of how many rows. Whoever opens a
// store to serve it calls it first. Each batch is a transaction: if we stop in between, some rows are sealed and
// some not, all can be read, and the next call goes on.
//
// What is left of the keys is in docs/operating/hub.md: SQLite overwrites them in the pages that are changed here, not in those
// that were free before.
func (s *Store) SealKeys(ctx context.Context) (n int, err error) {
	names := map[int64]hub.Name{}
	err = s.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		clear(names)
		rows, err := tx.Query(`SELECT id, name FROM hubs`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int64
			var name string
			if err := rows.Scan(&id, &name); err != nil {
				return err
			}
			names[id] = hub.Name(name)
		}
		return rows.Err()
	})
	if err != nil {
		return 0, err
	}
	for i := range sweeps {
		for {
			done, err := s.sealSome(ctx, &sweeps[i], names)
			if err != nil {
				return n, err
			}
			if n += done; done == 0 {
				break
			}
		}
	}
	return n, nil
}

// sealSome seals a batch.
func (s *Store) sealSome(ctx context.Context, w *sweep, names map[int64]hub.Name) (n int, err error) {
	err = s.db.Update(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		n = 0
		batch, err := unsealed(tx, w)
		if err != nil || len(batch) == 0 {
			return err
		}
		if tx.Engine() == sqldb.SQLite {
			var on int64 // for as long as the connection lives: what is replaced is overwritten
			if err := tx.QueryRow(`PRAGMA secure_delete = ON`).Scan(&on); err != nil {
				return err
			}
		}
		for i := range batch {
			r := &batch[i]
			name, ok := names[r.hub]
			if !ok {
				return fmt.Errorf("%q is of hub %d, which there is not", r.id, r.hub)
			}
			primary, secondary := s.seal(w.place(name, r), r.primary, r.secondary)
			if err := tx.Queue(w.seal, primary, secondary, r.hub, r.id, r.module); err != nil {
				return err
			}
		}
		n = len(batch)
		return nil
	})
	return n, err
}

func unsealed(tx *sqldb.Tx, w *sweep) (out []row, err error) {
	rows, err := tx.Query(w.unsealed, int64(sealBatch))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.hub, &r.id, &r.module, &r.primary, &r.secondary); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}
