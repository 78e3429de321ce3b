package est

import (
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
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
			list = append(list, wireExtension{e.ID, e.Critical, e.Value})
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

// ParseCSRAttributes reads a message in DER, bounded by MaxDER. Elements of the list may stand in any order.
func ParseCSRAttributes(der []byte) (CSRAttributes, error) {
	var a CSRAttributes
	if len(der) > MaxDER {
		return a, cradle.Errorf(cradle.TooLarge, "csrattrs: %d bytes, at most %d", len(der), MaxDER)
	}
	var list []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &list); err != nil {
		return a, badAttrs("%w", err)
	} else if len(rest) > 0 {
		return a, badAttrs("%d bytes left over", len(rest))
	}
	for _, e := range list {
		if e.Class == asn1.ClassUniversal && e.Tag == asn1.TagOID {
			var o asn1.ObjectIdentifier
			if _, err := asn1.Unmarshal(e.FullBytes, &o); err != nil {
				return CSRAttributes{}, badAttrs("%w", err)
			}
			a.OIDs = append(a.OIDs, o)
			continue
		}
		at, err := parseAttribute(e)
		if err != nil {
			return CSRAttributes{}, err
		}
		if !at.Type.Equal(oidTemplate) {
			a.Attributes = append(a.Attributes, at)
			continue
		}
		if a.Template != nil || len(at.Values) != 1 {
			return CSRAttributes{}, badAttrs("more than one template")
		}
		if a.Template, err = parseTemplate(at.Values[0].FullBytes); err != nil {
			return CSRAttributes{}, err
		}
	}
	if err := a.check(); err != nil {
		return CSRAttributes{}, err
	}
	return a, nil
}

func parseAttribute(v asn1.RawValue) (a Attribute, err error) {
	if rest, err := asn1.Unmarshal(v.FullBytes, &a); err != nil || len(rest) > 0 {
		return a, badAttrs("an element is neither an object identifier nor an attribute")
	}
	return a, nil
}

func parseTemplate(der []byte) (*Template, error) {
	var w wireTemplate
	if rest, err := asn1.Unmarshal(der, &w); err != nil || len(rest) > 0 {
		return nil, badAttrs("template: not a CertificationRequestInfoTemplate")
	}
	if w.Version != 0 {
		return nil, badAttrs("template: version %d", w.Version)
	}
	t := &Template{}
	if w.Subject != nil {
		t.Subject = [][]NameTemplate{}
		for _, set := range w.Subject {
			var rdn []NameTemplate
			for _, n := range set {
				o := NameTemplate{Type: n.Type}
				if len(n.Value.FullBytes) > 0 {
					var s string
					if rest, err := asn1.Unmarshal(n.Value.FullBytes, &s); err != nil || len(rest) > 0 {
						return nil, badAttrs("template: a value of the subject is not a text")
					}
					o.Value = &s
				}
				rdn = append(rdn, o)
			}
			t.Subject = append(t.Subject, rdn)
		}
	}
	if len(w.Key.Algorithm.Algorithm) > 0 {
		t.Key = &KeyTemplate{Algorithm: w.Key.Algorithm}
		if len(w.Key.PublicKey.Bytes) > 0 {
			var k rsa.PublicKey
			if rest, err := asn1.Unmarshal(w.Key.PublicKey.Bytes, &k); err != nil || len(rest) > 0 || k.N.Sign() <= 0 || !t.Key.Algorithm.Algorithm.Equal(OIDRSAEncryption) {
				return nil, badAttrs("template: a key that is not an RSA key")
			}
			t.Key.RSABits = k.N.BitLen()
		}
	}
	lists := 0
	for _, v := range w.Attributes {
		a, err := parseAttribute(v)
		if err != nil {
			return nil, err
		}
		if !a.Type.Equal(OIDExtensionRequest) && !a.Type.Equal(oidExtensionsTemplate) {
			t.Attributes = append(t.Attributes, a)
			continue
		}
		lists++
		var list []wireExtension
		if len(a.Values) != 1 || lists > 1 {
			return nil, badAttrs("template: more than one list of extensions (RFC 9908 §3.4)")
		}
		if rest, err := asn1.Unmarshal(a.Values[0].FullBytes, &list); err != nil || len(rest) > 0 || len(list) == 0 {
			return nil, badAttrs("template: the extensions are not a list")
		}
		for _, e := range list {
			if e.Value == nil && a.Type.Equal(OIDExtensionRequest) {
				return nil, badAttrs("template: an extension without value outside an ExtensionReqTemplate")
			}
			t.Extensions = append(t.Extensions, ExtensionTemplate(e))
		}
	}
	return t, nil
}

