package ca

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/stricttoml"
)

// Profile is what certificates of one kind hold and who may have them: data that an operator reads and
// changes (docs/profiles.md). A field at its zero value has the default of the profile's kind, which Complete fills
// in; an empty list is not a missing one.
type Profile struct {
	// Kind is idevid, iak, ldevid, operational or client. It cannot change later.
	Kind Kind `toml:"kind"`
	// Default marks the profile of the account's own host name, for clients without labels. Without any it is
	// operational.
	Default bool `toml:"default"`
	// Closed refuses new certificates. Those that were issued stay as they are.
	Closed bool `toml:"closed"`
	// Evidence is whether the key must be proved to live in the device's TPM: required, optional or none.
	// A certificate without proof comes from a CA of its own and says so.
	Evidence Evidence `toml:"evidence"`
	// Approval lets each new device wait for an operator: the answer is 202 until then (RFC 7030 §4.2.3).
	Approval bool `toml:"approval"`
	// POPLinking demands the challengePassword that ties a CSR to its TLS connection (RFC 7030 §3.5).
	POPLinking bool `toml:"pop_linking"`
	// ChangeSubjectName lets a renewal ask for other names (RFC 6402 §2.8).
	ChangeSubjectName bool `toml:"change_subject_name"`
	// Validity is the certificate's life: 90m, 24h, 365d, or forever.
	Validity Duration `toml:"validity"`
	// RenewalThreshold is the fraction of life after which a certificate counts as due.
	RenewalThreshold float64 `toml:"renewal_threshold"`
	// Keys lists what a certified key may be: ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096, ed25519.
	Keys []KeyType `toml:"keys"`
	// Subject is the name, an attribute each, the outermost first: O={account}. Facts about the device stand in braces.
	Subject []string `toml:"subject"`
	// SubjectAltName lists the alternative names: DNS:, URI:, email:, IP:, hardwareModuleName:, permanentIdentifier:.
	SubjectAltName []string `toml:"subject_alt_name"`
	// KeyUsage by the names of RFC 5280 §4.2.1.3.
	KeyUsage []string `toml:"key_usage"`
	// ExtendedKeyUsage by the names of RFC 5280 §4.2.1.12, or OIDs.
	ExtendedKeyUsage []string `toml:"extended_key_usage"`
	// Extensions are further ones.
	Extensions []Extension `toml:"extension"`
	// Wishes says what a CSR may ask for.
	Wishes WishRules `toml:"wishes"`
}

// Extension is an extension that every certificate of a profile has.
type Extension struct {
	// OID in dotted form.
	OID string `toml:"oid"`
	// Critical tells who does not know the extension to refuse the certificate.
	Critical bool `toml:"critical"`
	// Value is the DER of the extension: hex:..., base64:..., or utf8:... for a UTF8String. Facts may stand in braces.
	Value string `toml:"value"`
}

// WishRules says what a CSR may ask for beyond the profile, and what happens to other wishes: refuse
// answers with an error that names the field, replace issues what the profile says and tells so.
type WishRules struct {
	// Subject: another name than the profile's.
	Subject Outside `toml:"subject"`
	// SubjectAltName: names that neither the profile nor AllowNames has.
	SubjectAltName Outside `toml:"subject_alt_name"`
	// KeyUsage: other usages than the profile's.
	KeyUsage Outside `toml:"key_usage"`
	// ExtendedKeyUsage: usages that neither the profile nor AllowUsages has.
	ExtendedKeyUsage Outside `toml:"extended_key_usage"`
	// CA: basicConstraints with CA:TRUE, or the usages keyCertSign and cRLSign. Never granted.
	CA Outside `toml:"ca"`
	// Extensions: any other extension.
	Extensions Outside `toml:"extensions"`
	// AllowNames lists alternative names that are granted when asked for, with facts and with * for any text: DNS:*.{device}.example.com.
	AllowNames []string `toml:"allow_names"`
	// AllowUsages lists extended key usages that are granted when asked for.
	AllowUsages []string `toml:"allow_usages"`
}

