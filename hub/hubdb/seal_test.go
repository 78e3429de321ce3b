package hubdb_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// secret is a key that no other place has.
func secret(place string) []byte {
	sum := sha256.Sum256([]byte(place))
	return sum[:]
}

func keyed(place string) hub.Auth {
	return hub.Auth{Type: iothub.SAS, Primary: secret(place + " 1"), Secondary: secret(place + " 2")}
}

func exec1(t *testing.T, s *hubdb.Store, query string, args ...any) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *sqldb.Tx) error {
		n, err := tx.Exec(query, args...)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d rows", n)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// columns are the keys as they are stored, and how many rows of a table are sealed.
func columns(t *testing.T, s *hubdb.Store, table string) (keys [][]byte, sealed int) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *sqldb.Tx) error {
		keys, sealed = nil, 0
		rows, err := tx.Query(`SELECT primary_key, secondary_key, sealed FROM ` + table)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var p, q []byte
			var is int64
			if err := rows.Scan(&p, &q, &is); err != nil {
				return err
			}
			keys = append(keys, p, q)
			sealed += int(is)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys, sealed
}

// fill stores two hubs with two devices and two modules each, all with keys, and a device without.
func fill(t *testing.T, s *hubdb.Store) {
	t.Helper()
	for _, h := range []hub.Name{"hub-1", "hub-2"} {
		var ps []hub.Policy
		for _, p := range []string{"a", "b"} {
			k := keyed(string(h) + p)
			ps = append(ps, hub.Policy{Name: p, Primary: k.Primary, Secondary: k.Secondary, Rights: 1})
		}
		d := func(id cradle.DeviceID) hub.Device {
			return hub.Device{ID: id, ETag: "1", Auth: keyed(fmt.Sprint(h, id))}
		}
		m := func(id iothub.ModuleID) hub.Module {
			return hub.Module{Device: "d1", ID: id, ETag: "1", Auth: keyed(fmt.Sprint(h, "d1", id))}
		}
		d1, m1, m2 := d("d1"), m("m1"), m("m2")
		err := errors.Join(s.CreateHub(t.Context(), h, ps, now), s.InsertDevice(t.Context(), h, &d1, []hub.Module{m1}),
			s.InsertModule(t.Context(), h, &m2), s.LoadDevices(t.Context(), h, []hub.Device{d("d2"), {ID: "x509", ETag: "1", Auth: hub.Auth{Type: iothub.SelfSigned}}}))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// check reads what fill stored in all the ways there are.
func check(t *testing.T, s *hubdb.Store) {
	t.Helper()
	same := func(what string, got, want hub.Auth) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %s %x %x, want %s %x %x", what, got.Type, got.Primary, got.Secondary, want.Type, want.Primary, want.Secondary)
		}
	}
	for _, h := range []hub.Name{"hub-1", "hub-2"} {
		ps, err := s.Policies(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			same(p.Name, hub.Auth{Type: iothub.SAS, Primary: p.Primary, Secondary: p.Secondary}, keyed(string(h)+p.Name))
		}
		all, err := s.Devices(t.Context(), h, "", 10)
		if err != nil || len(all) != 3 {
			t.Fatalf("got %d devices, %v", len(all), err)
		}
		for _, d := range all {
			one, err := s.Device(t.Context(), h, d.ID)
			if err != nil {
				t.Fatal(err)
			}
			want := keyed(fmt.Sprint(h, d.ID))
			if d.ID == "x509" {
				want = hub.Auth{Type: iothub.SelfSigned}
			}
			same("listed "+string(d.ID), d.Auth, want)
			same(string(d.ID), one.Auth, want)
		}
		mods, err := s.Modules(t.Context(), h, "d1")
		if err != nil || len(mods) != 2 {
			t.Fatalf("got %d modules, %v", len(mods), err)
		}
		for _, m := range mods {
			one, err := s.Module(t.Context(), h, "d1", m.ID)
			if err != nil {
				t.Fatal(err)
			}
			same("listed "+string(m.ID), m.Auth, keyed(fmt.Sprint(h, "d1", m.ID)))
			same(string(m.ID), one.Auth, m.Auth)
		}
		for _, modules := range []bool{false, true} {
			es, err := s.Entries(t.Context(), h, hub.Filter{Modules: modules, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				if e.Device.Auth.Primary != nil || e.Device.Auth.Secondary != nil || e.Module != nil && (e.Module.Auth.Primary != nil || e.Module.Auth.Secondary != nil) {
					t.Errorf("an entry of a query has keys: %s", e.Device.ID)
				}
			}
		}
	}
}

// TestKeysAreSealed: no key is in the store as it is, however it came there, and all are read as they were.
func TestKeysAreSealed(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := open(t, url)
		fill(t, s)
		check(t, s)
		d, err := s.Device(t.Context(), "hub-1", "d2")
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Module(t.Context(), "hub-1", "d1", "m1")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.UpdateDevice(t.Context(), "hub-1", d, "1"), s.UpdateModule(t.Context(), "hub-1", m, "1")); err != nil {
			t.Fatal(err)
		}
		check(t, s)
		plain := map[string]bool{}
		for _, h := range []string{"hub-1", "hub-2"} {
			for _, place := range []string{"a", "b", "d1", "d2", "d1m1", "d1m2"} {
				k := keyed(h + place)
				plain[string(k.Primary)], plain[string(k.Secondary)] = true, true
			}
		}
		for table, n := range map[string]int{"policies": 4, "devices": 6, "modules": 4} {
			keys, sealed := columns(t, s, table)
			if sealed != n {
				t.Errorf("%s: %d rows are sealed, want %d", table, sealed, n)
			}
			for _, k := range keys {
				if plain[string(k)] || len(k) != 0 && len(k) < 32+12+16 {
					t.Errorf("%s: %x is not sealed", table, k)
				}
			}
		}
		if n, err := s.SealKeys(t.Context()); n != 0 || err != nil {
			t.Errorf("sealed %d again, %v", n, err)
		}

		other, err := filekey.CreateVault(filepath.Join(t.TempDir(), "other"))
		if err != nil {
			t.Fatal(err)
		}
		for what, v := range map[string]hubdb.Vault{"another vault": other, "no vault": nil} {
			s := openWith(t, url, v)
			_, err1 := s.Device(t.Context(), "hub-1", "d1")
			_, err2 := s.Policies(t.Context(), "hub-1")
			_, err3 := s.Module(t.Context(), "hub-1", "d1", "m1")
			for _, err := range []error{err1, err2, err3} {
				wantKind(t, what, err, cradle.Internal)
			}
			if _, err := s.Device(t.Context(), "hub-1", "x509"); err != nil {
				t.Errorf("%s: a device without keys: %v", what, err)
			}
			if _, err := s.Entries(t.Context(), "hub-1", hub.Filter{Limit: 10}); err != nil {
				t.Errorf("%s: a query: %v", what, err)
			}
		}
	})
}

