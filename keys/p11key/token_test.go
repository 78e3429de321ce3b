//go:build cgo

package p11key_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/keys/p11key"
)

func open(t *testing.T, k *testenv.Token) *p11key.Token {
	t.Helper()
	s, err := p11key.Open(k.URI(), k.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.(*p11key.Token).Close)
	return s.(*p11key.Token)
}

var digest = sha256.Sum256([]byte("to be signed"))

func signs(k crypto.Signer) error {
	sig, err := k.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	switch pub := k.Public().(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, digest[:], sig) {
			return errors.New("the signature does not verify")
		}
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig)
	}
	return nil
}

func TestToken(t *testing.T) {
	hsm := testenv.SoftHSM(t, "cradle-test")
	tok := open(t, hsm)
	for _, alg := range keystore.Algorithms {
		t.Run(string(alg), func(t *testing.T) {
			if alg == keystore.RSA4096 {
				testenv.Long(t)
			}
			k, ref, err := tok.Generate(t.Context(), "acme production root", alg)
			if err != nil {
				t.Fatal(err)
			}
			if got := keystore.AlgorithmOf(k.Public()); got != alg {
				t.Errorf("the key is %q", got)
			}
			if ref.Sealed != nil || strings.Contains(ref.Ref, "module") || strings.Contains(ref.Ref, "pin") {
				t.Errorf("the reference holds more than where the key is: %+v", ref)
			}
			if err := signs(k); err != nil {
				t.Error(err)
			}
			again, err := tok.Open(t.Context(), ref, k.Public()) // two keys of one label are told apart by their id
			if err == nil {
				err = signs(again)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// A key that is not there, or is another than the certificate's, does not sign.
func TestWrongKey(t *testing.T) {
	tok := open(t, testenv.SoftHSM(t, "cradle-test"))
	a, refA, err := tok.Generate(t.Context(), "a", keystore.P256)
	if err != nil {
		t.Fatal(err)
	}
	b, refB, err := tok.Generate(t.Context(), "a", keystore.P256)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ref string
		pub crypto.PublicKey
	}{
		"another certificate's": {refA.Ref, b.Public()},
		"no such id":            {strings.Replace(refB.Ref, "id=%", "id=%00%", 1), a.Public()},
		"no such label":         {strings.Replace(refA.Ref, "object=a", "object=z", 1), a.Public()},
	} {
		k, err := tok.Open(t.Context(), keystore.Key{Ref: c.ref}, c.pub)
		if err == nil {
			err = signs(k)
		}
		if cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tok.Open(t.Context(), keystore.Key{Ref: "pkcs11:token=other;object=a"}, a.Public()); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("a key of another token: %v", err)
	}
}

func TestSessionsArePooled(t *testing.T) {
	tok := open(t, testenv.SoftHSM(t, "cradle-test"))
	k, _, err := tok.Generate(t.Context(), "busy", keystore.P256)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 4 {
				if err := signs(k); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// The token goes away: callers are told to come back, and when it is back the same signer signs again.
func TestTokenGoesAway(t *testing.T) {
	hsm := testenv.SoftHSM(t, "cradle-test")
	tok := open(t, hsm)
	k, _, err := tok.Generate(t.Context(), "k", keystore.P256)
	if err != nil {
		t.Fatal(err)
	}
	tok.Break() // its sessions end, the token stays
	if err := signs(k); err != nil {
		t.Errorf("after the sessions ended: %v", err)
	}
	tok.Break()
	plug := hsm.Unplug(t)
	for range 3 { // the second and third do not ask the module again
		if err := signs(k); cradle.KindOf(err) != cradle.Busy || !strings.Contains(err.Error(), "could not find PKCS#11 token") {
			t.Errorf("without the token: %v", err)
		}
	}
	plug()
	tok.Impatient()
	if err := signs(k); err != nil {
		t.Errorf("with the token back: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	hsm := testenv.SoftHSM(t, "cradle-test")
	wrong := hsm.PINFile + ".wrong"
	if err := os.WriteFile(wrong, []byte("not-the-pin"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ uri, pin, part string }{
		{"pkcs11:token=cradle-test", hsm.PINFile, "names no module"},
		{"pkcs11:?module-path=" + hsm.Module, hsm.PINFile, "must name the token"},
		{hsm.URI(), wrong, "refused the PIN"},
		{hsm.URI(), "", "no PIN"},
		{strings.Replace(hsm.URI(), "cradle-test", "other", 1), hsm.PINFile, "could not find PKCS#11 token"},
		{"pkcs11:token=cradle-test?module-path=/nowhere.so", hsm.PINFile, "failed to open module"},
	} {
		if _, err := p11key.Open(c.uri, c.pin); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: %v, want %q", c.uri, err, c.part)
		}
	}
}
