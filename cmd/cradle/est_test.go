package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// client is our own EST client, with a certificate or, without, as the user "line".
func (s *estRig) client(cert *tls.Certificate, change func(*tls.Config)) *est.Client {
	s.t.Helper()
	c := s.tls(cert)
	if change != nil {
		change(c)
	}
	tr := &http.Transport{TLSClientConfig: c}
	s.t.Cleanup(tr.CloseIdleConnections)
	h := &http.Client{Transport: tr}
	if cert == nil {
		h.Transport = basicAuth{tr, "line", linePassword}
	}
	return &est.Client{HTTP: h, URL: "https://" + s.addr + est.WellKnown + label}
}

func (s *estRig) profile(t *testing.T, change func(*ca.Profile)) {
	t.Helper()
	p := ca.DefaultProfile(cradle.Operational)
	change(&p)
	if _, err := s.p.SetProfiles(t.Context(), "acme", provider.Profiles{cradle.Operational: p}, false); err != nil {
		t.Fatal(err)
	}
}

// From the first certificate to renewal, by password and then by certificate, with the same key and with another.
func TestESTLife(t *testing.T) {
	s := newESTRig(t)
	key := testca.Key(t)
	first, err := s.client(nil, nil).SimpleEnroll(t.Context(), csrOf(t, "gw-2", key))
	if err != nil {
		t.Fatal(err)
	}
	cas, err := s.client(nil, nil).CACerts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(cas, func(c *x509.Certificate) bool { return first.CheckSignatureFrom(c) == nil }); i < 0 {
		t.Error("cacerts does not hold the issuer") // RFC 7030 §4.1.3
	}
	for _, c := range cas {
		if !slices.ContainsFunc(cas, func(p *x509.Certificate) bool { return c.CheckSignatureFrom(p) == nil }) {
			t.Errorf("cacerts does not hold the issuer of %s", c.Subject)
		}
	}
	held := &tls.Certificate{Certificate: [][]byte{first.Raw}, PrivateKey: key, Leaf: first}
	for _, k := range []bool{true, false} { // renew, then rekey (RFC 7030 §4.2.2)
		next := key
		if !k {
			next = testca.Key(t)
		}
		csr, err := est.CreateRequest(subjectOf(held.Leaf), next)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.client(held, nil).SimpleReenroll(t.Context(), csr)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.RawSubject, first.RawSubject) || c.SerialNumber.Cmp(first.SerialNumber) == 0 {
			t.Errorf("renewed as %s", c.Subject)
		}
		held = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: next, Leaf: c}
	}
	// As IoT Identity Service renews: by simpleenroll.
	csr, err := est.CreateRequest(subjectOf(held.Leaf), testca.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(held, nil).SimpleEnroll(t.Context(), csr); err != nil {
		t.Error(err)
	}
	// A unit of another CA.
	unit := outsider(t, s.maker, "gw-7", nil)
	if c, err := s.client(&unit, nil).SimpleEnroll(t.Context(), csrOf(t, "gw-7", testca.Key(t))); err != nil || c.Subject.CommonName != "gw-7" {
		t.Errorf("%v", err)
	}
	// Without a label the account's own host name stands for it.
	c := s.client(nil, func(c *tls.Config) { c.ServerName = "acme.est.localhost" })
	c.URL = "https://" + s.addr + est.WellKnown
	if _, err := c.SimpleEnroll(t.Context(), csrOf(t, "gw-3", testca.Key(t))); err != nil {
		t.Error(err)
	}
}

// What csrattrs asks for is what passes, whichever key the profile wants.
func TestESTCSRAttributes(t *testing.T) {
	s := newESTRig(t)
	s.profile(t, func(p *ca.Profile) { p.Keys, p.POPLinking = []ca.KeyType{ca.ECP256}, true })
	c := s.client(nil, nil)
	want, err := c.CSRAttributes(t.Context())
	if err != nil || want.Template == nil || want.Template.Key == nil || !want.Template.Key.Algorithm.Algorithm.Equal(est.OIDECPublicKey) {
		t.Fatalf("%+v, %v", want, err)
	}
	if !slices.ContainsFunc(want.OIDs, est.OIDECDSAWithSHA256.Equal) || !slices.ContainsFunc(want.OIDs, est.OIDChallengePassword.Equal) {
		t.Errorf("%v", want.OIDs)
	}
	// The binding that it asks for, on the connection that is bound (RFC 7030 §3.5).
	_, err = c.SimpleEnroll(t.Context(), csrOf(t, "gw-2", testca.Key(t)))
	if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), "POP linking failed") {
		t.Errorf("%v", err)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conf := s.tls(nil)
		conf.MinVersion, conf.MaxVersion = version, version
		conn, err := tls.Dial("tcp", s.addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		state := conn.ConnectionState()
		binding := state.TLSUnique
		if version == tls.VersionTLS13 {
			if binding, err = state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
				t.Fatal(err)
			}
		}
		csr := csrOf(t, "gw-2", testca.Key(t), est.Attribute{Type: est.OIDChallengePassword, Values: []asn1.RawValue{rawValue(t, base64.StdEncoding.EncodeToString(binding))}})
		if _, err := conn.Write([]byte(post("simpleenroll", b64(csr), basicHeader("line", linePassword)))); err != nil {
			t.Fatal(err)
		}
		if got := s.read(conn); !strings.HasPrefix(got, "HTTP/1.1 200 OK") {
			t.Errorf("%s: %.400q", tls.VersionName(version), got)
		}
	}
}

