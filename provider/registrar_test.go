package provider_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
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

// registrar makes a registration authority for a profile of acme and returns how it authenticates.
func (r *rig) registrar(ra ca.Registrar, key *ecdsa.PrivateKey, life time.Duration) *provider.Registrar {
	r.t.Helper()
	if ra.Account == "" {
		ra.Account = "acme"
	}
	out, err := r.p.AddRegistrar(r.t.Context(), ra, plainCSR(r.t, "", key, false), life)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func byRegistrar(t *testing.T, ra *provider.Registrar) provider.Client {
	t.Helper()
	return byCert(must[*x509.Certificate](t)(x509.ParseCertificate(ra.Cert.DER)))
}

const year = 365 * 24 * time.Hour

// TestRegistrar: a registration authority gets certificates for devices that it knows, from a CA of its own; the same
// request again is answered with the same certificate.
func TestRegistrar(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ok := must[*x509.Certificate](t)
		ra := r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps", Names: "gw-*"}, newKey(t), year)
		own := must[*x509.Certificate](t)(x509.ParseCertificate(ra.Cert.DER))
		if len(own.ExtKeyUsage) != 0 || !ca.IsRegistrar(own) || own.Subject.CommonName != "ra/dps" {
			t.Errorf("credential of %s with usages %v %v", own.Subject, own.ExtKeyUsage, own.UnknownExtKeyUsage)
		}
		by := byRegistrar(t, ra)
		first := plainCSR(t, "GW-1", newKey(t), true)
		c := ok(r.plain(cradle.Operational, provider.Enroll, by, first))
		if c.Subject.CommonName != "gw-1" || c.Issuer.CommonName != "acme evaluation registration CA" ||
			!slices.ContainsFunc(c.Policies, cradle.PolicyKeyNotProved.Equal) || slices.ContainsFunc(c.Policies, cradle.PolicyKeyProved.Equal) {
			t.Errorf("certificate of %s by %s with policies %v", c.Subject, c.Issuer, c.Policies)
		}
		ep := must[provider.Endpoint](t)(r.p.Endpoint(t.Context(), "acme-operational"))
		between := x509.NewCertPool()
		for _, x := range must[[]*x509.Certificate](t)(r.p.CACerts(ep)) {
			between.AddCert(x)
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: r.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("by cacerts: %v", err)
		}
		d, err := r.p.Device(t.Context(), "acme", "gw-1")
		if err != nil || d.Origin != "ra/dps" || d.State != cradle.Active || d.Tier != cradle.SoftwareKey {
			t.Errorf("device %+v, %v", d, err)
		}
		if again := ok(r.plain(cradle.Operational, provider.Enroll, by, first)); !again.Equal(c) {
			t.Error("the same request again got another certificate")
		}
		renewed := ok(r.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), true)))

		// A second credential of the same authority serves the same devices; the first is ended.
		next := r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps", Names: "gw-*"}, newKey(t), year)
		if ended, err := r.p.EndRegistrar(t.Context(), "acme", cradle.Operational, "dps", next.Cert.Digest, "superseded"); err != nil || len(ended) != 1 {
			t.Fatalf("ended %d, %v", len(ended), err)
		}
		ok(r.plain(cradle.Operational, provider.Enroll, byRegistrar(t, next), plainCSR(t, "gw-1", newKey(t), false)))
		_, err = r.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), false))
		refused(t, err, cradle.Forbidden, "revoked")
		all, err := r.p.Registrars(t.Context(), "acme")
		if err != nil || len(all) != 2 || all[0].Cert.Revoked.IsZero() || !all[1].Cert.Revoked.IsZero() || all[1].Names != "gw-*" {
			t.Errorf("listed %+v, %v", all, err)
		}

		// What the provider says of the device ends it here too.
		if _, err := r.p.ChangeState(t.Context(), "acme", "gw-1", provider.Revoke, "stolen"); err != nil {
			t.Fatal(err)
		}
		for _, key := range []*ecdsa.PrivateKey{newKey(t), newKey(t)} {
			_, err = r.plain(cradle.Operational, provider.Enroll, byRegistrar(t, next), plainCSR(t, "gw-1", key, false))
			refused(t, err, cradle.Forbidden, "revoked")
		}
		certs, err := r.db.Certificates(t.Context(), "acme", "gw-1")
		if err != nil || len(certs) != 3 || slices.ContainsFunc(certs, func(c provider.Certificate) bool { return c.Revoked.IsZero() }) {
			t.Errorf("%d certificates of the revoked device %s, %v", len(certs), renewed.SerialNumber, err)
		}
		r.check()
	})
}

