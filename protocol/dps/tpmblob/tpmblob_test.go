package tpmblob_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

func newTPM(t *testing.T, ek, srk *tpm2.TPMTPublic) *provisioningtest.TPM {
	t.Helper()
	testenv.Require(t, "swtpm")
	tpm, err := swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tpm.Kill)
	return provisioningtest.OpenTPM(t, tpm.Socket(), ek, srk)
}

func parse(t *testing.T, what string, b []byte) *tpmblob.Public {
	t.Helper()
	p, err := tpmblob.Parse(what, b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A TPM takes the key in, and signs with it; another TPM, and a TPM with another storage root key, do not.
func TestRealTPM(t *testing.T) {
	eccSRK := tpm2.ECCSRKTemplate
	for _, c := range []struct {
		name    string
		ek, srk *tpm2.TPMTPublic
	}{{"RSA, as Microsoft's clients have", nil, nil}, {"P-256", &tpm2.ECCEKTemplate, &eccSRK}} {
		t.Run(c.name, func(t *testing.T) {
			tpm := newTPM(t, c.ek, c.srk)
			ek, srk := parse(t, "endorsement key", tpm.EK), parse(t, "storage root key", tpm.SRK)
			key := make([]byte, tpmblob.KeySize)
			rand.Read(key)
			blob, err := tpmblob.Make(ek, srk, key)
			if err != nil {
				t.Fatal(err)
			}
			if err := tpm.Activate(blob); err != nil {
				t.Fatal(err)
			}
			want := hmac.New(sha256.New, key)
			want.Write([]byte("hello"))
			if !bytes.Equal(tpm.HMAC([]byte("hello")), want.Sum(nil)) {
				t.Error("the TPM signs with another key")
			}
			for i := range blob {
				if i%97 == 40 { // one bit anywhere but in the empty last part
					b := bytes.Clone(blob)
					b[i] ^= 1
					if tpm.Activate(b) == nil && i < len(blob)-2 {
						t.Errorf("a blob with a flipped bit at %d was taken in", i)
					}
				}
			}
			if c.ek != nil {
				return
			}
			other := newTPM(t, nil, nil)
			if err := other.Activate(blob); err == nil {
				t.Error("another TPM took the key in")
			}
			// The right endorsement key does not help with a storage root key that the TPM does not hold.
			foreign, err := tpmblob.Make(ek, parse(t, "storage root key", other.SRK), key)
			if err != nil {
				t.Fatal(err)
			}
			if err := tpm.Activate(foreign); err == nil || !strings.Contains(err.Error(), "INTEGRITY") {
				t.Errorf("a key for another storage root key: %v", err)
			}
		})
	}
}

// areaOf is a valid public area that a case may spoil.
func areaOf(change func(*tpm2.TPMTPublic)) []byte {
	a := tpm2.RSASRKTemplate
	n := bytes.Repeat([]byte{0xc5}, 256)
	a.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: n})
	if change != nil {
		change(&a)
	}
	return tpm2.Marshal(tpm2.New2B(a))
}

func TestParseRefuses(t *testing.T) {
	good := areaOf(nil)
	if p, err := tpmblob.Parse("key", good); err != nil || p.Type() != "rsa2048" && p.Type() != "p256" {
		t.Fatal(err)
	}
	rsa := func(change func(*tpm2.TPMSRSAParms)) []byte {
		return areaOf(func(a *tpm2.TPMTPublic) {
			p, _ := a.Parameters.RSADetail()
			q := *p
			change(&q)
			a.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &q)
		})
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "no TPM2B_PUBLIC"},
		{"cut", good[:len(good)-1], "no TPM2B_PUBLIC"},
		{"too long", append(bytes.Clone(good), make([]byte, 2000)...), "no TPM2B_PUBLIC"},
		{"without its size", good[2:], "no TPM2B_PUBLIC"},
		{"more behind", resize(append(bytes.Clone(good), 0)), "followed by more bytes"},
		{"not fixed to the TPM", areaOf(func(a *tpm2.TPMTPublic) { a.ObjectAttributes.FixedTPM = false }), "attributes"},
		{"may be duplicated", areaOf(func(a *tpm2.TPMTPublic) { a.ObjectAttributes.FixedParent = false }), "attributes"},
		{"made outside", areaOf(func(a *tpm2.TPMTPublic) { a.ObjectAttributes.SensitiveDataOrigin = false }), "attributes"},
		{"not restricted", areaOf(func(a *tpm2.TPMTPublic) { a.ObjectAttributes.Restricted = false }), "attributes"},
		{"signs", areaOf(func(a *tpm2.TPMTPublic) { a.ObjectAttributes.SignEncrypt = true }), "attributes"},
		{"name algorithm", areaOf(func(a *tpm2.TPMTPublic) { a.NameAlg = tpm2.TPMAlgSHA1 }), "name algorithm"},
		{"AES-256", rsa(func(p *tpm2.TPMSRSAParms) {
			p.Symmetric.KeyBits = tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256))
		}), "AES-128-CFB"},
		{"short modulus", areaOf(func(a *tpm2.TPMTPublic) {
			a.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xc5}, 128)})
		}), "1024 bits"},
		{"even modulus", areaOf(func(a *tpm2.TPMTPublic) {
			a.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xc4}, 256)})
		}), "not supported"},
		{"keyed hash", tpm2.Marshal(tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.RSASRKTemplate.ObjectAttributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
			Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{})})), "neither RSA nor ECC"},
	} {
		_, err := tpmblob.Parse("the key", c.b)
		if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func resize(b []byte) []byte {
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return b
}

// What parses is what was read, byte by byte, and a key can be wrapped for it.
func FuzzParse(f *testing.F) {
	f.Add(areaOf(nil))
	f.Add(tpm2.Marshal(tpm2.New2B(tpm2.ECCSRKTemplate)))
	f.Add([]byte{0, 4, 0, 1, 0, 11})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := tpmblob.Parse("key", b)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("error without its kind: %v", err)
			}
			return
		}
		q, err := tpmblob.Parse("key", bytes.Clone(b))
		if err != nil || !p.Equal(q) || p.Digest() != q.Digest() {
			t.Fatalf("read twice: %v", err)
		}
		blob, err := tpmblob.Make(p, p, make([]byte, tpmblob.KeySize))
		if err != nil {
			t.Fatal(err)
		}
		if parts, err := tpmblob.Parts(blob); err != nil || len(parts) != 6 {
			t.Fatalf("parts: %v", err)
		}
	})
}
