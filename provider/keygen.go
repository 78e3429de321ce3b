package provider

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// GeneratedKey is a certificate with the key that was made for it here.
type GeneratedKey struct {
	Issued
	PKCS8 []byte
}

// GenerateKey is serverkeygen (RFC 7030 §4.4): the certificate that simpleenroll would give without evidence, for a
// key that is made here. Key and signature of the CSR count for nothing. strength is the number of bits of security with
// which the key will travel; no stronger one is made, and none at all when the profile has no such key.
//
// The private key is in this process's memory until it is answered, and nowhere else, so a lost answer is not
// given again: the client asks anew and gets another key. The certificate whose key nobody has stays on record, unused.
func (p *Provider) GenerateKey(ctx context.Context, r Request, strength int) (*GeneratedKey, error) {
	r.Operation = ServerKeyGen
	out, err := p.generateKey(ctx, r, strength)
	if err != nil {
		p.logRefusal(ctx, r, err)
	}
	return out, err
}

func (p *Provider) generateKey(ctx context.Context, r Request, strength int) (*GeneratedKey, error) {
	d, err := p.judge(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	rules, err := p.profile(r.Account, r.Profile)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(rules.Keys, func(k ca.KeyType) bool { return keyStrength[k] <= strength })
	if i < 0 {
		return nil, cradle.Errorf(cradle.Forbidden, "profile %s has no key as weak as the protection that the client asks for it, %d bits", r.Profile, strength).
			WithHint("use a stronger cipher suite, or list stronger algorithms in SMIMECapabilities")
	}
	if d.made, err = newKey(rules.Keys[i]); err != nil {
		return nil, err
	}
	issued, err := p.issue(ctx, r, d)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(d.made)
	return &GeneratedKey{*issued, der}, err
}

// keyStrength is the bits of security of each type of key (NIST SP 800-57 part 1, table 2).
var keyStrength = map[ca.KeyType]int{ca.ECP256: 128, ca.ECP384: 192, ca.RSA2048: 112, ca.RSA3072: 128, ca.RSA4096: 128, ca.Ed25519: 128}

func newKey(t ca.KeyType) (crypto.Signer, error) {
	switch t {
	case ca.ECP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ca.ECP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ca.Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return rsa.GenerateKey(rand.Reader, map[ca.KeyType]int{ca.RSA2048: 2048, ca.RSA3072: 3072, ca.RSA4096: 4096}[t])
}

// openKeyGenerator makes the key that signs packages of generated keys, and its certificate under the services CA. It lives in
// memory alone: every start has a fresh one.
func (p *Provider) openKeyGenerator() error {
	key, err := newKey(ca.ECP256)
	if err != nil {
		return err
	}
	now := p.now()
	cert, err := ca.KeyGenerator(p.services, key.Public(), now.Add(-ca.Backdate), now.AddDate(1, 0, 0))
	if err != nil {
		return err
	}
	p.generator, p.generatorChain = key, []*x509.Certificate{cert, p.services.Cert}
	return nil
}

// KeyGenerator signs the SignedData around a generated key (RFC 7030 §4.4.2).
func (p *Provider) KeyGenerator() ([]*x509.Certificate, crypto.Signer) {
	return p.generatorChain, p.generator
}

// KEKs keeps the symmetric keys by which generated keys are encrypted.
type KEKs interface {
	// SetKEK stores a sealed key, in place of one of the same identifier; nil deletes it.
	SetKEK(ctx context.Context, account cradle.AccountID, id string, sealed []byte, leaf ledger.Leaf) error
	KEK(ctx context.Context, account cradle.AccountID, id string) ([]byte, error) // NotFound
	KEKList(ctx context.Context, account cradle.AccountID) ([]string, error)
}

// maxKEKID bounds a DecryptKeyIdentifier in bytes.
const maxKEKID = 64

// SetKEK registers the key-encryption key that clients of the account name by DecryptKeyIdentifier in serverkeygen
// (RFC 7030 §4.4.1.1); a nil key ends it. It is kept sealed.
func (p *Provider) SetKEK(ctx context.Context, account cradle.AccountID, id, key []byte) error {
	if _, err := p.account(ctx, account); err != nil {
		return err
	}
	name := hex.EncodeToString(id)
	if len(id) == 0 || len(id) > maxKEKID {
		return cradle.Errorf(cradle.Invalid, "the key identifier has %d bytes; 1 to %d are wanted", len(id), maxKEKID)
	}
	action, sealed := "account kek --remove", []byte(nil)
	if key != nil {
		if n := len(key); n != 16 && n != 24 && n != 32 {
			return cradle.Errorf(cradle.Invalid, "the key has %d bytes; 16, 24 or 32 are wanted", n).WithHint("make one: openssl rand 32")
		}
		action, sealed = "account kek", p.vault.Seal(kekName(account, name), key)
	} else if _, err := p.store.KEK(ctx, account, name); err != nil {
		return err
	}
	leaf, err := p.operatorLeaf(ctx, string(account), action, map[string]any{"account": account, "kek": name, "settings": settings(KEKSetting(name, sealed))})
	if err != nil {
		return err
	}
	return p.store.SetKEK(ctx, account, name, sealed, leaf)
}

func kekName(account cradle.AccountID, id string) string { return "kek/" + string(account) + "/" + id }

// KEKs lists the identifiers of an account's key-encryption keys.
func (p *Provider) KEKs(ctx context.Context, account cradle.AccountID) ([]string, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	return p.store.KEKList(ctx, account)
}

// DecryptKey returns the key-encryption key that an operator registered under id.
func (p *Provider) DecryptKey(ctx context.Context, e Endpoint, id []byte) ([]byte, error) {
	name := hex.EncodeToString(id)
	sealed, err := p.store.KEK(ctx, e.Account, name)
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, cradle.Errorf(cradle.NotFound, "no key-encryption key %s is registered", name).WithHint("cradle account kek %s --id %s --key-file FILE", e.Account, name)
	}
	if err != nil {
		return nil, err
	}
	return p.vault.Open(kekName(e.Account, name), sealed)
}
