package ca_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

func extension(t *testing.T, id asn1.ObjectIdentifier, v any) pkix.Extension {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: id, Value: b}
}

var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	clientAuth          = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	serverAuth          = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
)

type basicConstraints struct {
	IsCA bool `asn1:"optional"`
}

func bits(b byte) asn1.BitString { return asn1.BitString{Bytes: []byte{b}, BitLength: 1} }

// What a CSR asked for and the certificate does not have, by name.
func TestReplaced(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	k := key(t, elliptic.P256())
	cert, err := ca.Issue(iss, ca.NewPermit("i", ca.NewSerial()), leaf(t, k.Public())) // O=acme, CN=acme-1, clientAuth
	if err != nil {
		t.Fatal(err)
	}
	exact := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("acme")}}},
		{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("acme-1")}}}}
	utf8, err := asn1.Marshal(exact)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("urn:x:1")
	for _, c := range []struct {
		name string
		csr  x509.CertificateRequest
		want []string
	}{
		{"no wish", x509.CertificateRequest{}, nil},
		{"the same name", x509.CertificateRequest{RawSubject: cert.RawSubject}, nil},
		{"the same name as UTF8String", x509.CertificateRequest{RawSubject: utf8}, nil},
		{"the common name alone", x509.CertificateRequest{Subject: pkix.Name{CommonName: "acme-1"}}, []string{"subject"}},
		{"another name", x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, []string{"subject"}},
		{"alternative names", x509.CertificateRequest{DNSNames: []string{"a.example"}}, []string{"subjectAltName"}},
		{"several", x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}, URIs: []*url.URL{u},
			ExtraExtensions: []pkix.Extension{extension(t, oidExtKeyUsage, []asn1.ObjectIdentifier{serverAuth})}}, []string{"subject", "subjectAltName", "extendedKeyUsage"}},
		{"the usage it gets", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension(t, oidExtKeyUsage, []asn1.ObjectIdentifier{clientAuth})}}, nil},
		{"one usage more", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension(t, oidExtKeyUsage, []asn1.ObjectIdentifier{clientAuth, serverAuth})}},
			[]string{"extendedKeyUsage"}},
		{"digitalSignature", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension(t, oidKeyUsage, bits(0x80))}}, nil},
		{"another key usage", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension(t, oidKeyUsage, bits(0x04))}}, []string{"keyUsage"}},
		{"CA", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension(t, oidBasicConstraints, basicConstraints{true})}}, []string{"basicConstraints"}},
		{"no CA", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension(t, oidBasicConstraints, basicConstraints{})}}, nil},
		{"an extension of its own", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3}, Value: []byte{5, 0}}}}, []string{"1.2.3"}},
		{"not DER", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: oidExtKeyUsage, Value: []byte{0x30, 0x84}}}}, []string{"extendedKeyUsage"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := ca.ReadWishes(request(t, &c.csr))
			if err != nil {
				t.Fatal(err)
			}
			if got := w.Replaced(cert); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestWishTwice(t *testing.T) {
	e := pkix.Extension{Id: []int{1, 2, 3}, Value: []byte{5, 0}}
	_, err := ca.ReadWishes(&x509.CertificateRequest{Extensions: []pkix.Extension{e, e}})
	if cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("got %v, want Invalid", err)
	}
}

func request(t *testing.T, tmpl *x509.CertificateRequest) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// wish is what a CSR of the tests asks for.
type wish struct {
	cn  string
	dns []string
	eku string // of clientAuth, serverAuth, codeSigning
	ku  byte
	ca  bool
	ext bool
}

var p256 = elliptic.P256()

func (w wish) csr(t *testing.T) *x509.CertificateRequest {
	t.Helper()
	c := &x509.CertificateRequest{Subject: pkix.Name{CommonName: w.cn}, DNSNames: w.dns}
	add := func(id asn1.ObjectIdentifier, v any) {
		c.ExtraExtensions = append(c.ExtraExtensions, extension(t, id, v))
	}
	if w.eku != "" {
		id := map[string]asn1.ObjectIdentifier{"clientAuth": clientAuth, "serverAuth": serverAuth, "codeSigning": {1, 3, 6, 1, 5, 5, 7, 3, 3}}[w.eku]
		add(oidExtKeyUsage, []asn1.ObjectIdentifier{id})
	}
	if w.ku != 0 {
		add(oidKeyUsage, asn1.BitString{Bytes: []byte{w.ku}, BitLength: 8})
	}
	if w.ca {
		add(oidBasicConstraints, basicConstraints{true})
	}
	if w.ext {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3}, Value: []byte{5, 0}})
	}
	return c
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*", "abc", true}, {"a*", "abc", true}, {"*c", "abc", true},
		{"a*c", "abc", true}, {"a*c", "abcb", false}, {"a*b*c", "axbxbxc", true}, {"a*b*c", "axcxb", false}, {"**", "x", true}, {"a*a", "a", false},
		{"DNS:*.d.example", "DNS:x.d.example", true}, {"DNS:*.d.example", "DNS:.e.example", false}, {"*ab", "aab", true}, {"*aab", "aaab", true},
	} {
		if got := ca.Glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q on %q: %v", c.pattern, c.s, got)
		}
	}
	ca.Glob(strings.Repeat("*a", 30)+"b", strings.Repeat("a", 1024)) // ends
}

// A CSR cannot make the server look at names without end.
func TestTooManyNames(t *testing.T) {
	for name, dns := range map[string][]string{"many": slices.Repeat([]string{"a"}, 101), "long": {strings.Repeat("a", 1025)}} {
		l := leaf(t, key(t, p256).Public())
		w, err := ca.ReadWishes(request(t, &x509.CertificateRequest{DNSNames: dns}))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Grant(&l); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