// TestRegistrarAttacks: what a registration authority cannot have, and what is not one.
func TestRegistrarAttacks(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	ok := must[*x509.Certificate](t)
	if _, err := r.p.CreateAccount(t.Context(), "other", spki(t, newKey(t)), provider.Profiles{}, provider.CAs{}); err != nil {
		t.Fatal(err)
	}
	guests := ca.DefaultProfile(cradle.Operational)
	guests.Default, guests.ChangeSubjectName = false, true
	if _, err := r.p.SetProfiles(t.Context(), "acme", provider.Profiles{"guests": guests}, false); err != nil {
		t.Fatal(err)
	}
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	r.basicUser("guests", "line", "")
	basic := ok(r.plain("guests", provider.Enroll, byBasic("line"), plainCSR(t, "by-password", newKey(t), false)))
	raKey := newKey(t)
	own := r.registrar(ca.Registrar{Profile: "guests", Name: "dps"}, raKey, year)
	ra := byRegistrar(t, own)
	foreign := byRegistrar(t, r.registrar(ca.Registrar{Account: "other", Profile: cradle.Operational, Name: "dps"}, newKey(t), year))
	second := byRegistrar(t, r.registrar(ca.Registrar{Profile: "guests", Name: "second"}, newKey(t), year))
	narrow := byRegistrar(t, r.registrar(ca.Registrar{Profile: "guests", Name: "narrow", Names: "gw-*"}, newKey(t), year))
	short := byRegistrar(t, r.registrar(ca.Registrar{Profile: "guests", Name: "short"}, newKey(t), time.Hour))
	ended := byRegistrar(t, r.registrar(ca.Registrar{Profile: "guests", Name: "ended"}, newKey(t), year))
	if _, err := r.p.EndRegistrar(t.Context(), "acme", "guests", "ended", "", "gone"); err != nil {
		t.Fatal(err)
	}
	deviceKey := newKey(t)
	device := ok(r.plain("guests", provider.Enroll, ra, plainCSR(t, "gw-1", deviceKey, false)))
	ok(r.plain("guests", provider.Enroll, ra, plainCSR(t, "asleep", newKey(t), false)))
	if _, err := r.p.ChangeState(t.Context(), "acme", "asleep", provider.Suspend, "test"); err != nil {
		t.Fatal(err)
	}
	// It says of itself what a registration authority's certificate says, but nobody here signed it.
	forged := must[*x509.Certificate](t)(own.Certificate(&ca.Issuer{Cert: device, Key: deviceKey}, newKey(t).Public(), r.now(), r.now().Add(time.Hour)))
	unsigned := plainCSR(t, "free", newKey(t), false)
	unsigned[len(unsigned)-1] ^= 1
	r.advance(2 * time.Hour) // the short one has expired

	leaves := r.leaves("acme")
	for _, c := range []struct {
		name    string
		profile cradle.Profile
		op      provider.Operation
		client  provider.Client
		csr     []byte
		kind    cradle.Kind
		part    string
	}{
		{"of another account", "guests", provider.Enroll, foreign, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "another account"},
		{"for another profile", cradle.Operational, provider.Enroll, ra, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "profile guests alone"},
		{"asks for an IDevID", cradle.IDevID, provider.Enroll, ra, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "profile guests alone"},
		{"asks for an IAK certificate", cradle.IAK, provider.Enroll, ra, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "profile guests alone"},
		{"asks for an LDevID", cradle.LDevID, provider.Enroll, ra, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "profile guests alone"},
		{"re-enrols", "guests", provider.Reenroll, ra, plainCSR(t, "gw-1", newKey(t), false), cradle.Forbidden, "does not authenticate simplereenroll"},
		{"re-enrols itself", "guests", provider.Reenroll, ra, reCSR(t, ra.Peer), cradle.Forbidden, "does not authenticate simplereenroll"},
		{"wants a key made", "guests", provider.ServerKeyGen, ra, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "does not authenticate serverkeygen"},
		{"wants a certificate sealed to a TPM", "guests", provider.TPMEnroll, ra, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "does not authenticate tpmenroll"},
		{"names a device of an order", "guests", provider.Enroll, ra, plainCSR(t, "acme-sn0001", newKey(t), false), cradle.Forbidden, "did not come by this credential"},
		{"names it in upper case", "guests", provider.Enroll, ra, plainCSR(t, "ACME-SN0001", newKey(t), false), cradle.Forbidden, "did not come by this credential"},
		{"names a device that came by password", "guests", provider.Enroll, ra, plainCSR(t, "by-password", newKey(t), false), cradle.Forbidden, "did not come by this credential"},
		{"names a device of another authority", "guests", provider.Enroll, second, plainCSR(t, "gw-1", newKey(t), false), cradle.Forbidden, "did not come by this credential"},
		{"names a suspended device", "guests", provider.Enroll, ra, plainCSR(t, "asleep", newKey(t), false), cradle.Forbidden, "suspended"},
		{"names a device outside its pattern", "guests", provider.Enroll, narrow, plainCSR(t, "lamp", newKey(t), false), cradle.Forbidden, "may not ask for the name"},
		{"names none", "guests", provider.Enroll, ra, plainCSR(t, "", newKey(t), false), cradle.Invalid, "names no device"},
		{"names itself", "guests", provider.Enroll, ra, plainCSR(t, "ra/dps", newKey(t), false), cradle.Invalid, "no device name"},
		{"names another by ChangeSubjectName", "guests", provider.Enroll, ra, changeCSR(t, utf8Name(t, "CN", "free"), newKey(t), utf8Name(t, "CN", "gw-1")), cradle.Forbidden, "ChangeSubjectName"},
		{"no proof of possession", "guests", provider.Enroll, ra, unsigned, cradle.Invalid, "not signed by its key"},
		{"the key of another device", "guests", provider.Enroll, ra, plainCSR(t, "free", deviceKey, false), cradle.Forbidden, "belongs to another device"},
		{"its own key", "guests", provider.Enroll, ra, plainCSR(t, "free", raKey, false), cradle.Forbidden, "belongs to another device"},
		{"revoked", "guests", provider.Enroll, ended, plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "revoked"},
		{"expired", "guests", provider.Enroll, short, plainCSR(t, "free", newKey(t), false), cradle.Unauthorized, "expired"},
		{"signed by a device", "guests", provider.Enroll, byCert(forged), plainCSR(t, "free", newKey(t), false), cradle.Unauthorized, ""},
		{"a device's certificate as one", "guests", provider.Enroll, byCert(device), plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "renewed there"},
		{"an ordinary device's certificate as one", "guests", provider.Enroll, byCert(basic), plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "this client is"},
		{"an attested device's certificate as one", "guests", provider.Enroll, byCert(u.ldevid), plainCSR(t, "free", newKey(t), false), cradle.Forbidden, "this client is"},
		{"a device of it renews by itself", "guests", provider.Reenroll, byCert(device), reCSR(t, device), cradle.Forbidden, "renewed there"},
		{"a device of it goes to another profile", cradle.Operational, provider.Enroll, byCert(device), plainCSR(t, "gw-1", newKey(t), false), cradle.Forbidden, "renewed there"},
	} {
		_, err := r.plain(c.profile, c.op, c.client, c.csr)
		t.Run(c.name, func(t *testing.T) { refused(t, err, c.kind, c.part) })
	}
	if d, err := r.p.Device(t.Context(), "acme", "free"); err == nil {
		t.Errorf("a refused request made a device: %+v", d)
	}
	if n := r.leaves("acme"); n <= leaves {
		t.Error("no refusal went into the log")
	}
	for _, c := range []struct {
		name string
		ra   ca.Registrar
		kind cradle.Kind
		part string
	}{
		{"for IDevIDs", ca.Registrar{Account: "acme", Profile: cradle.IDevID, Name: "x"}, cradle.Invalid, "line alone"},
		{"for LDevIDs", ca.Registrar{Account: "acme", Profile: cradle.LDevID, Name: "x"}, cradle.Forbidden, "cannot ask"},
		{"for a profile that is none", ca.Registrar{Account: "acme", Profile: "nothing", Name: "x"}, cradle.NotFound, "no profile"},
		{"under a name that is none", ca.Registrar{Account: "acme", Profile: "guests", Name: "../x"}, cradle.Invalid, "registration authority"},
		{"for a tier that is none", ca.Registrar{Account: "acme", Profile: "guests", Name: "x", Tier: "gold"}, cradle.Invalid, "tier"},
	} {
		_, err := r.p.AddRegistrar(t.Context(), c.ra, plainCSR(t, "", newKey(t), false), year)
		t.Run("made "+c.name, func(t *testing.T) { refused(t, err, c.kind, c.part) })
	}
	_, err := r.p.AddRegistrar(t.Context(), ca.Registrar{Account: "acme", Profile: "guests", Name: "x"}, plainCSR(t, "", deviceKey, false), year)
	refused(t, err, cradle.Forbidden, "belongs to a device")
	if _, err := ca.ParseProfile("p", "kind = \"client\"\nextended_key_usage = [\"1.3.6.1.5.5.7.3.28\"]\n"); err == nil || !strings.Contains(err.Error(), "cmcRA") {
		t.Errorf("a profile gives devices the usage of a registration authority: %v", err)
	}
	r.check()
}

