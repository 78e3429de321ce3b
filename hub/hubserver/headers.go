package hubserver

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// headerApp begins the headers that carry application properties. Their names come in lower case, whatever the sender
// wrote: HTTP does not tell cases apart.
const headerApp = "iothub-app-"

// systemHeaders are the headers of system properties, by the properties' names in MQTT topics.
var systemHeaders = []struct{ header, name string }{
	{iothub.HeaderMessageID, iothub.PropMessageID}, {"iothub-correlationid", iothub.PropCorrelationID}, {"iothub-userid", iothub.PropUserID},
	{iothub.HeaderTo, iothub.PropTo}, {iothub.HeaderExpiry, iothub.PropExpiry}, {"iothub-contenttype", iothub.PropContentType},
	{"iothub-contentencoding", iothub.PropContentEncoding}, {"iothub-creationtimeutc", iothub.PropCreated}, {iothub.PropAck, iothub.PropAck},
}

// bagOf makes a property bag of a message's headers, or of what a batch has in their place. Errors are Invalid.
func bagOf(get func(string) string, names []string) (iothub.Bag, error) {
	var b iothub.Bag
	add := func(name, value string) error {
		if !utf8.ValidString(value) || strings.IndexByte(value, 0) >= 0 {
			return cradle.Errorf(cradle.Invalid, "property %.100q is not UTF-8", name)
		}
		b = append(b, iothub.Property{Name: name, Value: value})
		return nil
	}
	for _, h := range systemHeaders {
		if v := get(h.header); v != "" {
			if err := add(h.name, v); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(names)
	for _, n := range names {
		key, ok := strings.CutPrefix(strings.ToLower(n), headerApp)
		if !ok {
			continue
		}
		if key == "" || strings.HasPrefix(key, "$.") {
			return nil, cradle.Errorf(cradle.Invalid, "header %.100q names no application property", n)
		}
		if err := add(key, get(n)); err != nil {
			return nil, err
		}
	}
	if len(b) > iothub.MaxProperties {
		return nil, cradle.Errorf(cradle.Invalid, "message has %d properties, at most %d", len(b), iothub.MaxProperties)
	}
	return b, nil
}

func bagOfHeader(h http.Header) (iothub.Bag, error) {
	names := make([]string, 0, len(h))
	for n := range h {
		names = append(names, n)
	}
	return bagOf(h.Get, names)
}

// setHeaders writes a message to a device as headers.
func setHeaders(h http.Header, m *hub.C2D) {
	h.Set("ETag", `"`+lockToken(m.Lock)+`"`)
	h.Set(iothub.HeaderSequence, strconv.FormatInt(m.Sequence, 10))
	h.Set(iothub.HeaderDeliveries, strconv.Itoa(m.Deliveries))
	h.Set(iothub.HeaderEnqueued, m.Enqueued.UTC().Format(time.RFC3339Nano))
	h.Set(iothub.HeaderExpiry, m.Expires.UTC().Format(time.RFC3339Nano))
	for _, p := range m.Properties {
		name := headerApp + p.Name
		for _, s := range systemHeaders {
			if s.name == p.Name {
				name = s.header
			}
		}
		if headerName(name) && headerValue(p.Value) && h.Get(name) == "" {
			h.Set(name, p.Value)
		}
	}
}

// headerName and headerValue report whether HTTP can carry them (RFC 9110 §5.1, §5.5).
func headerName(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func headerValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// lockToken is a lock as it stands in paths and entity tags, and lockOf the lock of one.
func lockToken(lock string) string { return strings.Replace(lock, " ", ".", 1) }
func lockOf(token string) string   { return strings.Replace(token, ".", " ", 1) }
