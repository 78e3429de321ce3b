package der_test

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/der"
)

// TestSameAsASN1 holds what is written against encoding/asn1.
func TestSameAsASN1(t *testing.T) {
	same := func(name string, got []byte, want any) {
		t.Helper()
		b, err := asn1.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, b) {
			t.Errorf("%s: %.60x, encoding/asn1 writes %.60x", name, got, b)
		}
	}
	written := func(f func(w *der.Writer)) []byte {
		w := der.NewWriter(0)
		f(w)
		return w.B
	}
	for _, n := range []int{0, 1, 127, 128, 255, 256, 65535, 65536, 1 << 24} {
		data := bytes.Repeat([]byte{7}, n)
		same("octets", der.Element(asn1.TagOctetString, data[:n/3], data[n/3:]), data)
		same("value", written(func(w *der.Writer) { w.Value(asn1.TagOctetString, data) }), data)
		same("nested", written(func(w *der.Writer) {
			w.Element(der.Sequence, func() { w.Value(asn1.TagOctetString, data); w.Text(asn1.TagUTF8String, "ä") })
		}), struct {
			A []byte
			B string `asn1:"utf8"`
		}{data, "ä"})
	}
	for _, n := range []int64{1, 127, 128, 255, 256, 32768, 1 << 62} {
		same("integer", written(func(w *der.Writer) { w.Positive(big.NewInt(n)) }), big.NewInt(n))
	}
	for _, id := range []asn1.ObjectIdentifier{{1, 2}, {0, 39}, {2, 999, 3}, {2, 5, 29, 15}, {1, 3, 6, 1, 4, 1, 311, 1 << 31}, {1, 2, 127, 128, 16383, 16384}} {
		same("object identifier", written(func(w *der.Writer) { w.OID(id) }), id)
	}
	for _, at := range []string{"1950-01-01T00:00:00Z", "2026-11-23T21:30:00Z", "2049-12-31T23:59:59Z", "2050-01-01T00:00:00Z", "1949-12-31T23:59:59Z", "9999-12-31T23:59:59Z"} {
		v, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		same(at, written(func(w *der.Writer) { w.Time(v) }), v)
	}
}
