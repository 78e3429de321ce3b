package order

import (
	"crypto/x509"
	"encoding/pem"
	"math"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cradle-iot/cradle"
)

// Limits of an order.
const (
	MaxSize     = 256 << 10  // bytes of a payload or an order file
	MaxQuantity = 10_000_000 // units
	MaxLifetime = 10 * 366 * 24 * time.Hour
	MaxList     = 32  // tiers, makers, EK types, anchors each
	MaxSerial   = 64  // characters of a serial number
	maxText     = 512 // bytes of a URL
)

// DefaultNaming is the template of device ids when the order names none.
const DefaultNaming = "{account}-{serial}"

const serialChars = "letters, digits, '-', '.' and '_'"

// Check reports the first thing wrong with an order by itself, whoever signed it.
func (o *Order) Check() error {
	if o.Version != Version {
		return invalid("version %d; this program knows version %d", o.Version, Version)
	}
	for _, id := range []struct{ name, v string }{{"order id", string(o.ID)}, {"account", string(o.Account)}, {"oem", string(o.OEM)}} {
		if err := cradle.CheckID(id.name, id.v); err != nil {
			return err
		}
	}
	if o.Model == "" || len(o.Model) > 64 || strings.ContainsFunc(o.Model, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return invalid("model %.70q must be 1 to 64 printable characters", o.Model)
	}
	for _, step := range []func() error{o.checkSerials, o.checkDates, o.checkKeys, o.checkNaming, o.checkPlaces, o.checkAgent} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (o *Order) checkSerials() error {
	first, last, err := o.counters()
	if err != nil {
		return err
	}
	// An IDevID's serialNumber is a PrintableString (RFC 5280 appendix A.1), which has no underscore.
	if !serialText(o.SerialPrefix) || strings.Contains(o.SerialPrefix, "_") || len(o.SerialPrefix)+len(o.SerialFirst) > MaxSerial {
		return invalid("serial_prefix %.70q: use letters, digits, '-' and '.'; prefix and counter together at most %d characters", o.SerialPrefix, MaxSerial)
	}
	if o.Quantity < 1 || o.Quantity > MaxQuantity {
		return invalid("quantity %d is outside 1 to %d", o.Quantity, MaxQuantity)
	}
	if n := last - first + 1; uint64(o.Quantity) > n {
		return invalid("quantity %d is more than the %d serial numbers from %s to %s", o.Quantity, n, o.SerialFirst, o.SerialLast)
	}
	return nil
}

// counters parses the ends of the serial range.
func (o *Order) counters() (first, last uint64, err error) {
	for _, e := range []struct {
		name, v string
		n       *uint64
	}{{"serial_first", o.SerialFirst, &first}, {"serial_last", o.SerialLast, &last}} {
		n, ok := counter(e.v)
		if !ok {
			return 0, 0, invalid("%s %.30q must be 1 to 18 decimal digits in quotes, for example \"000001\"", e.name, e.v)
		}
		*e.n = n
	}
	if len(o.SerialFirst) != len(o.SerialLast) {
		return 0, 0, invalid("serial_first %s and serial_last %s must have equally many digits", o.SerialFirst, o.SerialLast)
	}
	if last < first {
		return 0, 0, invalid("serial_last %s is below serial_first %s", o.SerialLast, o.SerialFirst)
	}
	return first, last, nil
}

func counter(s string) (uint64, bool) {
	if s == "" || len(s) > 18 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

func serialText(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return true
}

func (o *Order) checkDates() error {
	for _, t := range []time.Time{o.NotBefore, o.NotAfter} {
		if t.Location() != time.UTC || t.Nanosecond() != 0 || t.Year() < 2000 || t.Year() > 9999 {
			return invalid("dates must be whole seconds of UTC, years 2000 to 9999")
		}
	}
	if !o.NotBefore.Before(o.NotAfter) {
		return invalid("not_after %s is not after not_before %s", stamp(o.NotAfter), stamp(o.NotBefore))
	}
	if o.NotAfter.Sub(o.NotBefore) > MaxLifetime {
		return invalid("the order runs for more than ten years")
	}
	return nil
}

func (o *Order) checkKeys() error {
	if err := checkList("tiers", o.Tiers, func(t cradle.Tier) error { _, err := cradle.ParseTier(string(t)); return err }); err != nil {
		return err
	}
	for _, t := range o.Tiers {
		if t.Class() != o.Class() {
			return cradle.Errorf(cradle.Invalid, "order: tiers %s and %s are of two classes, %s and %s", o.Tiers[0], t, o.Class(), t.Class()).
				WithHint("make two orders, one for each class")
		}
		if t == cradle.SoftwareKey {
			return invalid("tier %s: units of an order have a TPM", t)
		}
	}
	if err := checkList("tpm_makers", o.TPMMakers, func(m cradle.MakerID) error { return cradle.CheckID("TPM maker", string(m)) }); err != nil {
		return err
	}
	if err := checkList("ek_types", o.EKTypes, func(k string) error {
		if !slices.Contains(EKTypes, k) {
			return invalid("unknown EK type %.30q; use of %v", k, EKTypes)
		}
		return nil
	}); err != nil {
		return err
	}
	if o.KeyAlgorithm != KeyECDSAP256 {
		return invalid("key_algorithm %.30q; only %s is made so far", o.KeyAlgorithm, KeyECDSAP256)
	}
	return nil
}

func checkList[T comparable](name string, list []T, check func(T) error) error {
	if len(list) == 0 || len(list) > MaxList {
		return invalid("%s must name 1 to %d, not %d", name, MaxList, len(list))
	}
	for i, v := range list {
		if err := check(v); err != nil {
			return err
		}
		if slices.Contains(list[:i], v) {
			return invalid("%s names %v twice", name, v)
		}
	}
	return nil
}

// checkNaming makes the names of both ends of the range: every name between them has the same length
// and differs in the counter alone.
func (o *Order) checkNaming() error {
	if !strings.Contains(o.Naming, "{serial}") {
		return invalid("naming %.70q does not contain {serial}, so names would not be unique", o.Naming)
	}
	for _, c := range []string{o.SerialFirst, o.SerialLast} {
		if _, err := o.name(o.SerialPrefix + c); err != nil {
			return err
		}
	}
	return nil
}

func (o *Order) checkPlaces() error {
	for _, u := range []struct{ name, v string }{{"provider_url", o.ProviderURL}, {"provisioning_endpoint", o.ProvisioningEndpoint}} {
		if err := checkURL(u.name, u.v); err != nil {
			return err
		}
	}
	if o.IDScope == "" || len(o.IDScope) > 128 || !serialText(o.IDScope) {
		return invalid("id_scope %.140q: 1 to 128 of %s", o.IDScope, serialChars)
	}
	if _, err := Anchors(o.ServicesAnchors); err != nil {
		return invalid("services_anchors: %v", err)
	}
	if _, err := Anchors(o.AccountAnchors); err != nil {
		return invalid("account_anchors: %v", err)
	}
	if _, err := ParsePublic(o.AccountKey); err != nil {
		return invalid("account_key: %v", err)
	}
	return nil
}

func checkURL(name, v string) error {
	u, err := url.Parse(v)
	if err != nil || len(v) > maxText || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(v, "/") {
		return invalid("%s %.100q must be https://host[:port][/path] without a final slash", name, v)
	}
	if p := u.Port(); p != "" {
		if _, err := net.LookupPort("tcp", p); err != nil {
			return invalid("%s %.100q: no such port", name, v)
		}
	}
	return nil
}

func (o *Order) checkAgent() error {
	if i := time.Duration(o.Agent.TelemetryInterval); i != 0 && (i < 100*time.Millisecond || i > 24*time.Hour) {
		return invalid("agent.telemetry_interval %v is outside 100ms to 24h", i)
	}
	if f := o.Agent.RenewalFraction; math.IsNaN(f) || f != 0 && (f < 0.1 || f > 0.9) {
		return invalid("agent.renewal_fraction %v is outside 0.1 to 0.9", f)
	}
	return nil
}

// Anchors parses 1 to MaxList PEM certificates, each a CA, with nothing else around them.
func Anchors(text string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := []byte(strings.TrimSpace(text))
	for len(rest) > 0 {
		if !strings.HasPrefix(string(rest), "-----BEGIN CERTIFICATE-----") {
			return nil, cradle.Errorf(cradle.Invalid, "something other than PEM certificates")
		}
		b, after := pem.Decode(rest)
		if b == nil || b.Type != "CERTIFICATE" || len(b.Headers) > 0 {
			return nil, cradle.Errorf(cradle.Invalid, "not PEM certificates")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "certificate %d: %v", len(out)+1, err)
		}
		if !c.BasicConstraintsValid || !c.IsCA {
			return nil, cradle.Errorf(cradle.Invalid, "certificate %d (%s) is no CA's", len(out)+1, c.Subject)
		}
		if out = append(out, c); len(out) > MaxList {
			return nil, cradle.Errorf(cradle.TooLarge, "more than %d certificates", MaxList)
		}
		rest = []byte(strings.TrimSpace(string(after)))
	}
	if len(out) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "no certificate")
	}
	return out, nil
}

func invalid(format string, args ...any) *cradle.Error {
	return cradle.Errorf(cradle.Invalid, "order: "+format, args...).WithHint("correct the order file and sign it again with: cradle order create")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// tomlKeys lists the top keys of an order file.
func tomlKeys() []string {
	var out []string
	for f := range reflect.TypeFor[Order]().Fields() {
		if k := f.Tag.Get("toml"); k != "-" {
			out = append(out, k)
		}
	}
	return out
}
