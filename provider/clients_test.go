package provider_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"path/filepath"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
)

const password = "correct horse battery"

// plainCSR is a CSR as a client without evidence makes it; with clientAuth it wishes for that usage.
func plainCSR(t *testing.T, cn string, key crypto.Signer, clientAuth bool) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{}
	if cn != "" {
		tmpl.Subject = pkix.Name{CommonName: cn}
	}
	if clientAuth {
		eku, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}})
		if err != nil {
			t.Fatal(err)
		}
		tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: eku}}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (r *rig) plain(profile cradle.Profile, op provider.Operation, c provider.Client, csr []byte) (*x509.Certificate, error) {
	r.t.Helper()
	ep, err := r.p.Endpoint(r.t.Context(), cradle.Label("acme", profile))
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := r.p.Enroll(r.t.Context(), provider.Request{Endpoint: ep, Operation: op, Client: c, CSR: csr})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(out.DER)
}

func (r *rig) basicUser(profile cradle.Profile, name, names string) {
	r.t.Helper()
	if _, err := r.p.SetBasicUser(r.t.Context(), provider.BasicUser{Account: "acme", Profile: profile, Name: name, Names: names}, password); err != nil {
		r.t.Fatal(err)
	}
}

func byBasic(user string) provider.Client {
	return provider.Client{Basic: &provider.Basic{User: user, Password: password}}
}

func byCert(c *x509.Certificate, chain ...*x509.Certificate) provider.Client {
	return provider.Client{Peer: c, Chain: append([]*x509.Certificate{c}, chain...)}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestClientsOfAnotherReplica: who was registered, and what was allowed, at one replica is known at another as soon as a client
// comes, if that has not looked within the second.
func TestClientsOfAnotherReplica(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		here, there := r.p, r.replica(r.db)
		at := func(p *provider.Provider, profile cradle.Profile, op provider.Operation, c provider.Client, csr []byte) (*x509.Certificate, error) {
			r.p = p
			defer func() { r.p = here }()
			return r.plain(profile, op, c, csr)
		}
		csr := plainCSR(t, "gw-1", newKey(t), false)
		r.basicUser(cradle.Operational, "line", "gw-*")
		_, err := at(there, cradle.Operational, provider.Enroll, byBasic("line"), csr)
		refused(t, err, cradle.Unauthorized, "no TLS client certificate")
		r.advance(time.Second)
		c := must[*x509.Certificate](t)(at(there, cradle.Operational, provider.Enroll, byBasic("line"), csr))
		// The other way: a certificate of there is believed here, though its CA was made there.
		must[*x509.Certificate](t)(at(here, cradle.Operational, provider.Reenroll, byCert(c), reCSR(t, c)))

		// A profile that has become one without evidence.
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		r.setProfiles("[lab]\nkind = \"client\"\n")
		plain := plainCSR(t, string(idOf(u)), newKey(t), false)
		r.advance(time.Second)
		_, err = at(there, "lab", provider.Enroll, byCert(u.ldevid), plain)
		refused(t, err, cradle.Forbidden, "no evidence")
		r.setProfiles("[lab]\nkind = \"client\"\nevidence = \"optional\"\n")
		_, err = at(there, "lab", provider.Enroll, byCert(u.ldevid), plain)
		refused(t, err, cradle.Forbidden, "no evidence")
		r.advance(time.Second)
		must[*x509.Certificate](t)(at(there, "lab", provider.Enroll, byCert(u.ldevid), plain))
	})
}

