package hubserver_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// ask runs a query page by page, as azure-iothub does, and returns its lines and how many pages they came in.
func (s *service) ask(text string, max int) (lines []json.RawMessage, pages int) {
	s.t.Helper()
	for next := ""; ; {
		header := []string{"Content-Type", "application/json; charset=utf-8"}
		if max > 0 {
			header = append(header, iothub.MaxItemsHeader, fmt.Sprint(max))
		}
		if next != "" {
			header = append(header, iothub.ContinuationHeader, next)
		}
		body, _ := json.Marshal(map[string]string{"query": text})
		code, h, out := s.request("POST", "/devices/query?api-version=2021-04-12", s.auth, string(body), header...)
		if code != 200 {
			s.t.Fatalf("%s: %d %s", text, code, out)
		}
		var page []json.RawMessage
		if err := json.Unmarshal([]byte(out), &page); err != nil {
			s.t.Fatal(err)
		}
		if want := map[bool]string{true: "Twin", false: "raw"}[strings.HasPrefix(text, "SELECT *")]; h.Get(iothub.ItemTypeHeader) != want {
			s.t.Errorf("%s: item type %q", text, h.Get(iothub.ItemTypeHeader))
		}
		lines = append(lines, page...)
		pages++
		if next = h.Get(iothub.ContinuationHeader); next == "" {
			return lines, pages
		}
	}
}

// ids are the devices of an answer's lines, with their modules.
func ids(t *testing.T, lines []json.RawMessage) string {
	t.Helper()
	var out []string
	for _, l := range lines {
		var w struct{ DeviceID, ModuleID string }
		if err := json.Unmarshal(l, &w); err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSuffix(w.DeviceID+"/"+w.ModuleID, "/"))
	}
	return strings.Join(out, " ")
}

