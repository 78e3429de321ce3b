package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"io"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// countedKey is a signer from outside; spoil bends what it answers.
type countedKey struct {
	crypto.Signer
	spoil func(sig []byte)
}

func (k *countedKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.Signer.Sign(r, digest, opts)
	if k.spoil != nil {
		k.spoil(sig)
	}
	return sig, err
}

func issueBy(t *testing.T, iss *ca.Issuer) error {
	t.Helper()
	c, err := ca.Issue(iss, ca.NewPermit("i", ca.NewSerial()), leaf(t, key(t, elliptic.P256()).Public()))
	if err == nil && !ca.Signs(iss.Cert, c) {
		t.Log("a certificate with a wrong signature")
		return errWrong
	}
	return err
}

var errWrong = cradle.Errorf(cradle.Internal, "a wrong signature was given out")

// What comes from outside is verified each time, however long the signer was right.
func TestForeignSignerIsAlwaysVerified(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	k := &countedKey{Signer: iss.Key}
	if iss.Key = ca.Proved(k); iss.Key != crypto.Signer(k) {
		t.Fatalf("a %T became a %T", k, iss.Key)
	}
	for range ca.ProvedEvery + 1 {
		if err := issueBy(t, iss); err != nil {
			t.Fatal(err)
		}
	}
	k.spoil = func(sig []byte) { sig[len(sig)-1] ^= 1 }
	for range 3 {
		if err := issueBy(t, iss); err == nil || !strings.Contains(err.Error(), "made a wrong signature") {
			t.Fatalf("got %v", err)
		}
	}
}

// A key that is another than its certificate's signs nothing, proved or not.
func TestIssuersKeyIsItsCertificates(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	for _, k := range []crypto.Signer{key(t, elliptic.P256()), ca.Proved(key(t, elliptic.P256())), key(t, elliptic.P384())} {
		iss.Key = k
		if err := issueBy(t, iss); err == nil || !strings.Contains(err.Error(), "is not its certificate's") {
			t.Errorf("got %v", err)
		}
	}
}

// damage changes the private half of a key in memory and leaves the public one.
func damage(t *testing.T, k *ecdsa.PrivateKey) {
	pub := k.PublicKey
	*k = *key(t, elliptic.P256())
	k.PublicKey = pub
}

// TestProvedKey: the first signature is verified, then one of ProvedEvery. A key that turns wrong is found within
// these, gives out none that was found wrong, and is verified each time from then on.
func TestProvedKey(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	k := iss.Key.(*ecdsa.PrivateKey)
	good := *k
	damage(t, k)
	iss.Key = ca.Proved(k)
	for range 3 {
		if err := issueBy(t, iss); err == nil || err == errWrong {
			t.Fatalf("the first signature of a wrong key: %v", err)
		}
	}
	*k = good
	for i := range ca.ProvedEvery {
		if err := issueBy(t, iss); err != nil {
			t.Fatalf("signature %d: %v", i, err)
		}
	}
	damage(t, k) // the next is due
	for range 3 {
		if err := issueBy(t, iss); err == nil || err == errWrong {
			t.Fatalf("a signature that was due: %v", err)
		}
	}
	*k = good
	if err := issueBy(t, iss); err != nil {
		t.Fatal(err)
	}
	damage(t, k)
	passed := 0
	for ; issueBy(t, iss) == errWrong; passed++ {
	}
	if passed != ca.ProvedEvery-1 {
		t.Errorf("%d wrong signatures before one was found; want %d", passed, ca.ProvedEvery-1)
	}
	if err := issueBy(t, iss); err == nil || err == errWrong {
		t.Errorf("the one after it: %v", err)
	}
}
