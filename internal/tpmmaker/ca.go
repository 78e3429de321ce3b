// Package tpmmaker is the demo TPM maker: it turns empty software TPMs into TPMs as a chip maker
// delivers them, with an endorsement key and, in NV, the EK certificate and its chain under the
// maker's own root and intermediate CA.
//
// It follows the TCG EK Credential Profile v2.5 and stands in for another company: it shares no
// key template with the rest of the system. Its certificates say "not for production"; an operator
// who imports its bundle does so as tier simulator. Options.Fault makes the wrong certificates that
// a verifier has to refuse.
package tpmmaker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Organization names the maker in its CA certificates.
const Organization = "Cradle demo TPM maker - not for production"

// Maker issues EK certificates. It may be used by several goroutines.
type Maker struct {
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey // of the intermediate
}

// Files of a maker's folder. The root's key is thrown away once the intermediate is signed.
const (
	rootFile         = "root.pem"
	intermediateFile = "intermediate.pem"
	keyFile          = "intermediate.key"
)

// NewMaker opens the maker in dir, or founds it there when dir holds none.
func NewMaker(dir string) (*Maker, error) {
	m, err := load(dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the TPM maker's folder: %w", err)
	}
	return found(dir)
}

// CABundle returns the maker's root and intermediate CA certificates as PEM. Both are meant to be
// anchors: a verifier that pins the intermediate needs no chain from the device.
func (m *Maker) CABundle() []byte {
	return append(certPEM(m.root.Raw), certPEM(m.intermediate.Raw)...)
}

// Intermediate returns the certificate of the CA that signs EK certificates.
func (m *Maker) Intermediate() *x509.Certificate { return m.intermediate }

func load(dir string) (*Maker, error) {
	m := &Maker{}
	for name, cert := range map[string]**x509.Certificate{rootFile: &m.root, intermediateFile: &m.intermediate} {
		der, err := readPEM(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if *cert, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("reading %s of the TPM maker: %w", name, err)
		}
	}
	der, err := readPEM(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	if m.key, err = x509.ParseECPrivateKey(der); err != nil {
		return nil, fmt.Errorf("reading the TPM maker's key: %w", err)
	}
	return m, nil
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the TPM maker: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	return block.Bytes, nil
}

func found(dir string) (*Maker, error) {
	// Two makers must never share a name: chains are built by it.
	tag := make([]byte, 4)
	rand.Read(tag)
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root, err := issueCA(fmt.Sprintf("Demo TPM root %x", tag), 1, nil, rootKey, rootKey)
	if err != nil {
		return nil, fmt.Errorf("making the TPM maker's root: %w", err)
	}
	m := &Maker{root: root}
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	m.intermediate, err = issueCA(fmt.Sprintf("Demo TPM EK CA %x", tag), 0, root, m.key, rootKey)
	if err != nil {
		return nil, fmt.Errorf("making the TPM maker's EK CA: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(m.key)
	if err != nil {
		return nil, err
	}
	files := []struct {
		name string
		data []byte
	}{
		// The root comes last: a founding that was interrupted is done again.
		{keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})},
		{intermediateFile, certPEM(m.intermediate.Raw)},
		{rootFile, certPEM(root.Raw)},
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.data, 0o600); err != nil {
			return nil, fmt.Errorf("writing the TPM maker: %w", err)
		}
	}
	return m, nil
}

func issueCA(name string, pathLen int, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{Organization}, CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(30, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            pathLen,
		MaxPathLenZero:        pathLen == 0,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns 127 random bits with the top one set: positive, never short.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
