package hubserver_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// service is a service SDK: bare requests with a policy's token.
type service struct {
	*rig
	auth string
}

func (r *rig) service() *service {
	host := strings.TrimPrefix(r.reg.BaseURL, "https://")
	return &service{r, sas.Sign(host, r.reg.KeyName, r.reg.Key, time.Now().Add(time.Hour))}
}

// call sends a request and decodes the answer into out, if there is one to decode.
func (s *service) call(method, path, body string, out any, header ...string) (int, string) {
	s.t.Helper()
	code, _, text := s.request(method, path+"?api-version=2021-04-12", s.auth, body, header...)
	if out != nil && code < 300 {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			s.t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return code, text
}

// TestAuthenticationTypes: keys are made where none are given, shown to who may read the registry, and stay when an
// update gives none.
func TestAuthenticationTypes(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := newRig(t, url).service()
		var d iothub.Device
		// As azure-iothub sends it, and with its Device class' count, which is a string.
		if code, text := s.call("PUT", "/devices/k", `{"deviceId":"k","cloudToDeviceMessageCount":"0","etag":null,"authentication":{"type":"sas","symmetricKey":{"primaryKey":"","secondaryKey":""}}}`, &d); code != 200 {
			t.Fatalf("got %d %s", code, text)
		}
		k := d.Authentication.SymmetricKey
		if d.Authentication.Type != iothub.SAS || len(k.PrimaryKey) != 44 || len(k.SecondaryKey) != 44 || k.PrimaryKey == k.SecondaryKey {
			t.Errorf("made %d and %d characters of keys", len(k.PrimaryKey), len(k.SecondaryKey))
		}
		var again iothub.Device
		s.call("PUT", "/devices/k", `{"deviceId":"k","status":"disabled"}`, nil, "If-Match", `"*"`)
		s.call("GET", "/devices/k", "", &again)
		if again.Authentication != d.Authentication || again.Status != iothub.Disabled {
			t.Errorf("after an update without keys: type %s, same keys %v", again.Authentication.Type, again.Authentication.SymmetricKey == k)
		}
		s.call("PUT", "/devices/k", `{"deviceId":"k","authentication":{"type":"certificateAuthority"}}`, nil, "If-Match", `"*"`)
		_, text := s.call("GET", "/devices/k", "", &again)
		if again.Authentication.Type != iothub.CertificateAuthority || !strings.Contains(text, `"symmetricKey":{"primaryKey":null,"secondaryKey":null},"x509Thumbprint":{"primaryThumbprint":null,`) {
			t.Errorf("got %s", text)
		}
		if strings.Contains(s.logs.String(), k.PrimaryKey) {
			t.Error("a key is in the log")
		}
	})
}

