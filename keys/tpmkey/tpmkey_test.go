package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmio"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

var ekTypes = []tpmmaker.EKType{tpmmaker.P256, tpmmaker.P384, tpmmaker.RSA2048}

// newTPM starts a manufactured TPM.
func newTPM(t testing.TB, o tpmmaker.Options) (*swtpm.TPM, *tpmmaker.Unit) {
	t.Helper()
	testenv.Require(t, "swtpm")
	maker, err := tpmmaker.NewMaker(filepath.Join(t.TempDir(), "maker"))
	if err != nil {
		t.Fatal(err)
	}
	soft, err := swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { soft.Stop() })
	unit, err := maker.Manufacture(t.Context(), soft.Socket(), o)
	if err != nil {
		t.Fatal(err)
	}
	return soft, unit
}

func open(t testing.TB, soft *swtpm.TPM) *tpmkey.TPM {
	t.Helper()
	tpm, err := tpmkey.Open(t.Context(), soft.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

// raw runs fn on a connection of its own, as another program would.
func raw(t testing.TB, soft *swtpm.TPM, fn func(tpm transport.TPM)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := tpmio.Open(ctx, soft.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fn(conn.With(ctx))
}

// must returns v; an error ends the test.
func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t *testing.T, what string, err error, kind cradle.Kind) {
	t.Helper()
	var told *cradle.Error
	if !errors.As(err, &told) || told.Kind != kind {
		t.Errorf("%s: got %v, want an error of kind %v", what, err, kind)
	} else if told.Hint == "" {
		t.Errorf("%s: %v has no hint", what, err)
	}
}

// signs checks that a key signs for its public key.
func signs(t testing.TB, key crypto.Signer) {
	t.Helper()
	msg := []byte("a message")
	sig, err := crypto.SignMessage(key, rand.Reader, msg, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(msg)
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("the signature does not verify")
	}
}

func TestKeys(t *testing.T) {
	for _, kind := range ekTypes {
		t.Run(string(kind), func(t *testing.T) {
			soft, unit := newTPM(t, tpmmaker.Options{EKType: kind})
			tpm := open(t, soft)
			ctx := t.Context()

			ek := must[tpmkey.EKInfo](t)(tpm.EKCertificate(ctx))
			if ek.Type != string(kind) || !bytes.Equal(ek.Cert, unit.EKCert) || len(ek.Chain) != 1 {
				t.Errorf("EK certificate of type %q, %d bytes, chain of %d", ek.Type, len(ek.Cert), len(ek.Chain))
			}
			iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(ctx))
			idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(ctx))
			ldevid := must[*tpmkey.Key](t)(tpm.EnsureLDevID(ctx))
			first := must[*tpmkey.Key](t)(tpm.LoadKey(ctx, must[[]byte](t)(tpm.CreateKey(ctx))))
			second := must[*tpmkey.Key](t)(tpm.LoadKey(ctx, must[[]byte](t)(tpm.CreateKey(ctx))))
			// More keys than slots, in turn.
			for range 3 {
				for _, key := range []crypto.Signer{iak.Signer(), idevid, ldevid, first, second} {
					signs(t, key)
				}
			}
			for name, key := range map[string]*tpmkey.Key{"IAK": iak.Key(), "IDevID": idevid, "LDevID": ldevid, "operational": first} {
				t.Run("certify "+name, func(t *testing.T) { checkCertify(t, tpm, iak, key) })
			}
			checkActivate(t, tpm, ek, iak)
		})
	}
}

// checkCertify certifies key and verifies the outcome as a verifier would.
func checkCertify(t *testing.T, tpm *tpmkey.TPM, iak *tpmkey.AttestationKey, key *tpmkey.Key) {
	extra := sha256.Sum256([]byte("extra"))
	c := must[evidence.Certify](t)(tpm.Certify(t.Context(), key, extra[:]))
	attest := must[*tpm2.TPMSAttest](t)(tpm2.Unmarshal[tpm2.TPMSAttest](c.Attest))
	if attest.Magic != tpm2.TPMGeneratedValue || attest.Type != tpm2.TPMSTAttestCertify {
		t.Errorf("attest magic %x, type %x", attest.Magic, attest.Type)
	}
	if !bytes.Equal(attest.ExtraData.Buffer, extra[:]) {
		t.Errorf("extra data %x", attest.ExtraData.Buffer)
	}
	public := must[*tpm2.TPMTPublic](t)(tpm2.Unmarshal[tpm2.TPMTPublic](c.Public))
	name := must[*tpm2.TPM2BName](t)(tpm2.ObjectName(public))
	info := must[*tpm2.TPMSCertifyInfo](t)(attest.Attested.Certify())
	if !bytes.Equal(info.Name.Buffer, name.Buffer) {
		t.Error("another key was certified")
	}
	if pub := must[crypto.PublicKey](t)(tpm2.Pub(*public)); !key.Public().(*ecdsa.PublicKey).Equal(pub) {
		t.Error("public area and key differ")
	}
	signature := must[*tpm2.TPMTSignature](t)(tpm2.Unmarshal[tpm2.TPMTSignature](c.Signature))
	sig := must[*tpm2.TPMSSignatureECC](t)(signature.Signature.ECDSA())
	digest := sha256.Sum256(c.Attest)
	der := must[[]byte](t)(marshalSignature(sig))
	if !ecdsa.VerifyASN1(iak.Key().Public().(*ecdsa.PublicKey), digest[:], der) {
		t.Error("the statement's signature does not verify")
	}
}

