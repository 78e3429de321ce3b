package softkey

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Activate does what TPM2_ActivateCredential does (TPM 2.0 Part 1 §24): it recovers the secret, if it was
// wrapped for this endorsement key and for the name of this IAK.
func (d *Device) Activate(credentialBlob, encryptedSecret []byte) ([]byte, error) {
	t := d.template()
	hash, err := t.NameAlg.Hash()
	if err != nil {
		return nil, err
	}
	seed, err := d.seed(hash, encryptedSecret)
	if err != nil {
		return nil, fmt.Errorf("encrypted secret: %w", err)
	}
	mac, err := tpm2.Unmarshal[tpm2.TPM2BDigest](credentialBlob)
	if err != nil {
		return nil, fmt.Errorf("credential blob: %w", err)
	}
	encIdentity := credentialBlob[2+len(mac.Buffer):]
	name := d.IAK.Name()
	h := hmac.New(hash.New, tpm2.KDFa(hash, seed, "INTEGRITY", nil, nil, hash.Size()*8))
	h.Write(encIdentity)
	h.Write(name)
	if !hmac.Equal(h.Sum(nil), mac.Buffer) {
		return nil, errors.New("TPM_RC_INTEGRITY: not for this endorsement key and attestation key")
	}
	bits := 128
	if hash != crypto.SHA256 {
		bits = 256
	}
	block, err := aes.NewCipher(tpm2.KDFa(hash, seed, "STORAGE", name, nil, bits))
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(encIdentity))
	cipher.NewCFBDecrypter(block, make([]byte, block.BlockSize())).XORKeyStream(plain, encIdentity) //nolint:staticcheck // the TPM's mode
	secret, err := tpm2.Unmarshal[tpm2.TPM2BDigest](plain)
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	return secret.Buffer, nil
}

// seed is the secret sharing of the EK's kind (Part 1, annexes B.10.4 and C.6.4).
func (d *Device) seed(hash crypto.Hash, encryptedSecret []byte) ([]byte, error) {
	switch k := d.EK.(type) {
	case *rsa.PrivateKey:
		return rsa.DecryptOAEP(hash.New(), rand.Reader, k, encryptedSecret, []byte("IDENTITY\x00"))
	case *ecdsa.PrivateKey:
		point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](encryptedSecret)
		if err != nil {
			return nil, err
		}
		priv, err := k.ECDH()
		if err != nil {
			return nil, err
		}
		raw := append([]byte{4}, append(append([]byte{}, point.X.Buffer...), point.Y.Buffer...)...)
		peer, err := priv.Curve().NewPublicKey(raw)
		if err != nil {
			return nil, err
		}
		z, err := priv.ECDH(peer)
		if err != nil {
			return nil, err
		}
		return tpm2.KDFe(hash, z, "IDENTITY", point.X.Buffer, x(priv.PublicKey()), hash.Size()*8), nil
	}
	return nil, fmt.Errorf("endorsement key of type %T", d.EK)
}

func x(pub *ecdh.PublicKey) []byte {
	b := pub.Bytes()
	return b[1 : 1+len(b)/2]
}
