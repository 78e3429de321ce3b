package cms_test

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
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// identity is a key with a self-signed certificate.
type identity struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newIdentity(t testing.TB, key crypto.Signer, ski []byte) identity {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: fmt.Sprintf("%T", key)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: ski, BasicConstraintsValid: true, IsCA: ski != nil}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return identity{c, key}
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var rsaKey = func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}()

var content = []byte("the key package, or something of that kind")

// recipients is every kind of recipient with the key that opens it.
func recipients(t testing.TB) map[string]struct {
	to  cms.Recipient
	key cms.Key
	id  identity
} {
	type r = struct {
		to  cms.Recipient
		key cms.Key
		id  identity
	}
	out := map[string]r{}
	for name, ski := range map[string][]byte{"by key identifier": {1, 2, 3, 4}, "by issuer and serial": nil} {
		id := newIdentity(t, rsaKey, ski)
		out["RSA "+name] = r{cms.KeyTrans{Cert: id.cert}, cms.RSAKey{Cert: id.cert, Key: rsaKey}, id}
		out["OAEP "+name] = r{cms.KeyTrans{Cert: id.cert, OAEP: true}, cms.RSAKey{Cert: id.cert, Key: rsaKey}, id}
		for curve, wrap := range map[elliptic.Curve]asn1.ObjectIdentifier{elliptic.P256(): cms.OIDAES128Wrap, elliptic.P384(): cms.OIDAES256Wrap, elliptic.P521(): cms.OIDAES192Wrap} {
			k := ecKey(t, curve)
			id := newIdentity(t, k, ski)
			dh, err := k.ECDH()
			if err != nil {
				t.Fatal(err)
			}
			out[curve.Params().Name+" "+name] = r{cms.KeyAgree{Cert: id.cert, Wrap: wrap}, cms.ECKey{Cert: id.cert, Key: dh}, id}
		}
	}
	for _, n := range []int{16, 24, 32} {
		k := cms.KEK{ID: []byte("shared-1"), Key: bytes.Repeat([]byte{7}, n)}
		out[fmt.Sprintf("KEK of %d", n)] = r{k, k, identity{}}
	}
	return out
}

