package hubserver_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// TestTwinByDevice is what Microsoft's SDKs do over MQTT, for a device and for a module.
func TestTwinByDevice(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		dev := r.keyed("dev")
		for _, c := range []struct {
			u    *unit
			path string
		}{{dev, "/twins/dev"}, {r.module(dev, "mod"), "/twins/dev/modules/mod"}} {
			u := c.u.online(iothub.TwinAnswers, iothub.DesiredChanges)
			if status, _, body := u.ask("twin/GET", " "); status != "200" || body != `{"desired":{"$version":1},"reported":{"$version":1}}` {
				t.Errorf("%s: got %s %s", u.name, status, body)
			}
			if status, rest, body := u.ask(iothub.TwinReport, `{"fw":{"v":"1.2","build":7},"old":true}`); status != "204" || rest != "&$version=2" || body != "" {
				t.Errorf("report: got %s %s %s", status, rest, body)
			}
			if status, _, _ := u.ask(iothub.TwinReport, `{"old":null,"fw":{"build":8}}`); status != "204" {
				t.Errorf("report: got %s", status)
			}
			// A desired change comes with nulls; a replacement as what leads there.
			r.twin("PATCH", c.path, `{"properties":{"desired":{"a":{"b":1,"c":2},"gone":1}},"tags":{"x":1}}`)
			if h := u.next(); h != (heard{"$iothub/twin/PATCH/properties/desired/?$version=2", `{"$version":2,"a":{"b":1,"c":2},"gone":1}`}) {
				t.Errorf("heard %+v", h)
			}
			r.twin("PATCH", c.path, `{"properties":{"desired":{"a":{"c":null}}}}`)
			if h := u.next(); h.body != `{"$version":3,"a":{"c":null}}` {
				t.Errorf("heard %+v", h)
			}
			r.twin("PUT", c.path, `{"properties":{"desired":{"a":{"b":1,"d":3}}}}`)
			if h := u.next(); h.body != `{"$version":4,"a":{"d":3},"gone":null}` {
				t.Errorf("heard %+v", h)
			}
			r.twin("PATCH", c.path, `{"tags":{"y":1}}`) // not the device's business
			if _, _, body := u.ask("twin/GET", " "); body != `{"desired":{"$version":4,"a":{"b":1,"d":3}},"reported":{"$version":3,"fw":{"build":8,"v":"1.2"}}}` {
				t.Errorf("twin: %s", body)
			}
			tw := r.twin("GET", c.path, "")
			if tw.ConnectionState != iothub.Connected || !strings.Contains(string(tw.Properties.Reported), `"fw":{"build":8,"v":"1.2"}`) {
				t.Errorf("got %+v", tw)
			}
			// What is refused is told with a body by which SDKs know it, and changes nothing.
			for body, want := range map[string]string{`{"a.b":1}`: "400", `[1]`: "400", `{"a":"` + strings.Repeat("x", 5000) + `"}`: "400", `{`: "400"} {
				status, _, answer := u.ask(iothub.TwinReport, body)
				var e struct {
					ErrorCode int    `json:"errorCode"`
					Message   string `json:"message"`
				}
				if err := json.Unmarshal([]byte(answer), &e); status != want || err != nil || e.ErrorCode != 400000 || !strings.Contains(e.Message, "reported properties") {
					t.Errorf("%.20s: got %s %s", body, status, answer)
				}
			}
			if again := r.twin("GET", c.path, ""); again.Version != tw.Version {
				t.Errorf("refused reports left version %d, was %d", again.Version, tw.Version)
			}
		}
	})
}

// TestTwinInOrder: while the twin is patched from many sides the device, which applies what it hears to what it read,
// ends with what the hub has.
func TestTwinInOrder(t *testing.T) {
	r := newRig(t, sqlite(t))
	u := r.keyed("dev").online(iothub.TwinAnswers, iothub.DesiredChanges)
	const n = 60
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range n / 3 {
				p := &iothub.TwinPatch{}
				p.Properties.Desired = json.RawMessage(fmt.Sprintf(`{"w%d":%d}`, w, i))
				if _, err := r.hub.PatchTwin(t.Context(), hub.DefaultName, "dev", "", p, "", false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	asked := 0
	last := int64(0)
	for seen := int64(1); seen < n+1; {
		if asked < 10 {
			asked++
			if err := u.Publish(t.Context(), "$iothub/twin/GET/?$rid=1", mqtt.AtMostOnce, nil); err != nil {
				t.Fatal(err)
			}
		}
		h := u.next()
		var doc struct {
			Version int64 `json:"$version"`
			Desired struct {
				V int64 `json:"$version"`
			} `json:"desired"`
		}
		if err := json.Unmarshal([]byte(h.body), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Desired.V != 0 { // the twin: as new as what was heard last, and no older
			if doc.Desired.V < seen {
				t.Fatalf("twin of version %d after change %d", doc.Desired.V, seen)
			}
			seen = doc.Desired.V
			continue
		}
		if doc.Version <= last {
			t.Fatalf("change %d after %d", doc.Version, last)
		}
		last, seen = doc.Version, max(seen, doc.Version)
	}
	wg.Wait()
}
