package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/der"
)

// facts are what templates may name: what the provider knows of the device by proof or by its operator's word.
var facts = map[string]func(*Leaf) string{
	"account": func(l *Leaf) string { return string(l.Account) },
	"device":  func(l *Leaf) string { return string(l.Device) },
	"serial":  func(l *Leaf) string { return l.Serial },
	"order":   func(l *Leaf) string { return string(l.Order) },
	"oem":     func(l *Leaf) string { return string(l.OEM) },
	"tier":    func(l *Leaf) string { return string(l.Tier) },
	"maker":   func(l *Leaf) string { return string(l.Maker) },
	"ek":      func(l *Leaf) string { return hex.EncodeToString(l.EKDigest) },
}

// pieces cuts a template into text and the names of facts, which alternate, text first.
func pieces(tmpl string) ([]string, error) {
	var out []string
	for rest := tmpl; ; {
		text, after, found := strings.Cut(rest, "{")
		if strings.Contains(text, "}") {
			return nil, fmt.Errorf("%q has a } without {", tmpl)
		}
		out = append(out, text)
		if !found {
			return out, nil
		}
		name, next, closed := strings.Cut(after, "}")
		if facts[name] == nil || !closed {
			return nil, fmt.Errorf("%q: no fact {%s}; there are %s", tmpl, name, factNames())
		}
		out, rest = append(out, name), next
	}
}

