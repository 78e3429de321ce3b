package filekey

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
)

// Scheme begins the references of issuing keys that a vault sealed.
const Scheme = "file"

// Store keeps issuing keys sealed by a vault; the sealed keys themselves are kept by whoever asked for them.
type Store struct{ Vault *Vault }

var _ keystore.Store = Store{}

// Scheme implements keystore.Store.
func (s Store) Scheme() string { return Scheme }

// Generate implements keystore.Store.
func (s Store) Generate(_ context.Context, _ string, a keystore.Algorithm) (crypto.Signer, keystore.Key, error) {
	k, err := a.Make()
	if err != nil {
		return nil, keystore.Key{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, keystore.Key{}, err
	}
	id := make([]byte, 16)
	rand.Read(id)
	name := "issuing/" + hex.EncodeToString(id)
	return k, keystore.Key{Ref: Scheme + ":" + name, Sealed: s.Vault.Seal(name, der)}, nil
}

// Open implements keystore.Store.
func (s Store) Open(_ context.Context, k keystore.Key, pub crypto.PublicKey) (crypto.Signer, error) {
	name, ok := strings.CutPrefix(k.Ref, Scheme+":")
	if !ok {
		return nil, cradle.Errorf(cradle.Invalid, "%q is not the reference of a sealed key", k.Ref)
	}
	key, err := s.Vault.Key(name, k.Sealed)
	if err != nil {
		return nil, err
	}
	if have, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !have.Equal(pub) {
		return nil, cradle.Errorf(cradle.NotFound, "%s is another key than the certificate's", name)
	}
	return key, nil
}

// Reseal seals a key that another vault sealed by this one.
func (s Store) Reseal(from *Vault, k keystore.Key) (keystore.Key, error) {
	name, ok := strings.CutPrefix(k.Ref, Scheme+":")
	if !ok {
		return k, cradle.Errorf(cradle.Invalid, "%q is not the reference of a sealed key", k.Ref)
	}
	der, err := from.Open(name, k.Sealed)
	if err != nil {
		return k, err
	}
	return keystore.Key{Ref: k.Ref, Sealed: s.Vault.Seal(name, der)}, nil
}
