package iothub_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
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