func TestQuery(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		s := r.service()
		// Seven devices in one request, with tags and desired properties.
		var entries []string
		for i := range 7 {
			entries = append(entries, fmt.Sprintf(`{"id":"d%d","importMode":"create","status":%q,"tags":{"region":%q,"n":%d},"properties":{"desired":{"x":{"y":%d}}}}`,
				i, []string{"enabled", "disabled"}[i%2], []string{"eu", "us", "ap"}[i%3], i, i*i))
		}
		entries = append(entries, `{"id":"e","importMode":"create","capabilities":{"iotEdge":true}}`, `{"id":"e","moduleId":"m","importMode":"create","tags":{"n":1}}`)
		if code, text := s.call("POST", "/devices", "["+strings.Join(entries, ",")+"]", nil); code != 200 {
			t.Fatalf("bulk: %d %s", code, text)
		}
		for q, want := range map[string]string{
			"SELECT * FROM devices":                                                      "d0 d1 d2 d3 d4 d5 d6 e",
			"SELECT * FROM devices WHERE deviceId = 'd3'":                                "d3",
			"SELECT * FROM devices WHERE deviceId = ''":                                  "",
			"SELECT * FROM devices WHERE deviceId = 'd3' AND status = 'enabled'":         "",
			"SELECT * FROM devices WHERE status = 'disabled'":                            "d1 d3 d5",
			"SELECT * FROM devices WHERE status = 'what'":                                "",
			"SELECT * FROM devices WHERE tags.region IN ['eu', 'us'] AND tags.n >= 3":    "d3 d4 d6",
			"SELECT * FROM devices WHERE properties.desired.x.y > 8 AND NOT tags.n = 4":  "d3 d5 d6",
			"SELECT * FROM devices WHERE NOT is_defined(tags.region)":                    "e",
			"SELECT * FROM devices WHERE tags.region = null":                             "e",
			"SELECT * FROM devices WHERE capabilities.iotEdge = true":                    "e",
			"SELECT * FROM devices WHERE connectionState = 'Connected'":                  "",
			"SELECT * FROM devices WHERE properties.desired.$version = 2":                "d0 d1 d2 d3 d4 d5 d6",
			"SELECT * FROM devices WHERE STARTSWITH(deviceId, 'd') AND tags.n < 2":       "d0 d1",
			"SELECT deviceId FROM devices WHERE authenticationType = 'sas' AND tags.n=0": "d0",
			"SELECT * FROM devices.modules":                                              "e/$edgeAgent e/$edgeHub e/m",
			"SELECT * FROM devices.modules WHERE moduleId = 'm'":                         "e/m",
			"SELECT * FROM devices.modules WHERE deviceId = 'e' AND tags.n = 1":          "e/m",
			"SELECT deviceId, moduleId FROM devices.modules WHERE deviceId = 'd0'":       "",
		} {
			for _, max := range []int{0, 1, 3} {
				lines, pages := s.ask(q, max)
				if got := ids(t, lines); got != want {
					t.Errorf("%s by %d: got %s, want %s", q, max, got, want)
				}
				if max > 0 && pages < (len(lines)+max-1)/max {
					t.Errorf("%s: %d lines in %d pages of %d", q, len(lines), pages, max)
				}
			}
		}
		for q, want := range map[string]string{
			"SELECT COUNT() AS n FROM devices":                                                       `[{"n":8}]`,
			"SELECT COUNT() AS n FROM devices WHERE status = 'disabled'":                             `[{"n":3}]`,
			"SELECT status, COUNT() AS n FROM devices GROUP BY status":                               `[{"n":3,"status":"disabled"},{"n":5,"status":"enabled"}]`,
			"SELECT tags.region AS r, COUNT() AS n FROM devices WHERE tags.n>0 GROUP BY tags.region": `[{"n":2,"r":"ap"},{"n":2,"r":"eu"},{"n":2,"r":"us"}]`,
			"SELECT deviceId, tags.region, properties.desired.x.y FROM devices WHERE tags.n = 2":     `[{"deviceId":"d2","region":"ap","y":4}]`,
			"SELECT COUNT() AS n FROM devices.modules":                                               `[{"n":3}]`,
		} {
			lines, _ := s.ask(q, 0)
			if b, _ := json.Marshal(lines); string(b) != want {
				t.Errorf("%s: got %s, want %s", q, b, want)
			}
		}
		// A line of SELECT * is the twin as REST shows it.
		var one, line iothub.Twin
		s.call("GET", "/twins/d3", "", &one)
		lines, _ := s.ask("SELECT * FROM devices WHERE deviceId = 'd3'", 0)
		if err := json.Unmarshal(lines[0], &line); err != nil || string(line.Properties.Desired) != string(one.Properties.Desired) || line.ETag != one.ETag || line.Version != one.Version {
			t.Errorf("got %s %v, want %+v", lines[0], err, one)
		}
		// A page is not disturbed by what is written between: whoever was there all the time comes once.
		next := "SELECT deviceId FROM devices"
		_, h, _ := s.request("POST", "/devices/query", s.auth, fmt.Sprintf(`{"query":%q}`, next), iothub.MaxItemsHeader, "3")
		s.call("DELETE", "/devices/d2", "", nil)
		s.call("PUT", "/devices/d00", `{"deviceId":"d00"}`, nil)
		code, _, out := s.request("POST", "/devices/query", s.auth, fmt.Sprintf(`{"query":%q}`, next), iothub.ContinuationHeader, h.Get(iothub.ContinuationHeader))
		if want := `[{"deviceId":"d3"},{"deviceId":"d4"},{"deviceId":"d5"},{"deviceId":"d6"},{"deviceId":"e"}]`; code != 200 || out != want {
			t.Errorf("second page: %d %s, want %s", code, out, want)
		}
		// Refusals.
		for _, c := range []struct {
			body, has string
			header    []string
		}{
			{`{"query":"SELECT * FROM devices ORDER BY x"}`, "ORDER is not served", nil},
			{`{"query":"SELECT TOP 5 * FROM devices"}`, "at character 8: TOP is not served", nil},
			{`{"query":`, "not JSON as expected", nil},
			{`{}`, "expected SELECT", nil},
			{`{"query":"SELECT * FROM devices"}`, "not a number", []string{iothub.MaxItemsHeader, "many"}},
			{`{"query":"SELECT * FROM devices"}`, "not one of this hub's", []string{iothub.ContinuationHeader, "x"}},
			{`{"query":"SELECT * FROM devices"}`, "another query's", []string{iothub.ContinuationHeader, h.Get(iothub.ContinuationHeader)}},
		} {
			if code, text := s.call("POST", "/devices/query", c.body, nil, c.header...); code != 400 || !strings.Contains(text, "ErrorCode:ArgumentInvalid;") || !strings.Contains(text, c.has) {
				t.Errorf("%s %v: got %d %s", c.body, c.header, code, text)
			}
		}
	})
}

