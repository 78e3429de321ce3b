package azure_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/test/world"
)

// assigned registers a device with a certificate of its own and returns what its scripts are given.
func (p *place) assigned(t *testing.T, id, transport string) with {
	t.Helper()
	d := p.device(id, transport, p.ca.leaf(t, id, nil))
	p.registers(t, with{"host": p.host, "idScope": p.idScope, "id": id, "transport": "http", "cert": d["cert"], "key": d["key"]})
	return d
}

// events are the hub's events of one device.
func (p *place) events(t *testing.T, id string) (out []iothub.Event) {
	t.Helper()
	for _, e := range world.Lines[iothub.Event](t, p.MustCradle("hub", "events")) {
		if e.Device == cradle.DeviceID(id) {
			out = append(out, e)
		}
	}
	return out
}

func (s suite) TestTelemetry(t *testing.T) {
	for _, transport := range []string{"mqtt", "ws"} {
		id := "telemetry-" + transport
		d := s.assigned(t, id, transport)
		d["body"], d["odd"] = with{"temperature": 21}, "a/b&c=d ü"
		s.must(t, nil, "device.telemetry", d)
		got := s.events(t, id)
		if len(got) != 2 || string(got[0].Body) != `{"temperature":21}` || string(got[1].Body) != `"cGxhaW4="` {
			t.Fatalf("over %s: %+v", transport, got)
		}
		if want := map[string]string{"seq": "1", "odd key": "a/b&c=d ü"}; !maps.Equal(got[0].Props, want) {
			t.Errorf("over %s: properties %v, want %v", transport, got[0].Props, want)
		}
		if want := map[string]string{"message_id": "msg-1", "correlation_id": "corr-1", "content_type": "application/json", "content_encoding": "utf-8"}; !maps.Equal(got[0].System, want) {
			t.Errorf("over %s: system properties %v, want %v", transport, got[0].System, want)
		}
	}
}

// refusal is what a script says of a call that must not work.
type refusal struct {
	Name, Message string
	Status        int
	Body          json.RawMessage // text as a rule
	Unexpected    json.RawMessage
}

func (r refusal) is(name string, status int, text string) bool {
	return r.Name == name && r.Status == status && (strings.Contains(string(r.Body), text) || strings.Contains(r.Message, text))
}
