package ca

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/weakkey"
)

// Draft is the draft of a certificate that every check let pass; it says what the certificate will be, and is signed
// by Sign.
type Draft struct {
	*Leaf
	iss        *Issuer
	serial     *big.Int
	subject    []namePart
	rawSubject []byte
	names      []string
	usage      x509.KeyUsage
	usages     []asn1.ObjectIdentifier
	policies   []x509.OID
	extensions []pkix.Extension // subjectAltName and the profile's
}

// newDraft fills the facts of the leaf into its profile.
func newDraft(iss *Issuer, serial *big.Int, l *Leaf) (*Draft, error) {
	if l.Rules == nil {
		return nil, fmt.Errorf("no such profile %q", l.Profile)
	}
	d := &Draft{Leaf: l, iss: iss, serial: serial, usage: l.keyUsage(), policies: leafPolicies(l)}
	var err error
	if d.subject, err = l.subject(); err != nil {
		return nil, err
	}
	if d.names, err = l.names(); err != nil {
		return nil, err
	}
	if d.usages, err = l.extKeyUsage(); err != nil {
		return nil, err
	}
	if d.rawSubject, err = nameDER(d.subject); err != nil {
		return nil, err
	}
	if len(d.names) > 0 {
		san, err := subjectAltName(d.names, len(d.subject) == 0)
		if err != nil {
			return nil, err
		}
		d.extensions = append(d.extensions, san)
	}
	for _, e := range l.Rules.Extensions {
		id, err := parseOID(e.OID)
		if err != nil {
			return nil, err
		}
		der, err := l.extension(e)
		if err != nil {
			return nil, err
		}
		d.extensions = append(d.extensions, pkix.Extension{Id: id, Critical: e.Critical, Value: der})
	}
	return d, nil
}

// lint makes the draft and runs every check over it. The error is of kind Invalid and names the clause.
func lint(iss *Issuer, serial *big.Int, l *Leaf) (*Draft, error) {
	d, err := newDraft(iss, serial, l)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "certificate would be wrong: %v", err)
	}
	for _, c := range checks {
		if why := c.refuse(d); why != "" {
			return nil, cradle.Errorf(cradle.Invalid, "certificate would be wrong: %s (%s)", why, c.clause)
		}
	}
	return d, nil
}

