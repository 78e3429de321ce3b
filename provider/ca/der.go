package ca

import (
	"encoding/asn1"
	"math/big"
	"time"
)

// Tags of X.690 §8 beyond those of encoding/asn1.
const (
	derSequence  = 0x30
	derSet       = 0x31
	derContext   = 0x80 // context-specific, primitive
	derContained = 0xa0 // context-specific, constructed
)

// derWriter writes DER into one buffer: the length of an element is put in when its contents are there.
type derWriter struct{ b []byte }

func (w *derWriter) raw(parts ...[]byte) {
	for _, p := range parts {
		w.b = append(w.b, p...)
	}
}

// element writes an element whose contents f writes.
func (w *derWriter) element(tag byte, f func()) {
	w.b = append(w.b, tag, 0)
	at := len(w.b)
	f()
	n := len(w.b) - at
	if n < 0x80 {
		w.b[at-1] = byte(n)
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
	w.b[at-1] = 0x80 | byte(len(length))
	w.b = append(w.b, length...)
	copy(w.b[at+len(length):], w.b[at:at+n])
	copy(w.b[at:], length)
}

// value writes a primitive element.
func (w *derWriter) value(tag byte, contents []byte) {
	w.element(tag, func() { w.b = append(w.b, contents...) })
}

// text is value of a string.
func (w *derWriter) text(tag byte, contents string) {
	w.element(tag, func() { w.b = append(w.b, contents...) })
}

// positive writes an INTEGER above 0.
func (w *derWriter) positive(n *big.Int) {
	w.element(asn1.TagInteger, func() {
		b := n.Bytes()
		if b[0] >= 0x80 {
			w.b = append(w.b, 0)
		}
		w.b = append(w.b, b...)
	})
}

// oid writes an OBJECT IDENTIFIER (X.690 §8.19) of at least two arcs.
func (w *derWriter) oid(id asn1.ObjectIdentifier) {
	w.element(asn1.TagOID, func() {
		for i, arc := range id[1:] {
			if i == 0 {
				arc += id[0] * 40
			}
			for shift := 63 / 7 * 7; shift > 0; shift -= 7 {
				if arc>>shift != 0 {
					w.b = append(w.b, byte(arc>>shift)|0x80)
				}
			}
			w.b = append(w.b, byte(arc)&0x7f)
		}
	})
}

// time: RFC 5280 §4.1.2.5.
func (w *derWriter) time(t time.Time) {
	tag, layout := byte(asn1.TagGeneralizedTime), "20060102150405Z"
	if t = t.UTC(); t.Year() >= 1950 && t.Year() < 2050 {
		tag, layout = asn1.TagUTCTime, "060102150405Z"
	}
	w.element(tag, func() { w.b = t.AppendFormat(w.b, layout) })
}
