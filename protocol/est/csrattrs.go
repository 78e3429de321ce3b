package est

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
)

// Object identifiers that a csrattrs message is made of (RFC 7030 §4.5.2, RFC 9908).
var (
	OIDChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	OIDExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	OIDECPublicKey       = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	OIDRSAEncryption     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	OIDEd25519           = asn1.ObjectIdentifier{1, 3, 101, 112}
	OIDP256              = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	OIDP384              = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	OIDECDSAWithSHA256   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	OIDECDSAWithSHA384   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	OIDRSAWithSHA256     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}

	oidTemplate           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 61}
	oidExtensionsTemplate = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 62}
)

// maxCSRAttrs bounds the elements of each list in a csrattrs message.
const maxCSRAttrs = 64

// CSRAttributes is the csrattrs answer (RFC 7030 §4.5.2 as updated by RFC 9908): what a server wants to
// find in a CSR. OIDs and Attributes are the list that every client reads; Template is for those that know
// RFC 9908, which use nothing else then. The zero value wants nothing.
type CSRAttributes struct {
	OIDs       []asn1.ObjectIdentifier // attributes and algorithms wanted, without values
	Attributes []Attribute
	Template   *Template
}

// Empty tells whether nothing is wanted; a server may answer that with 204.
func (a CSRAttributes) Empty() bool {
	return len(a.OIDs) == 0 && len(a.Attributes) == 0 && a.Template == nil
}

// Attribute is a type with values in DER.
type Attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// Template is a CertificationRequestInfoTemplate (RFC 9908 §3.4).
type Template struct {
	// Subject names the parts of the subject in their order. nil says nothing of the subject; empty
	// asks for an empty one.
	Subject [][]NameTemplate
	Key     *KeyTemplate
	// Extensions are wanted in the CSR. When each has a value they go into an ExtensionReq, else into an
	// ExtensionReqTemplate; never both.
	Extensions []ExtensionTemplate
	Attributes []Attribute // further ones
}

// NameTemplate is one attribute of a name. The client fills in a value that is nil.
type NameTemplate struct {
	Type  asn1.ObjectIdentifier
	Value *string
}

// KeyTemplate says what the key is to be. RSABits is the size of an RSA key, else 0.
type KeyTemplate struct {
	Algorithm pkix.AlgorithmIdentifier
	RSABits   int
}

// ExtensionTemplate is one extension. The client fills in a value that is nil.
type ExtensionTemplate struct {
	ID       asn1.ObjectIdentifier
	Critical bool
	Value    []byte
}

// ECKey asks for an EC key on a curve, in the list of attributes.
func ECKey(curve asn1.ObjectIdentifier) Attribute {
	return Attribute{OIDECPublicKey, []asn1.RawValue{rawOf(curve)}}
}

// RSAKey asks for an RSA key of a size, in the list of attributes.
func RSAKey(bits int) Attribute {
	return Attribute{OIDRSAEncryption, []asn1.RawValue{rawOf(bits)}}
}

// ECKeyTemplate is ECKey for a template.
func ECKeyTemplate(curve asn1.ObjectIdentifier) *KeyTemplate {
	return &KeyTemplate{Algorithm: pkix.AlgorithmIdentifier{Algorithm: OIDECPublicKey, Parameters: rawOf(curve)}}
}

// RSAKeyTemplate is RSAKey for a template.
func RSAKeyTemplate(bits int) *KeyTemplate {
	return &KeyTemplate{Algorithm: pkix.AlgorithmIdentifier{Algorithm: OIDRSAEncryption, Parameters: asn1.NullRawValue}, RSABits: bits}
}

// Ed25519KeyTemplate asks for an Ed25519 key in a template; in the list it is the bare OIDEd25519.
func Ed25519KeyTemplate() *KeyTemplate {
	return &KeyTemplate{Algorithm: pkix.AlgorithmIdentifier{Algorithm: OIDEd25519}}
}

// ExtensionRequest asks for extensions with these values, in the list of attributes. RFC 9908 §3.2 allows one
// such attribute, holding one list in which no extension stands twice.
func ExtensionRequest(extensions ...pkix.Extension) Attribute {
	return Attribute{OIDExtensionRequest, []asn1.RawValue{rawOf(extensions)}}
}

