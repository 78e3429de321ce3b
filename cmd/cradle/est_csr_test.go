package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider"
)

// one asserts the status of the only answer and a part of its reason, which is in the body or in Cradle-Reason.
func one(t *testing.T, got, code, want string) {
	t.Helper()
	if all := statusLine.FindAllStringSubmatch(got, -1); len(all) != 1 || all[0][1] != code || !strings.Contains(got, want) {
		t.Errorf("got %.700q\nwant one answer %s with %q", got, code, want)
	}
	if head, body, _ := strings.Cut(got, "\r\n\r\n"); strings.TrimSpace(body) == "" && !strings.Contains(head, "\r\nCradle-Reason: ") {
		t.Errorf("no reason in %.700q", got)
	}
}

// opensslCSR is a request as openssl makes it, in base64.
func opensslCSR(t *testing.T, args string) string {
	t.Helper()
	testenv.Require(t, "openssl")
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", "openssl req -new -nodes -keyout /dev/null -subj /CN=gw-2 -outform DER "+args)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	der, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	return b64(der)
}

// nested is ASN.1 of that many SEQUENCEs in one another.
func nested(levels int) []byte {
	var out []byte
	for range levels {
		head := []byte{0x30, 0x84, 0, 0, 0, 0}
		n := len(out)
		head[2], head[3], head[4], head[5] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
		out = append(head, out...)
	}
	return out
}

// bend replaces bytes of a CSR, whose signature no longer fits then.
func bend(t *testing.T, csr, old, new []byte) string {
	t.Helper()
	if !bytes.Contains(csr, old) {
		t.Fatalf("the CSR holds no %x", old)
	}
	return b64(bytes.Replace(csr, old, new, 1))
}

