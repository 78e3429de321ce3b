package provider

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/cradle-iot/cradle"
)

// GeneratedKey is a certificate with the key that was made for it here.
type GeneratedKey struct {
	Cert  *x509.Certificate
	PKCS8 []byte
}

// GenerateKey is serverkeygen (RFC 7030 §4.4).
func (p *Provider) GenerateKey(context.Context, Request) (*GeneratedKey, error) {
	return nil, cradle.Errorf(cradle.NotFound, "serverkeygen is not offered")
}

// DecryptKey returns the key-encryption key that an operator registered under id for serverkeygen with a
// symmetric key (RFC 7030 §4.4.1.1).
func (p *Provider) DecryptKey(context.Context, Endpoint, []byte) ([]byte, error) {
	return nil, cradle.Errorf(cradle.NotFound, "no key-encryption key of that identifier is registered")
}

// KeyGenerator signs the SignedData around a generated key (RFC 7030 §4.4.2).
func (p *Provider) KeyGenerator() ([]*x509.Certificate, crypto.Signer) { return nil, nil }

// TPMRequest is a tpmenroll request: a CSR whose key is the AK, certified if the TPM of that EK holds it.
type TPMRequest struct {
	Endpoint
	Client   Client
	CSR      []byte
	EKChain  [][]byte // DER, the EK certificate first
	EKPublic []byte   // TPMT_PUBLIC
	AKPublic []byte   // TPMT_PUBLIC
}

// TPMEnrolled is a certificate with the secret under which it is to be sent, and that secret encrypted to
// the TPM (TPM 2.0 Part 1 §24).
type TPMEnrolled struct {
	Cert            []byte // DER
	CredentialBlob  []byte // content of TPM2B_ID_OBJECT
	EncryptedSecret []byte // content of TPM2B_ENCRYPTED_SECRET
	Secret          []byte // 16 bytes
}

// TPMEnroll decides on a tpmenroll request.
func (p *Provider) TPMEnroll(context.Context, TPMRequest) (*TPMEnrolled, error) {
	return nil, cradle.Errorf(cradle.NotFound, "tpmenroll is not offered")
}
