package ledger

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cradle-iot/cradle"
)

// An export is JSON lines, each an object with one member that names its type, in this order: header;
// account, OEM, anchor, authority, order, lot, device, certificate, quarantine, setting and feed rows; the log's head; checkpoints by size;
// remembered hashes; leaves by index; the end. All of it is as of one moment.

// End closes an export; without it the file is incomplete.
type End struct {
	Rows        int64 `json:"rows"`
	Checkpoints int64 `json:"checkpoints"`
	Leaves      int64 `json:"leaves"`
}

// Line is one line of the file; exactly one member is set.
type Line struct {
	Header      *Header         `json:"header,omitempty"`
	Account     *AccountRow     `json:"account,omitempty"`
	OEM         *OEMRow         `json:"oem,omitempty"`
	Anchor      *AnchorRow      `json:"anchor,omitempty"`
	Authority   *AuthorityRow   `json:"authority,omitempty"`
	Order       *OrderRow       `json:"order,omitempty"`
	Lot         *LotRow         `json:"lot,omitempty"`
	Device      *DeviceRow      `json:"device,omitempty"`
	Certificate *CertificateRow `json:"certificate,omitempty"`
	Quarantine  *QuarantineRow  `json:"quarantine,omitempty"`
	Setting     *SettingRow     `json:"setting,omitempty"`
	Feed        *FeedRow        `json:"feed,omitempty"`
	Head        *HeadRow        `json:"head,omitempty"`
	Hash        *HashRow        `json:"hash,omitempty"`
	Checkpoint  *CheckpointRow  `json:"checkpoint,omitempty"`
	Leaf        *LeafRow        `json:"leaf,omitempty"`
	End         *End            `json:"end,omitempty"`
}

// Writer writes an export. Its methods must be called in the order of the file; the first error is
// kept and returned by all that follow. An export without rows but with leaves is complete: a log
// that is no account's has none.
type Writer struct {
	w     *bufio.Writer
	enc   *json.Encoder
	stage stage
	end   End
	err   error
}

// stage is how far a file is; stages never go back.
type stage int

const (
	atHeader stage = iota
	atAccount
	atOEM
	atAnchor
	atAuthority
	atOrder
	atLot
	atDevice
	atCertificate
	atQuarantine
	atSetting
	atFeed
	atHead
	atCheckpoint
	atHash
	atLeaf
	atEnd
	afterEnd
)

// stage returns where the line belongs; ok is false unless exactly one member is set.
func (l *Line) stage() (s stage, ok bool) {
	n := 0
	for at, set := range [...]bool{
		atHeader: l.Header != nil, atAccount: l.Account != nil, atOEM: l.OEM != nil, atAnchor: l.Anchor != nil, atAuthority: l.Authority != nil,
		atOrder: l.Order != nil, atLot: l.Lot != nil, atDevice: l.Device != nil, atCertificate: l.Certificate != nil,
		atQuarantine: l.Quarantine != nil, atSetting: l.Setting != nil, atFeed: l.Feed != nil, atHead: l.Head != nil, atHash: l.Hash != nil,
		atCheckpoint: l.Checkpoint != nil, atLeaf: l.Leaf != nil, atEnd: l.End != nil,
	} {
		if set {
			s = stage(at)
			n++
		}
	}
	return s, n == 1
}

// Read calls each with every line of an export, in the order of the file. It checks nothing but their form: whoever uses them has
// verified the export. What each returns ends the reading.
func Read(r io.Reader, each func(*Line) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		raw, err := readLine(in)
		if errors.Is(err, io.EOF) && n > 1 {
			return nil
		}
		var l Line
		if err == nil {
			err = strict(raw, &l)
		}
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "line %d of the export: %v", n, err).WithHint("cradle audit export makes one")
		}
		if err := each(&l); err != nil {
			return err
		}
	}
}

