package est

import (
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
)

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
