package ledger

import (
	"slices"

	"github.com/cradle-iot/cradle"
)

func (v *verification) standing(name string, l Leaf, b Body) {
	if b.Certificate != "" {
		v.certStanding(name, l, b)
		return
	}
	dev := v.devices[b.Device]
	if dev == nil {
		v.find(DeviceMissing, "device "+b.Device, "%s makes it %s", name, b.State)
		return
	}
	dev.standing = cradle.DeviceState(b.State)
	if dev.final.IsZero() && (dev.standing == cradle.Revoked || dev.standing == cradle.Retired) {
		dev.final = l.Time
	}
}

func (v *verification) certStanding(name string, l Leaf, b Body) {
	d, ok := parseDigest(b.Certificate)
	c := v.certs[d]
	if !ok || c == nil {
		v.find(CertificateMissing, "certificate "+b.Certificate, "%s makes it %s", name, b.State)
		return
	}
	if c.serial != b.Serial || c.device != b.Device && !deviceless(c.profile) {
		v.find(CertificateChanged, "certificate "+b.Certificate, "the row says serial %s of %s, %s says serial %s of %s", c.serial, c.device, name, b.Serial, b.Device)
	}
	if c.standing == cradle.Revoked {
		return // final
	}
	if c.standing = cradle.DeviceState(b.State); c.standing == cradle.Revoked {
		c.ended = l.Time
	}
}

// stateOf is where a device must be by what the leaves said.
func (v *verification) stateOf(d *deviceRecord) cradle.DeviceState {
	switch lot := v.lots[d.row.Lot]; {
	case d.standing.Blocked():
		return d.standing
	case d.ldevid, d.row.Order == "" && d.standing == "": // without an order it came by a credential
		return cradle.Active
	case d.row.Order == "":
		return d.standing
	case lot != nil && lot.state == "accepted":
		return cradle.Accepted
	}
	return cradle.Made
}

// finishRevocation holds a certificate's mark against what the leaves said of it and of its device.
func (v *verification) finishRevocation(name string, d digest, c *certRecord) {
	final, held := c.ended, c.standing == cradle.Suspended
	if dev := v.devices[c.device]; dev != nil && !deviceless(c.profile) {
		if final.IsZero() {
			final = dev.final
		}
		held = held || dev.standing == cradle.Suspended
	}
	switch {
	case c.revoked && final.IsZero() && !held:
		v.find(RevocationUnlogged, name, "it is revoked or on hold, but no leaf says so of it or of device %s", c.device)
	case !c.revoked && !final.IsZero() && c.notAfter.After(final):
		v.find(RevocationMissing, name, "it, or its device %s, was revoked on %s, but it is not marked so", c.device, stamp(final))
	case !c.revoked && c.standing == cradle.Suspended:
		v.find(RevocationMissing, name, "it was put on hold and never released, but it is not marked so")
	case c.revoked && c.crl == "":
		v.find(RevocationMissing, name, "it is marked as revoked or on hold, but CRLs and OCSP do not know of it")
	case !c.revoked && c.crl != "":
		v.find(RevocationUnlogged, name, "CRLs and OCSP say %s, it is not marked so", c.crl)
	case c.revoked && (c.crl == cradle.CertificateHold.String()) != final.IsZero():
		v.find(RevocationMissing, name, "CRLs and OCSP say %s, which is not how the log has it", c.crl)
	case !c.revoked && c.reason != "", c.revoked && !gave(c, v.certEvents[d.String()], v.devEvents[c.device]):
		v.find(RevocationUnlogged, name, "the row gives the reason %q, CRLs and OCSP %s; no leaf does", c.reason, c.crl)
	case c.revoked && !dated(c, v.certEvents[d.String()], v.devEvents[c.device]):
		v.find(RevocationUnlogged, name, "the row says that it was revoked or put on hold on %s; no leaf does", stamp(c.revokedAt))
	}
}

// gave reports whether a leaf that blocks gave the certificate's reason and code.
func gave(c *certRecord, tallies ...*tally) bool {
	for _, t := range tallies {
		if t == nil {
			continue
		}
		for _, l := range t.leaves {
			if cradle.DeviceState(l.state).Blocked() && l.reason == c.reason && (l.code == "" || l.code == c.crl) {
				return true
			}
		}
	}
	return false
}

// dated reports whether a leaf blocked when the row says: the date of what was on hold before stays that of the hold.
func dated(c *certRecord, tallies ...*tally) bool {
	for _, t := range tallies {
		if t != nil && slices.ContainsFunc(t.leaves, func(l change) bool {
			return cradle.DeviceState(l.state).Blocked() && l.at.Sub(c.revokedAt).Abs() <= unsignedGrace
		}) {
			return true
		}
	}
	return false
}