// Newest returns the newest checkpoint in an export, as it stands there: it is verified by whoever uses it.
func Newest(r io.Reader) ([]byte, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var note []byte
	for {
		raw, err := readLine(in)
		var l Line
		if err == nil {
			err = strict(raw, &l)
		}
		if err == nil && l.Checkpoint != nil {
			note = []byte(l.Checkpoint.Note)
		}
		if err != nil || l.Leaf != nil || l.End != nil {
			if note != nil && err == nil {
				return note, nil
			}
			return nil, cradle.Errorf(cradle.Invalid, "not an export with a checkpoint").WithHint("cradle audit export makes one")
		}
	}
}

// NewWriter writes to w; Close flushes.
func NewWriter(w io.Writer) *Writer {
	b := bufio.NewWriterSize(w, 64<<10)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	return &Writer{w: b, enc: e}
}

func (w *Writer) put(l Line) error {
	if w.err != nil {
		return w.err
	}
	s, ok := l.stage()
	if !ok || s < w.stage || w.stage == atHeader && s != atHeader {
		w.err = errors.New("internal error: the parts of an export in the wrong order")
		return w.err
	}
	w.stage = s
	switch s {
	case atHeader, atEnd:
		w.stage++ // there is one
	case atCheckpoint:
		w.end.Checkpoints++
	case atLeaf:
		w.end.Leaves++
	default:
		w.end.Rows++
	}
	if err := w.enc.Encode(l); err != nil {
		w.err = fmt.Errorf("writing the export: %w", err)
	}
	return w.err
}

// Header begins the export.
func (w *Writer) Header(h Header) error {
	h.Version = Version
	return w.put(Line{Header: &h})
}

// Account writes a row.
func (w *Writer) Account(r AccountRow) error { return w.put(Line{Account: &r}) }

// OEM writes a row.
func (w *Writer) OEM(r OEMRow) error { return w.put(Line{OEM: &r}) }

// Anchor writes a row.
func (w *Writer) Anchor(r AnchorRow) error { return w.put(Line{Anchor: &r}) }

// Authority writes a row.
func (w *Writer) Authority(r AuthorityRow) error { return w.put(Line{Authority: &r}) }

// Order writes a row.
func (w *Writer) Order(r OrderRow) error { return w.put(Line{Order: &r}) }

// Lot writes a row.
func (w *Writer) Lot(r LotRow) error { return w.put(Line{Lot: &r}) }

// Device writes a row.
func (w *Writer) Device(r DeviceRow) error { return w.put(Line{Device: &r}) }

// Certificate writes a row.
func (w *Writer) Certificate(r CertificateRow) error { return w.put(Line{Certificate: &r}) }

// Quarantine writes a row.
func (w *Writer) Quarantine(r QuarantineRow) error { return w.put(Line{Quarantine: &r}) }

// Setting writes a row.
func (w *Writer) Setting(r SettingRow) error { return w.put(Line{Setting: &r}) }

// Feed writes a row, by number.
func (w *Writer) Feed(r FeedRow) error { return w.put(Line{Feed: &r}) }

// Head writes the head of the log.
func (w *Writer) Head(r HeadRow) error { return w.put(Line{Head: &r}) }

// Hash writes a remembered hash.
func (w *Writer) Hash(r HashRow) error { return w.put(Line{Hash: &r}) }

// Checkpoint writes the next checkpoint, by size.
func (w *Writer) Checkpoint(size int64, note []byte) error {
	return w.put(Line{Checkpoint: &CheckpointRow{size, string(note)}})
}

// Leaf writes the next leaf, by index.
func (w *Writer) Leaf(index int64, data []byte) error {
	return w.put(Line{Leaf: &LeafRow{index, string(data)}})
}

// Close writes the end and flushes. It does not close what is below.
func (w *Writer) Close() error {
	if err := w.put(Line{End: &w.end}); err != nil {
		return err
	}
	if err := w.w.Flush(); err != nil {
		w.err = fmt.Errorf("writing the export: %w", err)
	}
	return w.err
}
