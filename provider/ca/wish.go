package ca

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Wishes is what a CSR asks to have in its certificate: a wish, never a fact (DESIGN §2).
type Wishes struct {
	Subject    []byte           // DER of the Name; empty when the CSR names nobody
	Extensions []pkix.Extension // of extensionRequest (RFC 2985 §5.4.2), each OID once
}

// ReadWishes reads the wishes of a CSR. An extension that is asked for twice is refused: no answer to it could be right
// (RFC 5280 §4.2, RFC 9908 §3.2).
func ReadWishes(csr *x509.CertificateRequest) (Wishes, error) {
	w := Wishes{Extensions: csr.Extensions}
	if len(csr.RawSubject) > 2 {
		w.Subject = csr.RawSubject
	}
	for i, e := range w.Extensions {
		if slices.ContainsFunc(w.Extensions[:i], func(x pkix.Extension) bool { return x.Id.Equal(e.Id) }) {
			return w, cradle.Errorf(cradle.Invalid, "the CSR asks for extension %s twice", extensionName(e.Id))
		}
	}
	return w, nil
}

// Grant looks at the wishes of a CSR for l's certificate: names and usages that the profile allows are added to l; others
// are left for Replaced to tell, or refused where the profile says so. The error names the field.
func (w Wishes) Grant(l *Leaf) error {
	rules := &l.Rules.Wishes
	refuse := func(o Outside, field, format string, args ...any) error {
		if o != Refuse {
			return nil
		}
		return cradle.Errorf(cradle.Invalid, "the CSR's %s: %s", field, fmt.Sprintf(format, args...)).
			WithHint("ask for nothing there, or for what the profile has: cradle account profile show %s", l.Account)
	}
	if w.Subject != nil && rules.Subject == Refuse {
		own, err := l.subject()
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "subject: %v", err)
		}
		der, err := nameDER(own)
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "subject: %v", err)
		}
		if !SameName(w.Subject, der) {
			var name pkix.RDNSequence
			if _, err := asn1.Unmarshal(der, &name); err != nil {
				return err
			}
			return refuse(rules.Subject, "subject", "the name is %q", name.String())
		}
	}
	for _, e := range w.Extensions {
		if err := w.grant(l, e, refuse); err != nil {
			return err
		}
	}
	return nil
}

func (w Wishes) grant(l *Leaf, e pkix.Extension, refuse func(o Outside, field, format string, args ...any) error) error {
	rules := &l.Rules.Wishes
	switch name := extensionName(e.Id); {
	case e.Id.Equal(oidSAN):
		names, err := readNames(e.Value)
		if err != nil {
			return err
		}
		own, err := l.names()
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "subjectAltName: %v", err)
		}
		for _, n := range names {
			ok, err := l.allows(n)
			switch {
			case err != nil:
				return err
			case slices.Contains(own, n):
			case ok:
				l.Names = append(l.Names, n)
			default:
				if err := refuse(rules.SubjectAltName, name, "%q is not allowed", n); err != nil {
					return err
				}
			}
		}
	case e.Id.Equal(oidKeyUsage):
		var bits asn1.BitString
		if rest, err := asn1.Unmarshal(e.Value, &bits); err != nil || len(rest) > 0 {
			return cradle.Errorf(cradle.Invalid, "the CSR's keyUsage is not DER")
		}
		var u x509.KeyUsage
		for i := range 9 {
			u |= x509.KeyUsage(bits.At(i)) << i
		}
		if u&caUsages != 0 {
			return refuse(rules.CA, name, "keyCertSign and cRLSign are for CAs")
		}
		if u != l.keyUsage() {
			return refuse(rules.KeyUsage, name, "it is %s", strings.Join(l.Rules.KeyUsage, ", "))
		}
	case e.Id.Equal(oidExtKeyUsage):
		var ids []asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal(e.Value, &ids); err != nil || len(rest) > 0 || len(ids) == 0 {
			return cradle.Errorf(cradle.Invalid, "the CSR's extendedKeyUsage is not DER of at least one usage")
		}
		for _, id := range ids {
			switch u := extKeyUsageName(id); {
			case slices.Contains(l.Rules.ExtendedKeyUsage, u):
			case slices.Contains(rules.AllowUsages, u):
				l.Usages = append(l.Usages, u)
			default:
				if err := refuse(rules.ExtendedKeyUsage, name, "%s is not allowed", u); err != nil {
					return err
				}
			}
		}
	case e.Id.Equal(oidBasicConstraints):
		if isCA(e.Value) {
			return refuse(rules.CA, name, "CA certificates are not for devices")
		}
	case e.Id.Equal(oidSubjectKeyID): // the CA makes it, and who proposes one means no harm
	default:
		return refuse(rules.Extensions, name, "the profile has no such extension")
	}
	return nil
}

