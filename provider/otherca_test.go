package provider_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// otherCA is a CA that is not ours, with a subordinate.
type otherCA struct {
	root, sub       *x509.Certificate
	rootKey, subKey crypto.Signer
}

func newOtherCA(t *testing.T) *otherCA {
	t.Helper()
	o := &otherCA{rootKey: newKey(t), subKey: newKey(t)}
	make := func(name string, key crypto.Signer, parent *x509.Certificate, by crypto.Signer) *x509.Certificate {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: ca.Forever,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte(name)}
		if parent == nil {
			parent = tmpl
		}
		return signed(t, tmpl, parent, key, by)
	}
	o.root = make("Other root", o.rootKey, nil, o.rootKey)
	o.sub = make("Other IDevID CA", o.subKey, o.root, o.rootKey)
	return o
}

func signed(t *testing.T, tmpl, parent *x509.Certificate, key, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// idevid is a certificate as 802.1AR has it: no end, no extended key usage.
func (o *otherCA) idevid(t *testing.T, cn, serial string) *x509.Certificate {
	t.Helper()
	return signed(t, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn, SerialNumber: serial},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: ca.Forever, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}, o.sub, newKey(t), o.subKey)
}

// TestOtherCA: units of a manifest enrol by another CA's certificate, under the name that the manifest gives.
func TestOtherCA(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r, o := newRig(t, url), newOtherCA(t)
		ok := must[*x509.Certificate](t)
		third := o.idevid(t, "box", "")
		manifest, err := provider.ParseManifest("# first lot\ngw-1\nsn:SN-7 gw-7\nsn:SN-8 gw-1\nsha256:" + ca.Digest(third.Raw) + "\n")
		if err != nil {
			t.Fatal(err)
		}
		set := provider.ClientCA{Account: "acme", Profile: cradle.LDevID, Certs: [][]byte{o.root.Raw}, Names: "gw-*"}
		if set, err = r.p.SetClientCA(t.Context(), set, manifest); err != nil {
			t.Fatal(err)
		}
		one := byCert(o.idevid(t, "gw-1", ""), o.sub)
		c := ok(r.plain(cradle.LDevID, provider.Enroll, one, plainCSR(t, "gw-1", newKey(t), false)))
		if d, err := r.p.Device(t.Context(), "acme", "gw-1"); err != nil || d.Origin != "ca/"+set.ID+"/id:gw-1" {
			t.Errorf("device %+v, %v", d, err)
		}
		if c7 := ok(r.plain(cradle.LDevID, provider.Enroll, byCert(o.idevid(t, "whatever", "SN-7"), o.sub), plainCSR(t, "", newKey(t), false))); c7.Subject.CommonName != "gw-7" {
			t.Errorf("the unit of serial SN-7 became %s", c7.Subject)
		}
		ok(r.plain(cradle.LDevID, provider.Enroll, byCert(third, o.sub), plainCSR(t, "gw-9", newKey(t), false)))
		ok(r.plain(cradle.LDevID, provider.Enroll, one, plainCSR(t, "gw-1", newKey(t), false))) // the bootstrap once more
		ok(r.plain(cradle.LDevID, provider.Reenroll, byCert(c), reCSR(t, c)))

		stranger, forged := newOtherCA(t), o.idevid(t, "gw-1", "")
		for _, x := range []struct {
			name    string
			profile cradle.Profile
			op      provider.Operation
			client  provider.Client
			cn      string
			kind    cradle.Kind
			part    string
		}{
			{"not in the manifest", cradle.LDevID, provider.Enroll, byCert(o.idevid(t, "gw-2", ""), o.sub), "gw-2", cradle.Forbidden, "no unit that is let in"},
			{"another unit's name", cradle.LDevID, provider.Enroll, one, "gw-7", cradle.Forbidden, `this client is "gw-1"`},
			{"a free name, but taken by another unit", cradle.LDevID, provider.Enroll, byCert(third, o.sub), "gw-7", cradle.Forbidden, "did not come by this credential"},
			{"the manifest's own name, but taken by another unit", cradle.LDevID, provider.Enroll, byCert(o.idevid(t, "", "SN-8"), o.sub), "", cradle.Forbidden, "did not come by this credential"},
			{"a name outside the pattern", cradle.LDevID, provider.Enroll, byCert(third, o.sub), "x-9", cradle.Forbidden, "may not ask"},
			{"another CA of the same name", cradle.LDevID, provider.Enroll, byCert(stranger.idevid(t, "gw-1", ""), stranger.sub), "gw-1", cradle.Unauthorized, "client-"},
			{"no path: intermediate not sent", cradle.LDevID, provider.Enroll, byCert(forged), "gw-1", cradle.Unauthorized, "client-untrusted"},
			{"another profile", cradle.Operational, provider.Enroll, one, "gw-1", cradle.Unauthorized, "not issued here"},
			{"re-enrolment: not one of our issued", cradle.LDevID, provider.Reenroll, one, "gw-1", cradle.Forbidden, "to be renewed"},
		} {
			t.Run(x.name, func(t *testing.T) {
				_, err := r.plain(x.profile, x.op, x.client, plainCSR(t, x.cn, newKey(t), false))
				refused(t, err, x.kind, x.part)
			})
		}
		// Our own CA cannot be registered as another's: its certificates have records and can be revoked.
		_, err = r.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.LDevID, Certs: [][]byte{r.root(cradle.Evaluation).Raw}}, manifest)
		refused(t, err, cradle.Invalid, "CA of this installation")
		_, err = r.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.IDevID, Certs: [][]byte{o.root.Raw}}, manifest)
		refused(t, err, cradle.Invalid, "never optional")
		if _, err := r.p.RemoveClientCA(t.Context(), "acme", set.ID); err != nil {
			t.Fatal(err)
		}
		_, err = r.plain(cradle.LDevID, provider.Enroll, one, plainCSR(t, "gw-1", newKey(t), false))
		refused(t, err, cradle.Unauthorized, "not issued here")
		r.check()
	})
}

