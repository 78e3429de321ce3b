package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/bits"
)

// Sketch is a certificate as far as it is known before its CSR: what a client may put into the CSR so that
// nothing has to be replaced.
type Sketch struct {
	Subject []NamePart // in order, one attribute each
	// Extensions: one without a value is the client's to choose.
	Extensions []pkix.Extension
}

// NamePart is one attribute of a name; Value is nil where a fact is not known.
type NamePart struct {
	Type  asn1.ObjectIdentifier
	Value *string
}

// Sketch draws what l's profile gives. l may lack facts, and the key.
func (l *Leaf) Sketch() (Sketch, error) {
	var s Sketch
	for _, t := range l.Rules.Subject {
		a, tmpl, err := attributeOf(t)
		if err != nil {
			return s, err
		}
		part := NamePart{Type: a.id}
		if v, err := l.expand(tmpl); err == nil {
			part.Value = &v
		}
		s.Subject = append(s.Subject, part)
	}
	s.Extensions = append(s.Extensions, pkix.Extension{Id: oidKeyUsage, Critical: true, Value: keyUsageDER(l.Rules.possibleUsage())})
	if ids, err := l.extKeyUsage(); err != nil {
		return s, err
	} else if len(ids) > 0 {
		der, err := asn1.Marshal(ids)
		if err != nil {
			return s, err
		}
		s.Extensions = append(s.Extensions, pkix.Extension{Id: oidExtKeyUsage, Value: der})
	}
	switch names, err := l.names(); {
	case len(l.Rules.Wishes.AllowNames) > 0:
		s.Extensions = append(s.Extensions, pkix.Extension{Id: oidSAN})
	case err == nil && len(names) > 0:
		san, err := subjectAltName(names, len(s.Subject) == 0)
		if err != nil {
			return s, err
		}
		s.Extensions = append(s.Extensions, san)
	}
	return s, nil
}

// possibleUsage is the profile's key usage, less what no key that it takes can do.
func (p *Profile) possibleUsage() x509.KeyUsage {
	var possible, u x509.KeyUsage
	for _, k := range p.Keys {
		possible |= usageOfType(k)
	}
	for _, n := range p.KeyUsage {
		u |= keyUsages[n]
	}
	return u & possible
}

// keyUsageDER is a BIT STRING, bit 0 first, without trailing zeros (RFC 5280 §4.2.1.3).
func keyUsageDER(u x509.KeyUsage) []byte {
	n := bits.Len16(uint16(u))
	switch {
	case n == 0:
		return []byte{asn1.TagBitString, 1, 0}
	case n > 8:
		return []byte{asn1.TagBitString, 3, byte(16 - n), bits.Reverse8(byte(u)), bits.Reverse8(byte(u >> 8))}
	}
	return []byte{asn1.TagBitString, 2, byte(8 - n), bits.Reverse8(byte(u))}
}
