package azure_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/sas"
)

// hubToken is a SAS of the hub's owner, as an Authorization header.
func (p *place) hubToken(t *testing.T) string {
	t.Helper()
	c, err := sas.ParseConnectionString(p.hub)
	if err != nil {
		t.Fatal(err)
	}
	return c.Token(time.Now(), time.Hour)
}

// sends sends a message to a device. Microsoft's service SDK does it over AMQP alone, so this is plain HTTP.
func (p *place) sends(t *testing.T, id, body string, header ...string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL()+"/devices/"+id+"/messages/devicebound?api-version=2021-04-12", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", p.hubToken(t))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := p.HTTP(nil).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusCreated {
		t.Fatalf("sending to %s: %d %s", id, resp.StatusCode, b)
	}
}

// A message to a device waits for it, arrives with its properties, and is gone when the device has completed it.
func (s suite) TestReceive(t *testing.T) {
	for _, transport := range []string{"http", "mqtt", "ws"} {
		id := "receive-" + transport
		d := s.assigned(t, id, transport)
		for n := range 2 {
			s.sends(t, id, fmt.Sprintf("turn %d", n), "iothub-messageid", fmt.Sprintf("m-%d", n), "iothub-correlationid", "c", "iothub-app-level", "3")
			var got struct {
				Body, MessageID, CorrelationID string
				Properties                     map[string]string
			}
			s.must(t, &got, "device.receive", d)
			if got.Body != fmt.Sprintf("turn %d", n) || got.MessageID != fmt.Sprintf("m-%d", n) || got.CorrelationID != "c" || got.Properties["level"]+got.Properties["iothub-app-level"] != "3" { // over HTTPS the SDK shows the header's name
				t.Errorf("over %s, message %d: %+v", transport, n, got)
			}
		}
	}
}

// HTTPS has telemetry too, one by one and several at once.
func (s suite) TestTelemetryHTTP(t *testing.T) {
	const id = "telemetry-http"
	d := s.assigned(t, id, "http")
	d["body"] = with{"temperature": 21}
	s.must(t, nil, "device.telemetry", d)
	s.must(t, nil, "device.batch", d)
	got := s.events(t, id)
	if len(got) != 5 || string(got[0].Body) != `{"temperature":21}` || got[0].Props["seq"] != "1" || got[0].System["message_id"] != "msg-1" || got[4].Props["n"] != "3" {
		t.Errorf("the hub has %+v", got)
	}
}
