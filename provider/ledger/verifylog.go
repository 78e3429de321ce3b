package ledger

import (
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// verification is one run of Verify.
type verification struct {
	opts     Options
	key      string
	stage    stage
	header   Header
	findings []Finding
	sum      Summary
	rows     int64

	records
	losses []loss
	state

	// The tree. Checkpoints whose signature is wrong are not in signed.
	tree      Frontier
	signed    []signedRoot
	next      int                  // in signed: not compared yet
	sizes     map[int64]bool       // of signed
	previous  map[int64]int64      // size that a checkpoint names -> that checkpoint's size
	bad       int64                // checkpoints that the leaves contradict
	index     int64                // the next leaf's
	witnessed map[string]Witnessed // by name
	unsigned  time.Time            // time of the oldest leaf above the newest checkpoint
}

// signedRoot is what a good signature says about the log.
type signedRoot struct {
	size  int64
	root  Hash
	where string
	kept  bool // outside of the store
}

func newVerification(o Options) *verification {
	return &verification{opts: o, records: newRecords(), state: newState(), sizes: map[int64]bool{}, previous: map[int64]int64{}, witnessed: map[string]Witnessed{}}
}

func (v *verification) find(c Code, subject, format string, args ...any) {
	v.sum.Findings++
	if len(v.findings) < MaxFindings {
		v.findings = append(v.findings, Finding{c, subject, fmt.Sprintf(format, args...)})
	}
}

// line takes one line of the file. An error means that the file is not what it should be.
func (v *verification) line(raw []byte) error {
	var l Line
	if err := strict(raw, &l); err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	s, ok := l.stage()
	if !ok || s < v.stage || v.stage == atHeader && s != atHeader {
		return cradle.Errorf(cradle.Invalid, "a part of the export out of its order")
	}
	v.stage = s
	if s > atHeader && s < atLeaf && s != atCheckpoint {
		v.rows++
	}
	switch s {
	case atHeader:
		v.stage++
		return v.begin(l.Header)
	case atAccount:
		v.account(l.Account)
	case atOEM:
		v.oem(l.OEM)
	case atAnchor:
		v.anchor(l.Anchor)
	case atAuthority:
		v.authority(l.Authority)
	case atOrder:
		v.order(l.Order)
	case atLot:
		v.lot(l.Lot)
	case atDevice:
		v.device(l.Device)
	case atCertificate:
		v.certificate(l.Certificate)
	case atQuarantine:
		v.quarantine(l.Quarantine)
	case atSetting:
		v.setting(l.Setting)
	case atFeed:
		v.feed(l.Feed)
	case atHead:
		v.headRow(l.Head)
	case atHash:
		v.hash(l.Hash)
	case atCheckpoint:
		v.sum.Checkpoints++
		v.checkpoint(fmt.Sprintf("checkpoint %d", l.Checkpoint.Size), l.Checkpoint.Size, []byte(l.Checkpoint.Note))
	case atLeaf:
		v.leaf(l.Leaf)
	case atEnd:
		v.stage++
		if *l.End != (End{v.rows, v.sum.Checkpoints, v.sum.Leaves}) {
			v.find(FileTruncated, "file", "it says %d rows, %d checkpoints, %d leaves; it has %d, %d, %d",
				l.End.Rows, l.End.Checkpoints, l.End.Leaves, v.rows, v.sum.Checkpoints, v.sum.Leaves)
		}
	}
	return nil
}

func (v *verification) begin(h *Header) error {
	if h.Version != Version {
		return cradle.Errorf(cradle.Invalid, "version %d of the format, this program knows %d", h.Version, Version)
	}
	v.header, v.key = *h, h.Key
	v.sum.Log, v.sum.Origin, v.sum.Created = h.Log, h.Origin, h.Created
	if v.opts.Key != "" {
		v.key, v.sum.KeyGiven = v.opts.Key, true
		if v.key != h.Key {
			v.find(KeyMismatch, "log "+h.Log, "the export names the key %q", h.Key)
		}
	}
	for i, c := range v.opts.Checkpoints {
		v.checkpoint(fmt.Sprintf("kept checkpoint %d", i+1), -1, c)
	}
	for _, c := range v.opts.Contains {
		v.signed = append(v.signed, signedRoot{c.Size, c.Root, fmt.Sprintf("state of size %d", c.Size), true})
	}
	return nil
}

// checkpoint opens a checkpoint; size is what its row says, -1 for one that was kept outside.
func (v *verification) checkpoint(where string, size int64, note []byte) {
	c, err := OpenCheckpoint(note, v.key)
	origin, _, _ := strings.Cut(string(note), "\n")
	switch {
	case err != nil && size < 0 && origin != v.header.Origin:
		v.find(CheckpointChanged, where, "it is of log %.80q, the export of %q", origin, v.header.Origin)
		return
	case err != nil:
		v.find(CheckpointChanged, where, "%v", err)
		return
	case c.Origin != v.header.Origin:
		v.find(CheckpointChanged, where, "it is of log %q", c.Origin)
		return
	case size >= 0 && c.Size != size:
		v.find(CheckpointChanged, where, "the signed size is %d", c.Size)
	}
	if len(v.opts.Witnesses) > 0 {
		cosigned, err := Cosignatures(note, v.key, v.opts.Witnesses)
		if err != nil {
			v.find(CheckpointChanged, where, "%v", err)
		}
		for _, s := range cosigned {
			if w, there := v.witnessed[s.Witness]; !there || c.Size > w.Size || c.Size == w.Size && s.Time.After(w.Time) {
				v.witnessed[s.Witness] = Witnessed{s, c.Size}
			}
		}
	}
	if size >= 0 {
		v.sizes[c.Size] = true
		v.newest, v.newestSize = string(note), c.Size
		if c.Previous > 0 {
			v.previous[c.Previous] = c.Size
		}
	} else {
		where = fmt.Sprintf("%s (size %d)", where, c.Size)
	}
	v.signed = append(v.signed, signedRoot{c.Size, c.Root, where, size < 0})
}

func (v *verification) leaf(r *LeafRow) {
	if v.sum.Leaves == 0 {
		v.startLeaves()
	}
	v.sum.Leaves++
	if r.Index != v.index {
		v.find(LeafGap, fmt.Sprintf("leaf %d", v.index), "the next leaf has index %d", r.Index)
	}
	v.index = r.Index + 1
	data := []byte(r.Data)
	hash := Leaf{Data: data}.Hash()
	v.tree.Append(hash)
	v.hashed(hash)
	v.compare()
	name := fmt.Sprintf("leaf %d", r.Index)
	l, body, err := ParseLeaf(data)
	if err != nil {
		v.find(LeafMalformed, name, "%v", err)
		return
	}
	if l.Log != v.header.Log {
		v.find(LeafMalformed, name, "it is a leaf of log %q", l.Log)
		return
	}
	if n := len(v.signed); (n == 0 || v.tree.Size() > v.signed[n-1].size) && (v.unsigned.IsZero() || l.Time.Before(v.unsigned)) {
		v.unsigned = l.Time
	}
	v.event(name, l, body)
}

// compare holds the checkpoints of the tree's present size against it.
func (v *verification) compare() {
	for ; v.next < len(v.signed) && v.signed[v.next].size <= v.tree.Size(); v.next++ {
		s := v.signed[v.next]
		switch {
		case s.root == v.tree.Root():
			v.sum.Signed = s.size
		case v.lossBefore(s) != "":
			v.find(LogLost, s.where, "%s", v.lossBefore(s))
		case v.bad == 0:
			v.bad++
			v.find(CheckpointRoot, s.where, "one of the leaves %d to %d was changed, removed, moved or put in after it was signed",
				v.sum.Signed, s.size-1)
		default:
			v.bad++ // what follows a wrong leaf is wrong too
		}
	}
}

// loss is a declaration that leaves from a size on were lost with the store.
type loss struct {
	size int64
	text string
}

// lossBefore explains a checkpoint that was kept outside by a declared loss. The store's own never rest on lost leaves.
func (v *verification) lossBefore(s signedRoot) string {
	for _, l := range v.losses {
		if s.kept && l.size < s.size {
			return l.text
		}
	}
	return ""
}

// finishTree is what can be said about the log at its end.
func (v *verification) finishTree() {
	if v.sum.Leaves == 0 {
		v.startLeaves()
	}
	if v.bad > 1 {
		v.find(CheckpointRoot, fmt.Sprintf("%d later checkpoints", v.bad-1), "they rest on the same leaves")
	}
	if n := len(v.signed); v.next < n {
		s := v.signed[n-1]
		if why := v.lossBefore(s); why != "" {
			v.find(LogLost, s.where, "%s", why)
		} else {
			v.find(LogRolledBack, s.where, "the log has %d leaves, %d were signed", v.tree.Size(), s.size)
		}
	}
	for size, by := range v.previous {
		if !v.sizes[size] {
			v.find(CheckpointMissing, fmt.Sprintf("checkpoint %d", size), "checkpoint %d names it as the one before", by)
		}
	}
	switch {
	case len(v.sizes) == 0 && v.sum.Leaves > 0:
		v.find(CheckpointMissing, "log "+v.header.Log, "it has %d leaves and no good checkpoint", v.sum.Leaves)
	case !v.unsigned.IsZero() && v.header.Created.Sub(v.unsigned) > unsignedGrace:
		v.find(LogUnsigned, fmt.Sprintf("leaves from %d", v.sum.Signed), "the oldest is of %s, the export of %s, but the newest checkpoint is at %d",
			v.unsigned.Format(time.RFC3339), v.header.Created.Format(time.RFC3339), v.sum.Signed)
	}
	root := v.tree.Root()
	v.sum.Root = root.String()
	v.finishWitnesses()
}

// finishWitnesses demands a young cosignature of each witness.
func (v *verification) finishWitnesses() {
	age := v.opts.WitnessAge
	if age == 0 {
		age = DefaultWitnessAge
	}
	for _, vkey := range v.opts.Witnesses {
		name, _, _ := strings.Cut(strings.TrimSpace(vkey), "+")
		w, there := v.witnessed[name]
		switch {
		case !there:
			v.find(WitnessMissing, "witness "+name, "it cosigned no checkpoint of this log")
			continue
		case v.header.Created.Sub(w.Time) > age:
			v.find(WitnessMissing, "witness "+name, "its newest cosignature is of %s, at %d of %d leaves", stamp(w.Time), w.Size, v.tree.Size())
		}
		v.sum.Witnessed = append(v.sum.Witnessed, w)
	}
}
