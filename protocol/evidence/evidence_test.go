package evidence_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

var update = flag.Bool("update", false, "rewrite testdata/binding.json")

// vector is one published vector of Binding.ExtraData; bytes are hexadecimal.
type vector struct {
	Comment   string `json:"comment"`
	Challenge string `json:"challenge"`
	Account   string `json:"account"`
	Label     string `json:"label"`
	Secret    string `json:"secret"`
	AuthCert  string `json:"auth_cert"`
	SPKI      string `json:"spki"`
	ExtraData string `json:"extra_data"`
}

func TestBindingVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/binding.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for i, v := range vectors {
		x := evidence.Binding{Challenge: unhex(t, v.Challenge), Account: cradle.AccountID(v.Account), Label: v.Label,
			Secret: unhex(t, v.Secret), AuthCert: unhex(t, v.AuthCert), SPKI: unhex(t, v.SPKI)}.ExtraData()
		got := hex.EncodeToString(x[:])
		if *update {
			vectors[i].ExtraData = got
		} else if got != v.ExtraData {
			t.Errorf("%s: got %s, want %s", v.Comment, got, v.ExtraData)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%q and %q have the same digest", v.Comment, other)
		}
		seen[got] = v.Comment
	}
	if *update {
		out, _ := json.MarshalIndent(vectors, "", "  ")
		if err := os.WriteFile("testdata/binding.json", append(out, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sample() evidence.Bundle {
	return evidence.Bundle{
		Certify:   &evidence.Certify{Attest: []byte("attest"), Signature: []byte("signature"), Public: []byte("public")},
		Challenge: bytes.Repeat([]byte{0xc4}, 300),
		Certs:     [][]byte{{0x30, 0x00}, {0x30, 0x02, 0x05, 0x00}},
	}
}

func TestCSR(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b := sample()
	for name, key := range map[string]crypto.Signer{"P-256": p256, "P-384": p384, "Ed25519": ed, "RSA": rsaKey} {
		for _, bundle := range []*evidence.Bundle{&b, {Challenge: []byte{1}}, nil} {
			der, err := evidence.CreateCSR(pkix.Name{CommonName: "unit-1", SerialNumber: "1"}, key, bundle)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			csr, err := evidence.ParseCSR(der)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !reflect.DeepEqual(csr.Bundle, bundle) {
				t.Errorf("%s: got bundle %+v, want %+v", name, csr.Bundle, bundle)
			}
			if err := csr.Request.CheckSignature(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if csr.Request.Subject.CommonName != "unit-1" {
				t.Errorf("%s: subject %v", name, csr.Request.Subject)
			}
			if spki, _ := x509.MarshalPKIXPublicKey(key.Public()); !bytes.Equal(spki, csr.SPKI) {
				t.Errorf("%s: other SPKI", name)
			}
		}
	}
}

// ParseCSR takes requests of clients that know nothing of evidence.
func TestForeignCSR(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := evidence.ParseCSR(der)
	if err != nil || csr.Bundle != nil {
		t.Errorf("got %+v, %v", csr, err)
	}
}

// restricted signs only what it is given whole, like a restricted TPM key.
type restricted struct{ *ecdsa.PrivateKey }

func (r restricted) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("TPM_RC_TICKET")
}

func (r restricted) SignMessage(rand io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	return crypto.SignMessage(r.PrivateKey, rand, msg, opts)
}

type broken struct{ *ecdsa.PrivateKey }

func (broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte{0x30, 0}, nil }

func TestSigners(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if _, err := evidence.CreateCSR(pkix.Name{}, restricted{key}, nil); err != nil {
		t.Errorf("a restricted key: %v", err)
	}
	if _, err := evidence.CreateCSR(pkix.Name{}, broken{key}, nil); err == nil {
		t.Error("a wrong signature went out")
	}
}

func TestClaimLimits(t *testing.T) {
	big := make([]byte, evidence.MaxCert+1)
	ok := evidence.Claim{EKCert: []byte{1}, AttestationKey: []byte{2}, EKChain: [][]byte{{3}}, Serial: "SN-0001", Order: "order-1"}
	for name, c := range map[string]struct {
		change func(c *evidence.Claim)
		want   string
	}{
		"whole":          {func(*evidence.Claim) {}, ""},
		"empty":          {func(c *evidence.Claim) { *c = evidence.Claim{} }, ""},
		"no AK":          {func(c *evidence.Claim) { c.AttestationKey = nil }, "only one of"},
		"no EK":          {func(c *evidence.Claim) { c.EKCert = nil }, "only one of"},
		"chain alone":    {func(c *evidence.Claim) { c.EKCert, c.AttestationKey = nil, nil }, "without an EK certificate"},
		"big EK":         {func(c *evidence.Claim) { c.EKCert = big }, "at most 8192"},
		"big AK":         {func(c *evidence.Claim) { c.AttestationKey = big }, "at most 2048"},
		"long chain":     {func(c *evidence.Claim) { c.EKChain = make([][]byte, 9) }, "at most 8"},
		"big chain":      {func(c *evidence.Claim) { c.EKChain = [][]byte{big} }, "at most 8192"},
		"empty in chain": {func(c *evidence.Claim) { c.EKChain = [][]byte{{}} }, "is empty"},
		"long serial":    {func(c *evidence.Claim) { c.Serial = strings.Repeat("1", 65) }, "at most 64"},
		"serial":         {func(c *evidence.Claim) { c.Serial = "a b" }, "printable"},
		"order":          {func(c *evidence.Claim) { c.Order = "../x" }, "order"},
	} {
		x := ok
		c.change(&x)
		refused(t, name, x.Check(), c.want)
		if c.want == "" {
			b, _ := json.Marshal(x)
			if got, err := evidence.ParseClaim(b); err != nil || !reflect.DeepEqual(got, x) {
				t.Errorf("%s: got %+v, %v; want %+v", name, got, err, x)
			}
		}
	}
	_, err := evidence.ParseClaim([]byte(`{"ek_cert": 5}`))
	refused(t, "JSON", err, "not the expected JSON")
}

func TestChallengeLimits(t *testing.T) {
	for name, c := range map[string]struct {
		c    evidence.Challenge
		want string
	}{
		"whole":       {evidence.Challenge{Challenge: []byte{1}, CredentialBlob: []byte{2}, EncryptedSecret: []byte{3}}, ""},
		"known IAK":   {evidence.Challenge{Challenge: []byte{1}}, ""},
		"empty":       {evidence.Challenge{}, "challenge is empty"},
		"big":         {evidence.Challenge{Challenge: make([]byte, 8193)}, "at most 8192"},
		"half":        {evidence.Challenge{Challenge: []byte{1}, CredentialBlob: []byte{2}}, "only one of"},
		"big blob":    {evidence.Challenge{Challenge: []byte{1}, CredentialBlob: make([]byte, 1025), EncryptedSecret: []byte{3}}, "at most 1024"},
		"big secrets": {evidence.Challenge{Challenge: []byte{1}, CredentialBlob: []byte{2}, EncryptedSecret: make([]byte, 1025)}, "at most 1024"},
	} {
		refused(t, name, c.c.Check(), c.want)
		if c.want == "" {
			b, _ := json.Marshal(c.c)
			if got, err := evidence.ParseChallenge(b); err != nil || !reflect.DeepEqual(got, c.c) {
				t.Errorf("%s: got %+v, %v", name, got, err)
			}
		}
	}
}

// refused checks that err is cradle.Invalid and says want; no error for "".
func refused(t *testing.T, name string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case want != "" && (err == nil || cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got error %v (%v), want Invalid %q", name, err, cradle.KindOf(err), want)
	}
}
