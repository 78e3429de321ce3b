package order

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/jws"
)

// PEM types of oem.pub.
const (
	pemPrivate  = "PRIVATE KEY" // PKCS#8
	pemPublic   = "PUBLIC KEY"  // SubjectPublicKeyInfo
	pemOEMOrder = "CRADLE OEM ORDER KEY"
	pemOEMLot   = "CRADLE OEM LOT KEY"
)

// KeyID is the lower-case hexadecimal SHA-256 of a key's SubjectPublicKeyInfo, the kid of its signatures.
func KeyID(key *ecdsa.PublicKey) string { return jws.KeyID(key) }

// ParsePublic reads a P-256 key in SubjectPublicKeyInfo DER.
func ParsePublic(spki []byte) (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "public key: %v", err)
	}
	p, ok := k.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P256() {
		return nil, cradle.Errorf(cradle.Invalid, "public key is not ECDSA P-256")
	}
	if der, err := x509.MarshalPKIXPublicKey(p); err != nil || string(der) != string(spki) {
		return nil, cradle.Errorf(cradle.Invalid, "public key is not in its shortest encoding")
	}
	return p, nil
}

// EncodePublic is the PEM file (SubjectPublicKeyInfo) of a key.
func EncodePublic(key *ecdsa.PublicKey) ([]byte, error) { return encodePublic(pemPublic, key) }

func encodePublic(typ string, key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), nil
}

// DecodePublic reads what EncodePublic wrote.
func DecodePublic(file []byte) (*ecdsa.PublicKey, error) {
	b, rest := pem.Decode(file)
	if b == nil || b.Type != pemPublic || strings.TrimSpace(string(rest)) != "" {
		return nil, cradle.Errorf(cradle.Invalid, "not a PEM file with one PUBLIC KEY")
	}
	return ParsePublic(b.Bytes)
}

// CreateKey makes a P-256 key in a new file of mode 0600, PKCS#8 in PEM. An existing file is fs.ErrExist.
func CreateKey(path string) (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return k, durable.CreateFile(path, pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der}), 0o600)
}

// LoadKey reads a key file of CreateKey. A file that others may read is refused.
func LoadKey(path string) (*ecdsa.PrivateKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, cradle.Errorf(cradle.Invalid, "key %s may be read by others (mode %#o)", path, st.Mode().Perm()).WithHint("chmod 600 %s", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "key: %w", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemPrivate || strings.TrimSpace(string(rest)) != "" {
		return nil, cradle.Errorf(cradle.Invalid, "%s is not a PEM file with one PRIVATE KEY (PKCS#8)", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s does not hold a PKCS#8 key", path)
	}
	e, ok := k.(*ecdsa.PrivateKey)
	if !ok || e.Curve != elliptic.P256() {
		return nil, cradle.Errorf(cradle.Invalid, "%s does not hold an ECDSA P-256 key", path)
	}
	return e, nil
}

// EnsureKey loads a key, or makes it when there is no file. Two callers at once get the same key.
func EnsureKey(path string) (*ecdsa.PrivateKey, error) {
	k, err := LoadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = CreateKey(path); errors.Is(err, fs.ErrExist) {
		return LoadKey(path)
	}
	return k, err
}

// OEMPublic is the file oem.pub: what an OEM registers with the provider.
type OEMPublic struct {
	Order *ecdsa.PublicKey // countersigns orders, signs for custody
	Lot   *ecdsa.PublicKey // signs acceptance reports
}

// Encode writes the two keys as labelled PEM blocks.
func (p OEMPublic) Encode() ([]byte, error) {
	a, err := encodePublic(pemOEMOrder, p.Order)
	if err != nil {
		return nil, err
	}
	b, err := encodePublic(pemOEMLot, p.Lot)
	return append(a, b...), err
}

// ParseOEMPublic reads the file oem.pub. The two keys must differ.
func ParseOEMPublic(file []byte) (OEMPublic, error) {
	bad := func(why string) (OEMPublic, error) {
		return OEMPublic{}, cradle.Errorf(cradle.Invalid, "oem.pub: %s", why).WithHint("give the oem.pub that the OEM made with: cradle-oem init")
	}
	var p OEMPublic
	for _, want := range []struct {
		typ string
		key **ecdsa.PublicKey
	}{{pemOEMOrder, &p.Order}, {pemOEMLot, &p.Lot}} {
		b, rest := pem.Decode(file)
		if b == nil || b.Type != want.typ {
			return bad("no block " + want.typ + " in its place")
		}
		k, err := ParsePublic(b.Bytes)
		if err != nil {
			return bad(err.Error())
		}
		*want.key, file = k, rest
	}
	if strings.TrimSpace(string(file)) != "" {
		return bad("something follows the two keys")
	}
	if p.Order.Equal(p.Lot) {
		return bad("order key and lot key are the same")
	}
	return p, nil
}
