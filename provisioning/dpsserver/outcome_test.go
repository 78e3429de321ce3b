package dpsserver_test

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
)

// sdkForNode is what Microsoft's SDK for Node.js calls itself: it takes the outcome for an answer to register.
const sdkForNode = "azure-iot-provisioning-device/1.9.1"

// patient makes register calls wait as long as it takes.
func patient(c *dpsserver.Config) { c.Wait = time.Minute }

// A device that says, or is known, to read the outcome gets it in answer to register; nobody else does.
func TestOutcomeAtOnce(t *testing.T) {
	s := newServer(t, patient)
	s.enrol()
	for _, c := range []struct {
		name, id string
		header   []string
		want     int
	}{
		{"asks to wait", "dev-1", []string{"Prefer", "wait=10"}, 200},
		{"again", "dev-1", []string{"Prefer", "respond-async, wait=10"}, 200},
		{"Node.js", "dev-2", []string{"User-Agent", sdkForNode}, 200},
		{"IoT Identity Service", "dev-3", nil, 202},
		{"again, without", "dev-1", nil, 202},
		{"waits for nothing", "dev-4", []string{"Prefer", "wait=0"}, 202},
		{"nonsense", "dev-4", []string{"Prefer", "wait=-1"}, 202},
		{"another wish", "dev-5", []string{"Prefer", "return=minimal"}, 202},
		{"another SDK", "dev-6", []string{"User-Agent", "azure-iot-provisioning-service/1.11.2"}, 202},
	} {
		cl := s.client(s.ca.Leaf(c.id, nil))
		resp, b := s.call(cl, "PUT", s.path(c.id)+"/register"+v, `{}`, c.header...)
		var op dps.OperationStatus
		if err := json.Unmarshal(b, &op); err != nil || resp.StatusCode != c.want || op.OperationID == "" {
			t.Fatalf("%s: %d %s", c.name, resp.StatusCode, b)
		}
		if c.want == 202 {
			if op.Status != dps.Assigning || op.RegistrationState != nil || resp.Header.Get("Retry-After") != "0" || resp.Header.Get("Location") == "" {
				t.Errorf("%s: %v %s", c.name, resp.Header, b)
			}
			continue
		}
		st := op.RegistrationState
		if op.Status != dps.Assigned || st == nil || st.AssignedHub != "localhost:8443" || st.DeviceID != c.id || st.Status != dps.Assigned || resp.Header.Get("Location") != "" {
			t.Errorf("%s: %v %s", c.name, resp.Header, b)
		}
		// What was answered is durable, and a poll says the same.
		resp, polled := s.call(cl, "GET", s.path(c.id)+"/operations/"+op.OperationID+v, "")
		if resp.StatusCode != 200 || string(polled) != string(b) {
			t.Errorf("%s: poll %d %s, register %s", c.name, resp.StatusCode, polled, b)
		}
	}
}

// A refusal of the hub's is an outcome too, and a block is a refusal of the request.
func TestOutcomeFailed(t *testing.T) {
	s := newServer(t, patient)
	s.enrol()
	s.hub.Fail(cradle.Errorf(cradle.Invalid, "the hub wants no such device"))
	resp, b := s.call(s.client(s.ca.Leaf("dev-1", nil)), "PUT", s.path("dev-1")+"/register"+v, `{}`, "Prefer", "wait=10")
	var op dps.OperationStatus
	if err := json.Unmarshal(b, &op); err != nil || resp.StatusCode != 200 || op.Status != dps.Failed || op.RegistrationState.ErrorCode != 400000 || !strings.Contains(op.RegistrationState.ErrorMessage, "no such device") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	s.hub.Fail(nil)
	s.hub.Before(func(_ string, id cradle.DeviceID) { // between admission and delivery
		if id == "dev-2" {
			s.feed.Set("acme", "dev-2", cradle.Revoked)
		}
	})
	resp, b = s.call(s.client(s.ca.Leaf("dev-2", nil)), "PUT", s.path("dev-2")+"/register"+v, `{}`, "Prefer", "wait=10")
	if resp.StatusCode == 200 {
		again, c := s.call(s.client(s.ca.Leaf("dev-2", nil)), "PUT", s.path("dev-2")+"/register"+v, `{}`, "Prefer", "wait=10")
		if again.StatusCode != 401 {
			t.Errorf("a revoked device: %d %s, then %d %s", resp.StatusCode, b, again.StatusCode, c)
		}
	}
}

// A hub in trouble holds up no register call, a slow one only for a moment, and only so many of them; the device then polls.
func TestOutcomeOfASlowHub(t *testing.T) {
	s := newServer(t, func(c *dpsserver.Config) { c.Wait = 50 * time.Millisecond })
	s.enrol()
	release := make(chan struct{})
	s.hub.Before(func(string, cradle.DeviceID) { <-release })
	var devices sync.WaitGroup
	for _, id := range []string{"dev-1", "dev-2"} {
		cl := s.client(s.ca.Leaf(id, nil))
		devices.Go(func() {
			resp, b := s.call(cl, "PUT", s.path(id)+"/register"+v, `{}`, "Prefer", "wait=100")
			var op dps.OperationStatus
			if err := json.Unmarshal(b, &op); err != nil || resp.StatusCode != 202 || op.Status != dps.Assigning {
				t.Errorf("%s: %d %s", id, resp.StatusCode, b)
			}
		})
	}
	devices.Wait()
	close(release)
	s.hub.Before(nil)
	s.hub.Fail(errors.New("down"))
	cl := s.client(s.ca.Leaf("dev-3", nil))
	for range 2 { // the second time it is known to be down
		if resp, b := s.call(cl, "PUT", s.path("dev-3")+"/register"+v, `{}`, "Prefer", "wait=100"); resp.StatusCode != 202 {
			t.Errorf("hub down: %d %s", resp.StatusCode, b)
		}
	}
}

// With as many waiting as may, register answers at once.
func TestOutcomeForSoMany(t *testing.T) {
	s := newServer(t, patient)
	s.enrol()
	s.http.Config.Handler.(*dpsserver.Handler).FillWaiting()
	resp, b := s.call(s.client(s.ca.Leaf("dev-1", nil)), "PUT", s.path("dev-1")+"/register"+v, `{}`, "Prefer", "wait=10")
	if resp.StatusCode != 202 || resp.Header.Get("Location") == "" {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// Over MQTT it is the user name that tells.
func TestMQTTOutcome(t *testing.T) {
	s, addr := newMQTT(t, patient)
	for id, c := range map[string]struct{ client, want string }{
		"dev-1": {"&ClientVersion=azure-iot-provisioning-device%2F1.9.1", "200"},
		"dev-2": {"&ClientVersion=azure-iot-provisioning-devices%2F1.9.1", "202"},
		"dev-3": {"", "202"},
	} {
		d := s.dial(addr, mqtt.Options{ClientID: id, Username: s.user(id) + c.client}, s.ca.Leaf(id, nil))
		d.subscribe()
		status, query, b := d.ask(put+"1", `{}`)
		var op dps.OperationStatus
		if err := json.Unmarshal(b, &op); err != nil || status != c.want || status == "200" && (query != "$rid=1" || op.Status != dps.Assigned || op.RegistrationState.AssignedHub != "localhost:8443") {
			t.Errorf("%s: %s %s %s", id, status, query, b)
		}
		d.Close()
	}
}
