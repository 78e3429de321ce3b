package tpmkey_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/protocol/evidence"
)

func marshalSignature(sig *tpm2.TPMSSignatureECC) ([]byte, error) {
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}

func ekPublic(t *testing.T, kind string, key any) tpm2.TPMTPublic {
	t.Helper()
	template := map[string]tpm2.TPMTPublic{
		"p256": evidence.EKTemplateP256, "p384": evidence.EKTemplateP384, "rsa2048": evidence.EKTemplateRSA2048,
	}[kind]
	switch key := key.(type) {
	case *rsa.PublicKey:
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	case *ecdsa.PublicKey:
		point := must[[]byte](t)(key.Bytes())
		half := len(point) / 2
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+half]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+half:]},
		})
	}
	return template
}

var sha256Opts = crypto.SHA256
