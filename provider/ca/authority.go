package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"time"

	"github.com/cradle-iot/cradle"
)

// Authority says what a CA certificate holds.
type Authority struct {
	Organization string // the account or OEM; leaves must carry the same
	CommonName   string
	Class        cradle.Class // empty: no policies (stations, services)
	Unproved     bool         // signs keys that nothing proved
	PathLen      int          // CAs below it; 0 signs leaves only
	NotBefore    time.Time
	NotAfter     time.Time
}

// SelfSign makes a root certificate for key.
func SelfSign(key crypto.Signer, a Authority) (*x509.Certificate, error) {
	return SignAuthority(nil, key.Public(), a, key)
}

// SignAuthority makes a CA certificate for pub, signed by parent's key, or self-signed by key when parent is nil.
func SignAuthority(parent *Issuer, pub crypto.PublicKey, a Authority, key crypto.Signer) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{Organization: []string{a.Organization}, CommonName: a.CommonName},
		NotBefore:             a.NotBefore,
		NotAfter:              a.NotAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            a.PathLen,
		MaxPathLenZero:        a.PathLen == 0,
		SubjectKeyId:          keyID(spki),
	}
	if a.Class != "" {
		t.Policies = cradle.ClassPolicies(a.Class, !a.Unproved)
	}
	issuer, signer := t, key
	if parent != nil {
		issuer, signer = parent.Cert, parent.Key
		if err := parent.stamp(t); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, pub, signer)
	if err != nil {
		return nil, fmt.Errorf("signing CA certificate %q: %w", a.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// Station makes the certificate of a line's station: it may ask for IDevIDs of one order.
func Station(iss *Issuer, pub crypto.PublicKey, oem cradle.OEMID, order cradle.OrderID, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: NewSerial(),
		Subject: pkix.Name{Organization: []string{string(oem)}, OrganizationalUnit: []string{"station"},
			CommonName: string(order)},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if err := iss.stamp(t); err != nil {
		return nil, err
	}
	return signLeaf(iss, t, pub)
}

// Server makes a TLS server certificate of the services for these names and addresses.
func Server(iss *Issuer, pub crypto.PublicKey, names []string, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{CommonName: names[0]},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return signLeaf(iss, t, pub)
}

// TimeStamper makes the certificate of a key that states the time and does nothing else.
func TimeStamper(iss *Issuer, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	return signLeaf(iss, &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{CommonName: "Cradle time statements"},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
		BasicConstraintsValid: true,
	}, pub)
}

// KeyGenerator makes the certificate of a key that signs packages of generated keys (RFC 7030 §4.4.2) and does nothing else.
func KeyGenerator(iss *Issuer, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	return signLeaf(iss, &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{CommonName: "Cradle key generator"},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}, pub)
}

func signLeaf(iss *Issuer, t *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	t.SubjectKeyId = keyID(spki)
	der, err := x509.CreateCertificate(rand.Reader, t, iss.Cert, pub, iss.Key)
	if err != nil {
		return nil, fmt.Errorf("signing for %q: %w", t.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}
