package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
)

// Clauses lists the checks before a signature.
func Clauses() []string {
	var out []string
	for _, c := range checks {
		out = append(out, c.clause)
	}
	return out
}

// Glob is how names are matched.
var Glob = glob

// Template is the draft for x509.CreateCertificate.
func (d *Draft) Template() (*x509.Certificate, error) {
	var name pkix.RDNSequence
	for _, p := range d.subject {
		v := pkix.AttributeTypeAndValue{Type: p.id, Value: p.value}
		if p.syntax == asn1.TagIA5String {
			v.Value = asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(p.value)}
		}
		name = append(name, pkix.RelativeDistinguishedNameSET{v})
	}
	subject, err := asn1.Marshal(name)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: d.serial, NotBefore: d.NotBefore, NotAfter: d.NotAfter, RawSubject: subject, KeyUsage: d.usage,
		UnknownExtKeyUsage: d.usages, BasicConstraintsValid: true, SubjectKeyId: keyID(d.SPKI), Policies: d.policies, ExtraExtensions: d.extensions}
	return t, d.iss.stamp(t)
}

// ProvedEvery is how often the signature of a proved key is verified.
const ProvedEvery = provedEvery
