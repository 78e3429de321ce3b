package provider

import (
	"context"

	"github.com/cradle-iot/cradle"
)

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