// RFC 7030 §4.2.3: 202 until the operator has approved; then the same request, on a new connection and with another
// signature, gets its certificate.
func TestESTPending(t *testing.T) {
	s := newESTRig(t)
	s.profile(t, func(p *ca.Profile) { p.Approval = true })
	key := testca.Key(t)
	_, err := s.client(nil, nil).SimpleEnroll(t.Context(), csrOf(t, "gw-2", key))
	var status *est.StatusError
	if !errors.As(err, &status) || status.Code != 202 || status.RetryAfter <= 0 || cradle.KindOf(err) != cradle.Pending {
		t.Fatalf("%v", err)
	}
	list, err := s.p.Approvals(t.Context(), "acme", provider.Waiting)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d wait, %v", len(list), err)
	}
	if _, err := s.p.Decide(t.Context(), list[0].ID, true, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(nil, nil).SimpleEnroll(t.Context(), csrOf(t, "gw-2", key)); err != nil {
		t.Error(err)
	}
}

// RFC 7030 §4.4 with a real provider: plain, under an agreed key, and refused when that key is unknown.
func TestESTServerKeyGen(t *testing.T) {
	s := newESTRig(t)
	kek := cms.KEK{ID: []byte("shared-1"), Key: bytes.Repeat([]byte{7}, 32)}
	if err := s.p.SetKEK(t.Context(), "acme", kek.ID, kek.Key); err != nil {
		t.Fatal(err)
	}
	got, err := s.client(nil, nil).ServerKeyGen(t.Context(), csrOf(t, "gw-2", testca.Key(t)))
	if err != nil || got.PKCS8 == nil {
		t.Fatal(err)
	}
	wish := func(id string) []byte {
		w := est.KeyWish{DecryptKeyID: []byte(id), Capabilities: []pkix.AlgorithmIdentifier{{Algorithm: cms.OIDAES256CBC}, {Algorithm: cms.OIDAES256Wrap}}}
		attributes, err := w.Attributes()
		if err != nil {
			t.Fatal(err)
		}
		return csrOf(t, "gw-3", testca.Key(t), attributes...)
	}
	if got, err = s.client(nil, nil).ServerKeyGen(t.Context(), wish("shared-1")); err != nil || got.Sealed == nil {
		t.Fatal(err)
	}
	_, signed, err := cms.Decrypt(got.Sealed, kek)
	if err != nil {
		t.Fatal(err)
	}
	pkg, chain, err := cms.Verify(signed, cms.OIDKeyPackage)
	if err != nil || chain[0].CheckSignatureFrom(s.p.Services()) != nil {
		t.Fatal("the package is not signed below the services CA: ", err)
	}
	var keys []asn1.RawValue
	if _, err := asn1.Unmarshal(pkg, &keys); err != nil || len(keys) != 1 {
		t.Fatal(err)
	}
	if _, err := x509.ParsePKCS8PrivateKey(keys[0].FullBytes); err != nil {
		t.Error(err)
	}
	s.unchanged(t, func() {
		got := s.send(s.tls(nil), post("serverkeygen", b64(wish("shared-2")), basicHeader("line", linePassword)))
		one(t, got, "400", "names no key that was agreed")
	})
}

