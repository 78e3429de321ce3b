package provisioningdb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
)

func enrollment(id string) provisioning.Enrollment {
	return provisioning.Enrollment{ID: provisioning.RegistrationID(id), ETag: "e-" + id, Device: "Lamp", Account: "acme",
		Attestation: provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: []byte("primary-of-" + id), SecondaryKey: []byte("secondary")},
		Terms:       provisioning.Terms{Enabled: true, Allocation: provisioning.Hashed, InitialTwin: json.RawMessage(`{"tags":{}}`)}, Info: json.RawMessage(`{"a":1}`), Created: t0, Updated: t0.Add(time.Second)}
}

func TestEnrollments(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		v, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
		if err != nil {
			t.Fatal(err)
		}
		d := open(t, url).Seal(v)
		ctx := t.Context()
		putE := func(e provisioning.Enrollment) error {
			_, err := d.PutEnrollment(ctx, e.ID, func(*provisioning.Enrollment) (provisioning.Enrollment, error) { return e, nil })
			return err
		}
		if any, err := d.AnyEnrollment(ctx); any || err != nil {
			t.Errorf("an empty store: %v %v", any, err)
		}
		kinds := []provisioning.Enrollment{enrollment("b"), enrollment("a-1"), enrollment("a.1"), enrollment("a")}
		kinds[1].Attestation = provisioning.Attestation{Kind: provisioning.X509Client, Primary: []byte("P"), Secondary: []byte("S")}
		kinds[2].Attestation = provisioning.Attestation{Kind: provisioning.TPM, TPM: provisioning.TPMKeys{Endorsement: []byte("EK"), StorageRoot: []byte("SRK")}}
		kinds[3].Device, kinds[3].Info, kinds[3].Account = "", nil, ""
		for _, e := range kinds {
			if err := putE(e); err != nil {
				t.Fatal(err)
			}
			got, err := d.Enrollment(ctx, e.ID)
			if err != nil || !reflect.DeepEqual(got, e) {
				t.Errorf("got %+v %v\nwant %+v", got, err, e)
			}
		}
		if any, err := d.AnyEnrollment(ctx); !any || err != nil {
			t.Errorf("not empty any more: %v %v", any, err)
		}
		var ids []string
		for after := provisioning.RegistrationID(""); ; {
			es, err := d.EnrollmentPage(ctx, after, 3)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				ids, after = append(ids, string(e.ID)), e.ID
			}
			if len(es) < 3 {
				break
			}
		}
		if fmt.Sprint(ids) != "[a a-1 a.1 b]" { // bytes, not a language's order
			t.Errorf("order %v", ids)
		}
		next := enrollment("b")
		next.ETag, next.PrimaryKey, next.Enabled = "e2", []byte("another key, of 32 bytes........"), false
		if err := putE(next); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Enrollment(ctx, "b"); err != nil || !reflect.DeepEqual(got, next) {
			t.Errorf("replaced: %+v %v", got, err)
		}
		refuse := cradle.Errorf(cradle.Conflict, "no")
		if err := d.DeleteEnrollment(ctx, "b", func(provisioning.Enrollment) error { return refuse }); err != error(refuse) {
			t.Errorf("refused deletion: %v", err)
		}
		if err := d.DeleteEnrollment(ctx, "b", func(provisioning.Enrollment) error { return nil }); err != nil {
			t.Error(err)
		}
		if _, err := d.Enrollment(ctx, "b"); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("deleted: %v", err)
		}
		if err := d.DeleteEnrollment(ctx, "b", func(provisioning.Enrollment) error { return nil }); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("deleted twice: %v", err)
		}

		t.Run("many at once", func(t *testing.T) {
			var es []provisioning.Enrollment
			for i := range 1200 {
				e := enrollment(fmt.Sprintf("m-%04d", i))
				if i%3 == 1 {
					e.Attestation = provisioning.Attestation{Kind: provisioning.X509Client, Primary: []byte("P")}
				}
				es = append(es, e)
			}
			if n, err := d.AddEnrollments(ctx, es[:700]); n != 700 || err != nil {
				t.Fatalf("added %d %v", n, err)
			}
			changed := es[699]
			es[699].Device = "Other"
			if n, err := d.AddEnrollments(ctx, es[600:]); n != 500 || err != nil {
				t.Fatalf("added %d %v, of which 100 were there", n, err)
			}
			for _, i := range []int{0, 1, 699, 1199} {
				want := es[i]
				if i == 699 {
					want = changed
				}
				if got, err := d.Enrollment(ctx, want.ID); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("%d: got %+v %v", i, got, err)
				}
			}
		})

		t.Run("a step sees the individual enrolment", func(t *testing.T) {
			if err := put(t, d, group("grp", "CA")); err != nil {
				t.Fatal(err)
			}
			for _, named := range []string{"grp", "", "none"} {
				var seen provisioning.Enrolled
				_, _, err := d.Change(ctx, "a", named, func(_ *provisioning.Registration, by provisioning.Enrolled) (provisioning.Outcome, error) {
					seen = by
					return provisioning.Outcome{}, nil
				}, provisioning.Lease{})
				if cradle.KindOf(err) != cradle.NotFound || seen.Individual == nil || seen.Individual.ETag != "e-a" || (seen.Group != nil) != (named == "grp") {
					t.Errorf("group %q: %v, sees %+v", named, err, seen)
				}
			}
		})

		t.Run("another vault opens nothing", func(t *testing.T) {
			w, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := open(t, url).Seal(w).Enrollment(ctx, "a"); err == nil {
				t.Error("a key was opened with another vault")
			}
		})
	})
}

