package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/cradle-iot/cradle"
)

// Points is what an issuer's certificates say of where their standing is asked for (RFC 5280 §4.2.1.13, §4.2.2.1). An
// issuer without Points says nothing.
type Points struct {
	// CRL returns the URL of the CRL shard for a certificate that ends at notAfter.
	CRL  func(notAfter time.Time) (string, error)
	OCSP string // URL of the responder
	CA   string // URL of the issuer's own certificate
}

// points are those of a certificate that ends at notAfter.
func (iss *Issuer) points(notAfter time.Time) (points, error) {
	if iss == nil || iss.Points == nil {
		return points{}, nil
	}
	url, err := iss.Points.CRL(notAfter)
	if err != nil {
		return points{}, fmt.Errorf("distribution point of %q: %w", iss.Cert.Subject.CommonName, err)
	}
	return points{crl: url, ocsp: iss.Points.OCSP, ca: iss.Points.CA}, nil
}

// stamp writes the issuer's points into a certificate to be signed.
func (iss *Issuer) stamp(t *x509.Certificate) error {
	at, err := iss.points(t.NotAfter)
	if at != (points{}) {
		t.CRLDistributionPoints, t.OCSPServer, t.IssuingCertificateURL = []string{at.crl}, []string{at.ocsp}, []string{at.ca}
	}
	return err
}

// CRL says what a CRL shard holds.
type CRL struct {
	URL        string // its distribution point, as the certificates of the shard name it; empty: it is of all that the issuer signed
	Number     int64
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    []Revoked
}

// Revoked is one entry of a CRL.
type Revoked struct {
	Serial cradle.CertSerial
	At     time.Time
	Code   cradle.Reason
}

// issuingDistributionPoint is RFC 5280 §5.2.5; it makes the CRL speak for the certificates of its shard alone.
type issuingDistributionPoint struct {
	Point struct {
		FullName []asn1.RawValue `asn1:"optional,tag:0"`
	} `asn1:"optional,tag:0"`
	OnlyUserCerts bool `asn1:"optional,tag:1"`
}

var oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}

// SignCRL makes a CRL shard (RFC 5280 §5).
func SignCRL(iss *Issuer, c CRL) ([]byte, error) {
	t := &x509.RevocationList{Number: big.NewInt(c.Number), ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate}
	if c.URL != "" {
		idp := issuingDistributionPoint{OnlyUserCerts: true}
		idp.Point.FullName = []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(c.URL)}} // uniformResourceIdentifier
		ext, err := asn1.Marshal(idp)
		if err != nil {
			return nil, err
		}
		t.ExtraExtensions = []pkix.Extension{{Id: oidIssuingDistributionPoint, Critical: true, Value: ext}}
	}
	for _, e := range c.Entries {
		n, err := ParseSerial(e.Serial)
		if err != nil {
			return nil, err
		}
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: e.At, ReasonCode: int(e.Code)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, iss.Cert, iss.Key)
	if err != nil {
		return nil, fmt.Errorf("signing CRL %d of %q: %w", c.Number, iss.Cert.Subject.CommonName, err)
	}
	return der, nil
}

// oidNoCheck says that the responder's own certificate is not asked about (RFC 6960 §4.2.2.2.1): it is short-lived.
var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

// Responder makes the certificate of an OCSP responder that answers for this issuer (RFC 6960 §4.2.2.2).
func Responder(iss *Issuer, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	return signLeaf(iss, &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{Organization: iss.Cert.Subject.Organization, CommonName: "OCSP responder of " + iss.Cert.Subject.CommonName},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		BasicConstraintsValid: true,
		SubjectKeyId:          keyID(spki),
		ExtraExtensions:       []pkix.Extension{{Id: oidNoCheck, Value: asn1.NullBytes}},
	}, pub)
}