// TestOtherCAsCertificateOnRecord: a certificate that is on record here is never taken for another CA's, though it is of a
// registered CA and its unit is in the manifest.
func TestOtherCAsCertificateOnRecord(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r, o := newRig(t, url), newOtherCA(t)
		if _, err := r.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.LDevID, Certs: [][]byte{o.root.Raw, o.sub.Raw}},
			[]provider.ClientUnit{{Unit: "id:gw-1", Name: "gw-1"}, {Unit: "id:gw-2", Name: "gw-2"}}); err != nil {
			t.Fatal(err)
		}
		enrol := func(c *x509.Certificate) error {
			_, err := r.plain(cradle.LDevID, provider.Enroll, byCert(c), plainCSR(t, "", newKey(t), false))
			return err
		}
		if err := enrol(o.idevid(t, "gw-1", "")); err != nil {
			t.Fatal(err)
		}
		second := o.idevid(t, "gw-2", "")
		openTampered(r, url).exec(fmt.Sprintf(`INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason, lineage)
			SELECT '%s', '%s', account, device, profile, authority, der, not_before, not_after, slot, intent, issued, 0, '', lineage FROM certificates WHERE device = 'gw-1'`,
			ca.Digest(second.Raw), ca.SerialString(second.SerialNumber)))
		refused(t, enrol(second), cradle.Unauthorized, "not issued here")
	})
}

// TestOtherCAOfAcceptedLot: an OEM's own IDevID CA admits the units of that OEM's accepted lots as the devices they are.
func TestOtherCAOfAcceptedLot(t *testing.T) {
	r, o := newRig(t, filepath.Join(t.TempDir(), "provider.db")), newOtherCA(t)
	ord := r.order(nil)
	station := r.station(ord)
	u := r.unit(ord, "SN0001")
	if err := r.birth(u, station); err != nil {
		t.Fatal(err)
	}
	if _, err := r.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.LDevID, Certs: [][]byte{o.root.Raw, o.sub.Raw}, OEM: "maker1"}, nil); err != nil {
		t.Fatal(err)
	}
	own := byCert(o.idevid(t, "x", "SN0001"))
	_, err := r.plain(cradle.LDevID, provider.Enroll, own, plainCSR(t, "", newKey(t), false))
	refused(t, err, cradle.Forbidden, "no unit that is let in") // its lot is open
	if _, err := r.p.CloseLot(t.Context(), ord.ID, r.report(ord, u)); err != nil {
		t.Fatal(err)
	}
	c := must[*x509.Certificate](t)(r.plain(cradle.LDevID, provider.Enroll, own, plainCSR(t, "", newKey(t), false)))
	if c.Subject.CommonName != "acme-sn0001" || !c.Policies[1].Equal(cradle.PolicyKeyNotProved) {
		t.Errorf("%s, %v", c.Subject, c.Policies)
	}
	_, err = r.plain(cradle.LDevID, provider.Enroll, byCert(o.idevid(t, "x", "SN0002")), plainCSR(t, "", newKey(t), false))
	refused(t, err, cradle.Forbidden, "no unit that is let in")
	r.check()
}
