// Package cms is what EST needs of the Cryptographic Message Syntax (RFC 5652) beyond certs-only messages:
// SignedData with one signer, EnvelopedData with one recipient, and EncryptedData.
//
// Sign and Verify are SignedData over any content type. Encrypt and Decrypt are EnvelopedData: the
// content under a fresh AES-CBC key, and that key for a recipient by RSA (KeyTrans, RFC 3560 and 8017), by
// ephemeral-static ECDH (KeyAgree, RFC 5753) or under a symmetric key (KEK, RFC 3394). EncryptData and
// DecryptData are EncryptedData under AES-GCM, as GlobalSign's tpmenroll has it.
//
// Everything is DER, also what is read: nobody we talk to has a reason for BER. EnvelopedData does not
// authenticate its content; who decrypts it verifies the SignedData inside before believing a byte. Verify proves
// that the certificate in the message signed it, and not whose certificate that is. Only the standard library is
// used. smallstep/pkcs7 has neither KeyAgree nor KEK recipients, nor content types other than data.
package cms

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"

	"github.com/cradle-iot/cradle"
)

// Content types.
var (
	OIDData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	OIDSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	OIDEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	OIDEncryptedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}
	// OIDKeyPackage is the asymmetric key package of RFC 5958.
	OIDKeyPackage = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 2, 1, 2, 78, 5}
)

// Algorithms.
var (
	OIDAES128CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	OIDAES192CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}
	OIDAES256CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	OIDAES128Wrap = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 5}
	OIDAES192Wrap = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 25}
	OIDAES256Wrap = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 45}
	OIDRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	OIDRSAOAEP    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}

	oidAES128GCM = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 6}
	oidAES256GCM = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 46}
	oidECPublic  = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
)

// MaxDER bounds a message that is read.
const MaxDER = 64 << 10

// contentInfo is RFC 5652 §3.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue // [0] EXPLICIT
}

// ContentInfo puts the content of a message, for example what Decrypt returns, under its type again, as tools
// that read files want it.
func ContentInfo(typ asn1.ObjectIdentifier, content []byte) ([]byte, error) {
	return asn1.Marshal(contentInfo{typ, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: content}})
}

// Content returns what is in a ContentInfo of that type.
func Content(der []byte, want asn1.ObjectIdentifier) ([]byte, error) {
	if len(der) > MaxDER {
		return nil, cradle.Errorf(cradle.TooLarge, "a CMS message of %d bytes: at most %d", len(der), MaxDER)
	}
	var ci contentInfo
	if err := unmarshal(der, &ci, "message"); err != nil {
		return nil, err
	}
	if !ci.Type.Equal(want) {
		return nil, bad("content type %v instead of %v", ci.Type, want)
	}
	if ci.Content.Class != asn1.ClassContextSpecific || ci.Content.Tag != 0 || !ci.Content.IsCompound {
		return nil, bad("no content")
	}
	return ci.Content.Bytes, nil
}

// unmarshal reads exactly one value.
func unmarshal(der []byte, v any, what string) error { return unmarshalTag(der, v, "", what) }

func unmarshalTag(der []byte, v any, params, what string) error {
	rest, err := asn1.UnmarshalWithParams(der, v, params)
	if err != nil {
		return bad("%s is not DER of the expected form", what)
	}
	if len(rest) > 0 {
		return bad("%d bytes left over after %s", len(rest), what)
	}
	return nil
}

func bad(format string, args ...any) error {
	return cradle.Errorf(cradle.Invalid, "CMS: "+format, args...)
}

// encryptedContent is EncryptedContentInfo (RFC 5652 §6.1).
type encryptedContent struct {
	Type      asn1.ObjectIdentifier
	Algorithm pkix.AlgorithmIdentifier
	Content   asn1.RawValue `asn1:"optional"` // [0] IMPLICIT OCTET STRING
}

// octets reads the [0] of an EncryptedContentInfo: a primitive string, or one constructed of strings, which
// GlobalSign's server sends.
func (e encryptedContent) octets() ([]byte, error) {
	c := e.Content
	if len(c.FullBytes) == 0 {
		return nil, bad("the encrypted content is not in the message")
	}
	if c.Class != asn1.ClassContextSpecific || c.Tag != 0 {
		return nil, bad("the encrypted content has tag %d", c.Tag)
	}
	if !c.IsCompound {
		return c.Bytes, nil
	}
	var out []byte
	for rest := c.Bytes; len(rest) > 0; {
		var part []byte
		var err error
		if rest, err = asn1.Unmarshal(rest, &part); err != nil {
			return nil, bad("the encrypted content is not made of octet strings")
		}
		out = append(out, part...)
	}
	return out, nil
}

// issuerAndSerial is RFC 5652 §10.2.4.
type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

func issuerSerial(c *x509.Certificate) issuerAndSerial {
	return issuerAndSerial{asn1.RawValue{FullBytes: c.RawIssuer}, c.SerialNumber}
}

// IssuerAndSerial is the DER by which a message names a certificate that has no subject key identifier.
func IssuerAndSerial(c *x509.Certificate) ([]byte, error) { return asn1.Marshal(issuerSerial(c)) }

// names tells whether a SignerIdentifier or RecipientIdentifier names c: IssuerAndSerialNumber, or [0] with the subject
// key identifier, whose tag the caller has checked.
func names(id asn1.RawValue, c *x509.Certificate) bool {
	if id.Class == asn1.ClassContextSpecific {
		return id.Tag == 0 && len(c.SubjectKeyId) > 0 && bytes.Equal(id.Bytes, c.SubjectKeyId)
	}
	var is issuerAndSerial
	if unmarshal(id.FullBytes, &is, "identifier") != nil {
		return false
	}
	return bytes.Equal(is.Issuer.FullBytes, c.RawIssuer) && is.Serial.Cmp(c.SerialNumber) == 0
}
