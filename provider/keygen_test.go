package provider_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
)

// TestServerKeyGen: the key is made here, said to be so, and kept nowhere.
func TestServerKeyGen(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", cradle.Operational))
		if err != nil {
			t.Fatal(err)
		}
		clientKey := newKey(t)
		generate := func(c provider.Client, cn string, strength int) (*provider.GeneratedKey, error) {
			csr := plainCSR(t, cn, clientKey, false)
			csr[len(csr)-1] ^= 1 // its signature does not count (RFC 7030 §4.4.1)
			return r.p.GenerateKey(t.Context(), provider.Request{Endpoint: ep, Client: c, CSR: csr}, strength)
		}
		_, err = generate(byCert(u.ldevid), "", 128)
		refused(t, err, cradle.Forbidden, "no evidence") // the profile demands it
		r.basicUser(cradle.Operational, "line", "")
		_, err = generate(byCert(u.ldevid), "", 128)
		refused(t, err, cradle.Forbidden, "with evidence")
		_, err = generate(byBasic("line"), "gw-1", 64)
		refused(t, err, cradle.Forbidden, "as weak as")

		first, err := generate(byBasic("line"), "gw-1", 128)
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.ParsePKCS8PrivateKey(first.PKCS8)
		if err != nil {
			t.Fatal(err)
		}
		pub := key.(*ecdsa.PrivateKey).Public().(*ecdsa.PublicKey)
		if !pub.Equal(parsed(t, first.DER).PublicKey) || pub.Equal(clientKey.Public()) || !parsed(t, first.DER).Policies[1].Equal(cradle.PolicyKeyNotProved) {
			t.Error("the certificate is not for the key that was made, or does not say that nothing proves it")
		}
		if !bytes.Contains(r.export(), []byte(`\"key\":\"server\"`)) {
			t.Error("the log does not say that the key was made here")
		}
		// A lost answer is lost: the same request gets another key.
		second, err := generate(byBasic("line"), "gw-1", 128)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(first.PKCS8, second.PKCS8) || bytes.Equal(first.DER, second.DER) {
			t.Error("a key was answered again")
		}
		// Both authenticate, since nobody knows which answer arrived, until one is seen in use.
		must[*x509.Certificate](t)(r.plain(cradle.Operational, provider.Reenroll, byCert(parsed(t, second.DER)), reCSR(t, parsed(t, second.DER))))
		r.check()
	})
}

// TestKEK: keys by which generated keys are encrypted belong to an account and are kept sealed.
func TestKEK(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", cradle.Operational))
		if err != nil {
			t.Fatal(err)
		}
		id, key := []byte("shared-1"), bytes.Repeat([]byte{7}, 32)
		_, err = r.p.DecryptKey(t.Context(), ep, id)
		refused(t, err, cradle.NotFound, "no key-encryption key")
		refused(t, r.p.SetKEK(t.Context(), "acme", id, key[:5]), cradle.Invalid, "5 bytes")
		refused(t, r.p.SetKEK(t.Context(), "acme", nil, key), cradle.Invalid, "identifier")
		if err := r.p.SetKEK(t.Context(), "acme", id, key); err != nil {
			t.Fatal(err)
		}
		got, err := r.p.DecryptKey(t.Context(), ep, id)
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("got %x, %v", got, err)
		}
		stored, err := r.db.KEK(context.Background(), "acme", "7368617265642d31")
		if err != nil || bytes.Contains(stored, key) {
			t.Errorf("stored as %x, %v", stored, err)
		}
		other := ep
		other.Account = "other"
		_, err = r.p.DecryptKey(t.Context(), other, id)
		refused(t, err, cradle.NotFound, "no key-encryption key")
		if err := r.p.SetKEK(t.Context(), "acme", id, nil); err != nil {
			t.Fatal(err)
		}
		_, err = r.p.DecryptKey(t.Context(), ep, id)
		refused(t, err, cradle.NotFound, "no key-encryption key")
		if chain, signer := r.p.KeyGenerator(); signer == nil || chain[0].CheckSignatureFrom(r.p.Services()) != nil {
			t.Error("the key generator has no certificate of the services CA")
		}
	})
}
