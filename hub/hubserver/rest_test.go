package hubserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

func TestRegistry(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ctx := t.Context()
		thumb := strings.Repeat("0A", 32)
		d := r.put(entry("dev", thumb, ""), "")
		if d.ETag == "" || d.GenerationID == "" || d.Status != iothub.Enabled || d.ConnectionState != iothub.Disconnected ||
			d.Authentication.X509Thumbprint.PrimaryThumbprint != strings.ToLower(thumb) {
			t.Errorf("created %+v", d)
		}
		want := func(what string, err error, k cradle.Kind, code string) {
			t.Helper()
			if cradle.KindOf(err) != k || !strings.Contains(fmt.Sprint(err), code) {
				t.Errorf("%s: got %v, want %v %s", what, err, k, code)
			}
		}
		_, err := r.reg.PutDevice(ctx, entry("dev", thumb, ""), "")
		want("creating again", err, cradle.Conflict, "409: ErrorCode:DeviceAlreadyExists")
		d2 := r.put(entry("dev", thumb, thumb), d.ETag)
		if d2.ETag == d.ETag || d2.GenerationID != d.GenerationID {
			t.Errorf("updated %+v", d2)
		}
		_, err = r.reg.PutDevice(ctx, entry("dev", "", ""), d.ETag)
		want("stale If-Match", err, cradle.Conflict, "412: ErrorCode:PreconditionFailed")
		want("stale delete", r.reg.DeleteDevice(ctx, "dev", d.ETag), cradle.Conflict, "412: ErrorCode:PreconditionFailed")
		_, err = r.reg.PutDevice(ctx, entry("nobody", thumb, ""), iothub.AnyETag)
		want("updating nobody", err, cradle.NotFound, "404: ErrorCode:DeviceNotFound")
		_, err = r.reg.GetDevice(ctx, "nobody")
		want("reading nobody", err, cradle.NotFound, "404: ErrorCode:DeviceNotFound")
		want("deleting nobody", r.reg.DeleteDevice(ctx, "nobody", ""), cradle.NotFound, "404: ErrorCode:DeviceNotFound")
		bad := entry("bad", "xyz", "")
		_, err = r.reg.PutDevice(ctx, bad, "")
		want("bad thumbprint", err, cradle.Invalid, "64 hex digits")
		bad = entry("bad", thumb, "")
		bad.Authentication.Type = "password"
		_, err = r.reg.PutDevice(ctx, bad, "")
		want("type", err, cradle.Invalid, "is not known")
		bad = entry("bad", thumb, "")
		bad.Status = "maybe"
		_, err = r.reg.PutDevice(ctx, bad, "")
		want("status", err, cradle.Invalid, "neither enabled nor disabled")
		bad = entry("bad", thumb, "")
		bad.StatusReason = strings.Repeat("x", 100_000)
		_, err = r.reg.PutDevice(ctx, bad, "")
		want("too large", err, cradle.TooLarge, "413")
		_, err = r.reg.PutDevice(ctx, entry("a b", thumb, ""), "")
		want("bad id", err, cradle.Invalid, "is not allowed")

		// Odd ids survive the path; lists come in pages.
		ids := []cradle.DeviceID{"A#?%20+b", "dev", "x@y:z", "zz"}
		for _, id := range []cradle.DeviceID{ids[0], ids[2], ids[3]} {
			r.put(entry(id, thumb, ""), "")
			if d, err := r.reg.GetDevice(ctx, id); err != nil || d.DeviceID != id {
				t.Errorf("%s: got %+v %v", id, d, err)
			}
		}
		var got []cradle.DeviceID
		for next, pages := "", 0; pages == 0 || next != ""; pages++ {
			var page []iothub.Device
			page, next, err = r.reg.ListDevices(ctx, next, 3)
			if err != nil || pages > 3 {
				t.Fatalf("page %d: %v", pages, err)
			}
			for _, d := range page {
				got = append(got, d.DeviceID)
			}
		}
		if !slices.Equal(got, ids) {
			t.Errorf("got %q, want %q", got, ids)
		}
		if err := r.reg.DeleteDevice(ctx, "dev", d2.ETag); err != nil {
			t.Error(err)
		}
	})
}

