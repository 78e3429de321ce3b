package estserver_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
)

func algorithms(list ...asn1.ObjectIdentifier) []pkix.AlgorithmIdentifier {
	var out []pkix.AlgorithmIdentifier
	for _, o := range list {
		out = append(out, pkix.AlgorithmIdentifier{Algorithm: o})
	}
	return out
}

// issueTo gives a client a certificate of the test CA.
func (s *server) issueTo(key crypto.Signer, usage x509.KeyUsage, ski []byte) tls.Certificate {
	s.t.Helper()
	leaf := testca.Sign(s.t, &x509.Certificate{Subject: pkix.Name{CommonName: "device-2"}, KeyUsage: usage, SubjectKeyId: ski}, s.ca.pair(), key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func wishCSR(t testing.TB, w est.KeyWish) []byte {
	t.Helper()
	attributes, err := w.Attributes()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := est.CreateRequest(pkix.Name{CommonName: "d"}, key, attributes...)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// RFC 7030 §4.4.2: exactly two parts, the key as PKCS#8 inside TLS.
func TestServerKeyGen(t *testing.T) {
	s := start(t, nil)
	c := &est.Client{HTTP: s.client(s.device), URL: s.url("acme-ldevid")}
	got, err := c.ServerKeyGen(t.Context(), newCSR(t, "d"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Sealed != nil || got.Cert.CheckSignatureFrom(s.ca.cert) != nil {
		t.Errorf("%+v", got)
	}
	for _, agent := range []string{"", "libest 3.2.0p"} {
		r := s.do(s.client(s.device), "POST", "serverkeygen", base64.StdEncoding.EncodeToString(newCSR(t, "d")), map[string]string{"Content-Type": "application/pkcs10", "User-Agent": agent})
		boundary, ok := strings.CutPrefix(r.header.Get("Content-Type"), "multipart/mixed; boundary=")
		if r.code != 200 || !ok || len(boundary) > 68 {
			t.Fatalf("%d %v", r.code, r.header)
		}
		// est.md §2h: the spelling that libest compares.
		for _, want := range []string{"\r\nContent-Type: application/pkcs8\r\nContent-Transfer-Encoding: base64\r\n\r\n", "\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\nContent-Transfer-Encoding: base64\r\n\r\n"} {
			if strings.Count(r.body, want) != 1 {
				t.Errorf("%q: not once %q in\n%s", agent, want, r.body)
			}
		}
		for line := range strings.SplitSeq(r.body, "\n") {
			if agent != "" && len(line) > 76 {
				t.Errorf("a line of %d characters", len(line))
			}
		}
	}
}

// RFC 7030 §4.4.1: the key and the signature of the request are ignored, here a signature that is none.
func TestServerKeyGenIgnoresTheSignature(t *testing.T) {
	s := start(t, nil)
	csr := newCSR(t, "d")
	csr[len(csr)-1] ^= 1
	if _, err := (&est.Client{HTTP: s.client(s.device), URL: s.url("")}).ServerKeyGen(t.Context(), csr); err != nil {
		t.Error(err)
	}
}

// How strong the key may be is what the way it takes protects (RFC 7030 §4.4).
func TestServerKeyGenStrength(t *testing.T) {
	s := start(t, nil)
	s.ca.keks = map[string][]byte{"k32": make([]byte, 32), "k16": make([]byte, 16)}
	all := algorithms(cms.OIDAES256CBC, cms.OIDAES128CBC, cms.OIDAES256Wrap, cms.OIDAES128Wrap)
	for _, tc := range []struct {
		suite uint16
		wish  est.KeyWish
		want  int
	}{
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, est.KeyWish{}, 128},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, est.KeyWish{}, 256},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, est.KeyWish{DecryptKeyID: []byte("k32"), Capabilities: all}, 256},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, est.KeyWish{DecryptKeyID: []byte("k16"), Capabilities: all}, 128},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, est.KeyWish{DecryptKeyID: []byte("k32"), Capabilities: algorithms(cms.OIDAES128CBC, cms.OIDAES256Wrap)}, 128},
	} {
		c := s.client(s.device)
		conf := transport(c).TLSClientConfig
		conf.MaxVersion, conf.CipherSuites = tls.VersionTLS12, []uint16{tc.suite}
		if _, err := (&est.Client{HTTP: c, URL: s.url("")}).ServerKeyGen(t.Context(), wishCSR(t, tc.wish)); err != nil {
			t.Fatal(err)
		}
		if s.ca.strength != tc.want {
			t.Errorf("%s, %+v: %d bits, want %d", tls.CipherSuiteName(tc.suite), tc.wish, s.ca.strength, tc.want)
		}
	}
}

