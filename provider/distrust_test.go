package provider_test

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/provider"
)

// TestDistrust: first a list, nothing changed; confirmed, the devices are revoked in every account and no new one is born; trusted again
// only by an act of its own.
func TestDistrust(t *testing.T) {
	for name, target := range map[string]func(r *rig, d provider.Device) provider.Distrusting{
		"maker": func(r *rig, d provider.Device) provider.Distrusting { return provider.Distrusting{Maker: d.Maker} },
		"certificate": func(r *rig, d provider.Device) provider.Distrusting {
			return provider.Distrusting{Certificate: d.Anchor}
		},
		"EK": func(r *rig, d provider.Device) provider.Distrusting { return provider.Distrusting{EK: d.EKDigest} },
	} {
		t.Run(name, func(t *testing.T) {
			testenv.EachStore(t, func(t *testing.T, url string) {
				r := newRig(t, url)
				o := r.order(nil)
				station := r.station(o)
				u, v := r.active(o, station, "SN0001"), r.active(o, station, "SN0002")
				d, err := r.p.Device(t.Context(), "acme", idOf(u))
				if err != nil {
					t.Fatal(err)
				}
				w, want := target(r, d), int64(2)
				if w.EK != "" {
					want = 1
				}
				c, err := r.p.Distrust(t.Context(), w, "broken", false)
				if err != nil || c.Accounts["acme"] != want || int64(len(c.Devices)) != want || len(c.Jobs) != 0 {
					t.Fatalf("%+v, %v", c, err)
				}
				if _, err := r.renew(u, u.op); err != nil {
					t.Fatalf("the list changed something: %v", err)
				}
				behind := r.replica(r.db)
				if _, err = r.p.Distrust(t.Context(), w, "broken", true); err != nil {
					t.Fatal(err)
				}
				if s := r.state(idOf(u)); s != cradle.Revoked {
					t.Errorf("its device is %s", s)
				}
				fresh := r.unit(o, "SN0003")
				if w.EK != "" {
					if s := r.state(idOf(v)); s != cradle.Active {
						t.Errorf("another device is %s", s)
					}
					fresh.Device = u.Device
				}
				refused(t, r.birth(fresh, station), cradle.Forbidden, "")
				if w.EK == "" {
					// A replica that has not read the directory again is refused by the store.
					ahead := r.p
					r.p = behind
					refused(t, r.birth(fresh, station), cradle.Forbidden, "is not believed any more")
					r.p = ahead
				}
				if _, _, err := r.p.ImportMaker(t.Context(), "soft", cradle.Simulator, [][]byte{r.maker.Cert.Raw}); err != nil {
					t.Fatal(err)
				}
				refused(t, r.birth(fresh, station), cradle.Forbidden, "")
				makers, keys, err := r.p.Makers(t.Context())
				if err != nil || len(makers) != 1 || makers[0].Devices != 2 || len(keys) != 1 || makers[0].Anchors[0].Distrusted != (w.EK == "") {
					t.Errorf("%+v, %+v, %v", makers, keys, err)
				}
				if _, err := r.p.Trust(t.Context(), w, "a mistake"); err != nil {
					t.Fatal(err)
				}
				_, err = r.p.Trust(t.Context(), w, "a mistake")
				refused(t, err, cradle.Conflict, "not distrusted")
				if w.EK == "" {
					if err := r.birth(fresh, station); err != nil {
						t.Errorf("trusted again: %v", err)
					}
				}
				if s := r.state(idOf(u)); s != cradle.Revoked {
					t.Errorf("the trust brought a device back: it is %s", s)
				}
				r.check()
			})
		})
	}
}

// TestDistrustRefuses what names nothing.
func TestDistrustRefuses(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	for _, c := range []struct {
		w    provider.Distrusting
		kind cradle.Kind
	}{
		{provider.Distrusting{}, cradle.Invalid},
		{provider.Distrusting{Maker: "soft", EK: "ab"}, cradle.Invalid},
		{provider.Distrusting{Maker: "nobody"}, cradle.NotFound},
		{provider.Distrusting{Certificate: "abcd"}, cradle.NotFound},
		{provider.Distrusting{EK: "abcd"}, cradle.Invalid},
	} {
		if _, err := r.p.Distrust(t.Context(), c.w, "", true); cradle.KindOf(err) != c.kind {
			t.Errorf("%+v: %v", c.w, err)
		}
	}
	c, err := r.p.Distrust(t.Context(), provider.Distrusting{EK: fmt.Sprintf("%064d", 7)}, "seen elsewhere", true)
	if err != nil || len(c.Devices) != 0 {
		t.Errorf("a key that was never seen: %+v, %v", c, err)
	}
}