func (r *rig) leaves(log string) int64 {
	r.t.Helper()
	heads, err := r.db.Heads(context.WithoutCancel(r.t.Context()))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, h := range heads {
		if h.Log == log {
			return h.Size
		}
	}
	return 0
}

// TestRegistrarAudit: the log says which credential of a registration authority allowed what, and the audit finds what
// none allowed.
func TestRegistrarAudit(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ra := r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps"}, newKey(t), year)
		r.basicUser(cradle.Operational, "line", "")
		ok := must[*x509.Certificate](t)
		ok(r.plain(cradle.Operational, provider.Enroll, byRegistrar(t, ra), plainCSR(t, "gw-1", newKey(t), false)))
		ok(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-2", newKey(t), false)))
		r.check()
		store := openTampered(r, url)
		for _, c := range []struct {
			name, sql string
			code      ledger.Code
		}{
			{"its credential removed", `DELETE FROM certificates WHERE profile = 'registration-authority'`, ledger.CertificateMissing},
			{"its credential another's", `UPDATE certificates SET device = 'ra/other' WHERE profile = 'registration-authority'`, ledger.CertificateChanged},
			{"its credential a device's", `UPDATE certificates SET profile = 'operational', lineage = 'operational/ra' WHERE profile = 'registration-authority'`, ledger.CertificateChanged},
			{"its certificate in another's slot", `UPDATE certificates SET lineage = 'operational/0a0b0c0d' WHERE lineage = 'operational/ra'`, ledger.CertificateForged},
			{"another's certificate in its slot", `UPDATE certificates SET lineage = 'operational/ra' WHERE device = 'gw-2'`, ledger.CertificateForged},
			{"its certificate as proved", `UPDATE certificates SET lineage = 'operational' WHERE lineage = 'operational/ra'`, ledger.CertificateForged},
			{"its CA called another", `UPDATE authorities SET kind = 'other' WHERE kind = 'registration'`, ledger.CertificateForged},
			{"its device another's", `UPDATE devices SET origin = 'basic/line' WHERE id = 'gw-1'`, ledger.DeviceChanged},
		} {
			if n := store.exec(c.sql); n == 0 {
				t.Fatalf("%s: touched nothing", c.name)
			}
			findings, _, err := ledger.Verify(bytes.NewReader(r.export()), ledger.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(findings, func(f ledger.Finding) bool { return f.Code == c.code }) {
				t.Errorf("%s: not found as %s: %+v", c.name, c.code, findings)
			}
			store.restore()
		}
		r.check()
	})
}

