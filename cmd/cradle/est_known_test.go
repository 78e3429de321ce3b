package main

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// generalName is an alternative name of any content.
type generalName struct {
	tag  int
	text string
}

func sanCSR(t *testing.T, cn string, names ...generalName) []byte {
	t.Helper()
	var list []asn1.RawValue
	for _, n := range names {
		list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.text)})
	}
	san := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: rawValue(t, list).FullBytes}
	return csrOf(t, cn, testca.Key(t), est.Attribute{Type: est.OIDExtensionRequest, Values: []asn1.RawValue{rawValue(t, []pkix.Extension{san})}})
}

// allow lets clients of acme ask for DNS names below example.com; other names are refused or replaced.
func (s *estRig) allow(t *testing.T, o ca.Outside) {
	t.Helper()
	p := ca.DefaultProfile(cradle.Operational)
	p.Wishes.AllowNames, p.Wishes.SubjectAltName = []string{"DNS:*.example.com"}, o
	if _, err := s.p.SetProfiles(t.Context(), "acme", provider.Profiles{cradle.Operational: p}, false); err != nil {
		t.Fatal(err)
	}
}

// issued reads the one certificate of an answer.
func issued(t *testing.T, answer string) *x509.Certificate {
	t.Helper()
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	der, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := est.DecodeCerts(der)
	if err != nil || len(certs) != 1 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	return certs[0]
}

// OpenBao's CA held DNS names of a CSR to its policy and let IP addresses of the same CSR through.
func TestKnown_OpenBao_GHSA_g892_p242_8g86_IPSANs(t *testing.T) {
	s := newESTRig(t)
	foreign := map[string]generalName{
		"IPv4": {7, string(net.IPv4(10, 0, 0, 1).To4())}, "IPv6": {7, string(net.IPv6loopback)}, "DNS": {2, "example.org"}, "DNS below another": {2, "a.example.com.evil.org"},
		"email": {1, "root@example.com"}, "URI": {6, "https://a.example.com/"}, "registered id": {8, "\x2a\x03\x04"},
	}
	auth := basicHeader("line", linePassword)
	s.allow(t, ca.Refuse)
	for name, n := range foreign {
		t.Run("refused "+name, func(t *testing.T) {
			s.unchanged(t, func() {
				one(t, s.send(s.tls(nil), post("simpleenroll", b64(sanCSR(t, "gw-2", generalName{2, "a.example.com"}, n)), auth)), "400", "")
			})
		})
	}
	s.allow(t, ca.Replace)
	for name, n := range foreign {
		got := s.send(s.tls(nil), post("simpleenroll", b64(sanCSR(t, "gw-2", generalName{2, "a.example.com"}, n)), auth))
		if !strings.HasPrefix(got, "HTTP/1.1 200") {
			one(t, got, "400", "") // a form that is not understood
			continue
		}
		c := issued(t, got)
		if len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0 || !slices.Equal(c.DNSNames, []string{"a.example.com"}) {
			t.Errorf("%s: certificate for %v %v %v %v", name, c.DNSNames, c.IPAddresses, c.EmailAddresses, c.URIs)
		}
		if !strings.Contains(got, "\r\nCradle-Replaced: ") {
			t.Errorf("%s: not told what was replaced: %.300q", name, got)
		}
	}
}

// step-ca 0.29 indexed into names shorter than it thought and fell over (smallstep/certificates#2715).
func TestKnown_StepCA_2715_ShortDomains(t *testing.T) {
	s := newESTRig(t)
	auth := basicHeader("line", linePassword)
	for _, o := range []ca.Outside{ca.Refuse, ca.Replace} {
		s.allow(t, o)
		for _, name := range []string{"", ".", "..", "a", "*", "*.", "*.*", ".example.com", "-", "\x00", "é", "m", "om", "com", ".com", "example.com", strings.Repeat("a.", 200)} {
			for _, tag := range []int{1, 2, 6, 7} {
				got := s.send(s.tls(nil), post("simpleenroll", b64(sanCSR(t, "gw-2", generalName{tag, name})), auth))
				all := statusLine.FindAllStringSubmatch(got, -1)
				if len(all) != 1 || all[0][1] != "400" && all[0][1] != "200" {
					t.Fatalf("%s, name %q of type %d: %.300q", o, name, tag, got)
				}
				if all[0][1] == "200" {
					if c := issued(t, got); len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0 {
						t.Errorf("%s, name %q of type %d: granted %v", o, name, tag, c.DNSNames)
					}
				}
			}
		}
		for _, cn := range []string{"", ".", "-", "g", "gw", "gw-", "*", "gw-*", "gw-.", "gw-\x00"} {
			got := s.send(s.tls(nil), post("simpleenroll", b64(csrOf(t, cn, testca.Key(t))), auth))
			if all := statusLine.FindAllStringSubmatch(got, -1); len(all) != 1 || all[0][1] != "400" && all[0][1] != "403" && all[0][1] != "200" {
				t.Fatalf("name %q: %.300q", cn, got)
			}
		}
	}
}

// Software that judges one name of a CSR and certifies another: SPIRE's aws_iid checked one copy of the document and read
// another. A subject with two common names has no right one.
func TestKnown_SPIRE_1_14_6_TwoNames(t *testing.T) {
	s := newESTRig(t)
	cn := asn1.ObjectIdentifier{2, 5, 4, 3}
	for _, names := range [][]string{{"gw-2", "other"}, {"other", "gw-2"}, {"gw-2", "gw-1"}} {
		subject := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: cn, Value: names[0]}, {Type: cn, Value: names[1]}}}
		csr, err := est.CreateRequest(subject, testca.Key(t))
		if err != nil {
			t.Fatal(err)
		}
		s.unchanged(t, func() {
			one(t, s.send(s.tls(nil), post("simpleenroll", b64(csr), basicHeader("line", linePassword))), "400", "2 common names")
		})
	}
	// The same in the certificate of another CA, of which one name is let in.
	for _, names := range [][]string{{"gw-7", "gw-1"}, {"gw-1", "gw-7"}} {
		two := outsider(t, s.maker, "", func(c *x509.Certificate) {
			c.Subject = pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: cn, Value: names[0]}, {Type: cn, Value: names[1]}}}
		})
		s.unchanged(t, func() {
			one(t, s.send(s.tls(&two), post("simpleenroll", b64(csrOf(t, "gw-7", testca.Key(t))))), "403", "of no unit that is let in")
		})
	}
}