// Requests for certificates that are no requests, or whose key or signature is none or weak. Each is a 4xx that
// says what was wrong; nothing is issued and nothing recorded.
func TestRefusedCSRs(t *testing.T) {
	s := newESTRig(t)
	key := testca.Key(t)
	good := csrOf(t, "gw-2", key)
	armour := func(typ string) string { return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: good})) }
	req, err := x509.ParseCertificateRequest(good)
	if err != nil {
		t.Fatal(err)
	}
	point := req.RawSubjectPublicKeyInfo[len(req.RawSubjectPublicKeyInfo)-65:]
	offCurve := bytes.Clone(point)
	offCurve[64] ^= 1
	infinity := append([]byte{4}, make([]byte, 64)...)
	evidenceAttr := est.Attribute{Type: evidence.OIDEvidence, Values: []asn1.RawValue{rawValue(t, "no bundle")}}
	extensions := func(list ...pkix.Extension) est.Attribute {
		return est.Attribute{Type: est.OIDExtensionRequest, Values: []asn1.RawValue{rawValue(t, list)}}
	}
	ca := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}
	garbage := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: []byte{0x30, 0x05, 0x82}}
	for _, tc := range []struct{ name, body, code, want string }{
		// The body (RFC 8951).
		{"empty", "", "400", "the body is empty"},
		{"white space", " \r\n\t ", "400", "the body is empty"},
		{"no base64", "%%%%", "400", "not base64"},
		{"base64url", strings.NewReplacer("+", "-", "/", "_").Replace(b64(bytes.Repeat([]byte{0xfb, 0xff}, 30))), "400", "not base64"},
		{"base64 without padding", strings.TrimRight(b64(append(bytes.Clone(good), 0)), "=") + "A", "400", "not base64"},
		{"base64 with bits left over", "MIH=", "400", "not base64"},
		{"two base64 texts", b64([]byte("x")) + b64(good), "400", "not base64"},
		{"raw DER", string(good), "400", "raw DER, not base64"},
		{"PEM of another type", armour("CERTIFICATE"), "400", `PEM of type \"CERTIFICATE\"`},
		{"PEM without end", strings.Split(armour("CERTIFICATE REQUEST"), "-----END")[0], "400", "not one complete PEM block"},
		{"two PEM blocks", armour("CERTIFICATE REQUEST") + armour("CERTIFICATE REQUEST"), "400", "not base64"},
		{"base64 twice", b64([]byte(b64(good))), "400", "not a PKCS#10 request"},

		// ASN.1.
		{"truncated", b64(good[:len(good)-10]), "400", "not a PKCS#10 request"},
		{"bytes after it", b64(append(bytes.Clone(good), 0, 0)), "400", "not a PKCS#10 request"},
		{"a length beyond the end", b64(append([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff}, good[4:]...)), "400", "not a PKCS#10 request"},
		{"an indefinite length", b64(append(append([]byte{0x30, 0x80}, good[4:]...), 0, 0)), "400", "not a PKCS#10 request"},
		{"a length not minimal", b64(append([]byte{0x30, 0x83, 0, good[2], good[3]}, good[4:]...)), "400", "not a PKCS#10 request"},
		{"7000 levels", b64(nested(7000)), "400", "not a PKCS#10 request"},
		{"a certificate", b64(s.holder.Certificate[0]), "400", "not a PKCS#10 request"},
		{"a certs-only message", b64(certsOnly(t, s.holder.Certificate[0])), "400", "not a PKCS#10 request"},
		{"zeros", b64(make([]byte, 1000)), "400", "not a PKCS#10 request"},
		{"evidence that is none", b64(csrOf(t, "gw-2", key, evidenceAttr)), "400", "attestation bundle is not one"},
		{"evidence twice", b64(csrOf(t, "gw-2", key, evidenceAttr, evidenceAttr)), "400", "two evidence attributes"},
		{"an extension twice", b64(csrOf(t, "gw-2", key, extensions(ca, ca))), "400", "not a PKCS#10 request"},
		{"an extension that does not parse", b64(csrOf(t, "gw-2", key, extensions(garbage))), "400", "not a PKCS#10 request"},

		// Proof of possession (RFC 7030 §4.2.1) and strength.
		{"another's signature", bend(t, good, req.Signature, signature(t, testca.Key(t), len(req.Signature))), "400", "not signed by its key"},
		{"another's name under the signature", bend(t, good, []byte("gw-2"), []byte("gw-3")), "400", "not signed by its key"},
		{"an empty signature", b64(resign(t, req, nil, nil)), "400", "not signed by its key"},
		{"a point off the curve", bend(t, good, point, offCurve), "400", "no point of its curve"},
		{"the point at infinity", bend(t, good, point, infinity), "400", "no point of its curve"},
		{"SHA-1 with ECDSA", b64(resign(t, req, key, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1})), "400", "is not allowed"},
		{"an unknown algorithm", b64(resign(t, req, key, asn1.ObjectIdentifier{1, 2, 3})), "400", "is not allowed"},
		{"SHA-1 with RSA", opensslCSR(t, "-newkey rsa:2048 -sha1"), "400", "SHA1-RSA of the CSR is not allowed"},
		{"MD5 with RSA", opensslCSR(t, "-newkey rsa:2048 -md5"), "400", "is not allowed"},
		{"RSA-1024", opensslCSR(t, "-newkey rsa:1024 -sha256"), "400", "1024 bits"},
		{"RSA with exponent 3", opensslCSR(t, "-newkey rsa:2048 -pkeyopt rsa_keygen_pubexp:3 -sha256"), "400", "exponent 3"},
		{"P-224", opensslCSR(t, "-newkey ec -pkeyopt ec_paramgen_curve:P-224"), "400", "P-256, P-384 or P-521"},
		{"P-521, which the profile has not", opensslCSR(t, "-newkey ec -pkeyopt ec_paramgen_curve:P-521"), "400", "EC on P-521 is not allowed"},
		{"secp256k1", opensslCSR(t, "-newkey ec -pkeyopt ec_paramgen_curve:secp256k1"), "400", "a curve that is not known here (1.3.132.0.10)"},
		{"explicit curve parameters", opensslCSR(t, "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit"), "400", "does not name its curve"},
		{"Ed25519, which the profile has not", opensslCSR(t, "-newkey ed25519"), "400", "ed25519 is not allowed"},
		{"Ed448", opensslCSR(t, "-newkey ed448"), "400", "neither RSA nor EC nor Ed25519"},
		{"an RSA key of 16384 bits", hugeRSA(t, good, req), "400", "16384 bits"},

		// What it asks for.
		{"to be a CA", b64(csrOf(t, "gw-2", key, extensions(ca))), "400", "CA certificates are not for devices"},
		{"no name", b64(csrOf(t, "", key)), "400", "names no device"},
		{"a name that the password may not have", b64(csrOf(t, "other", key)), "403", "may not ask for the name"},
		{"a name that is none", b64(csrOf(t, "gw-2/../gw-1", key)), "400", "no device name"},
		{"a name with a line break", b64(csrOf(t, "gw-2\r\nX: y", key)), "400", "no device name"},
		{"a name with a NUL", b64(csrOf(t, "gw-2\x00", key)), "400", "no device name"},
		{"a long name", b64(csrOf(t, "gw-"+strings.Repeat("x", 4000), key)), "400", "no device name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.unchanged(t, func() {
				got := s.send(s.tls(nil), post("simpleenroll", tc.body, basicHeader("line", linePassword)))
				one(t, got, tc.code, strings.ReplaceAll(tc.want, `\"`, `"`))
			})
		})
	}
}

