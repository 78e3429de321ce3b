package provider_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// TestTamperedSettings: rows by which somebody may do something are held to the log.
func TestTamperedSettings(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r, o := newRig(t, url), newOtherCA(t)
		try := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		r.grants(o)
		r.check()
		store := openTampered(r, url)
		audit := func(log string) []ledger.Finding {
			t.Helper()
			var b bytes.Buffer
			try(r.p.Export(t.Context(), log, ledger.NewWriter(&b)))
			findings, _, err := ledger.Verify(&b, ledger.Options{})
			try(err)
			return findings
		}
		for _, log := range []string{"acme", provider.InstallationLog} {
			if f := audit(log); len(f) > 0 {
				t.Fatalf("untouched: %v", f)
			}
		}
		for _, c := range []struct{ log, sql, subject string }{
			{"acme", `UPDATE basic_users SET password = 'pbkdf2-sha256$1$AA$AA' WHERE name = 'guest'`, "basic/guests/guest"},
			{"acme", `UPDATE basic_users SET names = 'gw-*' WHERE name = 'guest'`, "basic/guests/guest"},
			{"acme", `UPDATE basic_users SET tier = 'discrete-tpm' WHERE name = 'guest'`, "basic/guests/guest"},
			{"acme", `UPDATE basic_users SET disabled = 0 WHERE name = 'former'`, "basic/guests/former"},
			{"acme", `UPDATE basic_users SET profile = 'ldevid' WHERE name = 'guest'`, "basic/ldevid/guest"},
			{"acme", `DELETE FROM basic_users WHERE name = 'guest'`, "basic/guests/guest"},
			{"acme", `INSERT INTO basic_users SELECT account, profile, 'mallory', password, names, tier, disabled, created FROM basic_users WHERE name = 'guest'`, "basic/guests/mallory"},
			{"acme", `UPDATE client_cas SET names = '*x'`, "client-ca/"},
			{"acme", `UPDATE client_cas SET oem = 'maker1'`, "client-ca/"},
			{"acme", `UPDATE client_cas SET certs = '[]'`, "client-ca/"},
			{"acme", `DELETE FROM client_cas`, "client-ca/"},
			{"acme", `DELETE FROM client_units WHERE unit = 'id:gw-1'`, "client-ca/"},
			{"acme", `UPDATE client_units SET name = 'gw-2' WHERE unit = 'id:gw-1'`, "client-ca/"},
			{"acme", `UPDATE operators SET role = 'owner' WHERE name = 'alice'`, "operator/alice"},
			{"acme", `UPDATE operators SET expires = 1 WHERE name = 'alice'`, "operator/alice"},
			{"acme", `UPDATE operators SET account = '' WHERE name = 'alice'`, "operator/alice"},
			{provider.InstallationLog, `UPDATE operators SET account = '' WHERE name = 'alice'`, "operator/alice"},
			{provider.InstallationLog, `DELETE FROM operators WHERE name = 'root'`, "operator/root"},
			{"acme", `UPDATE witnesses SET key = 'other'`, "witness/w1"},
			{"acme", `DELETE FROM witnesses`, "witness/w1"},
			{"acme", `UPDATE keks SET sealed = %x'3000'`, "kek/01"},
			{"acme", `UPDATE approvals SET state = 'approved' WHERE state = 'denied'`, "approval/"},
			{"acme", `UPDATE approvals SET state = 'approved' WHERE state = 'waiting'`, "approval/"},
			{"acme", `UPDATE approvals SET spki = 'x' WHERE state = 'approved'`, "approval/"},
			{"acme", `UPDATE approvals SET id = 'x' || id WHERE state = 'approved'`, "approval/x"},
			{provider.InstallationLog, `DELETE FROM distrusts`, "distrust/abab"},
			{provider.InstallationLog, `UPDATE distrusts SET kind = 'issuer'`, "distrust/abab"},
			{provider.InstallationLog, `UPDATE distrusts SET digest = 'cd' || substr(digest, 3)`, "distrust/cdab"},
		} {
			if n := store.exec(blobs(url, c.sql)); n == 0 {
				t.Fatalf("%s: touched nothing", c.sql)
			}
			found := false
			all := audit(c.log)
			for _, f := range all {
				found = found || f.Code == ledger.SettingChanged && strings.HasPrefix(f.Subject, "setting "+c.subject)
			}
			if !found {
				t.Errorf("%s: not found as %s; findings: %v", c.sql, c.subject, all)
			}
			store.restore()
		}
		r.check()
	})
}

// grants makes every kind of row by which somebody may do something.
func (r *rig) grants(o *otherCA) {
	r.t.Helper()
	try := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	const profile = "guests"
	guests := ca.DefaultProfile(cradle.Operational)
	guests.Approval, guests.Default = true, false
	_, err := r.p.SetProfiles(r.t.Context(), "acme", provider.Profiles{profile: guests}, false)
	try(err)
	r.basicUser(profile, "guest", "")
	r.basicUser(profile, "former", "")
	_, err = r.p.DisableBasicUser(r.t.Context(), "acme", profile, "former")
	try(err)
	manifest, err := provider.ParseManifest("gw-9\ngw-1\n")
	try(err)
	_, err = r.p.SetClientCA(r.t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.LDevID, Certs: [][]byte{o.root.Raw}}, manifest)
	try(err)
	_, _, err = r.p.AddOperator(r.t.Context(), provider.Operator{Account: "acme", Name: "alice", Role: admin.Auditor})
	try(err)
	_, _, err = r.p.AddOperator(r.t.Context(), provider.Operator{Name: "root", Role: admin.Auditor})
	try(err)
	public, _, err := ed25519.GenerateKey(rand.Reader)
	try(err)
	witness, err := ledger.WitnessKey("w1", public)
	try(err)
	_, err = r.p.AddWitness(r.t.Context(), "acme", witness)
	try(err)
	try(r.p.SetKEK(r.t.Context(), "acme", []byte{1}, make([]byte, 32)))
	for _, device := range []string{"gw-1", "gw-2", "gw-3"} {
		_, err = r.plain(profile, provider.Enroll, byBasic("guest"), plainCSR(r.t, device, newKey(r.t), false))
		refused(r.t, err, cradle.Pending, "waits")
	}
	list, err := r.p.Approvals(r.t.Context(), "acme", provider.Waiting)
	try(err)
	_, err = r.p.Decide(r.t.Context(), list[0].ID, true, "")
	try(err)
	_, err = r.p.Decide(r.t.Context(), list[1].ID, false, "no")
	try(err)
	_, err = r.p.Distrust(r.t.Context(), provider.Distrusting{EK: strings.Repeat("ab", 32)}, "lost", true)
	try(err)
}
