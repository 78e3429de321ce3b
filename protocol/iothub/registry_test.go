package iothub_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// A write counts when a hub has answered, and not something else in its place.
func TestWriteDevice(t *testing.T) {
	const written cradle.Kind = -1
	for name, c := range map[string]struct {
		status int
		kind   string
		want   cradle.Kind
	}{
		"written":      {200, "application/json; charset=utf-8", written},
		"created":      {201, "application/json", written},
		"a web page":   {200, "text/html", cradle.Busy},
		"no content":   {204, "", cradle.Busy},
		"exists":       {409, "application/json", cradle.Conflict},
		"etag moved":   {412, "application/json", cradle.Conflict},
		"not there":    {404, "application/json", cradle.NotFound},
		"out of order": {503, "text/html", cradle.Busy},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var d iothub.Device
				if err := json.NewDecoder(r.Body).Decode(&d); err != nil || r.Method != "PUT" || r.URL.Path != "/devices/dev" || r.Header.Get("If-Match") != `"t"` || d.DeviceID != "dev" {
					t.Errorf("%s %s %v %+v %v", r.Method, r.URL, r.Header, d, err)
				}
				w.Header()["Content-Type"] = nil
				if c.kind != "" {
					w.Header().Set("Content-Type", c.kind)
				}
				w.WriteHeader(c.status)
				if c.status != 204 {
					w.Write([]byte("{}"))
				}
			}))
			defer s.Close()
			reg := iothub.NewRegistry(s.Client(), &sas.ConnectionString{HostName: "hub.example", KeyName: "iothubowner", Key: []byte("key")})
			reg.BaseURL = s.URL
			err := reg.WriteDevice(t.Context(), &iothub.Device{DeviceID: "dev"}, "t")
			if c.want == written && err != nil || c.want != written && cradle.KindOf(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// Slots and keys that are free are null, as Azure has them; whatever stands in one comes back as it was.
func TestSlots(t *testing.T) {
	for _, c := range []struct {
		primary, secondary, want string
	}{
		{"", "", `{"primaryThumbprint":null,"secondaryThumbprint":null}`},
		{"AB", "", `{"primaryThumbprint":"AB","secondaryThumbprint":null}`},
		{"", "cd", `{"primaryThumbprint":null,"secondaryThumbprint":"cd"}`},
		{`"\` + "\n", "ü", `{"primaryThumbprint":"\"\\\n","secondaryThumbprint":"ü"}`},
	} {
		in := iothub.X509Thumbprint{PrimaryThumbprint: c.primary, SecondaryThumbprint: c.secondary}
		b, err := json.Marshal(in)
		if err != nil || string(b) != c.want {
			t.Errorf("got %s %v, want %s", b, err, c.want)
		}
		var out iothub.X509Thumbprint
		if err := json.Unmarshal(b, &out); err != nil || out != in {
			t.Errorf("got %+v %v, want %+v", out, err, in)
		}
		k := iothub.SymmetricKey{PrimaryKey: c.primary, SecondaryKey: c.secondary}
		b, err = json.Marshal(k)
		var back iothub.SymmetricKey
		if err != nil || json.Unmarshal(b, &back) != nil || back != k || !strings.HasPrefix(string(b), `{"primaryKey":`) || !strings.Contains(string(b), `,"secondaryKey":`) {
			t.Errorf("got %s %v", b, err)
		}
	}
}