// RFC 7030 §4.4.1.1, §4.4.1.2: encrypted for each kind of recipient; openssl decrypts it and verifies the package.
func TestServerKeyGenEncrypted(t *testing.T) {
	testenv.Require(t, "openssl")
	s := start(t, nil)
	s.ca.keks = map[string][]byte{"k16": bytes.Repeat([]byte{1}, 16), "k24": bytes.Repeat([]byte{2}, 24), "k32": bytes.Repeat([]byte{3}, 32)}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ski := []byte{1, 2, 3, 4, 5}
	rsaClient := s.issueTo(rsaKey, x509.KeyUsageKeyEncipherment, ski)
	p256Client, p384Client := s.issueTo(ecKey(elliptic.P256()), x509.KeyUsageKeyAgreement|x509.KeyUsageDigitalSignature, ski), s.issueTo(ecKey(elliptic.P384()), 0, nil)
	issuerAndSerial, err := cms.IssuerAndSerial(p384Client.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		client tls.Certificate
		wish   est.KeyWish
		cipher string
	}{
		"KEK of 16 bytes":             {s.device, est.KeyWish{DecryptKeyID: []byte("k16"), Capabilities: algorithms(cms.OIDAES128Wrap, cms.OIDAES128CBC)}, "aes-128-cbc"},
		"KEK of 24 bytes":             {s.device, est.KeyWish{DecryptKeyID: []byte("k24"), Capabilities: algorithms(cms.OIDAES192Wrap, cms.OIDAES192CBC)}, "aes-192-cbc"},
		"KEK of 32 bytes":             {s.device, est.KeyWish{DecryptKeyID: []byte("k32"), Capabilities: algorithms(cms.OIDAES256Wrap, cms.OIDAES128CBC, cms.OIDAES256CBC)}, "aes-256-cbc"},
		"KEK, key wrap listed only":   {s.device, est.KeyWish{DecryptKeyID: []byte("k32"), Capabilities: algorithms(cms.OIDAES256Wrap)}, "aes-256-cbc"},
		"RSA":                         {rsaClient, est.KeyWish{AsymmetricKeyID: ski, Capabilities: algorithms(cms.OIDAES256CBC)}, "aes-256-cbc"},
		"RSA OAEP":                    {rsaClient, est.KeyWish{AsymmetricKeyID: ski, Capabilities: algorithms(cms.OIDRSAOAEP, cms.OIDAES128CBC)}, "aes-128-cbc"},
		"P-256":                       {p256Client, est.KeyWish{AsymmetricKeyID: ski, Capabilities: algorithms(cms.OIDAES128Wrap, cms.OIDAES128CBC)}, "aes-128-cbc"},
		"P-384 by issuer and serial":  {p384Client, est.KeyWish{AsymmetricKeyID: issuerAndSerial, Capabilities: algorithms(cms.OIDAES256Wrap, cms.OIDAES256CBC)}, "aes-256-cbc"},
		"wrap inside the ECDH scheme": {p256Client, est.KeyWish{AsymmetricKeyID: ski, Capabilities: ecdhScheme(t)}, "aes-256-cbc"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := (&est.Client{HTTP: s.client(tc.client), URL: s.url("")}).ServerKeyGen(t.Context(), wishCSR(t, tc.wish))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			write := func(name string, b []byte) {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("key.der", got.Sealed)
			write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw}))
			write("client.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tc.client.Certificate[0]}))
			write("client.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8(t, tc.client.PrivateKey)}))
			open := "-recip client.pem -inkey client.key"
			if id := tc.wish.DecryptKeyID; id != nil {
				open = fmt.Sprintf("-secretkey %s -secretkeyid %s", hex.EncodeToString(s.ca.keks[string(id)]), hex.EncodeToString(id))
			}
			openssl := func(args string) []byte {
				cmd := exec.Command("bash", "-euo", "pipefail", "-c", "openssl "+args)
				cmd.Dir = dir
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("openssl %s: %v\n%s", args, err, stderr.Bytes())
				}
				return out
			}
			if text := openssl("cms -cmsout -print -inform DER -in key.der"); !bytes.Contains(text, []byte(tc.cipher)) || !bytes.Contains(text, []byte("contentType: pkcs7-signedData")) {
				t.Errorf("not %s around signedData:\n%s", tc.cipher, text)
			}
			signed, err := cms.ContentInfo(cms.OIDSignedData, openssl("cms -decrypt -binary -inform DER -in key.der "+open))
			if err != nil {
				t.Fatal(err)
			}
			write("signed.der", signed)
			var keys []asn1.RawValue
			if _, err := asn1.Unmarshal(openssl("cms -verify -binary -inform DER -in signed.der -CAfile ca.pem -partial_chain -purpose any"), &keys); err != nil || len(keys) != 1 {
				t.Fatalf("the key package: %v", err)
			}
			key, err := x509.ParsePKCS8PrivateKey(keys[0].FullBytes)
			if err != nil {
				t.Fatal(err)
			}
			if k, ok := key.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(got.Cert.PublicKey) {
				t.Error("the key is not the certificate's")
			}
		})
	}
}

