package cms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
)

// Recipient is for whom a message is encrypted: KeyTrans, KeyAgree or KEK.
type Recipient interface {
	// info returns the RecipientInfo for a content-encryption key, and whether its version is 0.
	info(key []byte) (der []byte, v0 bool, err error)
}

type envelopedData struct {
	Version    int
	Originator asn1.RawValue   `asn1:"optional,tag:0"`
	Recipients []asn1.RawValue `asn1:"set"`
	Content    encryptedContent
	Unprotect  asn1.RawValue `asn1:"optional,tag:1"`
}

// Encrypt returns an EnvelopedData (as a whole message, in its ContentInfo) of content, whose type is
// typ, under a fresh key of the cipher: OIDAES128CBC, OIDAES192CBC or OIDAES256CBC.
func Encrypt(typ asn1.ObjectIdentifier, content []byte, cbc asn1.ObjectIdentifier, to Recipient) ([]byte, error) {
	size := KeySize(cbc)
	if size == 0 || !isCBC(cbc) {
		return nil, bad("cipher %v is not AES-CBC", cbc)
	}
	key, iv := make([]byte, size), make([]byte, aes.BlockSize)
	rand.Read(key)
	rand.Read(iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	pad := aes.BlockSize - len(content)%aes.BlockSize
	padded := slices.Clone(content)
	for range pad {
		padded = append(padded, byte(pad))
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(padded, padded)
	ri, v0, err := to.info(key)
	if err != nil {
		return nil, err
	}
	version := 2 // RFC 5652 §6.1
	if v0 {
		version = 0
	}
	ivDER, err := asn1.Marshal(iv)
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(struct {
		Version    int
		Recipients []asn1.RawValue `asn1:"set"`
		Content    encryptedContent
	}{version, []asn1.RawValue{{FullBytes: ri}}, encryptedContent{typ,
		pkix.AlgorithmIdentifier{Algorithm: cbc, Parameters: asn1.RawValue{FullBytes: ivDER}},
		asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: padded}}})
	if err != nil {
		return nil, bad("EnvelopedData: %w", err)
	}
	return ContentInfo(OIDEnvelopedData, der)
}

// A Key opens messages: RSAKey, ECKey or KEK.
type Key interface {
	// open returns the content-encryption key out of a RecipientInfo; nil when that is for another.
	open(info asn1.RawValue) ([]byte, error)
}

// Decrypt opens an EnvelopedData. The content is not authenticated.
func Decrypt(der []byte, key Key) (typ asn1.ObjectIdentifier, content []byte, err error) {
	inner, err := Content(der, OIDEnvelopedData)
	if err != nil {
		return nil, nil, err
	}
	var ed envelopedData
	if err := unmarshal(inner, &ed, "EnvelopedData"); err != nil {
		return nil, nil, err
	}
	if len(ed.Recipients) > 16 {
		return nil, nil, bad("%d recipients", len(ed.Recipients))
	}
	var cek []byte
	for _, r := range ed.Recipients {
		if cek, err = key.open(r); err != nil || cek != nil {
			break
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if cek == nil {
		return nil, nil, bad("the message is not for this key")
	}
	alg := ed.Content.Algorithm
	var iv []byte
	if !isCBC(alg.Algorithm) || unmarshal(alg.Parameters.FullBytes, &iv, "IV") != nil || len(iv) != aes.BlockSize || len(cek) != KeySize(alg.Algorithm) {
		return nil, nil, bad("cipher %v with a key of %d bytes", alg.Algorithm, len(cek))
	}
	data, err := ed.Content.octets()
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, nil, err
	}
	if len(data) == 0 || len(data)%aes.BlockSize != 0 {
		return nil, nil, bad("the encrypted content is not whole blocks")
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, data)
	pad := int(plain[len(plain)-1])
	if pad == 0 || pad > aes.BlockSize || slices.ContainsFunc(plain[len(plain)-pad:], func(b byte) bool { return int(b) != pad }) {
		return nil, nil, bad("the content does not decrypt")
	}
	return ed.Content.Type, plain[:len(plain)-pad], nil
}

func isCBC(o asn1.ObjectIdentifier) bool {
	return o.Equal(OIDAES128CBC) || o.Equal(OIDAES192CBC) || o.Equal(OIDAES256CBC)
}

// KeySize is the size of the key of an AES cipher or key wrap in bytes, 0 for anything else.
func KeySize(o asn1.ObjectIdentifier) int {
	switch {
	case o.Equal(OIDAES128CBC), o.Equal(OIDAES128Wrap), o.Equal(oidAES128GCM):
		return 16
	case o.Equal(OIDAES192CBC), o.Equal(OIDAES192Wrap):
		return 24
	case o.Equal(OIDAES256CBC), o.Equal(OIDAES256Wrap), o.Equal(oidAES256GCM):
		return 32
	}
	return 0
}