// intermediate makes a CA of EK certificates below the rig's maker.
func (r *rig) intermediate(name string) *softkey.Maker {
	r.t.Helper()
	k := newKey(r.t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: name}, NotBefore: r.maker.Cert.NotBefore, NotAfter: r.maker.Cert.NotAfter,
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, r.maker.Cert, k.Public(), r.maker.Key)
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return &softkey.Maker{Cert: cert, Key: k}
}

// TestDistrustIntermediate: an issuer between EK and root is found by its key or its certificate, imported or not; and a root with
// the imported anchors below it, whose devices' recorded paths end before it.
func TestDistrustIntermediate(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		sent, imported := r.intermediate("sent by the device"), r.intermediate("imported")
		if _, _, err := r.p.ImportMaker(t.Context(), "soft", cradle.Simulator, [][]byte{imported.Cert.Raw}); err != nil {
			t.Fatal(err)
		}
		born := func(m *softkey.Maker, serial string) *unit {
			t.Helper()
			d, err := m.NewDevice("")
			if err != nil {
				t.Fatal(err)
			}
			u := &unit{Device: d, order: o, serial: serial}
			if m == sent {
				u.chain = [][]byte{m.Cert.Raw}
			}
			return u
		}
		units := map[string]*unit{"root": born(r.maker, "SN0001"), "sent": born(sent, "SN0002"), "imported": born(imported, "SN0003")}
		for _, u := range units {
			if err := r.birth(u, station); err != nil {
				t.Fatal(err)
			}
		}
		key := hex.EncodeToString(sum(sent.Cert.RawSubjectPublicKeyInfo))
		states := func(want string) {
			t.Helper()
			got := fmt.Sprint(r.state(idOf(units["root"])), " ", r.state(idOf(units["sent"])), " ", r.state(idOf(units["imported"])))
			if got != want {
				t.Errorf("the devices of root, sent and imported issuer are %s; want %s", got, want)
			}
		}
		if _, err := r.p.Distrust(t.Context(), provider.Distrusting{Certificate: key}, "", true); err != nil {
			t.Fatal(err)
		}
		states("made revoked made")
		refused(t, r.birth(born(sent, "SN0004"), station), cradle.Forbidden, "")
		if err := r.birth(born(imported, "SN0005"), station); err != nil {
			t.Fatal(err)
		}
		root := hex.EncodeToString(sum(r.maker.Cert.Raw))
		c, err := r.p.Distrust(t.Context(), provider.Distrusting{Certificate: root}, "", false)
		if err != nil || c.Accounts["acme"] != 4 {
			t.Errorf("under the root are %+v, %v; want 4", c, err)
		}
		if _, err := r.p.Distrust(t.Context(), provider.Distrusting{Certificate: root}, "", true); err != nil {
			t.Fatal(err)
		}
		states("revoked revoked revoked")
		for _, m := range []*softkey.Maker{r.maker, sent, imported} {
			refused(t, r.birth(born(m, "SN0006"), station), cradle.Forbidden, "")
		}
		r.check()
	})
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// TestDistrustTPMEnroll: devices that came by tpmenroll rest on their EK's issuers as well.
func TestDistrustTPMEnroll(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.basicUser(cradle.LDevID, "line", "")
		d, err := r.maker.NewDevice("")
		if err != nil {
			t.Fatal(err)
		}
		q, _ := tpmRequest(t, r, cradle.LDevID, byBasic("line"), d, "gw-1")
		if _, err := r.p.TPMEnroll(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		root := hex.EncodeToString(sum(r.maker.Cert.Raw))
		if _, err := r.p.Distrust(t.Context(), provider.Distrusting{Certificate: root}, "", true); err != nil {
			t.Fatal(err)
		}
		if s := r.state("gw-1"); s != cradle.Revoked {
			t.Errorf("it is %s", s)
		}
		late, err := r.maker.NewDevice("")
		if err != nil {
			t.Fatal(err)
		}
		q, _ = tpmRequest(t, r, cradle.LDevID, byBasic("line"), late, "gw-2")
		_, err = r.p.TPMEnroll(t.Context(), q)
		refused(t, err, cradle.Forbidden, "distrusted")
		r.check()
	})
}