// request sends a bare request, as a foreign service SDK would.
func (r *rig) request(method, path, auth, body string, header ...string) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.reg.BaseURL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.reg.HTTP.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b)
}

// TestForeignService sends what azure-iothub was seen to send: sr unencoded, If-Match "*" in quotes, trailing slash.
func TestForeignService(t *testing.T) {
	r := newRig(t, sqlite(t))
	host := strings.TrimPrefix(r.reg.BaseURL, "https://")
	auth := sas.Sign(host, r.reg.KeyName, r.reg.Key, time.Now().Add(time.Hour))
	const v = "?api-version=2021-04-12"
	body := `{"deviceId":"dev","status":"enabled","authentication":{"type":"selfSigned","symmetricKey":{"primaryKey":null},
		"x509Thumbprint":{"primaryThumbprint":"` + strings.Repeat("A", 40) + `","secondaryThumbprint":null}},"capabilities":{"iotEdge":false}}`
	code, h, out := r.request("PUT", "/devices/dev"+v, auth, body)
	var d iothub.Device
	if err := json.Unmarshal([]byte(out), &d); code != 200 || err != nil || h.Get("ETag") != `"`+d.ETag+`"` {
		t.Fatalf("create: %d %v %s %v", code, h, out, err)
	}
	if code, _, out := r.request("PUT", "/devices/dev"+v, auth, body, "If-Match", `"*"`); code != 200 {
		t.Errorf("update: %d %s", code, out)
	}
	if code, _, out := r.request("GET", "/devices/"+v, auth, ""); code != 200 || !strings.HasPrefix(out, `[{"deviceId":"dev"`) {
		t.Errorf("list: %d %s", code, out)
	}
	if code, _, out := r.request("GET", "/devices/dev/modules"+v, auth, ""); code != 200 || out != "[]" {
		t.Errorf("modules: %d %s", code, out)
	}
	if code, _, out := r.request("DELETE", "/devices/dev"+v, auth, "", "If-Match", `"*"`); code != 204 {
		t.Errorf("delete: %d %s", code, out)
	}
	code, h, out = r.request("GET", "/devices/dev"+v, auth, "")
	var e iothub.Error
	if err := json.Unmarshal([]byte(out), &e); code != 404 || err != nil || e.Code() != iothub.CodeDeviceNotFound ||
		!strings.HasPrefix(e.ExceptionMessage, "Tracking ID:") || h.Get("iothub-errorcode") != iothub.CodeDeviceNotFound {
		t.Errorf("not found: %d %v %s", code, h, out)
	}
	for _, c := range []struct {
		path, auth string
		code       int
	}{
		{"/devices/dev", "", 401},
		{"/devices/dev", "Bearer x", 401},
		{"/devices/dev", sas.Sign(host, r.reg.KeyName, []byte("wrong"), time.Now().Add(time.Hour)), 401},
		{"/devices/dev", sas.Sign(host, r.reg.KeyName, r.reg.Key, time.Now().Add(-time.Hour)), 401},
		{"/devices/dev", sas.Sign(host, "nobody", r.reg.Key, time.Now().Add(time.Hour)), 401},
		{"/devices/dev", sas.Sign("other-host", r.reg.KeyName, r.reg.Key, time.Now().Add(time.Hour)), 401},
		{"/devices/dev", sas.Sign(host+"/devices/other", r.reg.KeyName, r.reg.Key, time.Now().Add(time.Hour)), 401},
		{"/devices/dev", sas.Sign(host+"/devices/dev", r.reg.KeyName, r.reg.Key, time.Now().Add(time.Hour)), 404},
		{"/devices/dev?hub=hub-9", auth, 404},
		{"/twins/dev", auth, 404},
		{"/devices?top=0", auth, 400},
		{"/events?from=x", auth, 400},
	} {
		if code, _, out := r.request("GET", c.path, c.auth, ""); code != c.code || !strings.Contains(out, "ErrorCode:") {
			t.Errorf("%s %.60s: got %d %s, want %d", c.path, c.auth, code, out, c.code)
		}
	}
	for path, body := range map[string]string{"/devices/dev": `{"deviceId":"other"}`, "/devices/x": `{"deviceId":`} {
		if code, _, out := r.request("PUT", path, auth, body); code != 400 {
			t.Errorf("PUT %s %s: got %d %s", path, body, code, out)
		}
	}
}

