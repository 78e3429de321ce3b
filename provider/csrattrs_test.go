package provider_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
)

// describe writes csrattrs in one line: template, then the list.
func describe(t *testing.T, a est.CSRAttributes) string {
	t.Helper()
	der, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = est.ParseCSRAttributes(der); err != nil { // what a client reads
		t.Fatal(err)
	}
	var b strings.Builder
	for _, rdn := range a.Template.Subject {
		value := "?"
		if rdn[0].Value != nil {
			value = *rdn[0].Value
		}
		fmt.Fprintf(&b, "%v=%s ", rdn[0].Type, value)
	}
	if k := a.Template.Key; k != nil {
		fmt.Fprintf(&b, "key %v %d ", k.Algorithm.Algorithm, k.RSABits)
	}
	for _, x := range a.Template.Extensions {
		fmt.Fprintf(&b, "%v:%x ", x.ID, x.Value)
	}
	fmt.Fprintf(&b, "| %v", a.OIDs)
	for _, at := range a.Attributes {
		fmt.Fprintf(&b, " %v", at.Type)
	}
	return b.String()
}

// csrattrs follow the profile, and the device where the client shows its certificate.
func TestCSRAttributes(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	r.setProfiles(`
[lab]
kind = "client"
keys = ["rsa-3072"]
subject_alt_name = ["DNS:{device}.example.com"]
key_usage = ["digitalSignature", "keyEncipherment"]
[ec]
kind = "client"
keys = ["ec-p384"]
key_usage = ["digitalSignature", "keyEncipherment"]
extended_key_usage = []
[wish]
kind = "client"
keys = ["ed25519"]
[wish.wishes]
allow_names = ["DNS:*"]
`)
	const usage = "2.5.29.15:03020780 2.5.29.37:300a06082b06010505070302 "
	request := "1.2.840.113549.1.9.14"
	for _, c := range []struct {
		profile cradle.Profile
		peer    *x509.Certificate
		want    string
	}{
		{cradle.Operational, nil, "2.5.4.10=acme 2.5.4.3=? " + usage + "| [] " + request},
		{cradle.Operational, u.ldevid, "2.5.4.10=acme 2.5.4.3=acme-sn0001 " + usage + "| [] " + request},
		{cradle.Operational, &x509.Certificate{Raw: []byte("foreign")}, "2.5.4.10=acme 2.5.4.3=? " + usage + "| [] " + request},
		{"lab", u.op, "2.5.4.10=acme 2.5.4.3=acme-sn0001 key 1.2.840.113549.1.1.1 3072 2.5.29.15:030205a0 2.5.29.37:300a06082b06010505070302 " +
			"2.5.29.17:30198217" + fmt.Sprintf("%x", "acme-sn0001.example.com") + " | [1.2.840.113549.1.1.11] " + request + " 1.2.840.113549.1.1.1"},
		{"lab", nil, "2.5.4.10=acme 2.5.4.3=? key 1.2.840.113549.1.1.1 3072 2.5.29.15:030205a0 2.5.29.37:300a06082b06010505070302 " +
			"| [1.2.840.113549.1.1.11] " + request + " 1.2.840.113549.1.1.1"},
		{"ec", nil, "2.5.4.10=acme 2.5.4.3=? key 1.2.840.10045.2.1 0 2.5.29.15:03020780 | [1.2.840.10045.4.3.3] " + request + " 1.2.840.10045.2.1"},
		{"wish", nil, "2.5.4.10=acme 2.5.4.3=? key 1.3.101.112 0 " + usage + "2.5.29.17: | [1.3.101.112] " + request},
	} {
		ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", c.profile))
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.p.CSRAttributes(t.Context(), ep, provider.Client{Peer: c.peer})
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(t, a); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.profile, got, c.want)
		}
	}
}

// A client that heeds the template gets exactly what it asked for.
func TestHeededTemplateReplacesNothing(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	r.basicUser(cradle.Operational, "u", "")
	first, err := r.plain(cradle.Operational, provider.Enroll, provider.Client{Basic: &provider.Basic{User: "u", Password: password}}, plainCSR(t, "d", newKey(t), false))
	if err != nil {
		t.Fatal(err)
	}
	ep, err := r.p.Endpoint(t.Context(), "acme-operational")
	if err != nil {
		t.Fatal(err)
	}
	a, err := r.p.CSRAttributes(t.Context(), ep, provider.Client{Peer: first})
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.CertificateRequest{}
	var name pkix.RDNSequence
	for _, rdn := range a.Template.Subject {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: rdn[0].Type, Value: *rdn[0].Value}})
	}
	tmpl.Subject.FillFromRDNSequence(&name)
	for _, x := range a.Template.Extensions {
		tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, pkix.Extension{Id: x.ID, Critical: x.Critical, Value: x.Value})
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Reenroll, Client: provider.Client{Peer: first}, CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Replaced) != 0 {
		t.Errorf("replaced %q", out.Replaced)
	}
}
