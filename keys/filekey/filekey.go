// Package filekey keeps private keys in software, sealed at rest: the evaluation default for issuing
// keys (DESIGN §5; hardware keys take their place through the same crypto.Signer).
//
// A Vault is one 32-byte key-encryption key in a file of mode 0600, kept apart from the store, so that
// a copy of the database alone opens nothing. Values are sealed with AES-256-GCM under a random nonce,
// with the name of what they are as associated data: a sealed value moved to another row does not open.
package filekey

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Vault seals and opens secrets. It is safe for concurrent use.
type Vault struct{ aead cipher.AEAD }

// CreateVault makes a key-encryption key in file; an existing file is an error (fs.ErrExist).
func CreateVault(file string) (*Vault, error) {
	key := make([]byte, 32)
	rand.Read(key)
	if err := writeNew(file, []byte(base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return nil, fmt.Errorf("creating key-encryption key: %w", err)
	}
	return newVault(key)
}

// restoreKey is what helps where a vault's file is lost, damaged or another's.
const restoreKey = "put back the kept copy of the key-encryption-key with which the store was begun, of mode 0600"

// LoadVault reads a key-encryption key made by CreateVault. It refuses a file that others may read.
func LoadVault(file string) (*Vault, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, cradle.Errorf(cradle.Invalid, "%s may be read by others (mode %v)", file, st.Mode().Perm()).
			WithHint("chmod 600 %s", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != 32 {
		return nil, cradle.Errorf(cradle.Invalid, "%s does not hold a key-encryption key", file).WithHint("%s", restoreKey)
	}
	return newVault(key)
}

// OpenVault loads the key of file, or creates it when there is none and nothing was sealed yet: a new key beside a store
// that another one sealed would open nothing, and might be taken for the lost one.
func OpenVault(file string, sealed bool) (*Vault, error) {
	v, err := LoadVault(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return v, err
	}
	if sealed {
		return nil, cradle.Errorf(cradle.Invalid, "%s is missing, and the store was sealed with it", file).WithHint("%s", restoreKey)
	}
	return CreateVault(file)
}

func newVault(key []byte) (*Vault, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &Vault{aead}, err
}

// Seal encrypts secret; name says what it is and must be given again to Open.
func (v *Vault) Seal(name string, secret []byte) []byte {
	return v.aead.Seal(nil, nil, secret, []byte(name))
}

// Open decrypts what Seal made for the same name.
func (v *Vault) Open(name string, sealed []byte) ([]byte, error) {
	b, err := v.aead.Open(nil, nil, sealed, []byte(name))
	if err != nil {
		return nil, cradle.Errorf(cradle.Internal, "%s does not open: another key-encryption key, or it was changed", name).WithHint("%s", restoreKey)
	}
	return b, nil
}

// NewKey makes a P-256 key and its sealed PKCS#8 form.
func (v *Vault) NewKey(name string) (*ecdsa.PrivateKey, []byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return k, v.Seal(name, der), nil
}

// Key opens a sealed PKCS#8 key.
func (v *Vault) Key(name string, sealed []byte) (crypto.Signer, error) {
	der, err := v.Open(name, sealed)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a %T does not sign", name, k)
	}
	return s, nil
}

// writeNew creates file with mode 0600 and syncs it and its folder. If we stop in between there is
// no file or an empty one, which LoadVault refuses by name.
func writeNew(file string, b []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