// TestBasic: a password gets a device its first certificate, which says that nothing proves its key, and which
// renews by itself.
func TestBasic(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ok := must[*x509.Certificate](t)
		_, err := r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-1", newKey(t), false))
		refused(t, err, cradle.Unauthorized, "no TLS client certificate")
		r.basicUser(cradle.Operational, "line", "gw-*")
		first := plainCSR(t, "gw-1", newKey(t), false)
		c := ok(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), first))
		if c.Subject.CommonName != "gw-1" || len(c.Policies) != 2 || !c.Policies[0].Equal(cradle.TierPolicy(cradle.SoftwareKey)) || !c.Policies[1].Equal(cradle.PolicyKeyNotProved) {
			t.Errorf("certificate of %s with policies %v", c.Subject, c.Policies)
		}
		if c.Issuer.CommonName != "acme evaluation unproved CA" {
			t.Errorf("issued by %s", c.Issuer)
		}
		d, err := r.p.Device(t.Context(), "acme", "gw-1")
		if err != nil || d.Origin != "basic/line" || d.State != cradle.Active || d.Tier != cradle.SoftwareKey {
			t.Errorf("device %+v, %v", d, err)
		}
		if again := ok(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), first)); !again.Equal(c) {
			t.Error("the same request again got another certificate")
		}
		r.advance(11 * time.Minute)
		if later := ok(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), first)); later.Equal(c) {
			t.Error("the request was answered with the old certificate after ten minutes")
		}
		renewed := ok(r.plain(cradle.Operational, provider.Reenroll, byCert(c), reCSR(t, c)))
		ok(r.plain(cradle.Operational, provider.Reenroll, byCert(renewed), reCSR(t, renewed)))

		bad := provider.Client{Basic: &provider.Basic{User: "line", Password: "wrong password"}}
		for _, c := range []struct {
			name   string
			client provider.Client
			op     provider.Operation
			cn     string
			kind   cradle.Kind
			part   string
		}{
			{"wrong password", bad, provider.Enroll, "gw-2", cradle.Unauthorized, "user or password"},
			{"unknown user", byBasic("nobody"), provider.Enroll, "gw-2", cradle.Unauthorized, "user or password"},
			{"a name outside the pattern", byBasic("line"), provider.Enroll, "other", cradle.Forbidden, "may not ask for the name"},
			{"no name", byBasic("line"), provider.Enroll, "", cradle.Invalid, "names no device"},
			{"no canonical name", byBasic("line"), provider.Enroll, "gw 1!", cradle.Invalid, "no device name"},
			{"re-enrolment by password", byBasic("line"), provider.Reenroll, "gw-1", cradle.Forbidden, "certificate that is to be renewed"},
		} {
			_, err := r.plain(cradle.Operational, c.op, c.client, plainCSR(t, c.cn, newKey(t), false))
			t.Run(c.name, func(t *testing.T) { refused(t, err, c.kind, c.part) })
		}
		_, err = r.plain(cradle.LDevID, provider.Enroll, byBasic("line"), plainCSR(t, "gw-1", newKey(t), false))
		refused(t, err, cradle.Unauthorized, "no TLS client certificate")

		if _, err := r.p.DisableBasicUser(t.Context(), "acme", cradle.Operational, "line"); err != nil {
			t.Fatal(err)
		}
		_, err = r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-3", newKey(t), false))
		refused(t, err, cradle.Unauthorized, "")
		now := ok(r.plain(cradle.Operational, provider.Reenroll, byCert(renewed), reCSR(t, renewed))) // not locked out
		if _, err := r.p.ChangeState(t.Context(), "acme", "gw-1", provider.Suspend, "test"); err != nil {
			t.Fatal(err)
		}
		_, err = r.plain(cradle.Operational, provider.Reenroll, byCert(now), reCSR(t, now))
		refused(t, err, cradle.Forbidden, "suspended")
		if _, err := r.p.ChangeState(t.Context(), "acme", "gw-1", provider.Release, "test"); err != nil {
			t.Fatal(err)
		}
		if d, err := r.p.Device(t.Context(), "acme", "gw-1"); err != nil || d.State != cradle.Active {
			t.Errorf("released without an order or lot: %+v, %v; want active", d, err)
		}
		ok(r.plain(cradle.Operational, provider.Reenroll, byCert(now), reCSR(t, now)))
		r.check()
	})
}

func reCSR(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: c.RawSubject}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestNamesAreNotTaken: a password or another CA never gets the name of a device that came otherwise.
func TestNamesAreNotTaken(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	ok := must[*x509.Certificate](t)
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	r.basicUser(cradle.Operational, "one", "")
	r.basicUser(cradle.Operational, "two", "")
	ok(r.plain(cradle.Operational, provider.Enroll, byBasic("one"), plainCSR(t, "gw-1", newKey(t), false)))
	for _, name := range []string{"acme-sn0001", "ACME-SN0001", "gw-1"} {
		_, err := r.plain(cradle.Operational, provider.Enroll, byBasic("two"), plainCSR(t, name, newKey(t), false))
		refused(t, err, cradle.Forbidden, "did not come by this credential")
	}
	// The device of the order has operational certificates with evidence: it gets none without, by whichever credential.
	for _, peer := range []*x509.Certificate{u.op, u.ldevid, u.idevid} {
		_, err := r.plain(cradle.Operational, provider.Enroll, byCert(peer), plainCSR(t, "acme-sn0001", newKey(t), false))
		refused(t, err, cradle.Forbidden, "evidence")
	}
	_, err := r.plain(cradle.Operational, provider.Reenroll, byCert(u.op), reCSR(t, u.op))
	refused(t, err, cradle.Forbidden, "evidence")
	r.check()
}