func TestEnvelopedData(t *testing.T) {
	all := recipients(t)
	for name, r := range all {
		for _, cbc := range []asn1.ObjectIdentifier{cms.OIDAES128CBC, cms.OIDAES192CBC, cms.OIDAES256CBC} {
			for _, n := range []int{0, 1, 15, 16, 42} {
				der, err := cms.Encrypt(cms.OIDSignedData, content[:n], cbc, r.to)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				typ, got, err := cms.Decrypt(der, r.key)
				if err != nil || !typ.Equal(cms.OIDSignedData) || !bytes.Equal(got, content[:n]) {
					t.Errorf("%s: %v %q, %v", name, typ, got, err)
				}
			}
		}
		der, err := cms.Encrypt(cms.OIDData, content, cms.OIDAES256CBC, r.to)
		if err != nil {
			t.Fatal(err)
		}
		for other, o := range all {
			if _, got, err := cms.Decrypt(der, o.key); other != name && err == nil && !bytes.Equal(got, content) {
				t.Errorf("%s opened by %s: %q", name, other, got)
			} else if err != nil && cradle.KindOf(err) != cradle.Invalid {
				t.Errorf("%s with %s: %v", name, other, err)
			}
		}
	}
	for name, bad := range map[string]cms.Recipient{
		"KEK of 20":     cms.KEK{ID: []byte("x"), Key: make([]byte, 20)},
		"RSA for EC":    cms.KeyTrans{Cert: all["P-256 by key identifier"].id.cert},
		"EC for RSA":    cms.KeyAgree{Cert: all["RSA by key identifier"].id.cert, Wrap: cms.OIDAES128Wrap},
		"wrap is a CBC": cms.KeyAgree{Cert: all["P-256 by key identifier"].id.cert, Wrap: cms.OIDAES128CBC},
	} {
		if _, err := cms.Encrypt(cms.OIDData, content, cms.OIDAES256CBC, bad); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cms.Encrypt(cms.OIDData, content, cms.OIDAES128Wrap, cms.KEK{Key: make([]byte, 16)}); err == nil {
		t.Error("a key wrap as cipher")
	}
}

// RFC 3394 §4.1 to §4.6.
func TestKeyWrapVectors(t *testing.T) {
	kek := unhex(t, "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
	data := unhex(t, "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
	for _, v := range []struct {
		kek, data int
		want      string
	}{
		{16, 16, "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5"},
		{24, 16, "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D"},
		{32, 16, "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"},
		{24, 24, "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2"},
		{32, 24, "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1"},
		{32, 32, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"},
	} {
		got, err := cms.WrapKey(kek[:v.kek], data[:v.data])
		if err != nil || !bytes.Equal(got, unhex(t, v.want)) {
			t.Errorf("%d under %d: %X, %v", v.data, v.kek, got, err)
		}
		back, err := cms.UnwrapKey(kek[:v.kek], got)
		if err != nil || !bytes.Equal(back, data[:v.data]) {
			t.Errorf("%d under %d: back %X, %v", v.data, v.kek, back, err)
		}
		got[3] ^= 1
		if _, err := cms.UnwrapKey(kek[:v.kek], got); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("altered: %v", err)
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func signers(t testing.TB) map[string]identity {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]identity{
		"P-256": newIdentity(t, ecKey(t, elliptic.P256()), nil), "P-384": newIdentity(t, ecKey(t, elliptic.P384()), nil),
		"RSA": newIdentity(t, rsaKey, nil), "Ed25519": newIdentity(t, ed, nil),
	}
}

func TestSignedData(t *testing.T) {
	other := newIdentity(t, ecKey(t, elliptic.P256()), nil)
	for name, s := range signers(t) {
		der, err := cms.Sign(cms.OIDKeyPackage, content, []*x509.Certificate{s.cert, other.cert}, s.key, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		got, chain, err := cms.Verify(der, cms.OIDKeyPackage)
		if err != nil || !bytes.Equal(got, content) || len(chain) != 2 || !chain[0].Equal(s.cert) {
			t.Errorf("%s: %q, %d certificates, %v", name, got, len(chain), err)
		}
		if _, _, err := cms.Verify(der, cms.OIDData); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s as data: %v", name, err)
		}
		for what, old := range map[string][]byte{"content": content[:8], "digest or signature": der[len(der)-20 : len(der)-10]} {
			changed := slices.Clone(old)
			changed[0] ^= 1
			if _, _, err := cms.Verify(bytes.Replace(der, old, changed, 1), cms.OIDKeyPackage); cradle.KindOf(err) != cradle.Invalid {
				t.Errorf("%s with altered %s: %v", name, what, err)
			}
		}
		// Signed by a key that is not that certificate's.
		forged, err := cms.Sign(cms.OIDKeyPackage, content, []*x509.Certificate{other.cert}, s.key, time.Now())
		if err == nil {
			if _, _, err = cms.Verify(forged, cms.OIDKeyPackage); err == nil {
				t.Errorf("%s: another's certificate", name)
			}
		}
	}
}

func TestEncryptedData(t *testing.T) {
	for _, n := range []int{16, 32} {
		key := bytes.Repeat([]byte{9}, n)
		der, err := cms.EncryptData(content, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := cms.DecryptData(der, key); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d: %q, %v", n, got, err)
		}
		key[0]++
		if _, err := cms.DecryptData(der, key); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("another key: %v", err)
		}
	}
	if _, err := cms.EncryptData(content, make([]byte, 24)); err == nil {
		t.Error("a key of 24 bytes")
	}
}

// sh runs openssl in a folder with the named files.
func sh(t *testing.T, dir, script string) []byte {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.Bytes())
	}
	return out
}

func (id identity) write(t *testing.T, dir string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: id.cert.Raw}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What we encrypt openssl decrypts, and the other way round, for every kind of recipient.
func TestEnvelopedDataOpenSSL(t *testing.T) {
	testenv.Require(t, "openssl")
	for name, r := range recipients(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var open, seal string
			if k, ok := r.to.(cms.KEK); ok {
				arg := fmt.Sprintf("-secretkey %x -secretkeyid %x", k.Key, k.ID)
				open, seal = arg, arg
			} else {
				r.id.write(t, dir)
				open, seal = "-recip cert.pem -inkey key.pem", "-recip cert.pem"
				if r.id.cert.SubjectKeyId != nil {
					seal = "-keyid " + seal
				}
				switch to := r.to.(type) {
				case cms.KeyAgree:
					seal += " -keyopt ecdh_kdf_md:sha256"
				case cms.KeyTrans:
					if to.OAEP {
						seal += " -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256 -keyopt rsa_mgf1_md:sha256"
					}
				}
			}
			for _, c := range []struct {
				name string
				oid  asn1.ObjectIdentifier
			}{{"aes-128-cbc", cms.OIDAES128CBC}, {"aes-256-cbc", cms.OIDAES256CBC}} {
				der, err := cms.Encrypt(cms.OIDData, content, c.oid, r.to)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "ours.der"), der, 0o600); err != nil {
					t.Fatal(err)
				}
				if got := sh(t, dir, "openssl cms -decrypt -binary -inform DER -in ours.der "+open); !bytes.Equal(got, content) {
					t.Errorf("%s: openssl reads %q", c.name, got)
				}
				if err := os.WriteFile(filepath.Join(dir, "plain"), content, 0o600); err != nil {
					t.Fatal(err)
				}
				theirs := sh(t, dir, "openssl cms -encrypt -binary -outform DER -in plain -"+c.name+" "+seal)
				if _, got, err := cms.Decrypt(theirs, r.key); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: we read %q, %v", c.name, got, err)
				}
			}
		})
	}
}