// allows reports whether an alternative name fits a pattern of the profile.
func (l *Leaf) allows(name string) (bool, error) {
	for _, t := range l.Rules.Wishes.AllowNames {
		pattern, err := l.expand(t)
		if err != nil {
			return false, cradle.Errorf(cradle.Invalid, "subjectAltName: %v", err)
		}
		if glob(pattern, name) {
			return true, nil
		}
	}
	return false, nil
}

// glob matches * with any text, all else with itself, in time that is linear in both for each star.
func glob(pattern, s string) bool {
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p, i = p+1, i+1
		case star >= 0: // the last star takes one more
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// Replaced names the wishes that cert does not fulfil, by the field names of RFC 5280 and, of an
// extension unknown here, its OID. Names that are asked for are fulfilled when cert has at least these;
// usages when cert has exactly these.
func (w Wishes) Replaced(cert *x509.Certificate) []string {
	return w.replaced(cert.RawSubject, cert.Extensions)
}

func (w Wishes) replaced(subject []byte, have []pkix.Extension) []string {
	var out []string
	if w.Subject != nil && !SameName(w.Subject, subject) {
		out = append(out, "subject")
	}
	for _, e := range w.Extensions {
		if !fulfilled(e, have) {
			out = append(out, extensionName(e.Id))
		}
	}
	return out
}

// Replaced is Wishes.Replaced of the certificate that Sign made.
func (d *Draft) Replaced(w Wishes, signed []byte) ([]string, error) {
	if len(w.Extensions) == 0 {
		return w.replaced(d.rawSubject, nil), nil
	}
	cert, err := x509.ParseCertificate(signed)
	if err != nil {
		return nil, err
	}
	return w.Replaced(cert), nil
}

// fulfilled reports whether an extension asked for is among those of a certificate. Whether it is critical
// is the issuer's business.
func fulfilled(wish pkix.Extension, have []pkix.Extension) bool {
	i := slices.IndexFunc(have, func(x pkix.Extension) bool { return x.Id.Equal(wish.Id) })
	if i < 0 {
		// CA:FALSE is what a certificate without basicConstraints says (RFC 5280 §4.2.1.9).
		return wish.Id.Equal(oidBasicConstraints) && bytes.Equal(wish.Value, notCA)
	}
	if bytes.Equal(wish.Value, have[i].Value) {
		return true
	}
	switch {
	case wish.Id.Equal(oidSAN):
		return isSubset(wish.Value, have[i].Value)
	case wish.Id.Equal(oidExtKeyUsage):
		return isSubset(wish.Value, have[i].Value) && isSubset(have[i].Value, wish.Value)
	case wish.Id.Equal(oidBasicConstraints):
		return isCA(wish.Value) == isCA(have[i].Value)
	}
	return false
}

// isSubset reports whether each element of the DER sequence a is one of b.
func isSubset(a, b []byte) bool {
	x, ok := elements(a)
	y, ok2 := elements(b)
	if !ok || !ok2 {
		return false
	}
	for _, e := range x {
		if !slices.ContainsFunc(y, func(f asn1.RawValue) bool { return bytes.Equal(e.FullBytes, f.FullBytes) }) {
			return false
		}
	}
	return true
}

func elements(der []byte) (out []asn1.RawValue, ok bool) {
	rest, err := asn1.Unmarshal(der, &out)
	return out, err == nil && len(rest) == 0
}

var notCA = []byte{0x30, 0x00}

func isCA(der []byte) bool {
	var v struct {
		IsCA       bool `asn1:"optional"`
		MaxPathLen int  `asn1:"optional,default:-1"`
	}
	_, err := asn1.Unmarshal(der, &v)
	return err == nil && v.IsCA
}

// SameAltNames compares two subjectAltNames as sets of names.
func SameAltNames(a, b []byte) bool { return isSubset(a, b) && isSubset(b, a) }

// SameName compares two Names by type and text of each attribute, in order: clients encode the same text as
// PrintableString or UTF8String, as they please (RFC 5280 §7.1).
func SameName(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y pkix.RDNSequence
	if _, err := asn1.Unmarshal(a, &x); err != nil {
		return false
	}
	if _, err := asn1.Unmarshal(b, &y); err != nil {
		return false
	}
	return slices.EqualFunc(x, y, func(p, q pkix.RelativeDistinguishedNameSET) bool {
		return slices.EqualFunc(p, q, func(v, w pkix.AttributeTypeAndValue) bool { return v.Type.Equal(w.Type) && v.Value == w.Value })
	})
}

var (
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// extensionName is the name of an extension in RFC 5280 §4.2.1, else its OID.
func extensionName(id asn1.ObjectIdentifier) string {
	switch {
	case id.Equal(oidSAN):
		return "subjectAltName"
	case id.Equal(oidKeyUsage):
		return "keyUsage"
	case id.Equal(oidExtKeyUsage):
		return "extendedKeyUsage"
	case id.Equal(oidBasicConstraints):
		return "basicConstraints"
	case id.Equal(oidSubjectKeyID):
		return "subjectKeyIdentifier"
	}
	return id.String()
}