// TestWrongPasswords: an account that sees too many wrong passwords answers Busy, but who was right before gets in.
func TestWrongPasswords(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	r.basicUser(cradle.Operational, "line", "")
	must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-1", newKey(t), false)))
	bad := provider.Client{Basic: &provider.Basic{User: "line", Password: "wrong password"}}
	csr := plainCSR(t, "gw-1", newKey(t), false)
	busy := false
	for range 40 {
		_, err := r.plain(cradle.Operational, provider.Enroll, bad, csr)
		if busy = cradle.KindOf(err) == cradle.Busy; busy {
			break
		}
		refused(t, err, cradle.Unauthorized, "")
	}
	if !busy {
		t.Error("40 wrong passwords were looked at")
	}
	must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-2", newKey(t), false)))
}

// TestIoTIdentityService plays Azure IoT Identity Service for some years: est-id from a bootstrap certificate, device-id
// by est-id with the same name at the same label, both renewed by simpleenroll with new keys, the bootstrap used
// again when est-id is lost. None of it is taken for theft.
func TestIoTIdentityService(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r, o := newRig(t, url), newOtherCA(t)
		ok := must[*x509.Certificate](t)
		manifest, err := provider.ParseManifest("sn:SN-1 gw-0001\n")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.Operational, Certs: [][]byte{o.root.Raw}}, manifest); err != nil {
			t.Fatal(err)
		}
		bootstrap := byCert(o.idevid(t, "bootstrap", "SN-1"), o.sub)
		var rsaKeys []crypto.Signer // a few: they take long to make
		for range 3 {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			rsaKeys = append(rsaKeys, k)
		}
		n := 0
		enroll := func(c provider.Client, eku bool) *x509.Certificate {
			t.Helper()
			n++
			key := rsaKeys[n%len(rsaKeys)] // device-id
			if eku {                       // est-id
				key = newKey(t)
			}
			return ok(r.plain(cradle.Operational, provider.Enroll, c, plainCSR(t, "gw-0001", key, eku)))
		}
		estID := enroll(bootstrap, true)
		enroll(byCert(estID), false)
		for year := range 3 {
			for range 4 {
				r.advance(20 * time.Minute)
				old := estID
				enroll(byCert(old), false) // device-id-temp, on its way while est-id renews
				estID = enroll(byCert(old), true)
				if year == 1 { // the answer of est-id's renewal is lost: the old one asks again, with a new key
					estID = enroll(byCert(old), true)
				}
				enroll(byCert(old), false)
				enroll(byCert(estID), false) // from here on the old one has been replaced
			}
			estID = enroll(bootstrap, true) // est-id was lost
			enroll(byCert(estID), false)
		}
		certs, err := r.p.Certificates(t.Context(), "acme", "gw-0001")
		if err != nil {
			t.Fatal(err)
		}
		lineages := map[string]int{}
		for _, c := range certs {
			lineages[c.Lineage]++
		}
		if len(lineages) != 2 {
			t.Errorf("lineages %v, want one of est-id and one of device-id", lineages)
		}
		// Theft is seen all the same: an est-id that was replaced comes again, long after.
		stolen := estID
		estID = enroll(byCert(stolen), true)
		enroll(byCert(estID), false)
		_, err = r.plain(cradle.Operational, provider.Enroll, byCert(stolen), plainCSR(t, "gw-0001", newKey(t), true))
		refused(t, err, cradle.Conflict, "a moment ago")
		r.advance(2 * time.Minute)
		_, err = r.plain(cradle.Operational, provider.Enroll, byCert(stolen), plainCSR(t, "gw-0001", newKey(t), true))
		refused(t, err, cradle.Forbidden, "superseded")
		_, err = r.plain(cradle.Operational, provider.Enroll, bootstrap, plainCSR(t, "gw-0001", newKey(t), true))
		refused(t, err, cradle.Forbidden, "quarantine")
		if n, err := r.p.Heal(t.Context(), "acme", "gw-0001", "seen on the bench"); n != 1 || err != nil {
			t.Errorf("healed %d lineages, %v", n, err)
		}
		_, err = r.p.Heal(t.Context(), "acme", "gw-0001", "once more")
		refused(t, err, cradle.Conflict, "in quarantine")
		if n := bytes.Count(r.export(), []byte("device heal")); n != 1 {
			t.Errorf("the log tells of %d heals, want that of something", n)
		}
		enroll(bootstrap, true)
		r.check()
	})
}
