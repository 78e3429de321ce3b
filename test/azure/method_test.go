package azure_test

import (
	"encoding/json"
	"testing"
	"time"
)

// A direct method is called by the service SDK and answered by the device SDK.
func (s suite) TestMethod(t *testing.T) {
	for _, transport := range []string{"mqtt", "ws"} {
		id := "method-" + transport
		device := s.node.begin("device.method", s.assigned(t, id, transport))
		s.Wait("the device "+id+" to listen", time.Minute, func() (bool, string) {
			var seen twin
			s.must(t, &seen, "hub.getTwin", with{"connection": s.hub, "id": id})
			return seen.Properties.Reported["listening"] != nil, "not yet"
		})
		var r struct {
			Status  int
			Payload json.RawMessage
		}
		s.must(t, &r, "hub.method", with{"connection": s.hub, "id": id, "name": "reboot", "payload": with{"delay": 3}})
		if r.Status != 200 || string(r.Payload) != `{"rebooting":3}` {
			t.Errorf("over %s: %d %s", transport, r.Status, r.Payload)
		}
		var asked struct{ Payload json.RawMessage }
		if err := await(t, "device.method", device, &asked); err != nil || string(asked.Payload) != `{"delay":3}` {
			t.Errorf("over %s the device was asked %s: %v", transport, asked.Payload, err)
		}
	}
}

// A method of a device that is not there, and of one that nobody knows.
func (s suite) TestMethodRefused(t *testing.T) {
	s.must(t, nil, "hub.create", with{"connection": s.hub, "device": with{"deviceId": "method-offline"}})
	if e := s.refused(t, "hub.method", with{"connection": s.hub, "id": "method-offline", "name": "reboot"}); e.Status != 404 || !e.says("DeviceNotOnline") {
		t.Errorf("offline: %v", e)
	}
	if e := s.refused(t, "hub.method", with{"connection": s.hub, "id": "method-nobody", "name": "reboot"}); e.Status != 404 || e.Name != "DeviceNotFoundError" {
		t.Errorf("unknown: %v", e)
	}
}
