package provider_test

import (
	"bytes"
	"crypto/x509/pkix"
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func (r *rig) setProfiles(toml string) []provider.ProfileDiff {
	r.t.Helper()
	set, err := ca.ParseProfiles(toml)
	if err != nil {
		r.t.Fatal(err)
	}
	diffs, err := r.p.SetProfiles(r.t.Context(), "acme", set, false)
	if err != nil {
		r.t.Fatal(err)
	}
	return diffs
}

// An operator changes a built-in profile and adds one: certificates follow at every replica, and the log says so.
func TestSetProfiles(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		other := r.replica(r.db)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		if life := u.op.NotAfter.Sub(u.op.NotBefore); life != time.Hour+ca.Backdate {
			t.Fatalf("life %v", life)
		}
		diffs := r.setProfiles(`
[operational]
validity = "2h"
subject = ["O={account}", "OU={tier}", "CN={device}", "serialNumber={serial}"]
[operational.wishes]
extensions = "refuse"
[lab]
kind = "client"
subject = ["C=DE", "O={account}", "OU={oem}", "CN={device}"]
subject_alt_name = ["URI:urn:dev:{device}", "DNS:{device}.example.com"]
extended_key_usage = ["clientAuth", "serverAuth"]
[[lab.extension]]
oid = "1.3.6.1.4.1.99999.1"
value = "utf8:{order}"
`)
		var changed []string
		for _, d := range diffs {
			if d.Profile == cradle.Operational {
				changed = append(changed, d.Field+" "+d.Old+" -> "+d.New)
			}
		}
		want := []string{`validity "1h" -> "2h"`, `subject ["O={account}", "CN={device}"] -> ["O={account}", "OU={tier}", "CN={device}", "serialNumber={serial}"]`,
			`wishes.extensions "replace" -> "refuse"`}
		if !slices.Equal(changed, want) {
			t.Errorf("changed %q\nwant %q", changed, want)
		}
		if again := r.setProfiles("[operational]\nvalidity = \"2h\"\nsubject = [\"O={account}\", \"OU={tier}\", \"CN={device}\", \"serialNumber={serial}\"]\nwishes.extensions = \"refuse\"\n"); len(again) != 0 {
			t.Errorf("the same again changes %v", again)
		}
		if log := string(r.export()); !strings.Contains(log, "profile set") {
			t.Error("the log does not tell")
		}

		op, err := r.enrollKey(u, cradle.Operational, u.ldevid)
		if err != nil {
			t.Fatal(err)
		}
		if s := op.Subject.String(); op.NotAfter.Sub(op.NotBefore) != 2*time.Hour+ca.Backdate || s != "SERIALNUMBER=SN0001,CN=acme-sn0001,OU=simulator,O=acme" {
			t.Errorf("%s until %v", s, op.NotAfter)
		}
		lab, err := r.enrollKey(u, "lab", op)
		if err != nil {
			t.Fatal(err)
		}
		ext := slices.IndexFunc(lab.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "1.3.6.1.4.1.99999.1" })
		if lab.Subject.String() != "CN=acme-sn0001,OU=maker1,O=acme,C=DE" || len(lab.URIs) != 1 || lab.URIs[0].String() != "urn:dev:acme-sn0001" || lab.DNSNames[0] != "acme-sn0001.example.com" ||
			len(lab.ExtKeyUsage) != 2 || ext < 0 || !bytes.Contains(lab.Extensions[ext].Value, []byte(u.order.ID)) {
			t.Errorf("%s %v %v %v %d", lab.Subject, lab.URIs, lab.DNSNames, lab.ExtKeyUsage, ext)
		}
		if err := lab.CheckSignatureFrom(r.ca(provider.OperationalCA)); err != nil {
			t.Error(err)
		}

		// Another replica has not read it, and looks when somebody asks, at most once in a second.
		if _, err := other.Endpoint(t.Context(), "acme-lab"); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("within the second: %v", err)
		}
		r.advance(time.Second)
		if _, err := other.Endpoint(t.Context(), "acme-lab"); err != nil {
			t.Errorf("a second later: %v", err)
		}
		if pr, err := other.Profiles(t.Context(), "acme"); err != nil || pr[cradle.Operational].Validity != ca.Duration(2*time.Hour) {
			t.Errorf("%v %v", pr[cradle.Operational].Validity, err)
		}
		r.check()
	})
}

