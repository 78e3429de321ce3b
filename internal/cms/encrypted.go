package cms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
)

// gcmParameters are those of RFC 5084 §3.2 as GlobalSign's client has them (go.mozilla.org/pkcs7) and reads no others: the
// nonce under the context tag 4, and all of it in a SEQUENCE of its own.
type gcmParameters struct {
	Nonce []byte `asn1:"tag:4"`
	Tag   int
}

type encryptedData struct {
	Version int
	Content encryptedContent
}

// EncryptData returns an EncryptedData (RFC 5652 §8, as a whole message) of data under AES-GCM with a key of 16 or 32
// bytes. RFC 5084 gives GCM to AuthEnvelopedData only; this is the form of GlobalSign's tpmenroll: the tag
// follows the ciphertext, and the content is [0] around an OCTET STRING.
func EncryptData(data, key []byte) ([]byte, error) {
	alg := oidAES128GCM
	if len(key) == 32 {
		alg = oidAES256GCM
	}
	if len(key) != KeySize(alg) {
		return nil, bad("a key of %d bytes", len(key))
	}
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, gcm.NonceSize())
	rand.Read(nonce)
	params, err := asn1.Marshal([]gcmParameters{{nonce, gcm.Overhead()}})
	if err != nil {
		return nil, err
	}
	sealed, err := asn1.Marshal(gcm.Seal(nil, nonce, data, nil))
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(encryptedData{Version: 0, Content: encryptedContent{OIDData,
		pkix.AlgorithmIdentifier{Algorithm: alg, Parameters: asn1.RawValue{FullBytes: params}},
		asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: sealed}}})
	if err != nil {
		return nil, bad("EncryptedData: %w", err)
	}
	return ContentInfo(OIDEncryptedData, der)
}

// DecryptData opens what EncryptData made.
func DecryptData(der, key []byte) ([]byte, error) {
	inner, err := Content(der, OIDEncryptedData)
	if err != nil {
		return nil, err
	}
	var ed encryptedData
	if err := unmarshal(inner, &ed, "EncryptedData"); err != nil {
		return nil, err
	}
	alg := ed.Content.Algorithm
	if !alg.Algorithm.Equal(oidAES128GCM) && !alg.Algorithm.Equal(oidAES256GCM) || KeySize(alg.Algorithm) != len(key) {
		return nil, bad("cipher %v with a key of %d bytes", alg.Algorithm, len(key))
	}
	var wrapped []gcmParameters
	if err := unmarshal(alg.Parameters.FullBytes, &wrapped, "GCMParameters"); err != nil {
		return nil, err
	}
	if len(wrapped) != 1 {
		return nil, bad("%d GCMParameters", len(wrapped))
	}
	p := wrapped[0]
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	if len(p.Nonce) != gcm.NonceSize() || p.Tag != gcm.Overhead() {
		return nil, bad("GCM with a nonce of %d and a tag of %d bytes", len(p.Nonce), p.Tag)
	}
	sealed, err := ed.Content.octets()
	if err != nil {
		return nil, err
	}
	data, err := gcm.Open(nil, p.Nonce, sealed, nil)
	if err != nil {
		return nil, bad("the content does not decrypt: wrong key, or altered")
	}
	return data, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