// Kind is what certificates of a profile are for; it decides the issuing CA and what an operator may change.
type Kind string

// The kinds. The first four are those of the built-in profiles (DESIGN §2); certificates of kind client
// authenticate a device elsewhere and are issued by the operational CA.
const (
	KindIDevID      Kind = "idevid"
	KindIAK         Kind = "iak"
	KindLDevID      Kind = "ldevid"
	KindOperational Kind = "operational"
	KindClient      Kind = "client"
)

// Birth reports whether certificates of the kind are made on the OEM's line, within an order.
func (k Kind) Birth() bool { return k == KindIDevID || k == KindIAK }

// Evidence says whether a profile wants a key proved.
type Evidence string

// The values of Evidence.
const (
	EvidenceRequired Evidence = "required"
	EvidenceOptional Evidence = "optional" // proved when there is evidence; without it the certificate says that it is not
	EvidenceNone     Evidence = "none"     // not looked at
)

// Outside is what happens to a wish outside the profile.
type Outside string

// The values of Outside.
const (
	Refuse  Outside = "refuse"
	Replace Outside = "replace"
)

// Duration is written like 90m, 24h or 365d; Endless is "forever".
type Duration time.Duration

// Endless is the life of a certificate with notAfter 99991231235959Z.
const Endless Duration = -1

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	const day = 24 * time.Hour
	switch t := time.Duration(d); {
	case d == Endless:
		return "forever"
	case t >= 2*day && t%day == 0:
		return strconv.FormatInt(int64(t/day), 10) + "d"
	case t != 0 && t%time.Hour == 0:
		return strconv.FormatInt(int64(t/time.Hour), 10) + "h"
	case t != 0 && t%time.Minute == 0:
		return strconv.FormatInt(int64(t/time.Minute), 10) + "m"
	default:
		return t.String()
	}
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if s == "forever" {
		*d = Endless
		return nil
	}
	if n, ok := strings.CutSuffix(s, "d"); ok {
		days, err := strconv.ParseUint(n, 10, 16)
		*d = Duration(days) * Duration(24*time.Hour)
		if err == nil {
			return nil
		}
	} else if t, err := time.ParseDuration(s); err == nil && t >= 0 {
		*d = Duration(t)
		return nil
	}
	return fmt.Errorf("%q is not a duration; write it like 90m, 24h or 365d", s)
}

// builtIn profiles have a kind of their own.
var builtIn = map[cradle.Profile]Kind{cradle.IDevID: KindIDevID, cradle.IAK: KindIAK, cradle.LDevID: KindLDevID, cradle.Operational: KindOperational}

// BuiltIn lists the profiles that every account has.
var BuiltIn = []cradle.Profile{cradle.IDevID, cradle.IAK, cradle.LDevID, cradle.Operational}

// defaults of each kind.
func defaults(k Kind) Profile {
	p := Profile{
		Kind:             k,
		Evidence:         EvidenceRequired,
		RenewalThreshold: 0.6,
		Validity:         Duration(24 * time.Hour),
		Keys:             []KeyType{ECP256, ECP384, RSA2048, RSA3072, RSA4096},
		Subject:          []string{"O={account}", "CN={device}"},
		SubjectAltName:   []string{},
		KeyUsage:         []string{"digitalSignature"},
		ExtendedKeyUsage: []string{"clientAuth"},
		Extensions:       []Extension{},
		Wishes: WishRules{Subject: Replace, SubjectAltName: Replace, KeyUsage: Replace, ExtendedKeyUsage: Replace, CA: Refuse, Extensions: Replace,
			AllowNames: []string{}, AllowUsages: []string{}},
	}
	switch k {
	case KindIDevID, KindIAK:
		// No extended key usage: 802.1AR-2018 §8.10.5 leaves an IDevID open to every use; who accepts it decides. The
		// serial number stands in the subject, the TPM in the alternative name (TCG "TPM 2.0 Keys for Device
		// Identity and Attestation" §8).
		p.Validity = Endless
		p.Keys = []KeyType{ECP256}
		p.Subject = append(p.Subject, "serialNumber={serial}")
		p.SubjectAltName = []string{"hardwareModuleName:{ek}", "permanentIdentifier:{ek}"}
		p.ExtendedKeyUsage = []string{}
	case KindLDevID:
		p.Validity = Duration(365 * 24 * time.Hour)
	}
	return p
}