// The same, sealed to the key of the client's own certificate, when its profile has made it one to encrypt to.
func TestESTServerKeyGenToCertificate(t *testing.T) {
	s := newESTRig(t)
	s.profile(t, func(p *ca.Profile) { p.KeyUsage = []string{"digitalSignature", "keyEncipherment", "keyAgreement"} })
	rsaKey, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	ecKey := testca.Key(t)
	ecdhKey, err := ecKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key  crypto.Signer
		algs []asn1.ObjectIdentifier
		open func(*x509.Certificate) cms.Key
	}{
		"RSA": {rsaKey, []asn1.ObjectIdentifier{cms.OIDRSAOAEP, cms.OIDAES256CBC}, func(c *x509.Certificate) cms.Key { return cms.RSAKey{Cert: c, Key: rsaKey} }},
		"EC":  {ecKey, []asn1.ObjectIdentifier{cms.OIDAES128Wrap, cms.OIDAES128CBC}, func(c *x509.Certificate) cms.Key { return cms.ECKey{Cert: c, Key: ecdhKey} }},
	} {
		t.Run(name, func(t *testing.T) {
			cn := "gw-" + strings.ToLower(name)
			cert, err := s.client(nil, nil).SimpleEnroll(t.Context(), csrOf(t, cn, tc.key))
			if err != nil {
				t.Fatal(err)
			}
			client := &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: tc.key, Leaf: cert}
			wish := func(id []byte) []byte {
				w := est.KeyWish{AsymmetricKeyID: id}
				for _, a := range tc.algs {
					w.Capabilities = append(w.Capabilities, pkix.AlgorithmIdentifier{Algorithm: a})
				}
				attributes, err := w.Attributes()
				if err != nil {
					t.Fatal(err)
				}
				return csrOf(t, cn, testca.Key(t), attributes...)
			}
			got, err := s.client(client, nil).ServerKeyGen(t.Context(), wish(cert.SubjectKeyId))
			if err != nil || got.Sealed == nil {
				t.Fatalf("%+v, %v", got, err)
			}
			_, signed, err := cms.Decrypt(got.Sealed, tc.open(cert))
			if err != nil {
				t.Fatal(err)
			}
			pkg, _, err := cms.Verify(signed, cms.OIDKeyPackage)
			if err != nil {
				t.Fatal(err)
			}
			var keys []asn1.RawValue
			if _, err := asn1.Unmarshal(pkg, &keys); err != nil || len(keys) != 1 {
				t.Fatal(err)
			}
			key, err := x509.ParsePKCS8PrivateKey(keys[0].FullBytes)
			if err != nil {
				t.Fatal(err)
			}
			if public := key.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }); !public.Equal(got.Cert.PublicKey) || public.Equal(cert.PublicKey) || got.Cert.Subject.CommonName != cn {
				t.Errorf("the key is not that of the certificate of %s", got.Cert.Subject)
			}
			s.unchanged(t, func() { // another's key, by the same client
				one(t, s.send(s.tls(client), post("serverkeygen", b64(wish([]byte("another"))))), "400", "names no known key of this client")
			})
		})
	}
}

// Where evidence is not needed a client that asks for a nonce gets an empty one.
func TestESTNonce(t *testing.T) {
	s := newESTRig(t)
	n, err := s.client(&s.holder, nil).Nonce(t.Context(), x509.OID{}, nil)
	if err != nil || len(n.Nonce) != 0 {
		t.Errorf("%+v, %v", n, err)
	}
	// A challenge, with a nonce of the length that is asked for.
	for _, want := range []int{0, est.MinNonce, est.MaxNonce} {
		body := fmt.Sprintf(`{"type":%q,"len":%d}`, cradle.OIDActivation, want)
		if want == 0 {
			body, want = fmt.Sprintf(`{"type":%q}`, cradle.OIDActivation), 32
		}
		got := s.send(s.tls(&s.holder), request("POST", label+"/nonce", body, "Content-Type: "+est.TypeNonce))
		_, text, _ := strings.Cut(got, "\r\n\r\n")
		if n, err := est.ParseNonceResponse([]byte(text)); err != nil || len(n.Nonce) != want || n.Expiry <= 0 || len(n.RespInfo) == 0 {
			t.Errorf("%s: %.300q, %v", body, got, err)
		}
	}
}

// RFC 7030 §3.7: id-kp-cmcRA makes a registration authority of its holder, so asking for it gives nothing.
func TestESTNeverMakesARegistrationAuthority(t *testing.T) {
	s := newESTRig(t)
	ra := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 28}
	eku := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: rawValue(t, []asn1.ObjectIdentifier{ra, {1, 3, 6, 1, 5, 5, 7, 3, 2}}).FullBytes}
	csr := csrOf(t, "gw-2", testca.Key(t), est.Attribute{Type: est.OIDExtensionRequest, Values: []asn1.RawValue{rawValue(t, []pkix.Extension{eku})}})
	c, err := s.client(nil, nil).SimpleEnroll(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.UnknownExtKeyUsage) > 0 || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("usages %v %v", c.ExtKeyUsage, c.UnknownExtKeyUsage)
	}
}
