package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// state is what changes after a thing was recorded: lineages, quarantines, the status feed, and what the store
// remembers of its own log. Leaves are played over it, and rows held against the outcome.
type state struct {
	settingRows    map[string]string
	settings       map[string]said // by the leaves so far
	quarantineRows map[lineage]bool
	quarantined    map[lineage]bool // by the leaves so far
	slots          map[lineage]*slots
	commitments    map[string]*commitment
	feedSeq        int64
	devEvents      map[string]*tally // of the feed, by device
	certEvents     map[string]*tally // and by certificate
	head           *HeadRow
	newest         string // note of the newest checkpoint row
	newestSize     int64
	hashes         map[node]Hash
	tiler          Tiler
}

// lineage is a chain of certificates of a device that follow one another.
type lineage struct{ device, name string }

// proved: a lineage with evidence has its profile's name. Without, the slots move when a certificate is seen in use, of which there
// is no leaf, and an operator heals it.
func (l lineage) proved() bool { return !strings.Contains(l.name, "/") }

// lineageOf names the lineage of a leaf.
func lineageOf(b Body) lineage {
	if b.Lineage == "" {
		return lineage{b.Device, b.Profile}
	}
	return lineage{b.Device, b.Lineage}
}

// slots are where a lineage's certificates are, by the leaves so far.
type slots struct {
	current, next digest
	filled        bool // current is set
	waiting       bool // next is set

	first  digest // that was issued
	inUse  int    // rows that say that they are current
	sealed bool   // certificates came that are of no row until they are used
}

// tally holds the events of the feed about one thing against the leaves about it, in their order.
type tally struct {
	events []FeedRow
	leaves []change
	epoch  int64 // of a device: highest, of its certificates' events too
}

// change is what a leaf says of a standing; a quarantine has no state.
type change struct {
	state, reason string
	device        string // where the device was, if it is about a certificate
	code          string // CRLReason; empty: any
	at            time.Time
}

// newest is the last change that a leaf tells.
func (t *tally) newest() change {
	if len(t.leaves) == 0 {
		return change{}
	}
	return t.leaves[len(t.leaves)-1]
}

type node struct {
	level int
	n     int64
}

func hashName(level int, n int64) string { return fmt.Sprintf("hash %d of level %d", n, level) }

func newState() state {
	return state{settingRows: map[string]string{}, settings: map[string]said{}, quarantineRows: map[lineage]bool{}, quarantined: map[lineage]bool{}, slots: map[lineage]*slots{}, commitments: map[string]*commitment{},
		devEvents: map[string]*tally{}, certEvents: map[string]*tally{}, hashes: map[node]Hash{}}
}

func (v *verification) quarantine(r *QuarantineRow) {
	l := lineage{r.Device, r.Lineage}
	if !v.duplicate("quarantine of device "+r.Device, v.quarantineRows[l]) {
		v.quarantineRows[l] = true
	}
}

func (v *verification) feed(r *FeedRow) {
	if r.Seq <= v.feedSeq {
		v.find(FeedChanged, "feed event", "number %d comes after %d", r.Seq, v.feedSeq)
	}
	v.feedSeq = r.Seq
	t := at(v.devEvents, r.Device)
	if r.Epoch < t.epoch { // equal: a quarantine moves none
		v.find(FeedChanged, "device "+r.Device, "the status feed's epoch %d comes after %d", r.Epoch, t.epoch)
	}
	t.epoch = max(t.epoch, r.Epoch)
	if r.Certificate != "" {
		t = at(v.certEvents, r.Certificate)
	}
	t.events = append(t.events, *r)
}

func at(m map[string]*tally, key string) *tally {
	if m[key] == nil {
		m[key] = new(tally)
	}
	return m[key]
}

// said counts a leaf that the feed must have told.
func (v *verification) said(l Leaf, b Body) {
	t, device := at(v.devEvents, b.Device), ""
	if b.Certificate != "" {
		t = at(v.certEvents, b.Certificate)
		if dev := v.devices[b.Device]; dev != nil {
			device = string(v.stateOf(dev))
		}
	}
	t.leaves = append(t.leaves, change{b.State, b.Reason, device, b.Code, l.Time})
}

