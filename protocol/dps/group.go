package dps

import (
	"crypto/hmac"
	"crypto/sha1" // the wire has a field for it; nothing is decided by it
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/cradle-iot/cradle"
)

// EnrollmentGroup is a group of the service API.
type EnrollmentGroup struct {
	EnrollmentGroupID string      `json:"enrollmentGroupId"`
	Attestation       Attestation `json:"attestation"`
	Terms
}

// Attestation says how devices prove themselves.
type Attestation struct {
	Type         string           `json:"type"` // x509, symmetricKey, tpm, none
	X509         *X509Attestation `json:"x509,omitempty"`
	TPM          *TPM             `json:"tpm,omitempty"`
	SymmetricKey *SymmetricKey    `json:"symmetricKey,omitempty"`
	TPMUnits     *TPMUnits        `json:"tpmUnits,omitempty"` // with type tpm, in a group
}

// X509Attestation names signing certificates, or those of a device itself.
type X509Attestation struct {
	SigningCertificates *X509Certificates `json:"signingCertificates,omitempty"`
	ClientCertificates  *X509Certificates `json:"clientCertificates,omitempty"`
	CAReferences        json.RawMessage   `json:"caReferences,omitempty"`
}

// X509Certificates has two slots, so that a successor can be registered before it signs.
type X509Certificates struct {
	Primary   *X509Certificate `json:"primary,omitempty"`
	Secondary *X509Certificate `json:"secondary,omitempty"`
}

// X509Certificate carries the certificate towards the service (PEM or base64 DER) and only Info back.
type X509Certificate struct {
	Certificate string    `json:"certificate,omitempty"`
	Info        *X509Info `json:"info,omitempty"`
}

// X509Info describes a certificate.
type X509Info struct {
	SubjectName      string `json:"subjectName"`
	SHA1Thumbprint   string `json:"sha1Thumbprint"`
	SHA256Thumbprint string `json:"sha256Thumbprint"`
	IssuerName       string `json:"issuerName"`
	NotBeforeUTC     Time   `json:"notBeforeUtc"`
	NotAfterUTC      Time   `json:"notAfterUtc"`
	SerialNumber     string `json:"serialNumber"`
	Version          int    `json:"version"`
}

// Info describes c for the wire.
func Info(c *x509.Certificate) *X509Info {
	return &X509Info{
		SubjectName:      c.Subject.String(),
		SHA1Thumbprint:   fmt.Sprintf("%X", sha1.Sum(c.Raw)),
		SHA256Thumbprint: fmt.Sprintf("%X", sha256.Sum256(c.Raw)),
		IssuerName:       c.Issuer.String(),
		NotBeforeUTC:     Time{c.NotBefore},
		NotAfterUTC:      Time{c.NotAfter},
		SerialNumber:     fmt.Sprintf("%X", c.SerialNumber),
		Version:          c.Version,
	}
}

// Parse reads the certificate given as PEM or as base64 of DER.
func (c *X509Certificate) Parse() (*x509.Certificate, error) {
	s := strings.TrimSpace(c.Certificate)
	var der []byte
	if block, rest := pem.Decode([]byte(s)); block != nil {
		if block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			return nil, cradle.Errorf(cradle.Invalid, "certificate: want one PEM block CERTIFICATE and nothing else")
		}
		der = block.Bytes
	} else {
		var err error
		if der, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), "")); err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "certificate is neither PEM nor base64 of DER")
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "certificate does not parse: %v", err)
	}
	return cert, nil
}

// PEM writes a certificate the way X509Certificate carries it.
func PEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// Query is the body of the query routes; only "*" is understood by ours.
type Query struct {
	Query string `json:"query"`
}

// DeviceKey derives a device's symmetric key from its group's: HMAC-SHA256 over the registration id in lower case.
func DeviceKey(group []byte, registrationID string) []byte {
	if len(group) == 0 {
		return nil
	}
	h := hmac.New(sha256.New, group)
	h.Write([]byte(strings.ToLower(registrationID)))
	return h.Sum(nil)
}
