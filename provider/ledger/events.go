package ledger

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// startLeaves is called between the checkpoints and the first leaf.
func (v *verification) startLeaves() {
	slices.SortStableFunc(v.signed, func(a, b signedRoot) int {
		switch {
		case a.size < b.size:
			return -1
		case a.size > b.size:
			return 1
		}
		return 0
	})
	v.compare() // of size 0
}

// event holds a leaf against the rows.
func (v *verification) event(name string, l Leaf, b Body) {
	v.set(name, b)
	switch l.Kind {
	case KindIssuance:
		v.issued(name, l, b)
	case KindOpening:
		v.opened(name, b)
	case KindStation:
		v.stationIssued(name, l, b)
	case KindRegistrar:
		v.registrarMade(name, l, b)
	case KindRevocation:
		v.said(l, b)
		v.standing(name, l, b)
	case KindRefusal:
		if b.Certificate != "" && b.Profile != "" { // a superseded certificate was used
			v.quarantined[lineageOf(b)] = true
			b.State = ""
			v.said(l, b)
		}
	case KindOrder:
		v.ordered(name, l, b)
	case KindLot:
		v.lotted(name, l, b)
	case KindOEM:
		v.registered(name, "OEM "+b.OEM, l.Time, OEMChanged, [2]string{b.OrderKey, b.LotKey})
	case KindOperator:
		for _, id := range b.Anchors {
			v.registered(name, "anchor "+id, l.Time, AnchorChanged, [2]string{b.Maker, b.Tier})
		}
		if b.Action == "device heal" {
			v.healed(b.Device)
		}
		v.profiled(b)
		if b.Action == ActionLost {
			v.lost(name, l, b)
		}
	case KindAccount:
		v.profiled(b)
		for _, id := range b.Authorities {
			a := v.authorities[id]
			if a == nil {
				v.find(AuthorityMissing, "authority "+id, "%s names it", name)
				continue
			}
			if !a.logged {
				v.when(AuthorityChanged, "authority "+id, "it was made", a.created, name, l.Time)
			}
			a.logged, a.at = true, v.index
			a.said = append(a.said, strings.Fields(b.Roles[id])...)
		}
		if r := v.accountRow; r != nil && b.Account == r.ID && b.OrderKey != "" && b.OrderKey != hexDigest(r.OrderKey) {
			v.find(AccountChanged, "account "+r.ID, "%s says that its order key is %s", name, b.OrderKey)
		}
		if r := v.accountRow; r != nil && b.Account == r.ID && b.Region != "" && b.Region != r.Region {
			v.find(AccountChanged, "account "+r.ID, "%s says that its region is %q, the row %q", name, b.Region, r.Region)
		}
	}
}

// when holds the time in a row against that of the leaf that was written with it.
func (v *verification) when(code Code, subject, what string, row time.Time, leaf string, at time.Time) {
	if at.Sub(row) > 5*unsignedGrace || row.Sub(at) > unsignedGrace {
		v.find(code, subject, "the row says that %s on %s, %s is of %s", what, stamp(row), leaf, stamp(at))
	}
}

// logged finds the certificate that a leaf names and counts the leaf.
func (v *verification) logged(name string, b Body, profile string) *certRecord {
	d, ok := parseDigest(b.Certificate)
	if !ok {
		v.find(LeafMalformed, name, "%q is not a certificate's digest", b.Certificate)
		return nil
	}
	c := v.certs[d]
	if c == nil {
		v.find(CertificateMissing, "certificate "+b.Certificate, "%s records it for %s, serial %s", name, b.Device, b.Serial)
		return nil
	}
	if c.leaves++; c.leaves == 2 {
		v.find(CertificateTwice, "certificate "+b.Certificate, "%s is its second", name)
	}
	if c.serial != b.Serial || c.profile != profile {
		v.find(CertificateChanged, "certificate "+b.Certificate, "the row says %s, serial %s; %s says %s, serial %s",
			c.profile, c.serial, name, profile, b.Serial)
	}
	return c
}