func certsOnly(t *testing.T, certs ...[]byte) []byte {
	t.Helper()
	der, err := est.EncodeCerts(certs...)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// signature is one of that size, over something else.
func signature(t *testing.T, k *ecdsa.PrivateKey, size int) []byte {
	t.Helper()
	for {
		sig, err := ecdsa.SignASN1(rand.Reader, k, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		if len(sig) == size {
			return sig
		}
	}
}

// resign signs the same request under another algorithm identifier; without a key the signature is empty.
func resign(t *testing.T, req *x509.CertificateRequest, key *ecdsa.PrivateKey, alg asn1.ObjectIdentifier) []byte {
	t.Helper()
	var sig []byte
	if key != nil {
		sig = signature(t, key, 71)
	}
	if alg == nil {
		alg = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	}
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: req.RawTBSCertificateRequest}, pkix.AlgorithmIdentifier{Algorithm: alg}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// hugeRSA has a key under which verifying a signature would take long.
func hugeRSA(t *testing.T, _ []byte, req *x509.CertificateRequest) string {
	t.Helper()
	n := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 16384), big.NewInt(1))
	public := rawValue(t, struct {
		N *big.Int
		E int
	}{n, 65537}).FullBytes
	spki := rawValue(t, struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: est.OIDRSAEncryption, Parameters: asn1.NullRawValue}, asn1.BitString{Bytes: public, BitLength: 8 * len(public)}})
	info := rawValue(t, struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{0, asn1.RawValue{FullBytes: req.RawSubject}, spki, []asn1.RawValue{}})
	sig := make([]byte, 2048)
	return b64(rawValue(t, struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{info, pkix.AlgorithmIdentifier{Algorithm: est.OIDRSAWithSHA256, Parameters: asn1.NullRawValue}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}}).FullBytes)
}