// rawOf encodes what cannot be refused.
func rawOf(v any) asn1.RawValue {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return asn1.RawValue{FullBytes: der}
}

// The wire forms. All tags are IMPLICIT.
type (
	wireTemplate struct {
		Version    int
		Subject    []wireNameSET   `asn1:"optional"`
		Key        wireKey         `asn1:"optional,tag:0"`
		Attributes []asn1.RawValue `asn1:"set,tag:1"`
	}
	wireKey struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString `asn1:"optional"`
	}
	wireName struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue `asn1:"optional"`
	}
	wireNameSET   []wireName
	wireExtension struct {
		ID       asn1.ObjectIdentifier
		Critical bool   `asn1:"optional"`
		Value    []byte `asn1:"optional"`
	}
)

// Encode returns the DER of the message. It refuses what RFC 9908 forbids: more than one ExtensionReq, an
// extension twice, an attribute without values.
func (a CSRAttributes) Encode() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	list := []asn1.RawValue{}
	for _, o := range a.OIDs {
		der, err := asn1.Marshal(o)
		if err != nil {
			return nil, badAttrs("object identifier %v: %w", o, err)
		}
		list = append(list, asn1.RawValue{FullBytes: der})
	}
	attributes := a.Attributes
	if a.Template != nil {
		der, err := a.Template.encode()
		if err != nil {
			return nil, err
		}
		attributes = append(attributes[:len(attributes):len(attributes)], Attribute{oidTemplate, []asn1.RawValue{{FullBytes: der}}})
	}
	encoded, err := encodeAttributes(attributes)
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(append(list, encoded...))
	if err != nil {
		return nil, badAttrs("%w", err)
	}
	return der, nil
}

func (t *Template) encode() ([]byte, error) {
	w := wireTemplate{Attributes: []asn1.RawValue{}}
	if t.Subject != nil {
		w.Subject = []wireNameSET{}
		for _, rdn := range t.Subject {
			var set wireNameSET
			for _, n := range rdn {
				o := wireName{Type: n.Type}
				if n.Value != nil {
					o.Value = rawOf(*n.Value)
				}
				set = append(set, o)
			}
			w.Subject = append(w.Subject, set)
		}
	}
	if t.Key != nil {
		w.Key.Algorithm = t.Key.Algorithm
		if t.Key.RSABits > 0 {
			w.Key.PublicKey = placeholder(t.Key.RSABits)
		}
	}
	attributes := t.Attributes
	if len(t.Extensions) > 0 {
		typ := OIDExtensionRequest
		var list []wireExtension
		for _, e := range t.Extensions {
			if e.Value == nil {
				typ = oidExtensionsTemplate
			}
			list = append(list, wireExtension(e))
		}
		der, err := asn1.Marshal(list)
		if err != nil {
			return nil, badAttrs("template extensions: %w", err)
		}
		attributes = append(attributes[:len(attributes):len(attributes)], Attribute{typ, []asn1.RawValue{{FullBytes: der}}})
	}
	var err error
	if w.Attributes, err = encodeAttributes(attributes); err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(w)
	if err != nil {
		return nil, badAttrs("template: %w", err)
	}
	return der, nil
}

func encodeAttributes(list []Attribute) ([]asn1.RawValue, error) {
	out := []asn1.RawValue{}
	for _, a := range list {
		der, err := asn1.Marshal(a)
		if err != nil {
			return nil, badAttrs("attribute %v: %w", a.Type, err)
		}
		out = append(out, asn1.RawValue{FullBytes: der})
	}
	return out, nil
}

// placeholder is a number of the right size in place of an RSA key, which nobody can mistake for one
// in use (RFC 9908 §3.4): all bits of the modulus are set.
func placeholder(bits int) asn1.BitString {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits))
	der := rawOf(struct {
		N *big.Int
		E int
	}{n.Sub(n, big.NewInt(1)), 65537}).FullBytes
	return asn1.BitString{Bytes: der, BitLength: 8 * len(der)}
}
