package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"sync/atomic"

	"github.com/cradle-iot/cradle"
)

// provedEvery is for how many signatures one that was verified speaks.
const provedEvery = 64

// Proved lets an issuing key answer for itself, if it is computed by the standard library in this process: its first
// signature of a device's certificate is verified, then one of every 64. What any other signer answers (a token, a
// service, somebody's wrapper) comes from outside and is verified each time; such a signer is returned as it is. Why that is as
// safe is in docs/decisions/0036-proved-keys.md.
func Proved(key crypto.Signer) crypto.Signer {
	if k, ok := key.(*ecdsa.PrivateKey); ok {
		return &provedKey{PrivateKey: k}
	}
	return key // RSA too: verifying costs a thirtieth of signing
}

type provedKey struct {
	*ecdsa.PrivateKey
	credit atomic.Int64 // signatures until one is verified again
}

// sign signs a TBSCertificate with the issuer's key. Nothing that was found wrong is returned, and the next signature
// is verified as well.
func (iss *Issuer) sign(alg x509.SignatureAlgorithm, tbs []byte) ([]byte, error) {
	if iss.Key == nil {
		return nil, cradle.Errorf(cradle.Busy, "the key of %q is kept elsewhere", iss.Cert.Subject.CommonName)
	}
	if have, ok := iss.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !have.Equal(iss.Cert.PublicKey) {
		return nil, fmt.Errorf("internal error: the key of %q is not its certificate's", iss.Cert.Subject.CommonName)
	}
	sig, err := crypto.SignMessage(iss.Key, rand.Reader, tbs, signatureAlgorithms[alg].hash)
	if err != nil {
		return nil, err
	}
	k, ours := iss.Key.(*provedKey)
	if ours && k.credit.Add(-1) >= 0 {
		return sig, nil
	}
	if err := iss.Cert.CheckSignature(alg, tbs, sig); err != nil {
		return nil, fmt.Errorf("the key of %q made a wrong signature: %w", iss.Cert.Subject.CommonName, err)
	}
	if ours {
		k.credit.Store(provedEvery - 1)
	}
	return sig, nil
}
