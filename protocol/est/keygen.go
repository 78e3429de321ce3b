package est

import (
	"bytes"
	"crypto"
	"crypto/rand"
	_ "crypto/sha512" // linked for crypto.Hash
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"github.com/cradle-iot/cradle"
)

// Attributes of a serverkeygen request (RFC 7030 §4.4.1).
var (
	oidDecryptKeyID    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 37}
	oidAsymDecryptID   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 54}
	oidSMIMECapability = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 15}
)

const (
	maxKeyID        = 256 // bytes of a key identifier
	maxCapabilities = 64
)

// KeyWish is how a serverkeygen request wants the key back. Without an identifier the key comes as it is, inside
// TLS.
type KeyWish struct {
	// DecryptKeyID names a symmetric key that both sides have; nil for none.
	DecryptKeyID []byte
	// AsymmetricKeyID names a key pair of the client: its subject key identifier, or IssuerAndSerialNumber in
	// DER; nil for none.
	AsymmetricKeyID []byte
	// Capabilities are the algorithms that the client can decrypt with (RFC 8551 §2.5.2), the best first.
	Capabilities []pkix.AlgorithmIdentifier
}

// Encrypted tells whether the key is to be encrypted beyond TLS.
func (k KeyWish) Encrypted() bool { return k.DecryptKeyID != nil || k.AsymmetricKeyID != nil }

// Can tells whether the client lists an algorithm, itself or as parameter of another (a key wrap below a key
// agreement, RFC 5753 §7.3).
func (k KeyWish) Can(alg asn1.ObjectIdentifier) bool {
	for _, c := range k.Capabilities {
		if c.Algorithm.Equal(alg) {
			return true
		}
		var inner pkix.AlgorithmIdentifier
		if rest, err := asn1.Unmarshal(c.Parameters.FullBytes, &inner); err == nil && len(rest) == 0 && inner.Algorithm.Equal(alg) {
			return true
		}
	}
	return false
}

// Attributes returns what a request with this wish carries among its attributes.
func (k KeyWish) Attributes() ([]Attribute, error) {
	var out []Attribute
	add := func(typ asn1.ObjectIdentifier, v any) error {
		der, err := asn1.Marshal(v)
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "serverkeygen attribute %v: %w", typ, err)
		}
		out = append(out, Attribute{typ, []asn1.RawValue{{FullBytes: der}}})
		return nil
	}
	var err error
	if k.DecryptKeyID != nil {
		err = add(oidDecryptKeyID, k.DecryptKeyID)
	}
	if k.AsymmetricKeyID != nil && err == nil {
		err = add(oidAsymDecryptID, k.AsymmetricKeyID)
	}
	if k.Capabilities != nil && err == nil {
		err = add(oidSMIMECapability, k.Capabilities)
	}
	return out, err
}

// ParseKeyWish reads the wish out of a PKCS#10 request in DER. A request that asks for encryption must ask for one
// kind of it and say what the client can decrypt (RFC 7030 §4.4.1).
func ParseKeyWish(csr []byte) (KeyWish, error) {
	var k KeyWish
	attributes, err := csrAttributes(csr)
	if err != nil {
		return k, err
	}
	bad := func(format string, args ...any) (KeyWish, error) {
		return KeyWish{}, cradle.Errorf(cradle.Invalid, "serverkeygen request: "+format, args...)
	}
	for _, a := range attributes {
		var v any
		switch {
		case a.Type.Equal(oidDecryptKeyID):
			v = &k.DecryptKeyID
		case a.Type.Equal(oidAsymDecryptID):
			v = &k.AsymmetricKeyID
		case a.Type.Equal(oidSMIMECapability):
			v = &k.Capabilities
		default:
			continue
		}
		if len(a.Values) != 1 {
			return bad("attribute %v has %d values instead of one", a.Type, len(a.Values))
		}
		switch v := v.(type) {
		case *[]byte:
			if *v != nil {
				return bad("attribute %v stands twice", a.Type)
			}
		case *[]pkix.AlgorithmIdentifier:
			if *v != nil {
				return bad("attribute %v stands twice", a.Type)
			}
		}
		if rest, err := asn1.Unmarshal(a.Values[0].FullBytes, v); err != nil || len(rest) > 0 {
			return bad("attribute %v is not of the form that RFC 7030 §4.4.1 gives it", a.Type)
		}
	}
	switch {
	case k.DecryptKeyID != nil && k.AsymmetricKeyID != nil:
		return bad("it names a symmetric and an asymmetric key; one is enough")
	case len(k.Capabilities) > maxCapabilities:
		return bad("%d SMIMECapabilities; at most %d", len(k.Capabilities), maxCapabilities)
	case k.Encrypted() && (len(k.DecryptKeyID)+len(k.AsymmetricKeyID) == 0 || len(k.DecryptKeyID)+len(k.AsymmetricKeyID) > maxKeyID):
		return bad("a key identifier of %d bytes", len(k.DecryptKeyID)+len(k.AsymmetricKeyID))
	case k.Encrypted() && len(k.Capabilities) == 0:
		return bad("no SMIMECapabilities beside the key identifier (RFC 7030 §4.4.1)")
	}
	return k, nil
}

