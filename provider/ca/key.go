package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
)

// KeyType is an algorithm and size of public keys.
type KeyType string

// The types of keys that can be certified.
const (
	ECP256  KeyType = "ec-p256"
	ECP384  KeyType = "ec-p384"
	RSA2048 KeyType = "rsa-2048"
	RSA3072 KeyType = "rsa-3072"
	RSA4096 KeyType = "rsa-4096"
	Ed25519 KeyType = "ed25519"
)

// keyTypes lists them all.
var keyTypes = []KeyType{ECP256, ECP384, RSA2048, RSA3072, RSA4096, Ed25519}

// keyTypeOf names the type of a public key; a type outside the list when it is none of them.
func keyTypeOf(pub crypto.PublicKey) KeyType {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECP256
		case elliptic.P384():
			return ECP384
		}
		return KeyType("EC on " + k.Curve.Params().Name)
	case *rsa.PublicKey:
		return KeyType(fmt.Sprintf("rsa-%d", k.N.BitLen()))
	case ed25519.PublicKey:
		return Ed25519
	}
	return KeyType(fmt.Sprintf("%T", pub))
}

// checkKeyType says why a profile takes no such key; empty when it does.
func (p *Profile) checkKeyType(pub crypto.PublicKey) string {
	t := keyTypeOf(pub)
	if slices.Contains(p.Keys, t) {
		return ""
	}
	names := make([]string, len(p.Keys))
	for i, k := range p.Keys {
		names[i] = string(k)
	}
	return fmt.Sprintf("%s is not allowed; use %s", t, strings.Join(names, ", "))
}
