package ca

import "crypto/x509"

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
	t := &x509.Certificate{SerialNumber: d.serial, NotBefore: d.NotBefore, NotAfter: d.NotAfter, RawSubject: d.rawSubject, KeyUsage: d.usage,
		UnknownExtKeyUsage: d.usages, BasicConstraintsValid: true, SubjectKeyId: keyID(d.SPKI), Policies: d.policies, ExtraExtensions: d.extensions}
	return t, d.iss.stamp(t)
}

// ProvedEvery is how often the signature of a proved key is verified.
const ProvedEvery = provedEvery