// Clients that are not whom they ask for, in every way in which EST knows clients.
func TestRefusedClients(t *testing.T) {
	s := newESTRig(t)
	globex := s.enrol("other", "gw-1") // the same name in another account
	revoked := s.enrol("line", "gw-5")
	if _, err := s.p.ChangeState(t.Context(), "acme", "gw-5", provider.Revoke, "stolen"); err != nil {
		t.Fatal(err)
	}
	stranger := testca.New(t, testca.CA("nobody knows"), nil)
	twin := outsider(t, s.maker, "gw-7", nil)
	ours := func(cn string) string { return b64(csrOf(t, cn, testca.Key(t))) }
	same, err := est.CreateRequest(subjectOf(s.holder.Leaf), testca.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	selfSigned := func() tls.Certificate {
		return testca.New(t, &x509.Certificate{Subject: subjectOf(s.holder.Leaf)}, nil).TLS()
	}()
	expired := outsider(t, s.maker, "gw-7", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	future := outsider(t, s.maker, "gw-7", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	})
	chained := outsider(t, stranger, "gw-7", nil)
	chained.Certificate = append(chained.Certificate, s.maker.Cert.Raw) // its chain holds an anchor that did not sign it
	basic := func(user, password string) string { return basicHeader(user, password) }
	for _, tc := range []struct {
		name   string
		client *tls.Certificate
		send   string
		code   string
		want   string
	}{
		{"nobody", nil, post("simpleenroll", ours("gw-2")), "401", `WWW-Authenticate: Basic realm="acme-operational"`},
		{"nobody, reenroll", nil, post("simplereenroll", b64(same)), "401", "Cradle-Reason: neither a TLS client certificate"},
		{"nobody, serverkeygen", nil, post("serverkeygen", ours("gw-2")), "401", "WWW-Authenticate"},
		{"nobody where passwords are not taken", nil, strings.Replace(post("simpleenroll", ours("gw-2")), label, "acme-ldevid", 1), "403", "no TLS client certificate"},
		{"wrong password", nil, post("simpleenroll", ours("gw-2"), basic("line", "guess")), "401", "Cradle-Reason"},
		{"no password", nil, post("simpleenroll", ours("gw-2"), basic("line", "")), "401", "Cradle-Reason"},
		{"unknown user", nil, post("simpleenroll", ours("gw-2"), basic("admin", linePassword)), "401", "Cradle-Reason"},
		{"another account's user", nil, post("simpleenroll", ours("gw-2"), basic("other", linePassword)), "401", "Cradle-Reason"},
		{"user with a quote", nil, post("simpleenroll", ours("gw-2"), basic(`line' OR '1'='1`, linePassword)), "401", "Cradle-Reason"},
		{"token", nil, post("simpleenroll", ours("gw-2"), "Authorization: Bearer abc"), "401", "is not HTTP Basic"},
		{"two authorizations", nil, post("simpleenroll", ours("gw-2"), basic("line", linePassword), basic("line", linePassword)), "401", "is not HTTP Basic"},
		{"self-signed with a device's name", &selfSigned, post("simplereenroll", b64(same)), "401", "Cradle-Reason"},
		{"another CA's, unknown", ptr(outsider(t, stranger, "gw-7", nil)), post("simpleenroll", ours("gw-7")), "401", "Cradle-Reason"},
		{"an anchor in the chain that did not sign", &chained, post("simpleenroll", ours("gw-7")), "401", "Cradle-Reason"},
		{"another CA's, not in the manifest", ptr(outsider(t, s.maker, "gw-8", nil)), post("simpleenroll", ours("gw-8")), "403", "of no unit that is let in"},
		{"another CA's, expired", &expired, post("simpleenroll", ours("gw-7")), "401", "expired"},
		{"another CA's, not valid yet", &future, post("simpleenroll", ours("gw-7")), "401", "is valid from"},
		{"another CA's own certificate", ptr(s.maker.TLS()), post("simpleenroll", ours("gw-7")), "401", "the client certificate is a CA's"},
		{"a unit of the manifest for another name", &twin, post("simpleenroll", ours("gw-2")), "403", "but this client is"},
		{"a unit of the manifest re-enrols", &twin, post("simplereenroll", ours("gw-7")), "403", "authenticated by the certificate that is to be renewed"},
		{"another account's device", &globex, post("simpleenroll", ours("gw-1")), "403", "belongs to another account"},
		{"another account's device, reenroll", &globex, post("simplereenroll", b64(same)), "403", "belongs to another account"},
		{"revoked", &revoked, post("simplereenroll", b64(same)), "403", "revoked"},
		{"a device for another's name", &s.holder, post("simpleenroll", ours("gw-2")), "403", "but this client is"},
		{"a device, reenroll for another's name", &s.holder, post("simplereenroll", ours("gw-5")), "400", "is not that of the certificate to be renewed"},
		{"a device at a profile that it may not", &s.holder, strings.Replace(post("simpleenroll", b64(same)), label, "acme-ldevid", 1), "403", "does not authenticate"},
		{"a device at the line's profile", &s.holder, strings.Replace(post("simpleenroll", b64(same)), label, "acme-idevid", 1), "403", "does not authenticate"},
		{"another connection's binding", &s.holder, post("simplereenroll", b64(bound(t, s.holder.Leaf))), "400", "POP linking failed"},
		{"a nonce for nobody", nil, strings.Replace(request("POST", "acme-ldevid/nonce", `{"type":"`+cradle.OIDActivation.String()+`"}`, "Content-Type: "+est.TypeNonce), label, "acme-ldevid", 1), "403", "no TLS client certificate"},
		{"a bare nonce where evidence is needed", &s.holder, request("GET", "acme-ldevid/nonce", ""), "503", "a nonce is given here for evidence of type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.unchanged(t, func() {
				got := s.send(s.tls(tc.client), tc.send)
				one(t, got, tc.code, tc.want)
			})
		})
	}
}

func ptr[T any](v T) *T { return &v }

func subjectOf(c *x509.Certificate) pkix.Name {
	return pkix.Name{ExtraNames: c.Subject.Names}
}

// bound is a request for renewal with a challengePassword of some other connection.
func bound(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	der, err := est.CreateRequest(subjectOf(c), testca.Key(t), est.Attribute{Type: est.OIDChallengePassword, Values: []asn1.RawValue{rawValue(t, base64.StdEncoding.EncodeToString(make([]byte, 32)))}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}