// The keys are not in the database in clear.
func TestKeysAreSealed(t *testing.T) {
	v, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "p.db")
	d := open(t, file).Seal(v)
	e := enrollment("dev-1")
	e.PrimaryKey, e.SecondaryKey = []byte("clear-text-of-an-enrolment-1"), []byte("clear-text-of-an-enrolment-2")
	if _, err := d.PutEnrollment(t.Context(), e.ID, func(*provisioning.Enrollment) (provisioning.Enrollment, error) { return e, nil }); err != nil {
		t.Fatal(err)
	}
	g := group("g", "unused")
	g.Attestation = provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: []byte("clear-text-of-a-group-1"), SecondaryKey: []byte("clear-text-of-a-group-2")}
	if err := put(t, d, g); err != nil {
		t.Fatal(err)
	}
	r := registration("dev-1", 1)
	r.Primary, r.Secondary = "clear-text-of-a-registration-1", "clear-text-of-a-registration-2"
	write(t, d, r, provisioning.Lease{})
	if got, err := d.Registration(t.Context(), "dev-1"); err != nil || got.Primary != r.Primary {
		t.Errorf("got %v %v", got.Primary, err)
	}
	if got, err := d.Group(t.Context(), "g"); err != nil || !bytes.Equal(got.PrimaryKey, g.PrimaryKey) {
		t.Errorf("group: %v", err)
	}
	for _, name := range []string{file, file + "-wal"} {
		b, err := os.ReadFile(name)
		if err == nil && bytes.Contains(b, []byte("clear-text")) {
			t.Errorf("%s holds a key in clear", name)
		}
	}
	if fmt.Sprintf("%v %+v %#v", r.Keys, r.Keys, r.Keys) == "" || strings.Contains(fmt.Sprintf("%v %+v %#v", r.Keys, r.Keys, r.Keys), "clear-text") {
		t.Error("keys show themselves when they are printed")
	}
}

// A store of the first version is brought up to this one: its group is what it was, and what waited for a hub still does.
func TestMigrate(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		first := fstest.MapFS{}
		for _, e := range []string{"sqlite", "postgres"} {
			name := e + "/00001_provisioning.sql"
			b, err := fs.ReadFile(provisioningdb.Migrations(), name)
			if err != nil {
				t.Fatal(err)
			}
			first[name] = &fstest.MapFile{Data: b}
		}
		old, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Schema: "provisioning", Migrations: first, ReadCommitted: true})
		if err != nil {
			t.Fatal(err)
		}
		err = old.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			_, err := tx.Exec(`INSERT INTO enrollment_group (id, etag, enabled, primary_der, secondary_der, allocation, hubs, created_at, updated_at)
				VALUES ('g', 'e', 0, ?, NULL, 'static', '["hub-1","hub-2"]', 1, 2)`, []byte("DER"))
			for _, id := range []string{"dev-1", "dev-2"} {
				if err == nil {
					_, err = tx.Exec(`INSERT INTO registration (id, group_id, account, hub, status, substatus, blocked, operation, prev_operation, thumbprint, not_before,
						newest, delivered, error_code, error_message, version, created_at, updated_at)
						VALUES (?, 'g', 'acme', 'hub-1', 'assigning', '', '', 'op', '', ?, 0, 0, 0, 0, '', 7, 1, 2)`, id, make([]byte, 32))
				}
			}
			for _, row := range [][2]string{{"hub-1", "dev-1"}, {"hub-2", "dev-1"}, {"hub-1", "dev-2"}} {
				if err == nil {
					_, err = tx.Exec(`INSERT INTO outbox (hub, registration_id, version, due_at, attempts, last_error, owner, leased_until)
						VALUES (?, ?, 7, 3, 4, 'down', 'gone', 5)`, row[0], row[1])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		d := open(t, url)
		g, err := d.Group(t.Context(), "g")
		want := provisioning.Terms{Allocation: provisioning.Static, Hubs: []string{"hub-1", "hub-2"}, Reprovision: provisioning.Reprovision{UpdateHub: true, MigrateData: true}}
		if err != nil || g.Kind != provisioning.X509CA || string(g.Primary) != "DER" || !reflect.DeepEqual(g.Terms, want) {
			t.Errorf("got %+v %v", g, err)
		}
		if w, err := d.WaitingFor(t.Context(), "dev-1"); err != nil || len(w) != 2 || w[0].Hub != "hub-1" || w[1].Hub != "hub-2" || w[1].Attempts != 4 || w[1].Reason != "down" {
			t.Errorf("waiting %+v %v", w, err)
		}
		l := provisioning.Lease{Owner: "me", Now: t0, Until: t0.Add(time.Minute)}
		ds, err := d.Due(t.Context(), "hub-1", l, 10)
		if err != nil || len(ds) != 2 || ds[0].Version != 7 || ds[0].Attempts != 4 || ds[0].Registration.Status != provisioning.Assigning {
			t.Fatalf("due %+v %v", ds, err)
		}
		for _, dv := range ds {
			if _, again, err := d.Settle(t.Context(), dv, l, func(r provisioning.Registration) (provisioning.Registration, []string) { return r, nil }); err != nil || again != nil {
				t.Errorf("settled: %+v %v", again, err)
			}
		}
		if n, err := d.Pending(t.Context()); err != nil || n != 1 {
			t.Errorf("%d rows wait, %v", n, err)
		}
		if err := d.DeleteRegistration(t.Context(), "dev-1", func(provisioning.Registration) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if n, err := d.Pending(t.Context()); err != nil || n != 0 {
			t.Errorf("%d rows outlive their registration, %v", n, err)
		}
	})
}
