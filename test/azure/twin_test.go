package azure_test

import "testing"

// twin is what the service SDK shows of one.
type twin struct {
	DeviceID, ETag string
	Version        int64
	Tags           map[string]any
	Properties     struct{ Desired, Reported map[string]any }
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