func TestModulesREST(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := newRig(t, url).service()
		if code, text := s.call("PUT", "/devices/edge", `{"deviceId":"edge","capabilities":{"iotEdge":true}}`, nil); code != 200 || !strings.Contains(text, `"deviceScope":"ms-azure-iot-edge://edge-`) {
			t.Fatalf("got %d %s", code, text)
		}
		var ms []iothub.Module
		s.call("GET", "/devices/edge/modules", "", &ms)
		if len(ms) != 2 || ms[0].ModuleID != iothub.EdgeAgent || ms[1].ModuleID != iothub.EdgeHub || ms[0].Authentication.SymmetricKey.PrimaryKey == "" {
			t.Errorf("an edge device has %d modules", len(ms))
		}
		const path = "/devices/edge/modules/$m%20x"
		for _, c := range []struct {
			method, path, body string
			header             []string
			code               int
			has                string
		}{
			{"PUT", "/devices/edge/modules/m", `{"moduleId":"m","deviceId":"edge","managedBy":"me"}`, nil, 200, `"managedBy":"me"`},
			{"PUT", "/devices/edge/modules/m", `{"moduleId":"m","deviceId":"edge"}`, nil, 409, "ErrorCode:ModuleAlreadyExistsOnDevice"},
			{"PUT", "/devices/edge/modules/m", `{"moduleId":"m","deviceId":"edge"}`, []string{"If-Match", "*"}, 200, `"etag"`},
			{"PUT", "/devices/edge/modules/m", `{"moduleId":"m","deviceId":"edge"}`, []string{"If-Match", `"stale"`}, 412, "ErrorCode:PreconditionFailed"},
			{"PUT", "/devices/edge/modules/n", `{"moduleId":"n","deviceId":"edge"}`, []string{"If-Match", `"*"`}, 404, "ErrorCode:ModuleNotFound"},
			{"PUT", "/devices/none/modules/m", `{"moduleId":"m","deviceId":"none"}`, nil, 404, "ErrorCode:DeviceNotFound"},
			{"PUT", "/devices/edge/modules/m", `{"moduleId":"o","deviceId":"edge"}`, nil, 400, "is not that of the path"},
			{"PUT", path, `{"moduleId":"$m x","deviceId":"edge"}`, nil, 400, "not allowed"},
			{"GET", "/devices/edge/modules/m", "", nil, 200, `"moduleId":"m"`},
			{"GET", "/devices/edge/modules/n", "", nil, 404, "ErrorCode:ModuleNotFound"},
			{"GET", "/devices/none/modules", "", nil, 404, "ErrorCode:DeviceNotFound"},
			{"DELETE", "/devices/edge/modules/m", "", []string{"If-Match", `"stale"`}, 412, "ErrorCode:PreconditionFailed"},
			{"DELETE", "/devices/edge/modules/m", "", []string{"If-Match", "*"}, 204, ""},
			{"DELETE", "/devices/edge/modules/m", "", nil, 404, "ErrorCode:ModuleNotFound"},
			{"DELETE", "/devices/edge", "", nil, 204, ""},
			{"GET", "/devices/edge/modules/$edgeAgent", "", nil, 404, "ErrorCode:ModuleNotFound"},
		} {
			if code, text := s.call(c.method, c.path, c.body, nil, c.header...); code != c.code || !strings.Contains(text, c.has) {
				t.Errorf("%s %s %v: got %d %s, want %d %s", c.method, c.path, c.header, code, text, c.code, c.has)
			}
		}
	})
}

// TestBulk: each entry by itself, as azure-iothub sends them.
func TestBulk(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := newRig(t, url).service()
		entries := func(mode string, n int, extra string) string {
			var out []string
			for i := range n {
				out = append(out, fmt.Sprintf(`{"id":"d%d","importMode":%q%s}`, i, mode, extra))
			}
			return "[" + strings.Join(out, ",") + "]"
		}
		bulk := func(body string) (int, iothub.BulkResult) {
			var out iothub.BulkResult
			code, text := s.call("POST", "/devices", body, nil)
			if strings.HasPrefix(text, `{"isSuccessful"`) {
				if err := json.Unmarshal([]byte(text), &out); err != nil {
					t.Fatal(err)
				}
			}
			return code, out
		}
		if code, out := bulk(entries("create", 100, `,"authentication":{"type":"sas"}`)); code != 200 || !out.IsSuccessful || out.Errors == nil {
			t.Fatalf("create: %d %+v", code, out)
		}
		if code, out := bulk(entries("create", 1, "")); code != 400 || len(out.Errors) != 1 || out.Errors[0].ErrorCode != iothub.CodeDeviceAlreadyExists || out.Errors[0].DeviceID != "d0" {
			t.Errorf("create again: %d %+v", code, out)
		}
		if code, out := bulk(entries("Update", 100, `,"status":"disabled"`)); code != 200 || !out.IsSuccessful {
			t.Errorf("update: %d %+v", code, out)
		}
		var st iothub.RegistryStatistics
		if s.call("GET", "/statistics/devices", "", &st); st != (iothub.RegistryStatistics{TotalDeviceCount: 100, DisabledDeviceCount: 100}) {
			t.Errorf("statistics %+v", st)
		}
		if code, out := bulk(entries("UpdateIfMatchETag", 1, `,"eTag":"stale"`)); code != 400 || out.Errors[0].ErrorCode != iothub.CodePreconditionFailed {
			t.Errorf("stale update: %d %+v", code, out)
		}
		var d iothub.Device
		s.call("GET", "/devices/d0", "", &d)
		if code, out := bulk(entries("DeleteIfMatchETag", 1, fmt.Sprintf(`,"eTag":%q`, d.ETag))); code != 200 {
			t.Errorf("delete with the etag: %d %+v", code, out)
		}
		// One refusal does not hold up the others; the order of one device's entries holds.
		code, out := bulk(`[{"id":"d0","importMode":"createOrUpdate"},{"id":"d1","importMode":"createOrUpdate","status":"enabled"},{"id":"a b"},{"id":"d2","importMode":"what"},
			{"id":"d0","moduleId":"m","importMode":"create"},{"id":"d0","moduleId":"m","importMode":"create"},{"id":"d3","importMode":"updateIfMatchETag"}]`)
		codes := ""
		for _, e := range out.Errors {
			codes += fmt.Sprintf("%s/%s %s;", e.DeviceID, e.ModuleID, e.ErrorCode)
		}
		if code != 400 || out.IsSuccessful || codes != "a b/ ArgumentInvalid;d2/ ArgumentInvalid;d0/m ModuleAlreadyExistsOnDevice;d3/ ArgumentInvalid;" {
			t.Errorf("mixed: %d %s", code, codes)
		}
		if s.call("GET", "/devices/d1", "", &d); d.Status != iothub.Enabled {
			t.Errorf("d1 is %s", d.Status)
		}
		if code, out := bulk(entries("Delete", 100, "")); code != 200 {
			t.Errorf("delete: %d %+v", code, out)
		}
		for _, body := range []string{"[]", entries("create", 101, ""), "{}", `[{"id":1}]`, "[] []"} {
			if code, out := bulk(body); code != 400 || out.Errors != nil {
				t.Errorf("%.40s: %d %+v", body, code, out)
			}
		}
		if ds, _, err := s.reg.ListDevices(t.Context(), "", 0); err != nil || len(ds) != 0 {
			t.Errorf("left: %v %v", ds, err)
		}
	})
}