// TestSealedKeysStay: who writes the store cannot give a row the keys of another.
func TestSealedKeysStay(t *testing.T) {
	device := func(s *hubdb.Store, ctx context.Context) error {
		_, err := s.Device(ctx, "hub-1", "d1")
		return err
	}
	module := func(s *hubdb.Store, ctx context.Context) error {
		_, err := s.Module(ctx, "hub-1", "d1", "m1")
		return err
	}
	policies := func(s *hubdb.Store, ctx context.Context) error {
		_, err := s.Policies(ctx, "hub-1")
		return err
	}
	const d1, m1, a = ` WHERE hub = 1 AND id = 'd1'`, ` WHERE hub = 1 AND device = 'd1' AND id = 'm1'`, ` WHERE hub = 1 AND name = 'a'`
	attacks := map[string]struct {
		query string
		read  func(*hubdb.Store, context.Context) error
	}{
		"slots swapped":            {`UPDATE devices SET primary_key = secondary_key, secondary_key = primary_key` + d1, device},
		"slot copied":              {`UPDATE devices SET secondary_key = primary_key` + d1, device},
		"of another device":        {`UPDATE devices SET primary_key = (SELECT primary_key FROM devices WHERE hub = 1 AND id = 'd2')` + d1, device},
		"of another hub's":         {`UPDATE devices SET primary_key = (SELECT primary_key FROM devices WHERE hub = 2 AND id = 'd1')` + d1, device},
		"of its module":            {`UPDATE devices SET primary_key = (SELECT primary_key FROM modules` + m1 + `)` + d1, device},
		"of a policy":              {`UPDATE devices SET primary_key = (SELECT primary_key FROM policies` + a + `)` + d1, device},
		"cut short":                {`UPDATE devices SET primary_key = substr(primary_key, 1, 20)` + d1, device},
		"sealed, said of a key":    {`UPDATE devices SET primary_key = substr(primary_key, 13, 32)` + d1, device},
		"module: slots swapped":    {`UPDATE modules SET primary_key = secondary_key, secondary_key = primary_key` + m1, module},
		"module: of another":       {`UPDATE modules SET primary_key = (SELECT primary_key FROM modules WHERE hub = 1 AND device = 'd1' AND id = 'm2')` + m1, module},
		"module: of its device":    {`UPDATE modules SET primary_key = (SELECT primary_key FROM devices` + d1 + `)` + m1, module},
		"module: of another hub's": {`UPDATE modules SET secondary_key = (SELECT secondary_key FROM modules WHERE hub = 2 AND device = 'd1' AND id = 'm1')` + m1, module},
		"policy: slots swapped":    {`UPDATE policies SET primary_key = secondary_key, secondary_key = primary_key` + a, policies},
		"policy: of another":       {`UPDATE policies SET primary_key = (SELECT primary_key FROM policies WHERE hub = 1 AND name = 'b')` + a, policies},
		"policy: of another hub's": {`UPDATE policies SET primary_key = (SELECT primary_key FROM policies WHERE hub = 2 AND name = 'a')` + a, policies},
		"policy: of a device":      {`UPDATE policies SET primary_key = (SELECT primary_key FROM devices` + d1 + `)` + a, policies},
	}
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := open(t, url)
		fill(t, s)
		for what, x := range attacks {
			saved := map[string][2][]byte{}
			tables := map[string]string{"devices": d1, "modules": m1, "policies": a}
			if err := s.Update(t.Context(), func(tx *sqldb.Tx) error {
				for table, where := range tables {
					var p, q []byte
					if err := tx.QueryRow(`SELECT primary_key, secondary_key FROM `+table+where).Scan(&p, &q); err != nil {
						return err
					}
					saved[table] = [2][]byte{p, q}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			exec1(t, s, x.query)
			wantKind(t, what, x.read(s, t.Context()), cradle.Internal)
			for table, where := range tables {
				exec1(t, s, `UPDATE `+table+` SET primary_key = ?, secondary_key = ?`+where, saved[table][0], saved[table][1])
			}
			if err := x.read(s, t.Context()); err != nil {
				t.Fatalf("%s, undone: %v", what, err)
			}
		}
	})
}