func TestPolicies(t *testing.T) {
	r := newRig(t, sqlite(t))
	for policy, want := range map[string][3]cradle.Kind{ // read, write, events; -1 allowed
		hub.Owner:           {-1, -1, -1},
		"registryReadWrite": {-1, -1, cradle.Unauthorized},
		"registryRead":      {-1, cradle.Unauthorized, cradle.Unauthorized},
		"service":           {cradle.Unauthorized, cradle.Unauthorized, -1},
		"device":            {cradle.Unauthorized, cradle.Unauthorized, cradle.Unauthorized},
	} {
		cs, err := r.hub.ConnectionString(t.Context(), hub.DefaultName, strings.TrimPrefix(r.reg.BaseURL, "https://"), policy)
		if err != nil {
			t.Fatal(err)
		}
		reg := iothub.NewRegistry(r.reg.HTTP, cs)
		_, _, err1 := reg.ListDevices(t.Context(), "", 0)
		_, err2 := reg.PutDevice(t.Context(), entry(cradle.DeviceID(policy), "", ""), "")
		err3 := reg.Events(t.Context(), iothub.EventQuery{}, func(*iothub.Event) error { return nil })
		for i, err := range []error{err1, err2, err3} {
			if (want[i] < 0) != (err == nil) || err != nil && cradle.KindOf(err) != want[i] {
				t.Errorf("%s %d: got %v, want %v", policy, i, err, want[i])
			}
		}
	}
}

// TestHubs: several hubs share one listener, each with its own devices, keys and events.
func TestHubs(t *testing.T) {
	r := newRig(t, sqlite(t))
	if err := r.hub.Create(t.Context(), "hub-2"); err != nil {
		t.Fatal(err)
	}
	cs, err := r.hub.ConnectionString(t.Context(), "hub-2", strings.TrimPrefix(r.reg.BaseURL, "https://"), hub.Owner)
	if err != nil {
		t.Fatal(err)
	}
	reg2 := iothub.NewRegistry(r.reg.HTTP, cs)
	reg2.Hub = "hub-2"
	i := r.register("dev")
	if _, err := reg2.GetDevice(t.Context(), "dev"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("hub-2 knows hub-1's device: %v", err)
	}
	reg2.Hub = "hub-1"
	if _, err := reg2.GetDevice(t.Context(), "dev"); cradle.KindOf(err) != cradle.Unauthorized {
		t.Errorf("hub-2's key opens hub-1: %v", err)
	}
	for host, want := range map[string]hub.Name{"hub-2": "hub-2", "hub-2.example.com:8883": "hub-2", "HUB-1.example.com": "hub-1", "localhost:8443": "hub-1", "127.0.0.1": "hub-1", "[::1]:8883": "hub-1"} {
		if got, err := r.hub.Resolve(t.Context(), host, "hub-1"); err != nil || got != want {
			t.Errorf("%s: got %s %v, want %s", host, got, err, want)
		}
	}
	r.mustConnect(i)
}

func TestFollow(t *testing.T) {
	r := newRig(t, sqlite(t))
	c := r.mustConnect(r.register("dev"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan int64, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- r.reg.Events(ctx, iothub.EventQuery{Follow: true}, func(e *iothub.Event) error { got <- *e.Sequence; return nil })
	}()
	for i := range 20 {
		if err := c.say(ctx, fmt.Sprint(i), "{}"); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s != int64(i) {
			t.Fatalf("got %d, want %d", s, i)
		}
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the stream ended without an error")
	}
	n := 0
	if err := r.reg.Events(t.Context(), iothub.EventQuery{From: "5", Limit: 3, Follow: true}, func(*iothub.Event) error { n++; return nil }); err != nil || n != 3 {
		t.Errorf("limit: got %d %v", n, err)
	}
}
