package hubserver_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// https sends a device's own request.
func (u *unit) https(method, path, body string, header ...string) (int, http.Header, string) {
	u.r.t.Helper()
	return u.r.request(method, path, sas.Sign(strings.TrimPrefix(u.r.reg.BaseURL, "https://")+strings.TrimPrefix(u.resource(), host), "", u.key, time.Now().Add(time.Hour)), body, header...)
}

func TestDeviceOverHTTPS(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		u, other := r.keyed("dev"), r.keyed("other")
		events, bound := "/devices/dev/messages/events?api-version=2021-04-12", "/devices/dev/messages/devicebound"
		if status, _, out := u.https("POST", events, `{"t":1}`, "iothub-app-Seq", "1", "iothub-messageid", "m", "iothub-contenttype", "application/json", "iothub-contentencoding", "utf-8"); status != 204 {
			t.Errorf("got %d %s", status, out)
		}
		batch := `[{"body":"aGk=","properties":{"iothub-app-k":"v","iothub-messageid":"b"}},{"body":"text","base64Encoded":false}]`
		if status, _, out := u.https("POST", events, batch, "Content-Type", "application/vnd.microsoft.iothub.json"); status != 204 {
			t.Errorf("batch: got %d %s", status, out)
		}
		m := r.module(u, "mod")
		if status, _, out := m.https("POST", "/devices/dev/modules/mod/messages/events", "m", "iothub-app-x", "y"); status != 204 {
			t.Errorf("module: got %d %s", status, out)
		}
		es := r.events("")
		if len(es) != 4 {
			t.Fatalf("got %d events", len(es))
		}
		if e := es[0]; string(e.Body) != `{"t":1}` || e.Props["seq"] != "1" || e.System["message_id"] != "m" || e.System["content_encoding"] != "utf-8" {
			t.Errorf("got %+v", e)
		}
		if b, _ := es[1].Bytes(); string(b) != "hi" || es[1].Props["k"] != "v" || es[1].System["message_id"] != "b" {
			t.Errorf("got %+v", es[1])
		}
		if b, _ := es[3].Bytes(); string(b) != "m" || es[3].System[iothub.PropModule] != "mod" || es[3].Device != "dev" {
			t.Errorf("got %+v", es[3])
		}
		for what, c := range map[string]struct {
			u            *unit
			method, path string
			body, kind   string
			want         int
		}{
			"another's key":         {other, "POST", events, "x", "", 401},
			"a module as device":    {m, "POST", events, "x", "", 401},
			"a device as module":    {u, "POST", "/devices/dev/modules/mod/messages/events", "x", "", 401},
			"no such device":        {u, "POST", "/devices/nobody/messages/events", "x", "", 401},
			"batch without base64":  {u, "POST", events, `[{"body":"?"}]`, "application/vnd.microsoft.iothub.json", 400},
			"empty batch":           {u, "POST", events, `[]`, "application/vnd.microsoft.iothub.json; charset=utf-8", 400},
			"too large":             {u, "POST", events, strings.Repeat("x", 600<<10), "", 413},
			"larger than a message": {u, "POST", events, strings.Repeat("x", 300<<10), "", 413},
			"the registry":          {u, "GET", "/devices/dev", "", "", 401},
			"another's modules":     {u, "GET", "/devices/other/modules", "", "", 401},
			"sending to itself":     {u, "POST", bound, "x", "", 401},
		} {
			if status, _, out := c.u.https(c.method, c.path, c.body, "Content-Type", c.kind); status != c.want {
				t.Errorf("%s: got %d %s", what, status, out)
			}
		}
		if status, _, _ := r.request("POST", events, "", "x"); status != 401 {
			t.Errorf("no token: got %d", status)
		}
		if got := len(r.events("")); got != 4 {
			t.Errorf("refused requests left %d events", got)
		}
		// Its own module identities, as IoT Identity Service asks for them.
		if status, _, out := u.https("GET", "/devices/dev/modules?api-version=2017-11-08-preview", ""); status != 200 || !strings.Contains(out, `"moduleId":"mod"`) {
			t.Errorf("modules: got %d %s", status, out)
		}
		if status, _, out := u.https("PUT", "/devices/dev/modules/own", `{"moduleId":"own","deviceId":"dev","authentication":{"type":"sas"}}`); status/100 != 2 {
			t.Errorf("own module: got %d %s", status, out)
		}

		// Messages to the device: taken, abandoned, taken again, completed.
		if status, _, _ := u.https("GET", bound, ""); status != 204 {
			t.Errorf("empty queue: got %d", status)
		}
		r.send("dev", "one", "iothub-app-key", "v", "iothub-messageid", "id-1")
		r.send("dev", "two")
		status, h, body := u.https("GET", bound, "")
		if status != 200 || body != "one" || h.Get("iothub-messageid") != "id-1" || h.Get("iothub-app-key") != "v" || h.Get("iothub-deliverycount") != "1" || h.Get("iothub-to") != "/devices/dev/messages/devicebound" {
			t.Fatalf("got %d %v %s", status, h, body)
		}
		lock := strings.Trim(h.Get("ETag"), `"`)
		if _, _, body := u.https("GET", bound, ""); body != "two" {
			t.Errorf("while the first is locked: got %q", body)
		}
		if status, _, _ := other.https("DELETE", "/devices/other/messages/devicebound/"+lock, ""); status != 412 {
			t.Errorf("another device's lock: got %d", status)
		}
		if status, _, out := u.https("POST", bound+"/"+lock+"/abandon", ""); status != 204 {
			t.Errorf("abandon: got %d %s", status, out)
		}
		_, h, body = u.https("GET", bound, "")
		if body != "one" || h.Get("iothub-deliverycount") != "2" {
			t.Errorf("abandoned: got %v %s", h, body)
		}
		if status, _, out := u.https("DELETE", bound+"/"+lock, ""); status != 412 || !strings.Contains(out, "DeviceMessageLockLost") {
			t.Errorf("the old lock: got %d %s", status, out)
		}
		if status, _, _ := u.https("DELETE", bound+"/"+strings.Trim(h.Get("ETag"), `"`)+"?reject", ""); status != 204 {
			t.Errorf("reject: got %d", status)
		}
		r.waiting("dev", 1)
		r.skew.Store(int64(2 * iothub.C2DLock)) // the other lock ends
		if _, _, body := u.https("GET", bound, ""); body != "two" {
			t.Errorf("after the lock: got %q", body)
		}
	})
}

// postBy sends telemetry over HTTPS with a TLS client certificate; it returns the status.
func (r *rig) postBy(i ident, path string) int {
	r.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots, Certificates: []tls.Certificate{i.cert}}}}
	defer c.CloseIdleConnections()
	resp, err := c.Post(r.reg.BaseURL+path, "", strings.NewReader("x"))
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestCertificateOverHTTPS: the TLS client certificate does as well as a token.
func TestCertificateOverHTTPS(t *testing.T) {
	r := newRig(t, sqlite(t))
	i := r.register("dev")
	if got := r.postBy(i, "/devices/dev/messages/events"); got != 204 {
		t.Errorf("got %d", got)
	}
	if got := r.postBy(newIdent(t, "dev"), "/devices/dev/messages/events"); got != 401 {
		t.Errorf("another certificate: got %d", got)
	}
	if got := len(r.events("")); got != 1 {
		t.Errorf("%d events", got)
	}
}
