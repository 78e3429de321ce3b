package azure_test

import (
	"testing"
	"time"
)

// twin is what the service SDK shows of one.
type twin struct {
	DeviceID, ETag string
	Version        int64
	Tags           map[string]any
	Properties     struct{ Desired, Reported map[string]any }
}

// A device's twin and the back end's are the same: reported properties go up, desired ones come down, nulls delete.
func (s suite) TestTwin(t *testing.T) {
	for _, transport := range []string{"mqtt", "ws"} {
		id := "twin-" + transport
		d := s.assigned(t, id, transport)
		d["interval"] = 30
		device := s.node.begin("device.twin", d)
		var seen twin
		s.Wait("reported properties of "+id, time.Minute, func() (bool, string) {
			seen = twin{} // else what is gone stays in its maps
			s.must(t, &seen, "hub.getTwin", with{"connection": s.hub, "id": id})
			return seen.Properties.Reported["ready"] != nil, "not yet"
		})
		if _, gone := seen.Properties.Reported["gone"]; gone || seen.Properties.Reported["firmware"] != "1.0" {
			t.Errorf("over %s: reported %v", transport, seen.Properties.Reported)
		}
		var patched twin
		s.must(t, &patched, "hub.patchTwin", with{"connection": s.hub, "id": id, "patch": with{"properties": with{"desired": with{"interval": 30, "nested": with{"a": 1}}}}})
		var r struct {
			First  struct{ Desired, Reported map[string]any }
			Change map[string]any
		}
		if err := await(t, "device.twin", device, &r); err != nil {
			t.Fatalf("over %s: %v", transport, err)
		}
		if r.Change["interval"] != float64(30) || r.Change["$version"] != float64(2) || r.First.Desired["$version"] != float64(1) || r.First.Reported["$version"] != float64(1) {
			t.Errorf("over %s: %+v", transport, r)
		}
	}
}

// The back end's half, with an etag that is good and one that is stale.
func (s suite) TestTwinOfService(t *testing.T) {
	const id = "twin-service"
	s.must(t, nil, "hub.create", with{"connection": s.hub, "device": with{"deviceId": id}})
	var r struct {
		Before, After, Last twin
		Stale               refusal
	}
	s.must(t, &r, "hub.twin", with{"connection": s.hub, "id": id})
	if r.Before.ETag == "" || r.After.ETag == r.Before.ETag || r.After.Tags["site"] != "north" || r.After.Properties.Desired["interval"] != float64(5) {
		t.Errorf("before %+v, after %+v", r.Before, r.After)
	}
	if _, gone := r.Last.Properties.Desired["gone"]; gone {
		t.Errorf("last: %+v", r.Last)
	}
	if r.Stale.Status != 412 || r.Stale.Name != "InvalidEtagError" {
		t.Errorf("a stale etag: %+v", r.Stale)
	}
}