// Complete fills in the defaults and checks the profile of that name. The error is of kind Invalid and
// names the field.
func (p Profile) Complete(name cradle.Profile) (Profile, error) {
	if k, ok := builtIn[name]; ok {
		if p.Kind != "" && p.Kind != k {
			return p, fault(name, "kind", "%q: profile %s is always of kind %s", p.Kind, name, k)
		}
		p.Kind = k
	}
	if !slices.Contains([]Kind{KindIDevID, KindIAK, KindLDevID, KindOperational, KindClient}, p.Kind) {
		return p, fault(name, "kind", "%q is none; use operational or client", p.Kind)
	}
	d := defaults(p.Kind)
	orDefault(&p.Evidence, d.Evidence)
	orDefault(&p.Validity, d.Validity)
	orDefault(&p.RenewalThreshold, d.RenewalThreshold)
	orDefaults(&p.Keys, d.Keys)
	orDefaults(&p.Subject, d.Subject)
	orDefaults(&p.SubjectAltName, d.SubjectAltName)
	orDefaults(&p.KeyUsage, d.KeyUsage)
	orDefaults(&p.ExtendedKeyUsage, d.ExtendedKeyUsage)
	orDefaults(&p.Extensions, d.Extensions)
	w, dw := &p.Wishes, d.Wishes
	orDefault(&w.Subject, dw.Subject)
	orDefault(&w.SubjectAltName, dw.SubjectAltName)
	orDefault(&w.KeyUsage, dw.KeyUsage)
	orDefault(&w.ExtendedKeyUsage, dw.ExtendedKeyUsage)
	orDefault(&w.CA, dw.CA)
	orDefault(&w.Extensions, dw.Extensions)
	orDefaults(&w.AllowNames, dw.AllowNames)
	orDefaults(&w.AllowUsages, dw.AllowUsages)
	return p, p.check(name)
}

// DefaultProfile is a built-in profile as it is until an operator changes it.
func DefaultProfile(name cradle.Profile) Profile { return defaults(builtIn[name]) }

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func orDefaults[T any](v *[]T, d []T) {
	if *v == nil {
		*v = d
	}
}

// fault is the refusal of a profile.
func fault(name cradle.Profile, field, format string, args ...any) error {
	return cradle.Errorf(cradle.Invalid, "profile %s: %s: %s", name, field, fmt.Sprintf(format, args...))
}

// ParseProfile reads a profile's TOML. Unknown keys are errors.
func ParseProfile(name cradle.Profile, text string) (Profile, error) {
	var p Profile
	if err := stricttoml.Decode(text, &p); err != nil {
		return p, cradle.Errorf(cradle.Invalid, "profile %s: %v", name, err)
	}
	return p.Complete(name)
}

// ParseProfiles reads a file of profiles: a TOML table each, under the profile's name.
func ParseProfiles(text string) (map[cradle.Profile]Profile, error) {
	var out map[cradle.Profile]Profile
	if err := stricttoml.Decode(text, &out); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "profiles: %v", err)
	}
	if len(out) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "profiles: the file has none").WithHint("write a table for each profile, for example [operational]")
	}
	for name, p := range out {
		c, err := p.Complete(name)
		if err != nil {
			return nil, err
		}
		out[name] = c
	}
	return out, nil
}

// String is the profile as TOML, whole: what ParseProfile reads, and what Digest is of.
func (p Profile) String() string {
	var b bytes.Buffer
	e := toml.NewEncoder(&b)
	e.Indent = ""
	if err := e.Encode(p); err != nil {
		panic("internal error: " + err.Error())
	}
	return b.String()
}

// Digest names a profile's content in the log: SHA-256 of its TOML, hexadecimal.
func (p Profile) Digest() string {
	h := sha256.Sum256([]byte(p.String()))
	return hex.EncodeToString(h[:])
}
