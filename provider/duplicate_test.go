package provider_test

import (
	"crypto/ecdsa"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// A public key is certified for one device of the installation: a cloned virtual TPM, a key burnt into an image, or a
// generator without entropy shows by it.
func TestDuplicateKey(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		a, b := r.active(o, station, "SN0001"), r.active(o, station, "SN0002")
		if _, err := r.p.CreateAccount(t.Context(), "other", spki(t, newKey(t)), nil, provider.CAs{}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.p.SetBasicUser(t.Context(), provider.BasicUser{Account: "other", Profile: cradle.Operational, Name: "u"}, password); err != nil {
			t.Fatal(err)
		}
		r.basicUser(cradle.Operational, "u", "")
		k, err := a.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		basic := provider.Client{Basic: &provider.Basic{User: "u", Password: password}}
		enrol := func(u *unit, p cradle.Profile, k *softkey.Key) error {
			peer := u.ldevid
			if p == cradle.LDevID {
				peer = u.idevid
			}
			_, err := r.enroll(u, attempt{profile: p, peer: peer, key: k})
			return err
		}
		plain := func(account cradle.AccountID, name string, key *ecdsa.PrivateKey) error {
			ep, err := r.p.Endpoint(t.Context(), cradle.Label(account, cradle.Operational))
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Enroll, Client: basic, CSR: plainCSR(t, name, key, false)})
			return err
		}
		for _, c := range []struct {
			name    string
			ask     func() error
			allowed bool
		}{
			{"a fresh key", func() error { return enrol(a, cradle.Operational, k) }, true},
			{"the same key of the same device", func() error { return enrol(a, cradle.Operational, k) }, true},
			{"the same key of the same device under another profile", func() error { return enrol(a, cradle.LDevID, k) }, true},
			{"the same key of another device", func() error { return enrol(b, cradle.Operational, k) }, false},
			{"the same key of another device, without evidence", func() error { return plain("acme", "c", k.Private) }, false},
			{"the same key in another account", func() error { return plain("other", "c", k.Private) }, false},
			{"the same name in another account", func() error { return plain("other", "acme-sn0001", k.Private) }, false},
			{"the other device with a key of its own", func() error { k2, _ := b.NewOperational(); return enrol(b, cradle.Operational, k2) }, true},
			{"the first device once more", func() error { return enrol(a, cradle.Operational, k) }, true},
		} {
			t.Run(c.name, func(t *testing.T) {
				err := c.ask()
				if c.allowed {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				refused(t, err, cradle.Forbidden, "belongs to another device")
			})
		}

		for name, other := range map[string]*provider.Provider{"two devices at once": r.p, "two devices at once, of two replicas": r.replica(r.db)} {
			t.Run(name, func(t *testing.T) {
				k, err := a.NewOperational()
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				var errs [2]error
				for i, u := range []*unit{a, b} {
					p := []*provider.Provider{r.p, other}[i]
					req, err := r.request(p, u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
					if err != nil {
						t.Fatal(err)
					}
					wg.Go(func() { _, errs[i] = p.Enroll(t.Context(), req) })
				}
				wg.Wait()
				if (errs[0] == nil) == (errs[1] == nil) {
					t.Errorf("%v and %v; one of them must be refused", errs[0], errs[1])
				}
			})
		}
		r.check()
	})
}

// A CSR by an issuing key is refused, whoever asks.
func TestIssuingKeyIsNotCertified(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	r.basicUser(cradle.Operational, "u", "")
	client := provider.Client{Basic: &provider.Basic{User: "u", Password: password}}
	for _, k := range []provider.AuthorityKind{provider.RootCA, provider.OperationalCA} {
		key := provider.IssuingKey(r.p, ca.Digest(r.ca(k).Raw))
		_, err := r.plain(cradle.Operational, provider.Enroll, client, plainCSR(t, "d", key, false))
		refused(t, err, cradle.Invalid, "issuing key of this installation")
	}
}
