package iothub_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// What the Node SDK was seen to send.
const seenBag = "%24.mid=msg-0&%24.ct=application%2Fjson&%24.ce=utf-8&seq=0&odd%20key=a%2Fb%26c%3Dd%20%C3%BC"

func TestTelemetryTopic(t *testing.T) {
	id, bag, err := iothub.ParseTelemetryTopic("devices/dev-1/messages/events/" + seenBag)
	if err != nil || id != "dev-1" || len(bag) != 5 {
		t.Fatalf("got %q %v, %v", id, bag, err)
	}
	for name, want := range map[string]string{"$.mid": "msg-0", "$.ct": "application/json", "$.ce": "utf-8", "seq": "0", "odd key": "a/b&c=d ü"} {
		if got, ok := bag.Get(name); !ok || got != want {
			t.Errorf("property %q: got %q, want %q", name, got, want)
		}
	}
	if got := iothub.TelemetryTopic(id, bag); got != "devices/dev-1/messages/events/"+seenBag {
		t.Errorf("encoded again: %s", got)
	}
	for topic, ok := range map[string]bool{
		"devices/d/messages/events":                 true,
		"devices/d/messages/events/":                true,
		"devices/d/messages/events/a=1/":            true,
		"devices/d/messages/events/flag":            true,
		"devices/d/messages/eventsx":                false,
		"devices//messages/events/":                 false,
		"devices/d/messages/devicebound/":           false,
		"devices/d/messages/events/%zz=1":           false,
		"devices/d/messages/events/a=%00":           false,
		"devices/d/messages/events/a=%ff":           false,
		"devices/d/messages/events/=1":              false,
		"$iothub/twin/GET/":                         false,
		"devices/d/messages/events/" + many("a=1&"): false,
	} {
		_, _, err := iothub.ParseTelemetryTopic(topic)
		if (err == nil) != ok || err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%.60s: got %v, want ok %v", topic, err, ok)
		}
	}
}

func many(s string) string { return strings.Repeat(s, iothub.MaxProperties+1) }

func FuzzBag(f *testing.F) {
	f.Add(seenBag)
	f.Add("a&b=&=")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := iothub.ParseBag(s)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		enc := b.Encode()
		again, err := iothub.ParseBag(enc)
		if err != nil || again.Encode() != enc || len(again) != len(b) {
			t.Fatalf("%q: %q, then %v %v", s, enc, again, err)
		}
		if strings.ContainsAny(enc, "+#/") {
			t.Fatalf("%q does not fit a topic", enc)
		}
	})
}

func TestUserName(t *testing.T) {
	for _, s := range []string{
		iothub.UserName("localhost:8443", "dev-1"),
		"hub-1.example.com/dev-1/?api-version=2021-04-12&DeviceClientType=azure-iot-device%2F1.18.4%20(node%20v20.20.2%3B%20Debian%2012%3B%20x64)",
		"hub/dev-1/api-version=2016-11-14", "hub/dev-1?api-version=1",
	} {
		host, id, q, err := iothub.ParseUserName(s)
		if err != nil || host == "" || id != "dev-1" || q.Get("api-version") == "" {
			t.Errorf("%s: got %q %q %v %v", s, host, id, q, err)
		}
	}
	for _, s := range []string{"", "hub", "hub/", "hub/dev-1", "/dev-1/?api-version=1", "hub/dev-1/?api-version=", "hub//?api-version=1"} {
		if _, _, _, err := iothub.ParseUserName(s); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%q: got %v", s, err)
		}
	}
}

func TestDeviceID(t *testing.T) {
	for id, ok := range map[cradle.DeviceID]bool{"a": true, "Acme-0001.x_y:z": true, "a@b$c'()": true, "": false, "a/b": false, "a b": false, "ü": false,
		cradle.DeviceID(strings.Repeat("a", 128)): true, cradle.DeviceID(strings.Repeat("a", 129)): false} {
		if err := iothub.CheckDeviceID(id); (err == nil) != ok {
			t.Errorf("%q: got %v", id, err)
		}
	}
	if err := iothub.CheckDeviceID("dü"); err == nil || !strings.Contains(err.Error(), "character 'ü'") {
		t.Errorf("the character that is not allowed is not named: %v", err)
	}
	if err := iothub.CheckDeviceID("d\xff"); err == nil {
		t.Error("an id that is not UTF-8 is taken")
	}
}

func TestEventBody(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct{ ct, body, want, encoding, bytes string }{
		{"application/json", `{"a": 1.50}`, `{"a": 1.50}`, "", `{"a": 1.50}`},
		{"Application/JSON; charset=utf-8", `7`, `7`, "", `7`},
		{"application/json", `{"a":`, `"eyJhIjo="`, "base64", `{"a":`},
		{"", `{"a":1}`, `"eyJhIjoxfQ=="`, "base64", `{"a":1}`},
		{"", "\xff\x00", `"/wA="`, "base64", "\xff\x00"},
		{"", "", `""`, "base64", ""},
	} {
		bag := iothub.Bag{{Name: "seq", Value: "41"}, {Name: "$.ct", Value: c.ct}, {Name: "$.mid", Value: "m"}}
		e := iothub.NewEvent("9", "d", at, bag, []byte(c.body))
		b, err := e.Bytes()
		if string(e.Body) != c.want || e.BodyEncoding != c.encoding || err != nil || string(b) != c.bytes {
			t.Errorf("%q as %q: got %s %q %q %v", c.body, c.ct, e.Body, e.BodyEncoding, b, err)
		}
		if e.Sequence == nil || *e.Sequence != 41 || e.Props["seq"] != "41" || e.System["message_id"] != "m" {
			t.Errorf("got %+v", e)
		}
	}
}
