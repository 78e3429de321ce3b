package ledger

import (
	"slices"
	"strings"
	"time"
)

// requestLife is how long an enrolment may take.
const requestLife = 2 * time.Minute

// registrarKey names what a registration authority may ask for.
type registrarKey struct{ id, profile string }

// registrarMade holds the leaf of a registration authority's credential against its row.
func (v *verification) registrarMade(name string, l Leaf, b Body) {
	c := v.logged(name, b, registrar)
	d, ok := parseDigest(b.Certificate)
	if c == nil || !ok {
		return
	}
	if c.device != b.Device {
		v.find(CertificateChanged, "certificate "+b.Certificate, "the row says %s, %s says %s", c.device, name, b.Device)
	}
	v.when(CertificateChanged, "certificate "+b.Certificate, "it was issued", c.issued, name, l.Time)
	k := registrarKey{b.Device, b.Profile}
	v.registrars[k] = append(v.registrars[k], d)
}

// registeredBy looks for the credential that allowed a certificate in the slot of what registration authorities ask for:
// one that was made before, for this profile, and was neither revoked nor expired.
func (v *verification) registeredBy(name string, l Leaf, b Body) {
	by, is := strings.CutPrefix(b.AuthenticatedBy, "ra/")
	slot := b.Lineage == b.Profile+registered
	if !is && !slot {
		return
	}
	subject := "certificate " + b.Certificate
	if !is || !slot || b.Origin != b.AuthenticatedBy {
		v.find(CertificateOutside, subject, "%s: it was asked for by %q, for a device of %q, in the slot %q", name, b.AuthenticatedBy, b.Origin, b.Lineage)
		return
	}
	live := func(d digest) bool { // or it was when the request came
		c := v.certs[d]
		return c != nil && (c.ended.IsZero() || l.Time.Sub(c.ended) < requestLife) && l.Time.Sub(c.notAfter) < requestLife
	}
	if !slices.ContainsFunc(v.registrars[registrarKey{b.AuthenticatedBy, b.Profile}], live) {
		v.find(CertificateOutside, subject, "%s: the registration authority %s had no credential for profile %s", name, by, b.Profile)
	}
}
