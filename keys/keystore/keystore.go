// Package keystore is the seam between those who sign with issuing keys and the places where such keys are
// kept: a file sealed at rest (filekey), a PKCS#11 token (p11key), or a cloud's key service, which
// needs one more implementation of Store and no other change.
//
// A key is known by a Key: a reference, and for stores that keep nothing themselves the sealed key. Both stand in the
// provider's database; neither opens anything without the store's own secret (the key-encryption
// key, the token's PIN, the cloud's credential), which never stands there.
package keystore

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Algorithm is the kind of an issuing key.
type Algorithm string

// The algorithms.
const (
	P256    Algorithm = "ec-p256"
	P384    Algorithm = "ec-p384"
	RSA3072 Algorithm = "rsa-3072"
	RSA4096 Algorithm = "rsa-4096"
)

// Algorithms lists them, the default first.
var Algorithms = []Algorithm{P256, P384, RSA3072, RSA4096}

// ParseAlgorithm reads an algorithm's name; empty is the default.
func ParseAlgorithm(s string) (Algorithm, error) {
	switch a := Algorithm(s); a {
	case "":
		return P256, nil
	case P256, P384, RSA3072, RSA4096:
		return a, nil
	case "ed25519":
		return "", cradle.Errorf(cradle.Invalid, "ed25519 cannot be an issuing key: TPMs, many TLS clients and brokers, and OCSP clients do not verify its signatures, so certificates and status below it would be refused in the field").
			WithHint("use ec-p256 or ec-p384")
	case "rsa-1024", "rsa-2048":
		return "", cradle.Errorf(cradle.Invalid, "%s is too weak for an issuing key, whose certificates may live for decades (NIST SP 800-57: 2030)", s).
			WithHint("use rsa-3072 or rsa-4096")
	}
	return "", cradle.Errorf(cradle.Invalid, "no such kind of issuing key %q", s).WithHint("use ec-p256, ec-p384, rsa-3072 or rsa-4096")
}

// AlgorithmOf names the algorithm of a public key; empty if it may not be an issuing key.
func AlgorithmOf(pub crypto.PublicKey) Algorithm {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256
		case elliptic.P384():
			return P384
		}
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 3072:
			return RSA3072
		case 4096:
			return RSA4096
		}
	}
	return ""
}

// Make makes a key in software, for stores that keep such.
func (a Algorithm) Make() (crypto.Signer, error) {
	switch a {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("internal error: no algorithm %q", a)
}

// Key is how a key is found again.
type Key struct {
	Ref    string // SCHEME:REST, for example "file:issuing/…" or a pkcs11: URI (RFC 7512)
	Sealed []byte // the key itself, sealed by its store; nil where the store keeps it
}

// Store keeps issuing keys. Its methods and the signers it gives out are safe for concurrent use.
type Store interface {
	// Scheme is what the references of this store begin with, without the colon.
	Scheme() string
	// Generate makes a key pair that cannot leave the store in the clear. label is for the eyes of whoever looks
	// into the store; it need not be unique. The key is durable when Generate returns, unless it is in Key.
	Generate(ctx context.Context, label string, a Algorithm) (crypto.Signer, Key, error)
	// Open returns the signer of a key made by Generate, whose public half is pub. A store that is away need not
	// fail here: the signer does, with NotFound (there is no such key, or it is another one) or Busy, and
	// works again when the store is back.
	Open(ctx context.Context, k Key, pub crypto.PublicKey) (crypto.Signer, error)
}

// Stores is several stores as one: keys are made in the first and opened in whichever their reference names.
type Stores []Store

// Scheme implements Store.
func (s Stores) Scheme() string { return s[0].Scheme() }

// Generate implements Store.
func (s Stores) Generate(ctx context.Context, label string, a Algorithm) (crypto.Signer, Key, error) {
	return s[0].Generate(ctx, label, a)
}

// Open implements Store.
func (s Stores) Open(ctx context.Context, k Key, pub crypto.PublicKey) (crypto.Signer, error) {
	scheme, _, _ := strings.Cut(k.Ref, ":")
	var elsewhere error // of the same kind of store: two tokens, for example
	for _, st := range s {
		if st.Scheme() != scheme {
			continue
		}
		key, err := st.Open(ctx, k, pub)
		if err == nil {
			return key, nil
		}
		if elsewhere == nil {
			elsewhere = err
		}
	}
	if elsewhere != nil {
		return nil, elsewhere
	}
	return nil, cradle.Errorf(cradle.NotFound, "an issuing key is kept in a %s store, which is not configured here", scheme).
		WithHint("start serve with the --keys that it was made with")
}
