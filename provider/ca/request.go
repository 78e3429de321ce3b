package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
)

var (
	oidKeyID    = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidPolicies = asn1.ObjectIdentifier{2, 5, 29, 32}
	anyPolicy   = x509Must("2.5.29.32.0")
)

func x509Must(s string) x509.OID {
	o, err := x509.ParseOID(s)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return o
}

// policies are those of a's class.
func (a *Authority) policies() []x509.OID { return cradle.ClassPolicies(a.Class, !a.Unproved) }

// SigningRequest makes the PKCS#10 request with which somebody else's CA is asked for the certificate of a CA key:
// the extensions that the certificate needs stand in it (RFC 2985 §5.4.2). Subject and serial number attributes are
// taken from an earlier certificate of the key, or from a.
func SigningRequest(key crypto.Signer, earlier *x509.Certificate, a Authority) ([]byte, error) {
	bc, err := asn1.Marshal(struct {
		CA      bool
		PathLen int
	}{true, a.PathLen})
	if err != nil {
		return nil, err
	}
	ku, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x06}, BitLength: 7}) // keyCertSign, cRLSign
	if err != nil {
		return nil, err
	}
	type policyInformation struct{ ID asn1.RawValue }
	var infos []policyInformation
	for _, o := range a.policies() {
		b, err := o.MarshalBinary()
		if err != nil {
			return nil, err
		}
		infos = append(infos, policyInformation{asn1.RawValue{Tag: asn1.TagOID, Bytes: b}})
	}
	cp, err := asn1.Marshal(infos)
	if err != nil {
		return nil, err
	}
	id, err := subjectKeyID(key.Public(), earlier)
	if err != nil {
		return nil, err
	}
	ski, err := asn1.Marshal(id)
	if err != nil {
		return nil, err
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{a.Organization}, CommonName: a.CommonName},
		ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Critical: true, Value: bc}, {Id: oidKeyUsage, Critical: true, Value: ku}, {Id: oidPolicies, Value: cp}, {Id: oidKeyID, Value: ski}}}
	if earlier != nil {
		t.RawSubject = earlier.RawSubject
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("signing the request of %q: %w", t.Subject.CommonName, err)
	}
	return der, nil
}

// subjectKeyID is the identifier by which what the key signed names it.
func subjectKeyID(pub crypto.PublicKey, earlier *x509.Certificate) ([]byte, error) {
	if earlier != nil {
		return earlier.SubjectKeyId, nil
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	return keyID(spki), err
}

// CrossSign certifies the key and name of another CA, within its own life.
func CrossSign(by *Issuer, of *x509.Certificate, pathLen int, policies []x509.OID, more ...x509.OID) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber:          NewSerial(),
		RawSubject:            of.RawSubject,
		NotBefore:             latest(of.NotBefore, by.Cert.NotBefore),
		NotAfter:              of.NotAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            pathLen,
		MaxPathLenZero:        pathLen == 0,
		SubjectKeyId:          of.SubjectKeyId,
		Policies:              append(slices.Clone(policies), more...),
	}
	if by.Cert.NotAfter.Before(t.NotAfter) {
		t.NotAfter = by.Cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.Cert, of.PublicKey, by.Key)
	if err != nil {
		return nil, fmt.Errorf("cross-signing %q: %w", of.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// MissingPolicies lists the policies of a class that a CA certificate does not assert. A verifier that demands one of
// them (RFC 5280 §6.1.1, user-initial-policy-set) refuses everything below such a CA.
func MissingPolicies(c *x509.Certificate, class cradle.Class, unproved bool) []x509.OID {
	var out []x509.OID
	for _, want := range cradle.ClassPolicies(class, !unproved) {
		if !slices.ContainsFunc(c.Policies, func(o x509.OID) bool { return o.Equal(want) || o.Equal(anyPolicy) }) {
			out = append(out, want)
		}
	}
	return out
}

// Trial signs a certificate of the shape of a device's, which must be given to nobody: it ends at once.
func Trial(iss *Issuer, pub crypto.PublicKey, account cradle.AccountID, now time.Time) (*x509.Certificate, error) {
	start := latest(now, iss.Cert.NotBefore)
	return signLeaf(iss, &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{Organization: []string{string(account)}, CommonName: "trial"},
		NotBefore:             start,
		NotAfter:              start.Add(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, pub)
}
