// Package der writes DER (X.690) by appending, for messages that are made often or whose bytes must be just so;
// encoding/asn1 goes through reflection for each value.
package der

import (
	"encoding/asn1"
	"math/big"
	"time"
)

// Tags of X.690 §8 with their class and form, beside those of encoding/asn1.
const (
	Sequence  = 0x30
	Set       = 0x31
	Context   = 0x80 // context-specific, primitive
	Contained = 0xa0 // context-specific, constructed
)

// Element is one element of that tag, of less than 4 GB.
func Element(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	w := NewWriter(n + 6)
	w.Element(tag, func() { w.Raw(parts...) })
	return w.B
}

// Writer writes into one buffer, B: the length of an element is put in when its contents are there.
type Writer struct{ B []byte }

// NewWriter has room for that many bytes, and grows.
func NewWriter(room int) *Writer { return &Writer{make([]byte, 0, room)} }

// Raw writes what is encoded already.
func (w *Writer) Raw(parts ...[]byte) {
	for _, p := range parts {
		w.B = append(w.B, p...)
	}
}

// Element writes an element whose contents f writes.
func (w *Writer) Element(tag byte, f func()) {
	w.B = append(w.B, tag, 0)
	at := len(w.B)
	f()
	n := len(w.B) - at
	if n < 0x80 {
		w.B[at-1] = byte(n)
		return
	}
	var length []byte
	switch {
	case n < 1<<8:
		length = []byte{byte(n)}
	case n < 1<<16:
		length = []byte{byte(n >> 8), byte(n)}
	default:
		length = []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		for length[0] == 0 {
			length = length[1:]
		}
	}
	w.B[at-1] = 0x80 | byte(len(length))
	w.B = append(w.B, length...)
	copy(w.B[at+len(length):], w.B[at:at+n])
	copy(w.B[at:], length)
}

// Value writes a primitive element.
func (w *Writer) Value(tag byte, contents []byte) {
	w.Element(tag, func() { w.B = append(w.B, contents...) })
}

// Text is value of a string.
func (w *Writer) Text(tag byte, contents string) {
	w.Element(tag, func() { w.B = append(w.B, contents...) })
}

// Positive writes an INTEGER above 0.
func (w *Writer) Positive(n *big.Int) {
	w.Element(asn1.TagInteger, func() {
		b := n.Bytes()
		if b[0] >= 0x80 {
			w.B = append(w.B, 0)
		}
		w.B = append(w.B, b...)
	})
}

// OID writes an OBJECT IDENTIFIER (X.690 §8.19) of at least two arcs.
func (w *Writer) OID(id asn1.ObjectIdentifier) {
	w.Element(asn1.TagOID, func() {
		for i, arc := range id[1:] {
			if i == 0 {
				arc += id[0] * 40
			}
			for shift := 63 / 7 * 7; shift > 0; shift -= 7 {
				if arc>>shift != 0 {
					w.B = append(w.B, byte(arc>>shift)|0x80)
				}
			}
			w.B = append(w.B, byte(arc)&0x7f)
		}
	})
}

// Time: RFC 5280 §4.1.2.5.
func (w *Writer) Time(t time.Time) {
	tag, layout := byte(asn1.TagGeneralizedTime), "20060102150405Z"
	if t = t.UTC(); t.Year() >= 1950 && t.Year() < 2050 {
		tag, layout = asn1.TagUTCTime, "060102150405Z"
	}
	w.Element(tag, func() { w.B = t.AppendFormat(w.B, layout) })
}