// TestRegistrarApart: with the issuing keys in another process, that one alone makes credentials of registration
// authorities, and judges what they ask for once more.
func TestRegistrarApart(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "provider.db"))
	key := newKey(t)
	ask := ca.Registrar{Account: "acme", Profile: cradle.Operational, Name: "dps"}
	_, err := a.p.AddRegistrar(t.Context(), ask, plainCSR(t, "", key, false), year)
	refused(t, err, cradle.Conflict, "signer apart")
	made := must[*provider.Registrar](t)(a.signer.AddRegistrar(t.Context(), ask, plainCSR(t, "", key, false), year))
	by := byRegistrar(t, made)
	first := plainCSR(t, "gw-1", newKey(t), false)
	c := must[*x509.Certificate](t)(a.plain(cradle.Operational, provider.Enroll, by, first))
	if c.Issuer.CommonName != "acme evaluation registration CA" {
		t.Errorf("issued by %s", c.Issuer)
	}
	if again := must[*x509.Certificate](t)(a.plain(cradle.Operational, provider.Enroll, by, first)); !again.Equal(c) {
		t.Error("the same request again got another certificate")
	}
	// A front end that lies about the client gets nothing by it.
	lie := func(ctx context.Context, pm provider.Permit) (*provider.Issued, error) {
		pm.Request.Client = byCert(c)
		return a.door.Sign(ctx, pm)
	}
	a.attack.Store(&lie)
	_, err = a.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-2", newKey(t), false))
	refused(t, err, cradle.Forbidden, "renewed there")
	a.attack.Store(nil)
	if _, err := a.p.EndRegistrar(t.Context(), "acme", cradle.Operational, "dps", "", "gone"); err != nil {
		t.Fatal(err)
	}
	_, err = a.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-3", newKey(t), false))
	refused(t, err, cradle.Forbidden, "revoked")
	a.check()
}