// TestBulkTwins: the modes that write twins.
func TestBulkTwins(t *testing.T) {
	s := newRig(t, sqlite(t)).service()
	s.call("POST", "/devices", `[{"id":"d","importMode":"create","tags":{"a":1}}]`, nil)
	var tw iothub.Twin
	s.call("GET", "/twins/d", "", &tw)
	if code, text := s.call("POST", "/devices", fmt.Sprintf(`[{"id":"d","importMode":"updateTwinIfMatchETag","twinETag":%q,"tags":{"b":2}}]`, tw.ETag), nil); code != 200 {
		t.Errorf("update: %d %s", code, text)
	}
	for body, has := range map[string]string{
		fmt.Sprintf(`[{"id":"d","importMode":"updateTwinIfMatchETag","twinETag":%q,"tags":{"b":3}}]`, tw.ETag): iothub.CodePreconditionFailed,
		`[{"id":"d","importMode":"updateTwinIfMatchETag","tags":{"b":3}}]`:                                     "needs a twinETag",
		`[{"id":"x","importMode":"updateTwin","tags":{"b":3}}]`:                                                iothub.CodeDeviceNotFound,
		`[{"id":"d","importMode":"updateTwin","tags":{"a.b":3}}]`:                                              iothub.CodeArgumentInvalid,
	} {
		if code, text := s.call("POST", "/devices", body, nil); code != 400 || !strings.Contains(text, has) {
			t.Errorf("%s: %d %s", body, code, text)
		}
	}
	s.call("GET", "/twins/d", "", &tw)
	var tags map[string]int
	if err := json.Unmarshal(tw.Tags, &tags); err != nil || len(tags) != 2 || tags["b"] != 2 {
		t.Errorf("tags %s %v", tw.Tags, err)
	}
	if ms := s.ids("/devices"); !slices.Equal(ms, []string{"d"}) {
		t.Errorf("devices %v", ms)
	}
}

func (s *service) ids(path string) (out []string) {
	var ds []iothub.Device
	s.call("GET", path, "", &ds)
	for _, d := range ds {
		out = append(out, string(d.DeviceID))
	}
	return out
}

// A body of another shape is refused in the words of the API, without a name of Go's.
func TestBodyRefused(t *testing.T) {
	s := newRig(t, sqlite(t)).service()
	for _, c := range [][3]string{
		{"/devices/query", `{"query":["SELECT"]}`, `\"query\" is an array, not a string`},
		{"/devices/query", `{"query":"SELECT`, `it ends before the value does`},
		{"/devices", `{"id":"x"}`, `it is an object, not an array`},
	} {
		if code, text := s.call("POST", c[0], c[1], nil); code != 400 || !strings.Contains(text, c[2]) || strings.Contains(text, "Go ") {
			t.Errorf("%s: %d %s, want %s", c[1], code, text, c[2])
		}
	}
}

// A path is what it says: none is cleaned, and none redirected, which devices would not follow.
func TestPathRefused(t *testing.T) {
	r := newRig(t, sqlite(t))
	for _, path := range []string{"/devices/..", "/devices/.", "/devices//x", "/devices/x/../y", "/twins/../devices"} {
		if status, _, out := r.asOwner("PUT", path, `{"deviceId":".."}`); status != 400 || !strings.Contains(out, "empty segment") {
			t.Errorf("%s: got %d %s", path, status, out)
		}
	}
	if status, _, out := r.asOwner("PUT", "/devices/%2E%2E", `{"deviceId":".."}`); status != 200 {
		t.Errorf("a device of that name: %d %s", status, out)
	}
}
