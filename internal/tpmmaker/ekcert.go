package tpmmaker

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"time"
)

// Fault is one thing wrong with a TPM or its EK certificate, for tests of what must be refused.
type Fault string

// The faults. None is the zero value.
const (
	None              Fault = ""
	Expired           Fault = "expired"            // notAfter is yesterday
	NotYetValid       Fault = "not yet valid"      // notBefore is tomorrow
	MissingEKU        Fault = "missing EKU"        // no extended key usage at all
	WrongEKU          Fault = "wrong EKU"          // client authentication instead of 2.23.133.8.1
	NoSAN             Fault = "no SAN"             // no TPM manufacturer, model, version
	WrongManufacturer Fault = "wrong manufacturer" // the SAN says Infineon
	CACertificate     Fault = "CA certificate"     // basicConstraints CA:TRUE
	SelfSigned        Fault = "self-signed"        // by a key of its own, in the maker's name
	ForeignKey        Fault = "foreign key"        // certifies a key that is not in this TPM
	WrongKeyUsage     Fault = "wrong key usage"    // digitalSignature
	NoCertificate     Fault = "no certificate"     // nothing in NV
	NoChain           Fault = "no chain"           // the certificate, but not its CA's, in NV; no fault if the CA is an anchor
)

// Manufacturer is the TCG vendor id in our EK certificates: "SIM0", one of those set aside for tests.
const Manufacturer = "id:53494D30"

var (
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidSubjectDirAttrs  = asn1.ObjectIdentifier{2, 5, 29, 9}
	oidEKCertificate    = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidTPMManufacturer  = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel         = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion       = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidTPMSpecification = asn1.ObjectIdentifier{2, 23, 133, 2, 16}
	endOfTime           = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280 §4.1.2.5
)

const (
	generalNameDirectory   = 4 // RFC 5280 §4.2.1.6, directoryName
	specificationFamily    = "2.0"
	specificationLevel     = 0
	specificationRevision  = 164
	firmwareVersion        = "id:20191023" // what libtpms reports
	modelName              = "Cradle demo TPM"
	infineonManufacturerID = "id:49465800"
)

// issueEK signs an EK certificate (TCG EK Credential Profile v2.5 §3.2): empty subject, the TPM's
// maker, model and version in a critical SAN, EKU 2.23.133.8.1.
func (m *Maker) issueEK(pub crypto.PublicKey, fault Fault) ([]byte, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              endOfTime,
		KeyUsage:              x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidEKCertificate},
		BasicConstraintsValid: true,
	}
	if _, ok := pub.(*rsa.PublicKey); ok {
		template.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	parent, signer := m.intermediate, m.key
	manufacturer := Manufacturer
	switch fault {
	case Expired:
		template.NotBefore, template.NotAfter = now.AddDate(-2, 0, 0), now.AddDate(0, 0, -1)
	case NotYetValid:
		template.NotBefore = now.AddDate(0, 0, 1)
	case MissingEKU:
		template.UnknownExtKeyUsage = nil
	case WrongEKU:
		template.UnknownExtKeyUsage, template.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case WrongManufacturer:
		manufacturer = infineonManufacturerID
	case CACertificate:
		template.IsCA, template.KeyUsage = true, template.KeyUsage|x509.KeyUsageCertSign
	case WrongKeyUsage:
		template.KeyUsage = x509.KeyUsageDigitalSignature
	case SelfSigned, ForeignKey:
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if fault == ForeignKey {
			pub = &other.PublicKey
		} else {
			signer = other
			impostor := *m.intermediate
			impostor.PublicKey = &other.PublicKey
			parent = &impostor
		}
	}
	extensions, err := ekExtensions(manufacturer, fault)
	if err != nil {
		return nil, err
	}
	template.ExtraExtensions = extensions
	return x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
}

func ekExtensions(manufacturer string, fault Fault) ([]pkix.Extension, error) {
	type specification struct {
		Family          string `asn1:"utf8"`
		Level, Revision int
	}
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []specification `asn1:"set"`
	}
	dirAttrs, err := asn1.Marshal([]attribute{{
		oidTPMSpecification, []specification{{specificationFamily, specificationLevel, specificationRevision}},
	}})
	if err != nil {
		return nil, err
	}
	out := []pkix.Extension{{Id: oidSubjectDirAttrs, Value: dirAttrs}}
	if fault == NoSAN {
		return out, nil
	}
	name, err := asn1.Marshal(pkix.RDNSequence{
		{{Type: oidTPMManufacturer, Value: manufacturer}},
		{{Type: oidTPMModel, Value: modelName}},
		{{Type: oidTPMVersion, Value: firmwareVersion}},
	})
	if err != nil {
		return nil, err
	}
	san, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific, Tag: generalNameDirectory, IsCompound: true, Bytes: name,
	}})
	if err != nil {
		return nil, err
	}
	return append(out, pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: san}), nil
}