func (v *verification) issued(name string, l Leaf, b Body) {
	var c *certRecord
	if b.Commitment != "" && b.Certificate == "" {
		v.committed(name, b)
	} else {
		c = v.logged(name, b, b.Profile)
	}
	if c != nil && c.device != b.Device {
		v.find(CertificateChanged, "certificate "+b.Certificate, "the row says device %s, %s says %s", c.device, name, b.Device)
	}
	if c != nil && c.unproved == b.Proved {
		v.find(CertificateForged, "certificate "+b.Certificate, "%s says proved: %t, its authority says otherwise", name, b.Proved)
	}
	v.registeredBy(name, l, b)
	dev := v.devices[b.Device]
	if dev == nil {
		v.find(DeviceMissing, "device "+b.Device, "%s issues to it", name)
		return
	}
	if dev.standing.Blocked() {
		v.find(CertificateBlocked, "certificate "+b.Certificate, "%s issues it to device %s, which was %s", name, b.Device, dev.standing)
	}
	for _, f := range [...]struct{ what, row, leaf string }{
		{"order", dev.row.Order, b.Order}, {"serial", dev.row.Serial, b.Unit}, {"TPM", dev.row.EK, b.EK},
		{"tier", dev.row.Tier, b.Tier}, {"TPM maker", dev.row.Maker, b.Maker}, {"origin", dev.row.Origin, b.Origin},
	} {
		if f.row != f.leaf {
			v.find(DeviceChanged, "device "+b.Device, "the row says %s %q, %s says %q", f.what, f.row, name, f.leaf)
		}
	}
	if c != nil {
		d, _ := parseDigest(b.Certificate)
		v.lineOf(d, b)
		v.when(CertificateChanged, "certificate "+b.Certificate, "it was issued", c.issued, name, l.Time)
		if b.Challenge != c.challenge && (b.Challenge != "" || !b.Proved) && (b.Proved || c.challenge != "over/"+c.intent) { // birth: the IAK's leaf has none; without proof an intent that is over frees its mark

			v.find(CertificateChanged, "certificate "+b.Certificate, "the row of its intent says that the challenge %q was spent, %s says %s", c.challenge, name, b.Challenge)
		}
		if have := c.lineage(); have != lineageOf(b) || b.Lineage != "" && c.line != b.Lineage {
			v.find(CertificateChanged, "certificate "+b.Certificate, "the row says lineage %q, %s says %q", c.line, name, lineageOf(b).name)
		}
		if b.CSR != "" && b.CSR != c.csr || b.AuthenticatedBy != "" && b.AuthenticatedBy != c.by {
			v.find(CertificateChanged, "certificate "+b.Certificate, "the row of its intent says CSR %q by %q, %s says %q by %q", c.csr, c.by, name, b.CSR, b.AuthenticatedBy)
		}
		if b.Intent != c.intent {
			v.find(CertificateChanged, "certificate "+b.Certificate, "the row says intent %q, %s says %q", c.intent, name, b.Intent)
		}
	}
	if b.Record != "" && !dev.born {
		dev.born = true
		v.birth(name, l, dev)
	}
	if b.Record != "" && b.Record != dev.record {
		v.find(DeviceChanged, "device "+b.Device, "its IAK, EK certificate, anchor or other facts of its birth are not those that %s recorded", name)
	}
	dev.ldevid = dev.ldevid || b.Profile == string(cradle.LDevID)
	var current string
	switch b.Profile {
	case string(cradle.IDevID):
		current = dev.row.IDevIDCert
	case string(cradle.IAK):
		current = dev.row.IAKCert
	default:
		return
	}
	// Birth: the order gates it (DESIGN §3).
	if o := v.orders[b.Order]; o != nil && o.state != "open" {
		v.find(CertificateOutside, "certificate "+b.Certificate, "%s: order %s was %s", name, b.Order, orNot(o.state))
	}
	if current != b.Certificate {
		v.find(DeviceChanged, "device "+b.Device, "the row says that its %s certificate is %q, %s says %s", b.Profile, current, name, b.Certificate)
	}
}