func TestSetProfilesRefused(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.setProfiles("[lab]\nkind = \"client\"\n")
		before := string(r.export())
		for _, c := range []struct {
			toml string
			kind cradle.Kind
			part string
		}{
			{"[lab]\nkind = \"operational\"\n", cradle.Conflict, "lab: kind: it is client and cannot change"},
			{"[lab]\nkind = \"client\"\ndefault = true\n[operational]\ndefault = true\n", cradle.Invalid, "only one can be"},
		} {
			set, err := ca.ParseProfiles(c.toml)
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.p.SetProfiles(t.Context(), "acme", set, false)
			refused(t, err, c.kind, c.part)
		}
		set, err := ca.ParseProfiles("[operational]\nvalidity = \"5h\"\n")
		if err != nil {
			t.Fatal(err)
		}
		if diffs, err := r.p.SetProfiles(t.Context(), "acme", set, true); err != nil || len(diffs) != 1 {
			t.Errorf("dry run: %v %v", diffs, err)
		}
		if _, err := r.p.SetProfiles(t.Context(), "nobody", set, false); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("no such account: %v", err)
		}
		if after := string(r.export()); strings.Count(after, "\n") != strings.Count(before, "\n") {
			t.Error("a refusal or a dry run left something")
		}

		// Somebody else was faster: the texts are compared where they are stored.
		err = r.db.SetProfiles(t.Context(), "acme", []provider.ProfileChange{{Profile: "lab", Old: "stale", New: "kind = \"client\"\n"}}, ledger.Leaf{Log: "acme"})
		refused(t, err, cradle.Conflict, "changed meanwhile")
	})
}

// A closed profile gives nothing new, and the account's own host name may stand for another profile.
func TestClosedAndDefaultProfile(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	ep, err := r.p.DefaultEndpoint(t.Context(), "acme")
	if err != nil || ep.Label != "acme-operational" {
		t.Errorf("%+v %v", ep, err)
	}
	r.setProfiles("[lab]\nkind = \"client\"\ndefault = true\n[operational]\nclosed = true\n")
	if ep, err = r.p.DefaultEndpoint(t.Context(), "acme"); err != nil || ep.Label != "acme-lab" {
		t.Errorf("%+v %v", ep, err)
	}
	_, err = r.renew(u, u.op)
	refused(t, err, cradle.Forbidden, "profile operational of account acme is closed")
	if _, err := r.enrollKey(u, "lab", u.op); err != nil {
		t.Error(err)
	}
	r.setProfiles("[operational]\n")
	if _, err = r.renew(u, u.op); err != nil {
		t.Error(err)
	}
	r.check()
}

// A wish that the profile refuses leaves the challenge unspent: the client mends its CSR and goes on.
func TestRefusedWish(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	r.setProfiles("[operational]\nwishes.subject = \"refuse\"\n")
	k, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.enroll(u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k, subject: pkix.Name{CommonName: "root"}})
	refused(t, err, cradle.Invalid, "the CSR's subject")
	if _, err = r.enroll(u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(r.export()), "the CSR's subject") {
		t.Error("the refusal is not in the log")
	}
	r.check()
}

// Accounts from before profiles were data keep their three figures.
func TestProfilesMigrated(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		driver := "sqlite"
		if strings.HasPrefix(url, "postgres") {
			driver = "pgx"
		}
		db, err := sql.Open(driver, url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		table, folder := "accounts", "sqlite"
		if driver == "pgx" {
			table, folder = "provider.accounts", "postgres"
		}
		up, err := os.ReadFile(filepath.Join("providerdb", "migrations", folder, "00002_profiles.sql"))
		if err != nil {
			t.Fatal(err)
		}
		_, update, _ := strings.Cut(string(up), "UPDATE accounts")
		update, _, _ = strings.Cut(update, ";")
		update = "UPDATE " + table + update
		if _, err := db.ExecContext(t.Context(), `UPDATE `+table+` SET profiles = '{"ldevid_validity":7200000000000,"operational_validity":5400000000000,"renewal_threshold":0.75}'`); err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), update); err != nil {
			t.Fatal(err)
		}
		if err := r.p.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		pr, err := r.p.Profiles(t.Context(), "acme")
		if err != nil || len(pr) != 4 || pr[cradle.LDevID].Validity.String() != "2h" || pr[cradle.Operational].Validity.String() != "90m" ||
			pr[cradle.Operational].RenewalThreshold != 0.75 || pr[cradle.IDevID].Kind != ca.KindIDevID {
			t.Errorf("%v %v", pr, err)
		}
	})
}