// checks are what RFC 5280, 802.1AR and our own rules ask of a leaf before it is signed. Each is pure and
// returns what is wrong, or nothing.
var checks = []struct {
	clause string
	refuse func(*Draft) string
}{
	{"RFC 5280 §4.1.2.2", func(d *Draft) string {
		n := d.serial
		return unless(n != nil && n.Sign() > 0 && n.BitLen() <= 159, "serial number out of bounds")
	}},
	{"802.1AR-2018 §8.3", func(d *Draft) string {
		return unless(d.serial.BitLen() >= 64, "serial number has less than 64 bits")
	}},
	{"device ids", func(d *Draft) string {
		if err := cradle.CheckID("device", string(d.Device)); err != nil {
			return err.Error()
		}
		return ""
	}},
	{"RFC 5280 §4.1.2.5", func(d *Draft) string {
		if d.NotBefore.Before(d.NotAfter) {
			return ""
		}
		return fmt.Sprintf("notBefore %v is not before notAfter %v", d.NotBefore, d.NotAfter)
	}},
	{"RFC 5280 §4.1.2.5.2", func(d *Draft) string {
		return unless(d.NotBefore.Nanosecond() == 0 && d.NotAfter.Nanosecond() == 0, "validity has fractions of seconds")
	}},
	{"RFC 5280 §6.1", func(d *Draft) string {
		ok := !d.NotBefore.Before(d.iss.Cert.NotBefore) && !d.NotAfter.After(d.iss.Cert.NotAfter)
		return unless(ok, "validity reaches beyond the issuer's")
	}},
	{"profile: validity", func(d *Draft) string {
		if d.Rules.Validity == Endless {
			return unless(d.NotAfter.Equal(Forever) || d.NotAfter.Equal(d.iss.Cert.NotAfter), "notAfter is neither 99991231235959Z nor the issuer's")
		}
		return unless(d.NotAfter.Sub(d.NotBefore) <= time.Duration(d.Rules.Validity)+2*Backdate, "validity is longer than the profile's")
	}},
	{"RFC 5280 §4.2.1.9", func(d *Draft) string {
		c := d.iss.Cert
		if c.IsCA && c.BasicConstraintsValid && c.KeyUsage&x509.KeyUsageCertSign != 0 {
			return ""
		}
		return fmt.Sprintf("issuer %q is no CA", c.Subject.CommonName)
	}},
	{"an account's CA signs for it alone", func(d *Draft) string {
		org := d.iss.Cert.Subject.Organization
		if len(org) == 1 && org[0] == string(d.Account) {
			return ""
		}
		return fmt.Sprintf("issuer belongs to %v, not to account %s", org, d.Account)
	}},
	{"evaluation never signs for production", func(d *Draft) string {
		for _, want := range d.policies {
			if !slices.ContainsFunc(d.iss.policies(), want.Equal) {
				return fmt.Sprintf("issuer %q does not sign under policy %s", d.iss.Cert.Subject.CommonName, want)
			}
		}
		return ""
	}},
	{"RFC 5280 appendix A.1", lintSubject},
	{"RFC 5280 §4.1.2.6", func(d *Draft) string {
		return unless(len(d.subject) > 0 || len(d.names) > 0, "neither subject nor subjectAltName")
	}},
	{"RFC 5280 §4.2.1.6", func(d *Draft) string {
		if len(d.subject) > 0 {
			return ""
		}
		ok := slices.ContainsFunc(d.extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSAN) && e.Critical })
		return unless(ok, "the subject is empty and subjectAltName is not critical")
	}},
	{"RFC 5280 §4.2", func(d *Draft) string {
		if id, twice := d.clash(); twice {
			return fmt.Sprintf("extension %s stands twice", extensionName(id))
		}
		return ""
	}},
	{"RFC 5280 §4.2.1.3", func(d *Draft) string {
		u := d.usage
		switch {
		case u == 0:
			return fmt.Sprintf("no key usage is left for a key of %s", keyTypeOf(d.Public))
		case u&caUsages != 0:
			return "key usages of a CA"
		case u&(x509.KeyUsageEncipherOnly|x509.KeyUsageDecipherOnly) != 0 && u&x509.KeyUsageKeyAgreement == 0:
			return "encipherOnly or decipherOnly without keyAgreement"
		}
		return ""
	}},
	{"RFC 3279 §2.3.1, RFC 8813 §3, RFC 8410 §5", func(d *Draft) string {
		return unless(d.usage&^keyUsageOf(d.Public) == 0, "the key's algorithm cannot be used so")
	}},
	{"RFC 5280 §4.2.1.12", func(d *Draft) string {
		for _, id := range d.usages {
			u, known := extKeyUsages[extKeyUsageName(id)]
			if known && u.needs&d.usage == 0 {
				return fmt.Sprintf("extended key usage %s does not go with the key usage", extKeyUsageName(id))
			}
		}
		return ""
	}},
	{"802.1AR-2018 §8", func(d *Draft) string {
		if !d.Rules.Kind.Birth() {
			return ""
		}
		switch {
		case !d.NotAfter.Equal(Forever) && !d.NotAfter.Equal(d.iss.Cert.NotAfter): // §8.7 says "should"; nothing outlives its issuer
			return "notAfter of an IDevID is neither 99991231235959Z nor its issuer's"
		case d.Serial == "":
			return "an IDevID without the device's serial number"
		case len(d.EKDigest) != 32:
			return "an IDevID without the digest of the endorsement key"
		}
		return ""
	}},
	{"profile: keys", func(d *Draft) string { return d.Rules.checkKeyType(d.Public) }},
	{"key strength", func(d *Draft) string {
		k, ok := d.Public.(*rsa.PublicKey)
		if !ok {
			return ""
		}
		return weakkey.RSA(k)
	}},
	{"own key", func(d *Draft) string {
		pub, ok := d.iss.Cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		return unless(!ok || !pub.Equal(d.Public), "the key is the issuer's own")
	}},
	{"RFC 5280 §4.1.2.7", func(d *Draft) string {
		return unless(isSPKI(d.SPKI, d.Public), "the SubjectPublicKeyInfo is not the key's in DER")
	}},
}

// lintSubject holds each attribute to its upper bound and alphabet.
func lintSubject(d *Draft) string {
	for _, p := range d.subject {
		switch n := utf8.RuneCountInString(p.value); {
		case n == 0 || n > p.max:
			return fmt.Sprintf("%s %q must have 1 to %d characters", p.typ, p.value, p.max)
		case p.syntax == asn1.TagPrintableString && !isPrintable(p.value):
			return fmt.Sprintf("%s %q is no PrintableString", p.typ, p.value)
		case p.syntax == asn1.TagIA5String && !isASCII(p.value):
			return fmt.Sprintf("%s %q is no IA5String", p.typ, p.value)
		case p.typ == "C" && (n != 2 || p.value[0] < 'A' || p.value[0] > 'Z' || p.value[1] < 'A' || p.value[1] > 'Z'):
			return fmt.Sprintf("C %q is no country code", p.value)
		}
	}
	return ""
}

// isPrintable tells the characters of PrintableString (X.680 §41.4).
func isPrintable(s string) bool {
	for _, c := range []byte(s) {
		alnum := c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !alnum && strings.IndexByte(" '()+,-./:=?", c) < 0 {
			return false
		}
	}
	return true
}
