package softkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/protocol/evidence"
)

// Maker is a CA for software endorsement keys.
type Maker struct {
	Cert *x509.Certificate // self-signed root
	Key  *ecdsa.PrivateKey // P-256
}

// NewMaker makes a root of that name, valid from 1970 so that tests may choose their time.
func NewMaker(name string) (*Maker, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Unix(0, 0),
		NotAfter:              forever,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the maker's root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Maker{Cert: cert, Key: key}, nil
}

var forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Types of endorsement key that NewDevice makes.
const (
	RSA2048 = "rsa2048"
	P256    = "p256"
	P384    = "p384"
)

// NewDevice makes a device whose endorsement key has that type; "" is P256.
func (m *Maker) NewDevice(ekType string) (*Device, error) {
	var ek crypto.Signer
	var err error
	switch ekType {
	case RSA2048:
		ek, err = rsa.GenerateKey(rand.Reader, 2048)
	case P384:
		ek, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case P256, "":
		ek, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return nil, fmt.Errorf("no software endorsement key of type %q", ekType)
	}
	if err != nil {
		return nil, err
	}
	iak, err := NewKey(evidence.IAKTemplate, tpm2.TPMRHEndorsement)
	if err != nil {
		return nil, err
	}
	cert, err := x509.CreateCertificate(rand.Reader, EKTemplate(ek.Public()), m.Cert, ek.Public(), m.Key)
	if err != nil {
		return nil, fmt.Errorf("signing the EK certificate: %w", err)
	}
	return &Device{EK: ek, EKCert: cert, IAK: iak,
		Clock: tpm2.TPMSClockInfo{Clock: 1000, ResetCount: 1, Safe: true}}, nil
}

// EKTemplate is the EK certificate that a Maker signs for pub, after the EK Credential Profile v2.5
// §3.2: no subject, the TPM's attributes in a critical SAN, valid for ever.
func EKTemplate(pub crypto.PublicKey) *x509.Certificate {
	usage := x509.KeyUsageKeyEncipherment
	if _, ok := pub.(*ecdsa.PublicKey); ok {
		usage = x509.KeyUsageKeyAgreement
	}
	return &x509.Certificate{
		SerialNumber:          serial(),
		NotBefore:             time.Unix(0, 0),
		NotAfter:              forever,
		BasicConstraintsValid: true,
		KeyUsage:              usage,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:       []pkix.Extension{SAN("id:534F4654", "softkey", "id:00000001")}, // "SOFT"
	}
}

// SAN is the critical subjectAltName with the TPM's manufacturer, model and version.
func SAN(manufacturer, model, version string) pkix.Extension {
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	must := func(b []byte, err error) []byte {
		if err != nil {
			panic("internal error: " + err.Error())
		}
		return b
	}
	type rdn []attribute
	var dn []asn1.RawValue
	for i, v := range []string{manufacturer, model, version} {
		set := must(asn1.MarshalWithParams(rdn{{asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, v}}, "set"))
		dn = append(dn, asn1.RawValue{FullBytes: set})
	}
	names := []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: must(asn1.Marshal(dn))}}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: must(asn1.Marshal(names))}
}

// serial is a random positive serial number of 127 bits.
func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}