// openssl verifies what we sign, and we what it signs.
func TestSignedDataOpenSSL(t *testing.T) {
	testenv.Require(t, "openssl")
	for name, s := range signers(t) {
		if name == "Ed25519" {
			continue // OpenSSL 3.0 has no EdDSA in CMS
		}
		dir := t.TempDir()
		s.write(t, dir)
		sd, err := cms.Sign(cms.OIDData, content, []*x509.Certificate{s.cert}, s.key, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		der, err := cms.ContentInfo(cms.OIDSignedData, sd)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ours.der"), der, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := sh(t, dir, "openssl cms -verify -binary -inform DER -in ours.der -CAfile cert.pem -purpose any -partial_chain"); !bytes.Equal(got, content) {
			t.Errorf("%s: openssl reads %q", name, got)
		}
		if err := os.WriteFile(filepath.Join(dir, "plain"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		md := "sha256"
		if name == "P-384" {
			md = "sha384"
		}
		theirs := sh(t, dir, "openssl cms -sign -binary -nodetach -outform DER -in plain -signer cert.pem -inkey key.pem -econtent_type 2.16.840.1.101.2.1.2.78.5 -md "+md)
		inner, err := cms.Content(theirs, cms.OIDSignedData)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := cms.Verify(inner, cms.OIDKeyPackage); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: we read %q, %v", name, got, err)
		}
	}
}

// FuzzDecrypt: whatever is read, the answer is a content or an error of ours, and never a panic.
func FuzzDecrypt(f *testing.F) {
	for _, r := range recipients(f) {
		der, err := cms.Encrypt(cms.OIDSignedData, content, cms.OIDAES128CBC, r.to)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	ec := ecKey(f, elliptic.P256())
	dh, err := ec.ECDH()
	if err != nil {
		f.Fatal(err)
	}
	keys := []cms.Key{
		cms.ECKey{Cert: newIdentity(f, ec, []byte{1, 2, 3, 4}).cert, Key: dh},
		cms.RSAKey{Cert: newIdentity(f, rsaKey, []byte{1, 2, 3, 4}).cert, Key: rsaKey},
		cms.KEK{ID: []byte("shared-1"), Key: bytes.Repeat([]byte{7}, 16)},
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		for _, k := range keys {
			if _, _, err := cms.Decrypt(der, k); err != nil && cradle.KindOf(err) != cradle.Invalid && cradle.KindOf(err) != cradle.TooLarge {
				t.Fatalf("kind %v: %v", cradle.KindOf(err), err)
			}
		}
	})
}

// FuzzVerify: nothing but the signed content verifies, however the message around it is bent.
func FuzzVerify(f *testing.F) {
	for _, s := range signers(f) {
		der, err := cms.Sign(cms.OIDKeyPackage, content, []*x509.Certificate{s.cert}, s.key, time.Now())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		got, _, err := cms.Verify(der, cms.OIDKeyPackage)
		switch {
		case err != nil && cradle.KindOf(err) != cradle.Invalid:
			t.Fatalf("kind %v: %v", cradle.KindOf(err), err)
		case err == nil && !bytes.Equal(got, content):
			t.Fatalf("verified %q", got)
		}
	})
}

// FuzzDecryptData is FuzzDecrypt for EncryptedData, which is authenticated.
func FuzzDecryptData(f *testing.F) {
	key := bytes.Repeat([]byte{9}, 16)
	der, err := cms.EncryptData(content, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := cms.DecryptData(der, key)
		switch {
		case err != nil && cradle.KindOf(err) != cradle.Invalid && cradle.KindOf(err) != cradle.TooLarge:
			t.Fatalf("kind %v: %v", cradle.KindOf(err), err)
		case err == nil && !bytes.Equal(got, content):
			t.Fatalf("opened %q", got)
		}
	})
}