func checkActivate(t *testing.T, tpm *tpmkey.TPM, ek tpmkey.EKInfo, iak *tpmkey.AttestationKey) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	blob, encrypted := makeCredential(t, ek, iak.Public(), secret)
	got, err := tpm.Activate(t.Context(), blob, encrypted)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, secret) {
		t.Errorf("activated %x", got)
	}
	// For another attestation key: the TPM does not open it.
	other := must[*tpm2.TPMTPublic](t)(tpm2.Unmarshal[tpm2.TPMTPublic](iak.Public()))
	other.ObjectAttributes.Restricted = false
	blob, encrypted = makeCredential(t, ek, tpm2.Marshal(*other), secret)
	_, err = tpm.Activate(t.Context(), blob, encrypted)
	wantKind(t, "a credential for another key", err, cradle.Invalid)
	_, err = tpm.Activate(t.Context(), []byte("no"), []byte("thing"))
	wantKind(t, "no credential", err, cradle.Invalid)
	signs(t, iak.Signer()) // and nothing is left behind
}

// makeCredential is the server's part, from the certificate alone.
func makeCredential(t *testing.T, ek tpmkey.EKInfo, attestationKey, secret []byte) (blob, encrypted []byte) {
	t.Helper()
	cert := must[*x509.Certificate](t)(x509.ParseCertificate(ek.Cert))
	public := ekPublic(t, ek.Type, cert.PublicKey)
	key := must[tpm2.LabeledEncapsulationKey](t)(tpm2.ImportEncapsulationKey(&public))
	iak := must[*tpm2.TPMTPublic](t)(tpm2.Unmarshal[tpm2.TPMTPublic](attestationKey))
	name := must[*tpm2.TPM2BName](t)(tpm2.ObjectName(iak))
	blob, encrypted, err := tpm2.CreateCredential(rand.Reader, key, name.Buffer, secret)
	if err != nil {
		t.Fatal(err)
	}
	return blob, encrypted
}

// The IAK signs a CSR, which is hashed in the TPM, but nothing that looks like a statement of the TPM.
func TestIAKSignsMessages(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
	long := make([]byte, 5000)
	for _, size := range []int{4, 1023, 1024, 1025, 2048, 5000} {
		sig := must[[]byte](t)(crypto.SignMessage(iak.Signer(), nil, long[:size], crypto.SHA256))
		digest := sha256.Sum256(long[:size])
		if !ecdsa.VerifyASN1(iak.Signer().Public().(*ecdsa.PublicKey), digest[:], sig) {
			t.Errorf("signature over %d bytes does not verify", size)
		}
	}
	csr := must[[]byte](t)(evidence.CreateCSR(pkix.Name{CommonName: "unit-1"}, iak.Signer(), nil))
	if err := must[*x509.CertificateRequest](t)(x509.ParseCertificateRequest(csr)).CheckSignature(); err != nil {
		t.Error(err)
	}
	forged := append([]byte{0xff, 'T', 'C', 'G'}, long[:100]...)
	if _, err := crypto.SignMessage(iak.Signer(), nil, forged, crypto.SHA256); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("signing a forged statement: %v", err)
	}
	digest := sha256.Sum256(long)
	if _, err := iak.Signer().Sign(nil, digest[:], crypto.SHA256); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("signing a digest: %v", err)
	}
	signs(t, iak.Signer())
}

func TestMissingEKCertificate(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{Fault: tpmmaker.NoCertificate})
	tpm := open(t, soft)
	_, err := tpm.EKCertificate(t.Context())
	wantKind(t, "EK certificate of a TPM without", err, cradle.NotFound)
	_, err = tpm.EnsureIAK(t.Context())
	wantKind(t, "IAK of a TPM without EK certificate", err, cradle.NotFound)
}

// No session is made with a key that the certificate does not vouch for.
func TestForeignEKCertificate(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{Fault: tpmmaker.ForeignKey})
	tpm := open(t, soft)
	_, err := tpm.EnsureIDevID(t.Context())
	wantKind(t, "IDevID key of a TPM with another one's EK certificate", err, cradle.Conflict)
}

func TestUseEK(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{EKType: tpmmaker.P256})
	maker := must[*tpmmaker.Maker](t)(tpmmaker.NewMaker(t.TempDir()))
	// The same TPM with a second certificate; its maker stored one chain only.
	must[*tpmmaker.Unit](t)(maker.Manufacture(t.Context(), soft.Socket(), tpmmaker.Options{EKType: tpmmaker.RSA2048, Fault: tpmmaker.NoChain}))
	tpm := open(t, soft)
	iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
	for _, kind := range []string{"rsa2048", "p256"} {
		ek := must[tpmkey.EKInfo](t)(tpm.UseEK(t.Context(), kind))
		if ek.Type != kind {
			t.Errorf("asked for %s, got %s", kind, ek.Type)
		}
		checkActivate(t, tpm, ek, iak)
	}
	if ek := must[tpmkey.EKInfo](t)(tpm.UseEK(t.Context(), "rsa2048", "p256")); ek.Type != "p256" {
		t.Errorf("the best of two is %s", ek.Type)
	}
	_, err := tpm.UseEK(t.Context(), "p384")
	wantKind(t, "an EK type that the TPM has not", err, cradle.NotFound)
}

func TestBlobs(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	tpm := open(t, soft)
	blob := must[[]byte](t)(tpm.CreateKey(t.Context()))
	for name, bad := range map[string][]byte{
		"empty": nil, "cut": blob[:len(blob)-1], "half": blob[:len(blob)/2], "longer": append(bytes.Clone(blob), 0), "zeros": make([]byte, 300),
	} {
		if _, err := tpm.LoadKey(t.Context(), bad); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s blob: %v", name, err)
		}
	}
	other, _ := newTPM(t, tpmmaker.Options{})
	_, err := open(t, other).LoadKey(t.Context(), blob)
	wantKind(t, "blob of another TPM", err, cradle.Conflict)
}
