package azure_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// ca is a certification authority of somebody who uses Azure today: nothing that Cradle made.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string // its certificate, and behind it those up to and without the root
}

// pair is a certificate chain and its key, in PEM, as the SDKs want them.
type pair struct{ cert, key string }

func newCA(t *testing.T, name string) *ca {
	t.Helper()
	return issueCA(t, nil, name)
}

// below makes an intermediate.
func (c *ca) below(t *testing.T, name string) *ca {
	t.Helper()
	return issueCA(t, c, name)
}

func issueCA(t *testing.T, parent *ca, name string) *ca {
	t.Helper()
	now := time.Now()
	c, chain := sign(t, parent, &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true})
	c.pem = chain
	return c
}

// leaf makes a device's certificate; change, if any, spoils it.
func (c *ca) leaf(t *testing.T, name string, change func(*x509.Certificate)) pair {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	made, chain := sign(t, c, template)
	der, err := x509.MarshalPKCS8PrivateKey(made.key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{chain, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
}

// sign makes a key and its certificate; without a parent it signs itself.
func sign(t *testing.T, parent *ca, template *x509.Certificate) (*ca, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		t.Fatal(err)
	}
	issuer, signer, rest := template, key, ""
	if parent != nil {
		issuer, signer = parent.cert, parent.key
		if parent.cert.Subject.String() != parent.cert.Issuer.String() {
			rest = parent.pem
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert: cert, key: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + rest
}