// birth holds the time in a device's row against the leaf of its first certificate. The first try may have been long
// before, but not before the order.
func (v *verification) birth(name string, l Leaf, dev *deviceRecord) {
	made, since := dev.row.Created, time.Time{}
	if o := v.orders[dev.row.Order]; o != nil {
		since = o.begun
	}
	if made.Sub(l.Time) > unsignedGrace || since.Sub(made) > unsignedGrace {
		v.find(DeviceChanged, "device "+dev.row.ID, "the row says that it was made on %s, which is not between its order and %s of %s", stamp(made), name, stamp(l.Time))
	}
}

func orNot(state string) string {
	if state == "" {
		return "not in the log yet"
	}
	return state
}

func (v *verification) stationIssued(name string, l Leaf, b Body) {
	c := v.logged(name, b, station)
	if c != nil {
		v.when(CertificateChanged, "certificate "+b.Certificate, "it was issued", c.issued, name, l.Time)
	}
	if c != nil && c.device != b.Order {
		v.find(CertificateChanged, "certificate "+b.Certificate, "the row says order %s, %s says %s", c.device, name, b.Order)
	}
	if o := v.orders[b.Order]; o == nil {
		v.find(OrderMissing, "order "+b.Order, "%s gives its station a certificate", name)
	} else if o.state != "open" {
		v.find(CertificateOutside, "certificate "+b.Certificate, "%s: order %s was %s", name, b.Order, orNot(o.state))
	}
}

func (v *verification) ordered(name string, l Leaf, b Body) {
	o := v.orders[b.Order]
	if o == nil {
		v.find(OrderMissing, "order "+b.Order, "%s says that it is %s", name, b.State)
		return
	}
	if o.state == "" {
		v.when(OrderChanged, "order "+b.Order, "it was made", o.row.Created, name, l.Time)
		o.begun = l.Time
	}
	if o.state != b.State {
		o.reason = b.Reason
	}
	o.state = b.State
	o.lost += b.Lost
	if b.Digest != "" && o.signed != nil && b.Digest != o.signed.Digest() {
		v.find(OrderChanged, "order "+b.Order, "%s records the digest %s, the stored order has %s", name, b.Digest, o.signed.Digest())
	}
	if b.Quantity != 0 && b.Quantity != o.row.Quantity {
		v.find(OrderChanged, "order "+b.Order, "%s records a quantity of %d, the row says %d", name, b.Quantity, o.row.Quantity)
	}
}

func (v *verification) lotted(name string, l Leaf, b Body) {
	lot := v.lots[b.Lot]
	if lot == nil {
		v.find(LotChanged, "lot "+b.Lot, "%s records it, but it has no row", name)
		return
	}
	if !lot.logged {
		v.when(LotChanged, "lot "+b.Lot, "it was closed", lot.row.Closed, name, l.Time)
	}
	if b.State == "accepted" && lot.state != b.State {
		v.when(LotChanged, "lot "+b.Lot, "it was accepted", lot.row.Accepted, name, l.Time)
	}
	lot.logged, lot.state = true, b.State
	if b.Report != "" && b.Report != lot.report {
		v.find(LotChanged, "lot "+b.Lot, "%s records a report with the digest %s, the stored one has %s", name, b.Report, lot.report)
	}
	if b.Units != 0 && b.Units != lot.row.Units {
		v.find(LotChanged, "lot "+b.Lot, "the row says %d units, %s says %d", lot.row.Units, name, b.Units)
	}
	if b.Custody != "" && b.Custody != lot.row.Head {
		v.find(LotChanged, "lot "+b.Lot, "%s records a custody record with the digest %s, the row says %s", name, b.Custody, lot.row.Head)
	}
	if b.Order != "" && b.Order != lot.row.Order {
		v.find(LotChanged, "lot "+b.Lot, "the row says order %s, %s says %s", lot.row.Order, name, b.Order)
	}
}