// csrAttributes returns the attributes of a PKCS#10 request (RFC 2986 §4.1), of which nothing else is looked at.
func csrAttributes(csr []byte) ([]Attribute, error) {
	var req struct {
		Info struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes []asn1.RawValue `asn1:"tag:0,set,optional"`
		}
		Algorithm asn1.RawValue
		Signature asn1.RawValue
	}
	notPKCS10 := cradle.Errorf(cradle.Invalid, "the body is not a PKCS#10 request").WithHint("send the DER request in base64 (RFC 8951)")
	if len(csr) > MaxDER {
		return nil, cradle.Errorf(cradle.TooLarge, "the CSR has %d bytes; at most %d", len(csr), MaxDER)
	}
	if rest, err := asn1.Unmarshal(csr, &req); err != nil || len(rest) > 0 {
		return nil, notPKCS10
	}
	var out []Attribute
	for _, raw := range req.Info.Attributes {
		var a Attribute
		if rest, err := asn1.Unmarshal(raw.FullBytes, &a); err != nil || len(rest) > 0 {
			return nil, notPKCS10
		}
		out = append(out, a)
	}
	return out, nil
}

// ChallengePassword returns the text of the challengePassword in a PKCS#10 request, by which it is bound to a TLS
// connection (RFC 7030 §3.5); nil without one. Two of them, or one that is no text, is cradle.Invalid.
func ChallengePassword(csr []byte) ([]byte, error) {
	if !bytes.Contains(csr, challengePasswordDER) {
		return nil, nil // spares nearly everybody the parsing
	}
	attributes, err := csrAttributes(csr)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, a := range attributes {
		if !a.Type.Equal(OIDChallengePassword) {
			continue
		}
		var s string
		if len(a.Values) != 1 || out != nil {
			return nil, cradle.Errorf(cradle.Invalid, "POP linking failed: the CSR has more than one challengePassword")
		}
		if rest, err := asn1.Unmarshal(a.Values[0].FullBytes, &s); err != nil || len(rest) > 0 {
			return nil, cradle.Errorf(cradle.Invalid, "POP linking failed: the challengePassword in the CSR is not a text")
		}
		out = append([]byte{}, s...)
	}
	return out, nil
}

var challengePasswordDER = rawOf(OIDChallengePassword).FullBytes

// CreateRequest makes a PKCS#10 request with attributes of any form, which x509.CreateCertificateRequest cannot
// write, signed by key as that signs.
func CreateRequest(subject pkix.Name, key crypto.Signer, attributes ...Attribute) ([]byte, error) {
	plain, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "certificate request: %w", err)
	}
	if len(attributes) == 0 {
		return plain, nil
	}
	type request struct {
		Info      asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	var req request
	var info struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	parsed, err := x509.ParseCertificateRequest(plain)
	if err != nil {
		return nil, err
	}
	if _, err := asn1.Unmarshal(plain, &req); err != nil {
		return nil, err
	}
	if _, err := asn1.Unmarshal(req.Info.FullBytes, &info); err != nil {
		return nil, err
	}
	if info.Attributes, err = encodeAttributes(attributes); err != nil {
		return nil, err
	}
	if req.Info.FullBytes, err = asn1.Marshal(info); err != nil {
		return nil, err
	}
	hash := crypto.SHA256
	switch parsed.SignatureAlgorithm {
	case x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	case x509.PureEd25519:
		hash = 0
	}
	sig, err := crypto.SignMessage(key, rand.Reader, req.Info.FullBytes, hash)
	if err != nil {
		return nil, fmt.Errorf("signing the CSR: %w", err)
	}
	req.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	return asn1.Marshal(req)
}