// ecdhScheme lists the key wrap as RFC 5753 §7.3 has it, below the key agreement.
func ecdhScheme(t *testing.T) []pkix.AlgorithmIdentifier {
	wrap, err := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: cms.OIDAES256Wrap})
	if err != nil {
		t.Fatal(err)
	}
	return append(algorithms(cms.OIDAES256CBC), pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 132, 1, 11, 1}, Parameters: asn1.RawValue{FullBytes: wrap}})
}

// RFC 7030 §4.4.1.1, §4.4.1.2: what cannot be encrypted as asked ends in an error, before a key is made, and never
// in a key in the clear.
func TestServerKeyGenNeverPlainInstead(t *testing.T) {
	s := start(t, nil)
	s.ca.keks = map[string][]byte{"k32": make([]byte, 32)}
	all := algorithms(cms.OIDAES256CBC, cms.OIDAES256Wrap, cms.OIDAES128Wrap)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signing := s.issueTo(rsaKey, x509.KeyUsageDigitalSignature, []byte{9})
	p256 := s.issueTo(s.ca.key, x509.KeyUsageDigitalSignature, []byte{8})
	for name, tc := range map[string]struct {
		client tls.Certificate
		wish   est.KeyWish
		code   int
		want   string
	}{
		"unknown symmetric key":     {s.device, est.KeyWish{DecryptKeyID: []byte("k33"), Capabilities: all}, 400, "names no key that was agreed"},
		"unknown asymmetric key":    {s.device, est.KeyWish{AsymmetricKeyID: []byte("other"), Capabilities: all}, 400, "names no known key of this client"},
		"no capabilities":           {s.device, est.KeyWish{DecryptKeyID: []byte("k32")}, 400, "no SMIMECapabilities"},
		"capabilities without wrap": {s.device, est.KeyWish{DecryptKeyID: []byte("k32"), Capabilities: algorithms(cms.OIDAES256CBC, cms.OIDAES128Wrap)}, 400, "lack AES-256 key wrap"},
		"triple DES alone":          {signing, est.KeyWish{AsymmetricKeyID: []byte{9}, Capabilities: algorithms(asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7})}, 400, "keyEncipherment"},
		"a key for signing, RSA":    {signing, est.KeyWish{AsymmetricKeyID: []byte{9}, Capabilities: all}, 400, "does not allow keyEncipherment"},
		"a key for signing, EC":     {p256, est.KeyWish{AsymmetricKeyID: []byte{8}, Capabilities: all}, 400, "does not allow keyAgreement"},
		"both kinds":                {s.device, est.KeyWish{DecryptKeyID: []byte("k32"), AsymmetricKeyID: []byte{9}, Capabilities: all}, 400, "a symmetric and an asymmetric key"},
	} {
		csr := base64.StdEncoding.EncodeToString(wishCSR(t, tc.wish))
		r := s.do(s.client(tc.client), "POST", "serverkeygen", csr, map[string]string{"Content-Type": "application/pkcs10"})
		if r.code != tc.code || !strings.Contains(r.body, tc.want) || strings.Contains(r.body, "pkcs8") {
			t.Errorf("%s: %d %q", name, r.code, r.body)
		}
	}
	s.ca.keks = nil
	r := s.do(s.client(s.device), "POST", "serverkeygen", base64.StdEncoding.EncodeToString(wishCSR(t, est.KeyWish{DecryptKeyID: []byte("k32"), Capabilities: all})), map[string]string{"Content-Type": "application/pkcs10"})
	if r.code != 501 || !strings.Contains(r.body, "not sent encrypted") {
		t.Errorf("without a generator's key: %d %q", r.code, r.body)
	}
	if n := s.ca.issued(); n != 0 {
		t.Errorf("%d keys were made", n)
	}
}

// Our own client opens what it asked for.
func TestServerKeyGenOwnClient(t *testing.T) {
	s := start(t, nil)
	kek := cms.KEK{ID: []byte("k32"), Key: bytes.Repeat([]byte{3}, 32)}
	s.ca.keks = map[string][]byte{"k32": kek.Key}
	got, err := (&est.Client{HTTP: s.client(s.device), URL: s.url("")}).ServerKeyGen(t.Context(), wishCSR(t, est.KeyWish{DecryptKeyID: kek.ID, Capabilities: algorithms(cms.OIDAES256CBC, cms.OIDAES256Wrap)}))
	if err != nil {
		t.Fatal(err)
	}
	typ, signed, err := cms.Decrypt(got.Sealed, kek)
	if err != nil || !typ.Equal(cms.OIDSignedData) {
		t.Fatal(typ, err)
	}
	pkg, chain, err := cms.Verify(signed, cms.OIDKeyPackage)
	if err != nil || !chain[0].Equal(s.ca.cert) {
		t.Fatal(err)
	}
	if i := slices.Index(pkg, 0x30); i != 0 {
		t.Errorf("package %x", pkg[:4])
	}
}