// finishRecords looks for what no leaf spoke of.
func (v *verification) finishRecords(seen []digest) {
	if v.accountRow == nil && v.header.Log != installation && (len(v.devices) > 0 || len(v.authorities) > 0) {
		v.find(AccountChanged, "account "+v.header.Log, "it has no row")
	}
	newest := map[string]int64{} // leaf that named an authority of the role
	for _, a := range v.authorities {
		newest[a.role] = max(newest[a.role], a.at)
	}
	for id, a := range v.authorities {
		if a.own && len(a.said) > 0 && (a.state == "active") != (a.at == newest[a.role]) {
			v.find(AuthorityChanged, "authority "+id, "the row says that it is %s, which is not how the log has it", a.state)
		}
		if a.own && !a.logged {
			v.find(AuthorityUnknown, "authority "+id, "no leaf names this %s authority of the account", a.kind)
		} else if len(a.said) > 0 && !slices.Contains(a.said, a.role) {
			v.find(AuthorityChanged, "authority "+id, "the row says that it is %s, the log %s", a.role, strings.Join(a.said, ", "))
		}
	}
	for id, o := range v.orders {
		switch name := "order " + id; {
		case o.state == "":
			v.find(OrderUnlogged, name, "no leaf records it")
		case o.state != o.row.State:
			v.find(OrderChanged, name, "the row says %s, the log %s", o.row.State, o.state)
		case o.row.Reason != "" && o.row.Reason != o.reason:
			v.find(OrderChanged, name, "the row gives the reason %q, the log %q", o.row.Reason, o.reason)
		case o.row.Used != int64(len(o.units))+o.lost:
			v.find(OrderChanged, name, "the row says %d units used, there are %d devices, and %d that were lost with a store", o.row.Used, len(o.units), o.lost)
		}
	}
	in := map[string]int64{} // devices, by lot
	for _, dev := range v.devices {
		in[dev.row.Lot]++
	}
	for id, lot := range v.lots {
		if !lot.logged {
			v.find(LotUnlogged, "lot "+id, "no leaf records it")
		} else if lot.state != "" && lot.state != lot.row.State {
			v.find(LotChanged, "lot "+id, "the row says %s, the log %s", lot.row.State, lot.state)
		} else if in[id] != lot.row.Units {
			v.find(LotChanged, "lot "+id, "it has %d units, %d devices are in it", lot.row.Units, in[id])
		}
	}
	for id, dev := range v.devices {
		if row, said := cradle.DeviceState(dev.row.State), v.stateOf(dev); row != said {
			v.find(DeviceChanged, "device "+id, "the row says %s, the log says %s", row, said)
		}
		if lot := dev.row.Lot; lot != "" && v.lots[lot] == nil {
			v.find(LotChanged, "lot "+lot, "device %s is in it, but it has no row", id)
		}
	}
	for d, c := range v.certs {
		name := "certificate " + d.String()
		if c.leaves == 0 {
			v.find(CertificateUnlogged, name, "%s of %s, serial %s: no leaf records it", c.profile, c.device, c.serial)
		}
		v.finishRevocation(name, d, c)
		v.slotOf(name, d, c)
	}
	v.finishState()
	v.finishSettings()
	v.finishInstallation()
	v.finishProfiles()
	v.sum.Seen = int64(len(seen))
	for _, d := range seen {
		if c := v.certs[d]; c == nil || c.leaves == 0 {
			v.find(CertificateSeenAlone, "certificate "+d.String(), "a hub saw it; the log does not know it")
		}
	}
	slices.SortStableFunc(v.findings, func(a, b Finding) int { return compareText(a, b) })
}

// lost freezes orders; from here on the log is another one than checkpoints of the lost leaves say.
func (v *verification) lost(name string, l Leaf, b Body) {
	v.losses = append(v.losses, loss{b.Size, fmt.Sprintf("%s of %s declares the leaves from %d on lost: %s", name, stamp(l.Time), b.Size, b.Reason)})
	for _, id := range b.Orders {
		if o := v.orders[id]; o != nil {
			o.state = "frozen"
		} else {
			v.find(OrderMissing, "order "+id, "%s freezes it", name)
		}
	}
}

// compareText puts findings that come from maps into a fixed order.
func compareText(a, b Finding) int {
	for _, p := range [...][2]string{{string(a.Code), string(b.Code)}, {a.Subject, b.Subject}, {a.Detail, b.Detail}} {
		if p[0] < p[1] {
			return -1
		} else if p[0] > p[1] {
			return 1
		}
	}
	return 0
}