func TestUnserved(t *testing.T) {
	s := newRig(t, sqlite(t)).service()
	for _, c := range []struct {
		method, path string
		code         int
		has          string
	}{
		{"GET", "/configurations", 200, "[]"},
		{"GET", "/jobs", 200, "[]"},
		{"PUT", "/configurations/c", 400, "does not serve automatic device management"},
		{"POST", "/jobs/create", 400, "does not serve jobs"},
		{"GET", "/jobs/v2/query", 400, "does not serve jobs"},
		{"POST", "/devices/d/applyConfigurationContent", 400, "does not serve applying"},
		{"GET", "/digitaltwins/d", 400, "does not serve Digital Twins"},
		{"GET", "/statistics/service", 200, `{"connectedDeviceCount":0}`},
		{"GET", "/what", 404, "is not served here"},
	} {
		if code, text := s.call(c.method, c.path, "{}", nil); code != c.code || !strings.Contains(text, c.has) {
			t.Errorf("%s %s: got %d %s", c.method, c.path, code, text)
		}
	}
	s.auth = ""
	if code, _ := s.call("GET", "/jobs", "", nil); code != 401 {
		t.Errorf("without authorization: %d", code)
	}
}

func TestConnectedCount(t *testing.T) {
	r := newRig(t, sqlite(t))
	r.mustConnect(r.register("dev"))
	if err := r.hub.Create(t.Context(), "hub-2"); err != nil {
		t.Fatal(err)
	}
	for h, want := range map[hub.Name]int64{hub.DefaultName: 1, "hub-2": 0} {
		if n := r.hub.ConnectedTo(h); n != want {
			t.Errorf("%s: %d are connected", h, n)
		}
	}
	if _, err := r.hub.Statistics(t.Context(), "hub-9"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("statistics of no hub: %v", err)
	}
}

func TestWaitingCount(t *testing.T) {
	s := newRig(t, sqlite(t)).service()
	s.call("PUT", "/devices/d", `{"deviceId":"d"}`, nil)
	for range 2 {
		if code, text := s.call("POST", "/devices/d/messages/devicebound", "hello", nil); code/100 != 2 {
			t.Fatalf("sending: %d %s", code, text)
		}
	}
	var d iothub.Device
	if s.call("GET", "/devices/d", "", &d); d.CloudToDeviceMessageCount != 2 {
		t.Errorf("%d messages wait", d.CloudToDeviceMessageCount)
	}
}
