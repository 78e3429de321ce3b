package hubserver

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// FuzzBatch: what is taken of a batch keeps the store's and the wire's limits; refusals are Invalid.
func FuzzBatch(f *testing.F) {
	f.Add([]byte(`[{"body":"aGk=","properties":{"iothub-app-k":"v","iothub-messageid":"m"}},{"body":"t","base64Encoded":false}]`))
	f.Add([]byte(`[{"body":"","properties":{"iothub-app-":"v"}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := parseBatch(b)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		if len(ms) == 0 || len(ms) > maxMessages {
			t.Fatalf("%d messages", len(ms))
		}
		for _, m := range ms {
			again, err := iothub.ParseBag(m.Properties.Encode())
			if err != nil || len(again) != len(m.Properties) || len(again) > iothub.MaxProperties {
				t.Fatalf("properties %v, stored %v %v", m.Properties, again, err)
			}
		}
	})
}

// FuzzHeaders: a message's properties become headers that HTTP can carry, and come back from them.
func FuzzHeaders(f *testing.F) {
	f.Add("key", "value", "$.mid", "m-1")
	f.Add("odd key", "a\r\nb", "iothub-ack", "full")
	f.Add("etag", "x", "ü", "\x00")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		h := http.Header{}
		m := &hub.C2D{Lock: "http-A 1", Properties: iothub.Bag{{Name: n1, Value: v1}, {Name: n2, Value: v2}}}
		setHeaders(h, m)
		if h.Get("ETag") != `"http-A.1"` || lockOf(lockToken(m.Lock)) != m.Lock {
			t.Fatalf("lock %q", h.Get("ETag"))
		}
		for name, values := range h {
			if len(values) != 1 || strings.ContainsAny(name+values[0], "\r\n\x00") || strings.ContainsAny(name, " :") {
				t.Fatalf("header %q: %q", name, values)
			}
		}
		if _, err := bagOfHeader(h); err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Fatalf("kind of %v", err)
		}
	})
}
