package hubserver_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// asOwner sends a request with the owner's token and returns status, header and body.
func (r *rig) asOwner(method, path, body string, header ...string) (int, http.Header, string) {
	r.t.Helper()
	return r.request(method, path, sas.Sign(strings.TrimPrefix(r.reg.BaseURL, "https://"), hub.Owner, r.reg.Key, time.Now().Add(time.Hour)), body, header...)
}

// twin sends a change of a twin and returns what the hub answers.
func (r *rig) twin(method, path, body string, header ...string) *iothub.Twin {
	r.t.Helper()
	status, h, out := r.asOwner(method, path, body, header...)
	tw := new(iothub.Twin)
	if err := json.Unmarshal([]byte(out), tw); status != 200 || err != nil || h.Get("ETag") != `"`+tw.ETag+`"` {
		r.t.Fatalf("%s %s: got %d %v %s", method, path, status, err, out)
	}
	return tw
}

func TestTwinREST(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.register("dev")
		status, _, out := r.asOwner("PUT", "/devices/dev/modules/mod", `{"deviceId":"dev","moduleId":"mod"}`)
		paths := []string{"/twins/dev"}
		if status/100 == 2 {
			paths = append(paths, "/twins/dev/modules/mod")
		} else {
			t.Logf("modules are not served: %d %s", status, out)
		}
		for _, path := range paths {
			a := r.twin("GET", path, "")
			if a.DeviceID != "dev" || a.Version != 1 || string(a.Tags) != "{}" || a.Status != "enabled" ||
				string(a.Properties.Desired) != `{"$metadata":{"$lastUpdated":"0001-01-01T00:00:00Z"},"$version":1}` {
				t.Errorf("a new twin: got %+v", a)
			}
			b := r.twin("PATCH", path, `{"deviceId":"ignored","tags":{"site":{"x":1,"y":null}},"properties":{"desired":{"rate":5,"$version":9},"reported":{"no":1}}}`, "If-Match", `"`+a.ETag+`"`)
			if b.ETag == a.ETag || b.Version != 2 || string(b.Tags) != `{"site":{"x":1}}` || !strings.Contains(string(b.Properties.Desired), `"$version":2,"rate":5`) ||
				strings.Contains(string(b.Properties.Reported), "no") {
				t.Errorf("patched: got %+v", b)
			}
			if status, _, out := r.asOwner("PATCH", path, `{"tags":{"a":1}}`, "If-Match", `"`+a.ETag+`"`); status != 412 || !strings.Contains(out, "ErrorCode:PreconditionFailed") {
				t.Errorf("stale: got %d %s", status, out)
			}
			c := r.twin("PATCH", path, `{"tags":{"site":{"z":2}},"properties":{"desired":{"rate":null}}}`, "If-Match", `"*"`)
			if string(c.Tags) != `{"site":{"x":1,"z":2}}` || strings.Contains(string(c.Properties.Desired), "rate") {
				t.Errorf("merged: got %+v", c)
			}
			d := r.twin("PUT", path, `{"tags":{"new":true},"properties":{"desired":{"only":{"this":[1]}}}}`)
			if string(d.Tags) != `{"new":true}` || !strings.HasSuffix(string(d.Properties.Desired), `"$version":4,"only":{"this":[1]}}`) {
				t.Errorf("replaced: got %+v", d)
			}
			if e := r.twin("GET", path, ""); e.ETag != d.ETag || e.Version != 4 || string(e.Properties.Desired) != string(d.Properties.Desired) {
				t.Errorf("read again: got %+v", e)
			}
			for body, want := range map[string]int{
				`{"tags":{"a.b":1}}`: 400, `{"tags":[]}`: 400, `{"properties":{"desired":7}}`: 400, `{`: 400,
				`{"tags":{"a":"` + strings.Repeat("x", 4000) + `","b":"` + strings.Repeat("x", 4000) + `","c":"` + strings.Repeat("x", 4000) + `"}}`: 413,
			} {
				if status, _, out := r.asOwner("PATCH", path, body); status != want {
					t.Errorf("%.60s: got %d %s", body, status, out)
				}
			}
			if e := r.twin("GET", path, ""); e.Version != 4 {
				t.Errorf("refused patches left version %d", e.Version)
			}
		}
		for _, path := range []string{"/twins/nobody", "/twins/dev/modules/nothing"} {
			if status, _, out := r.asOwner("PATCH", path, `{"tags":{}}`); status != 404 {
				t.Errorf("%s: got %d %s", path, status, out)
			}
		}
		if status, _, _ := r.request("GET", "/twins/dev", "", ""); status != 401 {
			t.Errorf("without a token: got %d", status)
		}
		// A device made anew starts with an empty twin and another ETag.
		old := r.twin("GET", "/twins/dev", "")
		if err := r.reg.DeleteDevice(t.Context(), "dev", ""); err != nil {
			t.Fatal(err)
		}
		r.register("dev")
		if a := r.twin("GET", "/twins/dev", ""); a.Version != 1 || a.ETag == old.ETag || string(a.Tags) != "{}" {
			t.Errorf("made anew: got %+v", a)
		}
	})
}

// TestTwinNoLostUpdate: of many writers at once nobody's property is lost, and every version is used once.
func TestTwinNoLostUpdate(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.register("dev")
		const n = 20
		seen := make(chan int64, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				p := &iothub.TwinPatch{Tags: json.RawMessage(fmt.Sprintf(`{"k%d":%d}`, i, i))}
				tw, err := r.hub.PatchTwin(t.Context(), hub.DefaultName, "dev", "", p, "", false)
				if err != nil {
					t.Error(err)
					return
				}
				seen <- tw.Version
			})
		}
		wg.Wait()
		close(seen)
		versions := map[int64]bool{}
		for v := range seen {
			versions[v] = true
		}
		var tags map[string]int
		tw := r.twin("GET", "/twins/dev", "")
		if err := json.Unmarshal(tw.Tags, &tags); err != nil || len(tags) != n || tw.Version != n+1 || len(versions) != n {
			t.Errorf("got %s version %d, %d versions, %v", tw.Tags, tw.Version, len(versions), err)
		}
	})
}
