package provider_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/keys/p11key"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// openssl runs a command of openssl and returns what it printed.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	testenv.Require(t, "openssl")
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// pemFile writes certificates to a file.
func pemFile(t *testing.T, ders ...[]byte) string {
	t.Helper()
	var b []byte
	for _, der := range ders {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	f := filepath.Join(t.TempDir(), "certs.pem")
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// verifies has openssl build and check the path from leaf to root.
func verifies(t *testing.T, leaf *x509.Certificate, root []byte, untrusted ...[]byte) {
	t.Helper()
	args := []string{"verify", "-x509_strict", "-CAfile", pemFile(t, root)}
	if len(untrusted) > 0 {
		args = append(args, "-untrusted", pemFile(t, untrusted...))
	}
	openssl(t, append(args, pemFile(t, leaf.Raw))...)
}

// A device of an account of each kind of CA key goes from birth to renewal, and openssl agrees with each certificate.
func TestKeyAlgorithms(t *testing.T) {
	for _, alg := range keystore.Algorithms {
		t.Run(string(alg), func(t *testing.T) {
			if strings.HasPrefix(string(alg), "rsa") {
				testenv.Long(t)
			}
			r := newRigWith(t, filepath.Join(t.TempDir(), "p.db"), provider.CAs{Key: alg})
			o := r.order(nil)
			u := r.active(o, r.station(o), "SN0001")
			renewed, err := r.renew(u, u.op)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []*x509.Certificate{u.iak, u.idevid, u.ldevid, u.op, renewed} {
				row, err := r.db.Credential(t.Context(), ca.SerialString(c.SerialNumber), ca.Digest(c.Raw))
				if err != nil {
					t.Fatal(err)
				}
				chain := r.p.Chain(row.Cert)
				issuer, err := x509.ParseCertificate(chain[0])
				if err != nil {
					t.Fatal(err)
				}
				if got := keystore.AlgorithmOf(issuer.PublicKey); got != alg {
					t.Errorf("%s: the issuer's key is %q", row.Cert.Profile, got)
				}
				if !ca.Signs(issuer, c) {
					t.Errorf("%s is signed with %v", row.Cert.Profile, c.SignatureAlgorithm)
				}
				verifies(t, c, chain[1], chain[0])
			}
			r.check()
		})
	}
}

// Every issuing key in a PKCS#11 token: a device's life, a restart, and the token away and back.
func TestToken(t *testing.T) {
	hsm := testenv.SoftHSM(t, "cradle")
	keys, err := p11key.Open(hsm.URI(), hsm.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	r := newRigWith(t, filepath.Join(t.TempDir(), "p.db"), provider.CAs{Key: keystore.P384}, keys)
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	_, cas, err := r.p.Account(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range cas {
		if !strings.HasPrefix(a.Key.Ref, "pkcs11:token=cradle;object=acme") || len(a.Key.Sealed) > 0 {
			t.Errorf("the key of the %s CA is at %q", a.Kind, a.Key.Ref)
		}
	}
	r.p = r.replica(r.db) // which finds the keys in the token
	renewed, err := r.renew(u, u.op)
	if err != nil {
		t.Fatal(err)
	}
	row, err := r.db.Credential(t.Context(), ca.SerialString(renewed.SerialNumber), ca.Digest(renewed.Raw))
	if err != nil {
		t.Fatal(err)
	}
	chain := r.p.Chain(row.Cert)
	verifies(t, renewed, chain[1], chain[0])

	restore := hsm.Unplug(t)
	_, err = r.renew(u, renewed)
	refused(t, err, cradle.Busy, "PKCS#11 token cradle")
	restore()
	time.Sleep(1100 * time.Millisecond) // the token is asked once a second
	if _, err := r.renew(u, renewed); err != nil {
		t.Errorf("with the token back: %v", err)
	}
	r.check()
}

func TestKeyAlgorithmsRefused(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	for alg, part := range map[keystore.Algorithm]string{"ed25519": "do not verify", "rsa-2048": "too weak", "ec-p521": "no such kind"} {
		_, err := r.p.CreateAccount(t.Context(), "other", spki(t, newKey(t)), provider.Profiles{}, provider.CAs{Key: alg})
		refused(t, err, cradle.Invalid, part)
	}
}
