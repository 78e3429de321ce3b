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

	"github.com/cradle-iot/cradle"
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
	if !strings.ContainsAny(tmpl, "{}") {
		return tmpl, nil
	}
	p, err := pieces(tmpl)
	if err != nil {
		return "", err
	}
	for i := 1; i < len(p); i += 2 {
		name := p[i]
		if p[i] = facts[name](l); p[i] == "" {
			return "", fmt.Errorf("%q needs {%s}, which is not known of device %s", tmpl, name, l.Device)
		}
	}
	return strings.Join(p, ""), nil
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

// subject makes the Name of the profile's subject.
func (l *Leaf) subject() (pkix.RDNSequence, error) {
	var out pkix.RDNSequence
	for _, t := range l.Rules.Subject {
		s, err := l.expand(t)
		if err != nil {
			return nil, err
		}
		a, value, err := attributeOf(s)
		if err != nil {
			return nil, err
		}
		v := pkix.AttributeTypeAndValue{Type: a.id, Value: value} // PrintableString where it can be, else UTF8String
		if a.syntax == asn1.TagIA5String {
			v.Value = asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(value)}
		}
		out = append(out, pkix.RelativeDistinguishedNameSET{v})
	}
	return out, nil
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
var generalNames = map[string]func(value string) (asn1.RawValue, error){
	"DNS": func(v string) (asn1.RawValue, error) { return plainName(tagDNS, v, checkDNS(v)) },
	"URI": func(v string) (asn1.RawValue, error) {
		u, err := url.Parse(v)
		if err != nil || u.Scheme == "" || u.Host == "" && u.Opaque == "" || !isASCII(v) {
			return asn1.RawValue{}, fmt.Errorf("URI %q is not absolute, or has other than ASCII", v)
		}
		return plainName(tagURI, v, nil)
	},
	"email": func(v string) (asn1.RawValue, error) {
		if a, err := mail.ParseAddress(v); err != nil || a.Address != v || !isASCII(v) {
			return asn1.RawValue{}, fmt.Errorf("email %q is not an ASCII mailbox", v)
		}
		return plainName(tagEmail, v, nil)
	},
	"IP": func(v string) (asn1.RawValue, error) {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" {
			return asn1.RawValue{}, fmt.Errorf("IP %q is not an address", v)
		}
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagIP, Bytes: a.AsSlice()}, nil
	},
	// The TCG's "TPM 2.0 Keys for Device Identity and Attestation" §8 names the TPM by both, here by the
	// digest of the endorsement key, which the device cannot choose.
	"hardwareModuleName": func(v string) (asn1.RawValue, error) {
		b, err := hex.DecodeString(v)
		if err != nil || len(b) == 0 {
			return asn1.RawValue{}, fmt.Errorf("hardwareModuleName %q is not hexadecimal", v)
		}
		return otherName(oidHardwareModuleName, struct {
			HWType      asn1.ObjectIdentifier
			HWSerialNum []byte
		}{oidHWTypeTPM20, b})
	},
	"permanentIdentifier": func(v string) (asn1.RawValue, error) {
		if v == "" {
			return asn1.RawValue{}, fmt.Errorf("permanentIdentifier is empty")
		}
		return otherName(oidPermanentID, struct {
			Value    string `asn1:"utf8"`
			Assigner asn1.ObjectIdentifier
		}{v, oidEKPermIDSHA256})
	},
}

func plainName(tag int, v string, err error) (asn1.RawValue, error) {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(v)}, err
}

func otherName(id asn1.ObjectIdentifier, v any) (asn1.RawValue, error) {
	inner, err := asn1.Marshal(v)
	if err != nil {
		return asn1.RawValue{}, err
	}
	o, err := asn1.MarshalWithParams(struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}{id, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}}, "tag:0")
	return asn1.RawValue{FullBytes: o}, err
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
func generalName(s string) (asn1.RawValue, error) {
	kind, value, ok := strings.Cut(s, ":")
	encode := generalNames[kind]
	if !ok || encode == nil {
		return asn1.RawValue{}, fmt.Errorf("%q: write KIND:value, KIND one of %s", s, keysOf(generalNames))
	}
	return encode(value)
}

// subjectAltName makes the extension; it must be critical when the subject is empty (RFC 5280 §4.2.1.6).
func subjectAltName(names []string, critical bool) (pkix.Extension, error) {
	raw := make([]asn1.RawValue, len(names))
	for i, n := range names {
		var err error
		if raw[i], err = generalName(n); err != nil {
			return pkix.Extension{}, err
		}
	}
	der, err := asn1.Marshal(raw)
	return pkix.Extension{Id: oidSAN, Critical: critical, Value: der}, err
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
