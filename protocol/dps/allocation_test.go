package dps_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
)

func TestWebhookSignature(t *testing.T) {
	key, body, now := []byte("k1"), []byte(`{"a":1}`), time.Unix(1_800_000_000, 0)
	good := dps.SignWebhook(key, body, now)
	// A vector for receivers in other languages; docs/operating/provisioning.md shows it.
	if want := "t=1800000000,v1=769f1f5057b47f23080703d648baca9b02b57520fe6793ef40708d8c77c885f8"; good != want {
		t.Errorf("signature %s, want %s", good, want)
	}
	if err := dps.VerifyWebhook(key, good, body, now.Add(4*time.Minute)); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		key    string
		header string
		body   string
		at     time.Time
	}{
		"other key":  {"k2", good, `{"a":1}`, now},
		"other body": {"k1", good, `{"a":2}`, now},
		"late":       {"k1", good, `{"a":1}`, now.Add(6 * time.Minute)},
		"early":      {"k1", good, `{"a":1}`, now.Add(-6 * time.Minute)},
		"other time": {"k1", strings.Replace(good, "t=18", "t=19", 1), `{"a":1}`, time.Unix(1_900_000_000, 0)},
		"none":       {"k1", "", `{"a":1}`, now},
		"no mac":     {"k1", "t=1800000000,v1=", `{"a":1}`, now},
		"no time":    {"k1", "t=,v1=00", `{"a":1}`, now},
		"cut":        {"k1", good[:len(good)-2], `{"a":1}`, now},
	} {
		if err := dps.VerifyWebhook([]byte(c.key), c.header, []byte(c.body), c.at); cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a webhook may do to us.
func TestWebhookAttacks(t *testing.T) {
	followed := false
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		followed = true
		io.WriteString(w, `{"iotHubHostName":"hub-1"}`)
	}))
	defer elsewhere.Close()
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter)
		kind   cradle.Kind
		text   string
	}{
		{"redirect", func(w http.ResponseWriter) { w.Header().Set("Location", elsewhere.URL); w.WriteHeader(307) }, cradle.Invalid, "redirects"},
		{"refusal", func(w http.ResponseWriter) { w.WriteHeader(403) }, cradle.Forbidden, "refuses the device"},
		{"throttled", func(w http.ResponseWriter) { w.Header().Set("Retry-After", "7"); w.WriteHeader(429) }, cradle.Busy, "429"},
		{"broken", func(w http.ResponseWriter) { w.WriteHeader(500) }, cradle.Busy, "500"},
		{"huge", func(w http.ResponseWriter) {
			io.WriteString(w, `{"iotHubHostName":"hub-1","payload":"`+strings.Repeat("x", 100<<10)+`"}`)
		}, cradle.Invalid, "more than"},
		{"not JSON", func(w http.ResponseWriter) { io.WriteString(w, `<html>`) }, cradle.Invalid, "not an allocation"},
		{"wrong type", func(w http.ResponseWriter) { io.WriteString(w, `{"iotHubHostName":["hub-1"]}`) }, cradle.Invalid, "not an allocation"},
		{"an array", func(w http.ResponseWriter) { io.WriteString(w, `[]`) }, cradle.Invalid, "not an allocation"},
		{"no hub", func(w http.ResponseWriter) { io.WriteString(w, `{"payload":{}}`) }, cradle.Invalid, "names no hub"},
		{"empty", func(w http.ResponseWriter) {}, cradle.Invalid, "not an allocation"},
		{"slow", func(w http.ResponseWriter) { time.Sleep(300 * time.Millisecond) }, cradle.Busy, "does not answer"},
	} {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.answer(w) }))
		hook := &dps.Webhook{Transport: s.Client().Transport, Timeout: 100 * time.Millisecond}
		if c.name != "slow" {
			hook.Timeout = time.Minute
		}
		_, err := hook.Ask(t.Context(), s.URL+"/x?code=secret", []byte("k"), &dps.AllocationRequest{})
		if cradle.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v (%v), want %v with %q", c.name, err, cradle.KindOf(err), c.kind, c.text)
		}
		s.Close()
	}
	if followed {
		t.Error("a redirect was followed")
	}
	for _, u := range []string{"http://h/x", "https:///x", "https://u:p@h/x", "https://h/x#f", "ftp://h", "", "https:h", "https://" + strings.Repeat("h", 3000)} {
		if _, err := new(dps.Webhook).Ask(t.Context(), u, nil, &dps.AllocationRequest{}); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%.30q: %v", u, err)
		}
	}
}

func TestWebhookAsks(t *testing.T) {
	key := []byte("k")
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if err := dps.VerifyWebhook(key, r.Header.Get(dps.SignatureHeader), b, time.Now()); err != nil || r.Method != "POST" {
			t.Errorf("%s: %v", r.Method, err)
		}
		var q map[string]any
		if err := json.Unmarshal(b, &q); err != nil || q["linkedHubs"].([]any)[0] != "hub-1" {
			t.Errorf("%v %v", q, err)
		}
		io.WriteString(w, `{"iotHubHostName":"hub-1","initialTwin":null,"payload":{"a":1},"more":2}`)
	}))
	defer s.Close()
	hook := &dps.Webhook{Transport: s.Client().Transport}
	a, err := hook.Ask(t.Context(), s.URL, key, &dps.AllocationRequest{LinkedHubs: []string{"hub-1"}})
	if err != nil || a.IotHubHostName != "hub-1" || a.InitialTwin != nil || string(a.Payload) != `{"a":1}` {
		t.Errorf("%+v %v", a, err)
	}
}

func FuzzAllocationResponse(f *testing.F) {
	f.Add([]byte(`{"iotHubHostName":"h","initialTwin":{"tags":{}},"payload":[1]}`))
	f.Add([]byte(`{"iotHubHostName":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := dps.ParseAllocationResponse(b)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Errorf("%v", err)
			}
			return
		}
		out, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := dps.ParseAllocationResponse(out); err != nil || again.IotHubHostName != a.IotHubHostName {
			t.Errorf("%s: %v", out, err)
		}
	})
}
