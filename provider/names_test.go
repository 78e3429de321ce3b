package provider_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// utf8Name is a Name as OpenSSL writes it; Go writes PrintableString.
func utf8Name(t *testing.T, pairs ...string) []byte {
	t.Helper()
	types := map[string]asn1.ObjectIdentifier{"O": {2, 5, 4, 10}, "CN": {2, 5, 4, 3}}
	type atv struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var rdns []asn1.RawValue
	for i := 0; i < len(pairs); i += 2 {
		a, err := asn1.Marshal(atv{types[pairs[i]], asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(pairs[i+1])}})
		if err != nil {
			t.Fatal(err)
		}
		rdns = append(rdns, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: a})
	}
	der, err := asn1.Marshal(rdns)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// changeCSR is a CSR with ChangeSubjectName.
func changeCSR(t *testing.T, old []byte, key crypto.Signer, parts ...[]byte) []byte {
	t.Helper()
	var rdn pkix.RDNSequence
	var name pkix.Name
	if _, err := asn1.Unmarshal(old, &rdn); err != nil {
		t.Fatal(err)
	}
	name.FillFromRDNSequence(&rdn)
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	value, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
	if err != nil {
		t.Fatal(err)
	}
	der, err := est.CreateRequest(name, key, est.Attribute{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 7, 36}, Values: []asn1.RawValue{{FullBytes: value}}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestNamesOfRenewal: RFC 7030 §4.2.2 and RFC 6402 §2.8.
func TestNamesOfRenewal(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	const free = "free"
	rules := ca.DefaultProfile(cradle.Operational)
	rules.ChangeSubjectName, rules.Default = true, false
	rules.SubjectAltName = []string{"DNS:{device}.example.com"}
	if _, err := r.p.SetProfiles(t.Context(), "acme", provider.Profiles{free: rules}, false); err != nil {
		t.Fatal(err)
	}
	first := func(profile cradle.Profile, name string) *x509.Certificate {
		r.basicUser(profile, "u", "")
		return must[*x509.Certificate](t)(r.plain(profile, provider.Enroll, byBasic("u"), plainCSR(t, name, newKey(t), false)))
	}
	plain, named := first(cradle.Operational, "gw-1"), first(free, "gw-2")
	withSAN := func(subject []byte, dns ...string) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: subject, DNSNames: dns}, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	utf8 := utf8Name(t, "O", "acme", "CN", "gw-1")
	other := utf8Name(t, "O", "acme", "CN", "gw-9")
	dns, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: append([]byte{0x82, 11}, "new.example"...)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		profile cradle.Profile
		peer    *x509.Certificate
		csr     []byte
		kind    cradle.Kind
		part    string // empty: it is renewed
	}{
		{"the same key", cradle.Operational, plain, withSAN(plain.RawSubject), 0, ""},
		{"the subject in another encoding", cradle.Operational, plain, withSAN(utf8), 0, ""},
		{"another common name", cradle.Operational, plain, withSAN(other), cradle.Invalid, "is not that of the certificate"},
		{"less of the subject", cradle.Operational, plain, withSAN(utf8Name(t, "CN", "gw-1")), cradle.Invalid, "is not that of the certificate"},
		{"a subjectAltName that it does not have", cradle.Operational, plain, withSAN(plain.RawSubject, "gw-1.example.com"), cradle.Invalid, "subjectAltName"},
		{"its subjectAltName", free, named, withSAN(named.RawSubject, "gw-2.example.com"), 0, ""},
		{"no subjectAltName", free, named, withSAN(named.RawSubject), 0, ""},
		{"another subjectAltName", free, named, withSAN(named.RawSubject, "gw-3.example.com"), cradle.Invalid, "subjectAltName"},
		{"a further subjectAltName", free, named, withSAN(named.RawSubject, "gw-2.example.com", "gw-3.example.com"), cradle.Invalid, "subjectAltName"},
		{"change where the profile has none", cradle.Operational, plain, changeCSR(t, plain.RawSubject, newKey(t), utf8), cradle.Forbidden, "lets nobody change names"},
		{"change of the organisation, which the profile replaces", free, named, changeCSR(t, named.RawSubject, newKey(t), utf8Name(t, "O", "new", "CN", "gw-2")), 0, ""},
		{"change of alternative names", free, named, changeCSR(t, named.RawSubject, newKey(t), dns), 0, ""},
		{"change of both", free, named, changeCSR(t, named.RawSubject, newKey(t), utf8Name(t, "CN", "gw-2"), dns), 0, ""},
		{"change into another device", free, named, changeCSR(t, named.RawSubject, newKey(t), utf8Name(t, "CN", "gw-1")), cradle.Forbidden, "keeps its name"},
		{"change, but the CSR has other names already", free, named, changeCSR(t, other, newKey(t), utf8Name(t, "CN", "gw-2")), cradle.Invalid, "is not that of the certificate"},
		{"an empty change", free, named, changeCSR(t, named.RawSubject, newKey(t)), cradle.Invalid, "RFC 6402"},
		{"a change of two subjects", free, named, changeCSR(t, named.RawSubject, newKey(t), utf8, utf8), cradle.Invalid, "RFC 6402"},
		{"alternative names first", free, named, changeCSR(t, named.RawSubject, newKey(t), dns, utf8), cradle.Invalid, "RFC 6402"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := r.plain(c.profile, provider.Reenroll, byCert(c.peer), c.csr)
			if c.part != "" {
				refused(t, err, c.kind, c.part)
			} else if err != nil {
				t.Fatal(err)
			} else if got.Subject.CommonName != c.peer.Subject.CommonName {
				t.Errorf("renewed as %s", got.Subject)
			}
		})
	}
	r.check()
}
