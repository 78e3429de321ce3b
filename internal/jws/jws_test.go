package jws_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/cradle-iot/cradle/internal/jws"
)

// What we write is plain JOSE: another reader verifies each signature over the same payload.
func TestPlainJOSE(t *testing.T) {
	var keys []*ecdsa.PrivateKey
	for range 2 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	doc, err := jws.Sign([]byte("payload"), "one", keys[0])
	if err != nil {
		t.Fatal(err)
	}
	if doc, err = jws.Add(doc, "two", keys[1]); err != nil {
		t.Fatal(err)
	}
	o, err := jose.ParseSignedJSON(string(doc), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		n, sig, payload, err := o.VerifyMulti(&k.PublicKey)
		if err != nil || n != i || string(payload) != "payload" || sig.Protected.KeyID != jws.KeyID(&k.PublicKey) {
			t.Errorf("signature %d: %d %q %+v %v", i, n, payload, sig.Protected, err)
		}
	}
	// The flattened serialization is another form, which we do not take.
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: keys[0]}, (&jose.SignerOptions{}).WithType("one").WithHeader("kid", jws.KeyID(&keys[0].PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	flat, err := s.Sign([]byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jws.Verify([]byte(flat.FullSerialize()), true, jws.Party{Name: "one", Type: "one", Key: &keys[0].PublicKey}); err == nil {
		t.Error("flattened serialization was accepted")
	}
}