// TestRegistrarStatus: CRLs and OCSP speak of a registration authority's credential, and of what came by it.
func TestRegistrarStatus(t *testing.T) {
	r := newStatusRig(t, filepath.Join(t.TempDir(), "provider.db"))
	ra := r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps"}, newKey(t), year)
	by := byRegistrar(t, ra)
	c := must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), false)))
	r.agree(c, 0, false)
	if _, err := r.p.ChangeState(t.Context(), "acme", "gw-1", provider.Revoke, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	r.agree(c, cradle.KeyCompromise, true)
	status := func() provider.CertStatus {
		t.Helper()
		s, err := r.p.CertStatus(t.Context(), []string{ca.Digest(r.issuer(by.Peer).Raw)}, ra.Cert.Serial)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := status(); !s.Revoked.IsZero() {
		t.Errorf("its credential: %+v", s)
	}
	if _, err := r.p.EndRegistrar(t.Context(), "acme", cradle.Operational, "dps", "", "cessationOfOperation"); err != nil {
		t.Fatal(err)
	}
	if s := status(); s.Revoked.IsZero() || s.Code != cradle.CessationOfOperation {
		t.Errorf("its credential, ended: %+v", s)
	}
}

// TestRegistrarRestored: after a restore an authority that was ended stays so, and one that was not serves the devices that
// came by it since the backup.
func TestRegistrarRestored(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	by := byRegistrar(t, r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps"}, newKey(t), year))
	ended := byRegistrar(t, r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "ended"}, newKey(t), year))
	kept := r.backup()
	must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), false)))
	later := byRegistrar(t, r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps"}, newKey(t), year))
	if _, err := r.p.EndRegistrar(t.Context(), "acme", cradle.Operational, "ended", "", "gone"); err != nil {
		t.Fatal(err)
	}
	export := r.export()
	x := r.restored(kept())
	if u, findings, err := x.catchUp(export); err != nil || len(findings) > 0 || !u.Open || len(u.Todo) > 0 {
		t.Fatalf("%+v, %v, %v", u, findings, err)
	}
	x.open()
	for name, by := range map[string]provider.Client{"of before the backup": by, "of after it": later} {
		if _, err := x.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), false)); err != nil {
			t.Errorf("a credential %s: %v", name, err)
		}
	}
	_, err := x.plain(cradle.Operational, provider.Enroll, ended, plainCSR(t, "gw-2", newKey(t), false))
	refused(t, err, cradle.Forbidden, "revoked")
	x.check()
}

// TestRegistrationCA: it is rolled and moved below an external root as the account's other CAs are; what the one before
// signed stays good.
func TestRegistrationCA(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	ok := must[*x509.Certificate](t)
	_, err := r.p.RollCA(t.Context(), "acme", provider.RegistrationCA, "", cradle.Evaluation)
	refused(t, err, cradle.NotFound, "no active registration CA")
	by := byRegistrar(t, r.registrar(ca.Registrar{Profile: cradle.Operational, Name: "dps"}, newKey(t), year))
	if _, err := r.p.RollCA(t.Context(), "acme", provider.RegistrationCA, "", cradle.Evaluation); err != nil {
		t.Fatal(err)
	}
	first := ok(r.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), false))) // by a credential of the old key
	if !strings.HasSuffix(first.Issuer.CommonName, "registration CA G2") {
		t.Errorf("issued by %s", first.Issuer)
	}
	r.trusts(r.root(cradle.Evaluation), first, cradle.Operational)
	_, cas, err := r.p.Account(t.Context(), "acme")
	if err != nil || !slices.ContainsFunc(cas, func(a provider.Authority) bool { return a.Kind == provider.RegistrationCA }) {
		t.Errorf("the account shows no registration CA: %v", err)
	}
	r.check()

	r = newRigWith(t, filepath.Join(t.TempDir(), "external.db"), provider.CAs{External: true})
	root := newCeremony(t, "Example Root")
	ask := ca.Registrar{Account: "acme", Profile: cradle.Operational, Name: "dps"}
	r.certify(root, provider.OperationalCA, "", cradle.Evaluation, false)
	_, err = r.p.AddRegistrar(t.Context(), ask, plainCSR(t, "", newKey(t), false), year)
	refused(t, err, cradle.Busy, "registration CA of account acme (evaluation) waits")
	r.certify(root, provider.RegistrationCA, "", cradle.Evaluation, false)
	by = byRegistrar(t, r.registrar(ask, newKey(t), year))
	c := ok(r.plain(cradle.Operational, provider.Enroll, by, plainCSR(t, "gw-1", newKey(t), false)))
	r.trusts(root.Cert, c, cradle.Operational)
	r.check()
}
