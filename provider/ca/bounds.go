package ca

import (
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// check holds a complete profile to its bounds. The checks are pure; each returns why the field is wrong.
func (p *Profile) check(name cradle.Profile) error {
	if builtIn[name] == "" {
		if err := cradle.CheckID("profile", string(name)); err != nil {
			return err
		}
		if len(name) > 20 || strings.ContainsRune(string(name), '-') || reservedProfiles[name] {
			return cradle.Errorf(cradle.Invalid, "profile name %q: use up to 20 of a-z, 0-9, '_' and '.', and none of %s", name, "station").
				WithHint("labels are <account>-<profile>, so that the profile has no '-'")
		}
		if p.Kind != KindOperational && p.Kind != KindClient {
			return fault(name, "kind", "%q is for the built-in profile of that name alone; use operational or client", p.Kind)
		}
	}
	for _, b := range bounds {
		if why := b.refuse(p); why != "" {
			return fault(name, b.field, "%s", why)
		}
	}
	return nil
}

// reservedProfiles are not for devices.
var reservedProfiles = map[cradle.Profile]bool{"station": true} // "registration-authority" has a '-'

var bounds = []struct {
	field  string
	refuse func(*Profile) string
}{
	{"default", func(p *Profile) string {
		return unless(!p.Default || !p.Kind.Birth(), "a device is born under a label, not under the host name")
	}},
	{"evidence", func(p *Profile) string {
		if !slices.Contains([]Evidence{EvidenceRequired, EvidenceOptional, EvidenceNone}, p.Evidence) {
			return fmt.Sprintf("%q is none of required, optional, none", p.Evidence)
		}
		return unless(p.Evidence == EvidenceRequired || !p.Kind.Birth(), "a device is born with evidence only")
	}},
	{"approval", func(p *Profile) string {
		return unless(!p.Approval || !p.Kind.Birth(), "the line does not wait; orders and lots are what is approved there")
	}},
	{"change_subject_name", func(p *Profile) string {
		return unless(!p.ChangeSubjectName || !p.Kind.Birth(), "an IDevID is never renewed")
	}},
	{"validity", func(p *Profile) string {
		if p.Kind.Birth() {
			return unless(p.Validity == Endless, "must be forever (802.1AR-2018 §8.7)")
		}
		longest := 2 * 365 * 24 * time.Hour
		if p.Kind == KindLDevID {
			longest = 25 * 365 * 24 * time.Hour
		}
		ok := p.Validity >= Duration(time.Minute) && p.Validity <= Duration(longest) && p.Validity%Duration(time.Second) == 0
		return unless(ok, fmt.Sprintf("%s is outside 1m to %s, or no whole seconds", p.Validity, Duration(longest)))
	}},
	{"renewal_threshold", func(p *Profile) string {
		return unless(p.RenewalThreshold >= 0.1 && p.RenewalThreshold <= 0.95, fmt.Sprintf("%v is outside 0.1 to 0.95", p.RenewalThreshold))
	}},
	{"keys", boundKeys},
	{"subject", boundSubject},
	{"subject_alt_name", boundNames},
	{"key_usage", boundKeyUsage},
	{"extended_key_usage", boundExtKeyUsage},
	{"extension", boundExtensions},
	{"wishes", boundWishes},
}

func unless(ok bool, why string) string {
	if ok {
		return ""
	}
	return why
}

func boundKeys(p *Profile) string {
	if len(p.Keys) == 0 {
		return "is empty: no key could be certified"
	}
	for i, k := range p.Keys {
		switch {
		case !slices.Contains(keyTypes, k):
			return fmt.Sprintf("%q is none of %v", k, keyTypes)
		case slices.Contains(p.Keys[:i], k):
			return fmt.Sprintf("%q stands twice", k)
		case p.Kind.Birth() && k != ECP256:
			return fmt.Sprintf("%s: the TCG's key templates that a line uses are of ec-p256", k)
		case k == Ed25519 && p.Kind != KindClient:
			return fmt.Sprintf("ed25519: TPMs do not make such keys, and Azure DPS and IoT Hub take no such certificates; only kind %s may have it", KindClient)
		}
	}
	return ""
}

// boundSubject keeps what the services rest on: the account and the device id.
func boundSubject(p *Profile) string {
	var have []string
	for _, s := range p.Subject {
		a, value, err := attributeOf(s)
		if err != nil {
			return err.Error()
		}
		text, err := pieces(value)
		if err != nil {
			return err.Error()
		}
		fixed := 0
		for i := 0; i < len(text); i += 2 {
			fixed += len(text[i])
		}
		if value == "" || fixed > a.max {
			return fmt.Sprintf("%q: the value must have 1 to %d characters", s, a.max)
		}
		have = append(have, s)
	}
	want := []string{"O={account}", "CN={device}"}
	if p.Kind.Birth() {
		want = append(want, "serialNumber={serial}") // 802.1AR-2018 §8.6
	}
	for _, w := range want {
		if !slices.Contains(have, w) {
			return fmt.Sprintf("lacks %q, by which the services and the audit know account and device", w)
		}
	}
	n := 0
	for _, s := range have {
		if strings.HasPrefix(s, "CN=") {
			n++
		}
	}
	return unless(n <= 1, "has more than one CN")
}

func boundNames(p *Profile) string {
	for _, s := range p.SubjectAltName {
		if why := boundName(s); why != "" {
			return why
		}
	}
	if p.Kind.Birth() && !slices.Contains(p.SubjectAltName, "hardwareModuleName:{ek}") {
		return `lacks "hardwareModuleName:{ek}" (802.1AR-2018 §8.10.4)`
	}
	return ""
}

// boundName tries a name with facts of an ordinary device.
func boundName(s string) string {
	l := &Leaf{Account: "a", Device: "d", Serial: "1", Order: "o", OEM: "m", Tier: cradle.DiscreteTPM, Maker: "t", EKDigest: make([]byte, 32)}
	text, err := l.expand(s)
	if err == nil {
		_, err = generalName(text)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func boundKeyUsage(p *Profile) string {
	if len(p.KeyUsage) == 0 {
		return "is empty (RFC 5280 §4.2.1.3)"
	}
	for i, u := range p.KeyUsage {
		bit, ok := keyUsages[u]
		switch {
		case !ok:
			return fmt.Sprintf("%q is none of %s", u, keysOf(keyUsages))
		case bit&caUsages != 0:
			return fmt.Sprintf("%s is for CAs", u)
		case slices.Contains(p.KeyUsage[:i], u):
			return fmt.Sprintf("%q stands twice", u)
		}
	}
	if p.Kind != KindClient && !slices.Contains(p.KeyUsage, "digitalSignature") {
		return "lacks digitalSignature, without which the certificate does not authenticate in TLS"
	}
	return ""
}

func boundExtKeyUsage(p *Profile) string {
	for i, s := range p.ExtendedKeyUsage {
		if _, err := extKeyUsage(s); err != nil {
			return err.Error()
		}
		if slices.Contains(p.ExtendedKeyUsage[:i], s) {
			return fmt.Sprintf("%q stands twice", s)
		}
	}
	if n := len(p.ExtendedKeyUsage); n > 0 && p.Kind != KindClient && !slices.Contains(p.ExtendedKeyUsage, "clientAuth") {
		return "lacks clientAuth, without which the certificate cannot renew itself (RFC 7030 §4.2.2) nor reach the hub"
	}
	return ""
}

// ownExtensions are what the CA itself writes, or what a device's certificate must not have.
var ownExtensions = map[string]string{
	"1.3.6.1.5.5.7.1.1":       "authorityInfoAccess",
	"1.3.6.1.5.5.7.48.1.5":    "id-pkix-ocsp-nocheck",
	"1.3.6.1.4.1.11129.2.4.3": "the poison of precertificates",
}

func boundExtensions(p *Profile) string {
	for i, e := range p.Extensions {
		id, err := parseOID(e.OID)
		if err != nil {
			return err.Error()
		}
		switch {
		case ownExtensions[e.OID] != "":
			return fmt.Sprintf("%s (%s) is not for profiles", e.OID, ownExtensions[e.OID])
		case id[:min(3, len(id))].Equal(asn1.ObjectIdentifier{2, 5, 29}) && e.OID != "2.5.29.9":
			return fmt.Sprintf("%s (%s): extensions of RFC 5280 have fields of their own or are the CA's", e.OID, extensionName(id))
		case slices.ContainsFunc(p.Extensions[:i], func(x Extension) bool { return x.OID == e.OID }):
			return fmt.Sprintf("%s stands twice (RFC 5280 §4.2)", e.OID)
		case e.Critical && p.Kind != KindClient:
			return fmt.Sprintf("%s is critical: provisioning and hub refuse certificates with critical extensions that they do not know", e.OID)
		}
		if _, err := (&Leaf{Account: "a", Device: "d", Serial: "1", Order: "o", OEM: "m", Tier: cradle.DiscreteTPM, Maker: "t", EKDigest: make([]byte, 32)}).extension(e); err != nil {
			return err.Error()
		}
	}
	return ""
}

// extension makes one of the profile's extensions.
func (l *Leaf) extension(e Extension) ([]byte, error) {
	form, value, _ := strings.Cut(e.Value, ":")
	value, err := l.expand(value)
	if err != nil {
		return nil, err
	}
	var der []byte
	switch form {
	case "hex":
		der, err = hex.DecodeString(value)
	case "base64":
		der, err = base64.StdEncoding.DecodeString(value)
	case "utf8":
		der, err = asn1.MarshalWithParams(value, "utf8")
	default:
		return nil, fmt.Errorf("%s: write the value as hex:..., base64:... or utf8:...", e.OID)
	}
	var v asn1.RawValue
	if rest, derr := asn1.Unmarshal(der, &v); err != nil || derr != nil || len(rest) > 0 {
		return nil, fmt.Errorf("%s: the value %q is not one element of DER", e.OID, e.Value)
	}
	return der, nil
}

func boundWishes(p *Profile) string {
	w := p.Wishes
	for _, o := range []Outside{w.Subject, w.SubjectAltName, w.KeyUsage, w.ExtendedKeyUsage, w.CA, w.Extensions} {
		if o != Refuse && o != Replace {
			return fmt.Sprintf("%q is neither refuse nor replace", o)
		}
	}
	if p.Kind.Birth() && len(w.AllowNames)+len(w.AllowUsages) > 0 {
		return "names and usages of an IDevID are not the line's to choose"
	}
	for _, n := range w.AllowNames {
		if kind, _, ok := strings.Cut(n, ":"); !ok || !slices.Contains([]string{"DNS", "URI", "email", "IP"}, kind) {
			return fmt.Sprintf("allow_names: %q: write DNS:, URI:, email: or IP: and a pattern", n)
		}
		if _, err := pieces(n); err != nil {
			return "allow_names: " + err.Error()
		}
	}
	for _, u := range w.AllowUsages {
		if _, err := extKeyUsage(u); err != nil {
			return "allow_usages: " + err.Error()
		}
	}
	return ""
}