// check holds both directions to RFC 9908.
func (a CSRAttributes) check() error {
	if err := checkAttributes(a.Attributes); err != nil {
		return err
	}
	if len(a.OIDs) > maxCSRAttrs {
		return badAttrs("more than %d object identifiers", maxCSRAttrs)
	}
	for _, at := range a.Attributes {
		if at.Type.Equal(oidTemplate) {
			return badAttrs("a template among the attributes")
		}
	}
	t := a.Template
	if t == nil {
		return nil
	}
	if err := checkAttributes(t.Attributes); err != nil {
		return err
	}
	for _, at := range t.Attributes {
		if at.Type.Equal(OIDExtensionRequest) || at.Type.Equal(oidExtensionsTemplate) {
			return badAttrs("template: extensions among the attributes")
		}
	}
	if len(t.Subject) > maxCSRAttrs || len(t.Extensions) > maxCSRAttrs {
		return badAttrs("template: more than %d elements", maxCSRAttrs)
	}
	for _, rdn := range t.Subject {
		if len(rdn) == 0 || len(rdn) > maxCSRAttrs {
			return badAttrs("template: a part of the subject with %d attributes", len(rdn))
		}
		for _, n := range rdn {
			if n.Value != nil && !utf8.ValidString(*n.Value) {
				return badAttrs("template: a value of the subject is not UTF-8")
			}
		}
	}
	seen := map[string]bool{}
	for _, e := range t.Extensions {
		if id := e.ID.String(); seen[id] {
			return badAttrs("template: extension %s stands twice", id)
		} else {
			seen[id] = true
		}
	}
	if k := t.Key; k != nil && (k.RSABits < 0 || k.RSABits > 16384 || k.RSABits > 0 && !k.Algorithm.Algorithm.Equal(OIDRSAEncryption)) {
		return badAttrs("template: an RSA size of %d for algorithm %v", k.RSABits, k.Algorithm.Algorithm)
	}
	return nil
}

func checkAttributes(list []Attribute) error {
	if len(list) > maxCSRAttrs {
		return badAttrs("more than %d attributes", maxCSRAttrs)
	}
	requests := 0
	for _, a := range list {
		if len(a.Values) == 0 || len(a.Values) > maxCSRAttrs {
			return badAttrs("attribute %v has %d values", a.Type, len(a.Values))
		}
		if !a.Type.Equal(OIDExtensionRequest) {
			continue
		}
		if requests++; requests > 1 || len(a.Values) != 1 {
			return badAttrs("more than one list of extensions (RFC 9908 §3.2)")
		}
		var list []pkix.Extension
		if rest, err := asn1.Unmarshal(a.Values[0].FullBytes, &list); err != nil || len(rest) > 0 {
			return badAttrs("the extension request is not a list of extensions")
		}
		seen := map[string]bool{}
		for _, e := range list {
			if id := e.Id.String(); seen[id] {
				return badAttrs("extension %s stands twice (RFC 9908 §3.2)", id)
			} else {
				seen[id] = true
			}
		}
	}
	return nil
}

func badAttrs(format string, args ...any) error {
	return cradle.Errorf(cradle.Invalid, "csrattrs: "+format, args...)
}