func (v *verification) headRow(r *HeadRow) {
	if !v.duplicate("head of the log", v.head != nil) {
		v.head = r
	}
}

func (v *verification) hash(r *HashRow) {
	if len(r.Hash) != len(Hash{}) || r.Level < 1 {
		v.find(HashChanged, hashName(r.Level, r.N), "it has %d bytes", len(r.Hash))
		return
	}
	v.hashes[node{r.Level, r.N}] = Hash(r.Hash)
}

// hashed holds the remembered hashes against the leaves.
func (v *verification) hashed(leaf Hash) {
	if len(v.hashes) == 0 {
		return
	}
	err := v.tiler.Add(leaf, func(t Tile) error {
		k := node{t.Level + 1, t.N}
		if h, ok := v.hashes[k]; ok && h != Subtree(t.Hashes) {
			v.find(HashChanged, hashName(k.level, k.n), "the store remembers %v, the leaves make %v", h, Subtree(t.Hashes))
		}
		delete(v.hashes, k)
		return nil
	})
	if err != nil {
		panic("internal error: " + err.Error())
	}
}

// finishHead is what can be said of the store's own memory of its log.
func (v *verification) finishHead() {
	for _, k := range slices.SortedFunc(maps.Keys(v.hashes), func(a, b node) int { return int(a.n - b.n) }) {
		v.find(HashChanged, hashName(k.level, k.n), "the log has no such node")
	}
	h, root := v.head, v.tree.Root()
	if h == nil {
		v.find(HeadChanged, "head of the log", "it is missing")
		return
	}
	if h.Size != v.tree.Size() || h.Root != root.String() {
		v.find(HeadChanged, "head of the log", "the store says %d leaves, root %s; the leaves make %d, %v", h.Size, h.Root, v.tree.Size(), root)
	}
	if h.Signed != v.newestSize || h.Checkpoint != v.newest {
		v.find(HeadChanged, "head of the log", "its newest checkpoint is of size %d, among the checkpoints it is %d, or they differ", h.Signed, v.newestSize)
	}
	if v.feedSeq > h.Feed {
		v.find(FeedChanged, "head of the feed", "it is %d, an event has the number %d", h.Feed, v.feedSeq)
	}
}

// slotsOf returns a lineage's slots.
func (v *verification) slotsOf(l lineage) *slots {
	if v.slots[l] == nil {
		v.slots[l] = new(slots)
	}
	return v.slots[l]
}

// lineOf plays an issuance over its lineage.
func (v *verification) lineOf(d digest, b Body) {
	l := lineageOf(b)
	s := v.slotsOf(l)
	by, known := parseDigest(b.AuthenticatedBy)
	if auth := v.certs[by]; known && auth != nil && auth.profile != station {
		if a := v.slots[auth.lineage()]; a != nil && a.waiting && a.next == by { // seen in use
			a.current, a.next, a.waiting = by, digest{}, false
		}
		if auth.profile != b.Profile && l.proved() {
			delete(v.quarantined, l) // attested afresh
		}
	}
	if !s.filled {
		s.first, s.current, s.filled = d, d, true
	} else {
		s.next, s.waiting = d, true
	}
}

// slotOf says where a certificate must be. A certificate that waits may have been seen in use by a request that
// was then refused, which no leaf tells: then it is current, and its predecessor superseded. In a lineage without evidence
// several may wait, and which was seen in use last no leaf tells: one of them is current (finishState).
func (v *verification) slotOf(name string, d digest, c *certRecord) {
	s := v.slots[c.lineage()]
	if s == nil || !s.filled { // one of a station, or secret until it was used
		if c.slot != "current" && (deviceless(c.profile) || c.slot != "superseded") {
			v.find(CertificateChanged, name, "the row says that it is %q, which it cannot be", c.slot)
		}
		return
	}
	ok := false
	if !c.lineage().proved() {
		if c.slot == "current" {
			s.inUse++
		} else if c.slot != "superseded" && (c.slot != "next" || d == s.first) {
			v.find(CertificateChanged, name, "the row says that it is %q in its lineage, which it cannot be", c.slot)
		}
		return
	}
	switch d {
	case s.next:
		ok = s.waiting && (c.slot == "next" || c.slot == "current")
	case s.current:
		ok = c.slot == "current" || s.waiting && c.slot == "superseded"
	default:
		ok = c.slot == "superseded"
	}
	if !ok {
		v.find(CertificateChanged, name, "the row says that it is %s in its lineage, the leaves do not", c.slot)
	}
}