func factNames() string {
	var names []string
	for n := range facts {
		names = append(names, "{"+n+"}")
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// expand fills the facts of l into a template. A fact that is not known of the device is refused: nothing may be made up.
func (l *Leaf) expand(tmpl string) (string, error) {
	text, rest, found := strings.Cut(tmpl, "{")
	if !found && !strings.Contains(text, "}") {
		return tmpl, nil
	}
	if name, ok := strings.CutSuffix(rest, "}"); ok && text == "" && facts[name] != nil { // one fact and nothing else
		return l.fact(name, tmpl)
	}
	p, err := pieces(tmpl)
	if err != nil {
		return "", err
	}
	for i := 1; i < len(p); i += 2 {
		if p[i], err = l.fact(p[i], tmpl); err != nil {
			return "", err
		}
	}
	return strings.Join(p, ""), nil
}

func (l *Leaf) fact(name, tmpl string) (string, error) {
	v := facts[name](l)
	if v == "" {
		return "", fmt.Errorf("%q needs {%s}, which is not known of device %s", tmpl, name, l.Device)
	}
	return v, nil
}

// attribute is a type of a name's attributes: RFC 5280 appendix A.1 with its upper bounds, RFC 4519.
type attribute struct {
	id     asn1.ObjectIdentifier
	max    int
	syntax byte // tag of the only string type it may have; 0: DirectoryString
}

var attributes = map[string]attribute{
	"CN":           {[]int{2, 5, 4, 3}, 64, 0},
	"serialNumber": {[]int{2, 5, 4, 5}, 64, asn1.TagPrintableString},
	"C":            {[]int{2, 5, 4, 6}, 2, asn1.TagPrintableString},
	"L":            {[]int{2, 5, 4, 7}, 128, 0},
	"ST":           {[]int{2, 5, 4, 8}, 128, 0},
	"street":       {[]int{2, 5, 4, 9}, 128, 0},
	"O":            {[]int{2, 5, 4, 10}, 64, 0},
	"OU":           {[]int{2, 5, 4, 11}, 64, 0},
	"title":        {[]int{2, 5, 4, 12}, 64, 0},
	"dnQualifier":  {[]int{2, 5, 4, 46}, 64, asn1.TagPrintableString},
	"pseudonym":    {[]int{2, 5, 4, 65}, 128, 0},
	"UID":          {[]int{0, 9, 2342, 19200300, 100, 1, 1}, 256, 0},
	"DC":           {[]int{0, 9, 2342, 19200300, 100, 1, 25}, 63, asn1.TagIA5String},
}

// attributeOf splits "CN=value".
func attributeOf(s string) (attribute, string, error) {
	typ, value, ok := strings.Cut(s, "=")
	a, known := attributes[typ]
	if !ok || !known {
		return a, "", fmt.Errorf("%q: write TYPE=value, TYPE one of %s", s, keysOf(attributes))
	}
	return a, value, nil
}

func keysOf[V any](m map[string]V) string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// namePart is an attribute of a name with its value; each stands in an RDN of its own.
type namePart struct {
	attribute
	typ, value string
}

// subject fills the profile's subject.
func (l *Leaf) subject() ([]namePart, error) {
	out := make([]namePart, 0, len(l.Rules.Subject))
	for _, t := range l.Rules.Subject {
		a, tmpl, err := attributeOf(t)
		if err != nil {
			return nil, err
		}
		value, err := l.expand(tmpl)
		if err != nil {
			return nil, err
		}
		typ, _, _ := strings.Cut(t, "=")
		out = append(out, namePart{a, typ, value})
	}
	return out, nil
}

// nameDER encodes a Name (RFC 5280 §4.1.2.4), with PrintableString where it can be, else UTF8String.
func nameDER(name []namePart) ([]byte, error) {
	w := der.NewWriter(128)
	for _, p := range name {
		if !utf8.ValidString(p.value) {
			return nil, fmt.Errorf("%s is not UTF-8", p.typ)
		}
	}
	w.Element(der.Sequence, func() {
		for _, p := range name {
			tag := byte(asn1.TagUTF8String)
			switch {
			case p.syntax == asn1.TagIA5String:
				tag = asn1.TagIA5String
			case isPrintable(p.value):
				tag = asn1.TagPrintableString
			}
			w.Element(der.Set, func() {
				w.Element(der.Sequence, func() {
					w.OID(p.id)
					w.Text(tag, p.value)
				})
			})
		}
	})
	return w.B, nil
}

// names expands the profile's alternative names and adds those that were granted.
func (l *Leaf) names() ([]string, error) {
	var out []string
	for _, t := range l.Rules.SubjectAltName {
		s, err := l.expand(t)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	for _, n := range l.Names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

var (
	oidSAN                = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidHardwareModuleName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4} // RFC 4108 §5
	oidPermanentID        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 3} // RFC 4043
	oidHWTypeTPM20        = asn1.ObjectIdentifier{2, 23, 133, 1, 2}
	oidEKPermIDSHA256     = asn1.ObjectIdentifier{2, 23, 133, 12, 1}
)

// Tags of GeneralName (RFC 5280 §4.2.1.6).
const (
	tagOtherName = 0
	tagEmail     = 1
	tagDNS       = 2
	tagURI       = 6
	tagIP        = 7
)

// generalNames are the kinds of alternative names: how each is checked and encoded.
var generalNames = map[string]func(value string) ([]byte, error){
	"DNS": func(v string) ([]byte, error) { return plainName(tagDNS, v), checkDNS(v) },
	"URI": func(v string) ([]byte, error) {
		u, err := url.Parse(v)
		if err != nil || u.Scheme == "" || u.Host == "" && u.Opaque == "" || !isASCII(v) {
			return nil, fmt.Errorf("URI %q is not absolute, or has other than ASCII", v)
		}
		return plainName(tagURI, v), nil
	},
	"email": func(v string) ([]byte, error) {
		if a, err := mail.ParseAddress(v); err != nil || a.Address != v || !isASCII(v) {
			return nil, fmt.Errorf("email %q is not an ASCII mailbox", v)
		}
		return plainName(tagEmail, v), nil
	},
	"IP": func(v string) ([]byte, error) {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("IP %q is not an address", v)
		}
		return plainName(tagIP, string(a.AsSlice())), nil
	},
	// The TCG's "TPM 2.0 Keys for Device Identity and Attestation" §8 names the TPM by both, here by the
	// digest of the endorsement key, which the device cannot choose.
	"hardwareModuleName": func(v string) ([]byte, error) {
		serial, err := hex.DecodeString(v)
		if err != nil || len(serial) == 0 {
			return nil, fmt.Errorf("hardwareModuleName %q is not hexadecimal", v)
		}
		return otherName(oidHardwareModuleName, func(w *der.Writer) {
			w.OID(oidHWTypeTPM20)
			w.Value(asn1.TagOctetString, serial)
		}), nil
	},
	"permanentIdentifier": func(v string) ([]byte, error) {
		if v == "" {
			return nil, fmt.Errorf("permanentIdentifier is empty")
		}
		return otherName(oidPermanentID, func(w *der.Writer) {
			w.Text(asn1.TagUTF8String, v)
			w.OID(oidEKPermIDSHA256)
		}), nil
	},
}

func plainName(tag byte, v string) []byte {
	var w der.Writer
	w.Text(der.Context|tag, v)
	return w.B
}

// otherName writes a name whose value is a SEQUENCE of members.
func otherName(id asn1.ObjectIdentifier, members func(*der.Writer)) []byte {
	var w der.Writer
	w.Element(der.Contained|tagOtherName, func() {
		w.OID(id)
		w.Element(der.Contained, func() {
			w.Element(der.Sequence, func() { members(&w) })
		})
	})
	return w.B
}

// checkDNS holds a name to the preferred syntax of RFC 1034 §3.5 and RFC 1123 §2.1; wildcards are not for devices.
func checkDNS(name string) error {
	bad := len(name) == 0 || len(name) > 253
	for label := range strings.SplitSeq(name, ".") {
		bad = bad || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-'
		for _, c := range []byte(label) {
			bad = bad || c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z')
		}
	}
	if bad {
		return fmt.Errorf("DNS name %q: labels have 1 to 63 letters, digits and inner hyphens, together at most 253 characters", name)
	}
	return nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// generalName encodes "DNS:name" and its like.
func generalName(s string) ([]byte, error) {
	kind, value, ok := strings.Cut(s, ":")
	encode := generalNames[kind]
	if !ok || encode == nil {
		return nil, fmt.Errorf("%q: write KIND:value, KIND one of %s", s, keysOf(generalNames))
	}
	return encode(value)
}

// subjectAltName makes the extension; it must be critical when the subject is empty (RFC 5280 §4.2.1.6).
func subjectAltName(names []string, critical bool) (pkix.Extension, error) {
	var w der.Writer
	var err error
	w.Element(der.Sequence, func() {
		for _, n := range names {
			der, nerr := generalName(n)
			if nerr != nil && err == nil {
				err = nerr
			}
			w.Raw(der)
		}
	})
	return pkix.Extension{Id: oidSAN, Critical: critical, Value: w.B}, err
}

// Bounds of the alternative names that a CSR may ask for.
const (
	maxNames = 100
	maxName  = 1024
)

// readNames turns the subjectAltName of a CSR into the form of generalName. Of other kinds of names only the
// bytes remain, which no pattern allows.
func readNames(der []byte) ([]string, error) {
	raw, ok := elements(der)
	if !ok || len(raw) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "the CSR's subjectAltName is not DER of at least one name")
	}
	if len(raw) > maxNames {
		return nil, cradle.Errorf(cradle.Invalid, "the CSR's subjectAltName has %d names; at most %d", len(raw), maxNames)
	}
	var out []string
	for _, n := range raw {
		if len(n.Bytes) > maxName {
			return nil, cradle.Errorf(cradle.Invalid, "the CSR's subjectAltName has a name of %d bytes; at most %d", len(n.Bytes), maxName)
		}
		kind := map[int]string{tagDNS: "DNS:", tagURI: "URI:", tagEmail: "email:"}[n.Tag]
		switch addr, isIP := netip.AddrFromSlice(n.Bytes); {
		case n.Class != asn1.ClassContextSpecific:
			return nil, cradle.Errorf(cradle.Invalid, "the CSR's subjectAltName holds something that is no name")
		case kind != "" && !n.IsCompound:
			out = append(out, kind+string(n.Bytes))
		case n.Tag == tagIP && isIP && !n.IsCompound:
			out = append(out, "IP:"+addr.String())
		default:
			out = append(out, "other:"+hex.EncodeToString(n.FullBytes))
		}
	}
	return out, nil
}
