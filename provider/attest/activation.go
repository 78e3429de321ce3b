package attest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// SecretSize is the size in bytes of the secret that a challenge activates.
const SecretSize = 32

// Activation wraps secret so that only the TPM with this endorsement key recovers it, and only if it holds a
// key of that name too (TPM2_MakeCredential, Part 1 §24). secret has 1 to SecretSize bytes and is chosen at
// random by the caller, once per challenge. All parameters follow from the type of the key in the EK
// certificate (EK Credential Profile, templates L-1, L-2, H-3, H-6, H-7), none from the device.
func Activation(ek *EK, akName, secret []byte) (credentialBlob, encryptedSecret []byte, err error) {
	if len(secret) == 0 || len(secret) > SecretSize {
		return nil, nil, fmt.Errorf("secret of %d bytes; 1 to %d are allowed", len(secret), SecretSize)
	}
	pub, err := activationArea(ek)
	if err != nil {
		return nil, nil, err
	}
	key, err := tpm2.ImportEncapsulationKey(&pub)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	credentialBlob, encryptedSecret, err = tpm2.CreateCredential(rand.Reader, key, akName, secret)
	if err != nil {
		return nil, nil, fmt.Errorf("making the credential: %w", err)
	}
	return credentialBlob, encryptedSecret, nil
}

// activationArea is the public area of the endorsement key as its template has it, of which what matters to
// activation is filled in.
func activationArea(ek *EK) (tpm2.TPMTPublic, error) {
	pub := tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256}
	aes := tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
	if ek.Facts.Type != RSA2048 && ek.Facts.Type != P256 {
		pub.NameAlg = tpm2.TPMAlgSHA384
		aes.KeyBits = tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256))
	}
	switch k := ek.Public.(type) {
	case *rsa.PublicKey:
		pub.Type = tpm2.TPMAlgRSA
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aes, KeyBits: tpm2.TPMKeyBits(k.N.BitLen())})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	case *ecdsa.PublicKey:
		curve := tpm2.TPMECCNistP256
		if ek.Facts.Type == P384 {
			curve = tpm2.TPMECCNistP384
		}
		point, err := k.Bytes()
		if err != nil {
			return pub, fmt.Errorf("endorsement key: %w", err)
		}
		point = point[1:] // uncompressed
		pub.Type = tpm2.TPMAlgECC
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes, CurveID: curve})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[:len(point)/2]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[len(point)/2:]},
		})
	default:
		return pub, fmt.Errorf("endorsement key of type %T", ek.Public)
	}
	return pub, nil
}
