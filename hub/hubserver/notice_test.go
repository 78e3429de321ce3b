package hubserver_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// TestNotices: a hub that is asked to puts changes of twins and registry, and connections, into its events, as Azure has them.
func TestNotices(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		var at iothub.Cursor
		// heard reads what came since, as "source opType device/module"; each is what Azure's readers expect.
		heard := func() (got []string, bodies []map[string]any) {
			t.Helper()
			for _, e := range r.events(at) {
				at = e.Cursor
				source := e.System[iothub.PropSource]
				if source == "" {
					got, bodies = append(got, "telemetry"), append(bodies, nil)
					continue
				}
				var body map[string]any
				if err := json.Unmarshal(e.Body, &body); err != nil || e.BodyEncoding != "" {
					t.Errorf("body %s %v", e.Body, err)
				}
				when, err := time.Parse(time.RFC3339Nano, e.Props["operationTimestamp"])
				if err != nil || !when.Equal(e.Enqueued) || e.Props["hubName"] != "hub-1" || e.Props["deviceId"] != string(e.Device) || e.Props["moduleId"] != e.System[iothub.PropModule] ||
					e.System["content_type"] != "application/json" || e.System["content_encoding"] != "utf-8" || e.System["correlation_id"] == "" ||
					e.Props["iothub-message-schema"] != strings.TrimSuffix(source, "Events")+"Notification" {
					t.Errorf("event %+v, %v", e, err)
				}
				got, bodies = append(got, strings.TrimSuffix(fmt.Sprint(source, " ", e.Props["opType"], " ", e.Device, "/", e.Props["moduleId"]), "/")), append(bodies, body)
			}
			return got, bodies
		}
		wants := func(want ...string) []map[string]any {
			t.Helper()
			var got []string
			var bodies []map[string]any
			testenv.Eventually(t, fmt.Sprintf("events %q", want), func() bool { // connections are told of soon, not at once
				more, b := heard()
				got, bodies = append(got, more...), append(bodies, b...)
				return len(got) >= len(want)
			})
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("events %q, want %q", got, want)
			}
			return bodies
		}
		patch := func(path, body string) {
			t.Helper()
			if status, _, out := r.asOwner("PATCH", path, body); status != 200 {
				t.Fatalf("%d %s", status, out)
			}
		}

		// None unless somebody wants them.
		u := r.keyed("quiet")
		u.online(iothub.TwinAnswers)
		patch("/twins/quiet", `{"tags":{"a":1}}`)
		u.Close()
		ends(t, u.ended, "its end")
		if s, err := r.reg.EventSources(t.Context()); err != nil || len(s) != 0 {
			t.Errorf("sources %v %v", s, err)
		}
		wants()
		if status, _, out := r.asOwner("PUT", "/settings/events", `{"sources":["twinChangeEvents","weather"]}`); status != 400 || !strings.Contains(out, "weather") {
			t.Errorf("%d %s", status, out)
		}

		if s, err := r.reg.SetEventSources(t.Context(), []string{"DeviceLifecycleEvents", "twinchangeevents"}); err != nil || fmt.Sprint(s) != "[twinChangeEvents deviceLifecycleEvents]" {
			t.Fatalf("sources %v %v", s, err)
		}
		u = r.keyed("dev")
		r.module(u, "mod")
		b := wants("deviceLifecycleEvents createDeviceIdentity dev", "deviceLifecycleEvents createModuleIdentity dev/mod")
		if b[0]["deviceId"] != "dev" || b[0]["etag"] == "" || b[0]["version"] != 1.0 || b[1]["moduleId"] != "mod" {
			t.Errorf("bodies %v", b)
		}
		patch("/twins/dev", `{"tags":{"floor":3},"properties":{"desired":{"speed":7,"gone":null}}}`)
		patch("/twins/dev/modules/mod", `{"tags":{"floor":4}}`)
		if status, _, out := r.asOwner("PATCH", "/twins/dev", `{"tags":{"x":1}}`, "If-Match", `"old"`); status != 412 {
			t.Errorf("%d %s", status, out)
		}
		if status, _, out := r.asOwner("PUT", "/twins/dev", `{"properties":{"desired":{"slow":true}}}`); status != 200 {
			t.Errorf("%d %s", status, out)
		}
		u.online(iothub.TwinAnswers)
		if err := u.Publish(t.Context(), "$iothub/twin/PATCH/properties/reported/?$rid=1", mqtt.AtMostOnce, []byte(`{"level":55}`)); err != nil {
			t.Fatal(err)
		}
		u.next()
		// A device cannot pass telemetry off as an event of the hub's.
		if err := u.Publish(t.Context(), "devices/dev/messages/events/iothub-message-source=twinChangeEvents&opType=updateTwin", mqtt.AtLeastOnce, []byte("x")); err != nil {
			t.Fatal(err)
		}
		b = wants("twinChangeEvents updateTwin dev", "twinChangeEvents updateTwin dev/mod", "twinChangeEvents replaceTwin dev", "twinChangeEvents updateTwin dev", "telemetry")
		for i, want := range []string{`{"tags":{"floor":3},"desired":{"gone":null,"speed":7}}`, `{"tags":{"floor":4}}`, `{"tags":{},"desired":{"slow":true}}`, `{"reported":{"level":55}}`} {
			got := map[string]any{}
			for k, v := range b[i]["properties"].(map[string]any) {
				m := v.(map[string]any)
				if m["$version"] == nil || m["$metadata"] == nil {
					t.Errorf("%s of %s has no version, or no metadata: %v", k, want, m)
				}
				delete(m, "$version")
				delete(m, "$metadata")
				got[k] = m
			}
			if b[i]["tags"] != nil {
				got["tags"] = b[i]["tags"]
			}
			var w map[string]any
			if err := json.Unmarshal([]byte(want), &w); err != nil || fmt.Sprint(got) != fmt.Sprint(w) {
				t.Errorf("change %d: %v, want %s", i, got, want)
			}
		}
		if status, _, out := r.asOwner("POST", "/devices", `[{"id":"edge","importMode":"create","capabilities":{"iotEdge":true},"tags":{"t":1}},{"id":"edge","importMode":"create"}]`); status != 400 {
			t.Errorf("%d %s", status, out)
		}
		wants("deviceLifecycleEvents createDeviceIdentity edge", "deviceLifecycleEvents createModuleIdentity edge/$edgeAgent", "deviceLifecycleEvents createModuleIdentity edge/$edgeHub",
			"twinChangeEvents replaceTwin edge")

		// Connections: one that a newer one replaces has not gone.
		if _, err := r.reg.SetEventSources(t.Context(), []string{"deviceConnectionStateEvents", "deviceLifecycleEvents"}); err != nil {
			t.Fatal(err)
		}
		u.Close()
		ends(t, u.ended, "its end")
		wants("deviceConnectionStateEvents deviceDisconnected dev")
		for range 2 {
			if err := u.connect(); err != nil {
				t.Fatal(err)
			}
		}
		b = wants("deviceConnectionStateEvents deviceConnected dev", "deviceConnectionStateEvents deviceConnected dev")
		if a, c := b[0]["sequenceNumber"].(string), b[1]["sequenceNumber"].(string); len(a) != 36 || a > c {
			t.Errorf("sequence numbers %s, %s", a, c)
		}
		if status, _, out := r.asOwner("DELETE", "/devices/dev/modules/mod", ""); status != 204 {
			t.Errorf("%d %s", status, out)
		}
		if status, _, out := r.asOwner("DELETE", "/devices/dev", ""); status != 204 {
			t.Errorf("%d %s", status, out)
		}
		b = wants("deviceLifecycleEvents deleteModuleIdentity dev/mod", "deviceLifecycleEvents deleteDeviceIdentity dev", "deviceConnectionStateEvents deviceDisconnected dev")
		if p := fmt.Sprint(b[1]["properties"]); !strings.Contains(p, "slow:true") || !strings.Contains(p, "level:55") {
			t.Errorf("the twin that went: %v", b[1])
		}
		if _, err := r.reg.SetEventSources(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		r.keyed("later")
		wants()
		if n, err := r.hub.Notices(t.Context(), hub.DefaultName); n != 0 || err != nil {
			t.Errorf("%v %v", n, err)
		}
	})
}