// healed is an operator's act: lineages without evidence leave their quarantine.
func (v *verification) healed(device string) {
	for l := range v.quarantined {
		if l.device == device && !l.proved() {
			delete(v.quarantined, l)
		}
	}
}

// finishState holds feed and quarantines against the leaves.
func (v *verification) finishState() {
	for id, t := range v.devEvents {
		v.compareFeed("device "+id, t)
		if dev := v.devices[id]; dev != nil && dev.row.Epoch != t.epoch {
			v.find(DeviceChanged, "device "+id, "the row says epoch %d, the feed %d", dev.row.Epoch, t.epoch)
		}
	}
	for d, t := range v.certEvents {
		v.compareFeed("certificate "+d, t)
		if x, ok := parseDigest(d); ok && v.certs[x] != nil {
			for _, e := range t.events {
				if have := v.certs[x].device; e.Device != have {
					v.find(FeedChanged, "certificate "+d, "the status feed's event %d gives it to device %s, the row to %s", e.Seq, e.Device, have)
				}
			}
		}
	}
	for id, dev := range v.devices {
		t := v.devEvents[id]
		switch {
		case t == nil && dev.row.Epoch != 0:
			v.find(DeviceChanged, "device "+id, "the row says epoch %d, but no event moved it", dev.row.Epoch)
		case dev.row.Reason != "" && (t == nil || dev.row.Reason != t.newest().reason), t != nil && len(t.leaves) > 0 && dev.row.Reason != t.newest().reason:
			v.find(DeviceChanged, "device "+id, "the row gives the reason %q, no leaf does", dev.row.Reason)
		}
	}
	for l, s := range v.slots {
		if s.filled && !s.sealed && !l.proved() && s.inUse != 1 {
			v.find(CertificateChanged, "device "+l.device, "%d of its %s certificates are current, one is", s.inUse, l.name)
		}
	}
	for l := range v.quarantined {
		if !v.quarantineRows[l] {
			v.find(QuarantineChanged, "device "+l.device, "its %s credentials are in quarantine by the log, not by the store", l.name)
		}
	}
	for l := range v.quarantineRows {
		if !v.quarantined[l] {
			v.find(QuarantineChanged, "device "+l.device, "the store has its %s credentials in quarantine, no leaf does", l.name)
		}
	}
}

// compareFeed: every leaf that changes a standing has its event, and both say the same.
func (v *verification) compareFeed(name string, t *tally) {
	switch {
	case len(t.events) < len(t.leaves):
		v.find(FeedChanged, name, "the status feed tells %d of its %d changes", len(t.events), len(t.leaves))
		return
	case len(t.events) > len(t.leaves):
		v.find(FeedChanged, name, "the status feed tells %d changes, the log %d", len(t.events), len(t.leaves))
		return
	}
	for i, e := range t.events {
		l := t.leaves[i]
		switch {
		case e.Certificate != "" && e.State != l.device:
			v.find(FeedChanged, name, "the status feed's event %d says that the device was %s, the log %s", e.Seq, e.State, l.device)
		case e.At.Sub(l.at).Abs() > unsignedGrace:
			v.find(FeedChanged, name, "the status feed's event %d is of %s, the leaf of %s", e.Seq, stamp(e.At), stamp(l.at))
		case e.Certificate != "" && l.state == "": // a quarantine
			if e.Released || e.Reason != l.reason {
				v.find(FeedChanged, name, "the status feed's event %d is not of a quarantine, the log has one", e.Seq)
			}
		case e.Certificate == "" && e.State != l.state, e.Certificate != "" && e.Released == cradle.DeviceState(l.state).Blocked():
			v.find(FeedChanged, name, "the status feed's event %d says %s, the log %s", e.Seq, e.State, l.state)
		case e.Reason != l.reason:
			v.find(FeedChanged, name, "the status feed's event %d gives the reason %q, the log %q", e.Seq, e.Reason, l.reason)
		}
	}
}
