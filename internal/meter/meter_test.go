package meter_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/meter"
	"github.com/cradle-iot/cradle/internal/reqlog"
)

func scrape(t *testing.T, m *meter.Meter) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestFigures(t *testing.T) {
	m := meter.New()
	m.Gauge("cradle_store_queue", "Updates waiting.", func() float64 { return 7 }, "store", "provider")
	m.Gauge("cradle_store_queue", "Updates waiting.", func() float64 { return 8 }, "store", "hub")
	for range 3 {
		m.Count(&reqlog.Event{Service: "est", Operation: "simpleenroll", Profile: cradle.LDevID, Issued: true, Took: 3 * time.Millisecond})
	}
	m.Count(&reqlog.Event{Service: "est", Operation: "simpleenroll", Profile: cradle.LDevID, Issued: true, Err: cradle.Errorf(cradle.Forbidden, "no")})
	m.Count(&reqlog.Event{Service: "est", Operation: "simpleenroll", Shed: true, Err: cradle.Errorf(cradle.Busy, "no")})
	m.Count(&reqlog.Event{Service: "est", Err: errors.New("secret")})
	got := scrape(t, m)
	for _, want := range []string{
		`cradle_requests_total{operation="simpleenroll",outcome="ok",service="est"} 3`,
		`cradle_requests_total{operation="simpleenroll",outcome="forbidden",service="est"} 1`,
		`cradle_requests_total{operation="simpleenroll",outcome="shed",service="est"} 1`,
		`cradle_requests_total{operation="none",outcome="internal",service="est"} 1`,
		`cradle_request_duration_seconds_bucket{operation="simpleenroll",service="est",le="0.005"} 4`,
		`cradle_request_duration_seconds_count{operation="simpleenroll",service="est"} 4`,
		`cradle_certificates_given_total{profile="ldevid"} 3`,
		`cradle_store_queue{store="provider"} 7`,
		`cradle_store_queue{store="hub"} 8`,
		`go_goroutines `, `process_cpu_seconds_total `,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Contains(got, "secret") {
		t.Error("an error's text is in the metrics")
	}
}

// TestFewSeries: names that clients or operators choose make no series without end.
func TestFewSeries(t *testing.T) {
	m := meter.New()
	for i := range 10000 {
		m.Count(&reqlog.Event{Service: "est", Operation: "simpleenroll", Profile: cradle.Profile(fmt.Sprint("p", i)), Issued: true,
			Account: cradle.AccountID(fmt.Sprint("a", i)), Label: fmt.Sprint("l", i), Actor: fmt.Sprint("o", i)})
	}
	if n := strings.Count(scrape(t, m), "\ncradle_"); n > 150 {
		t.Errorf("%d series", n)
	}
}

func TestHealth(t *testing.T) {
	asked := 0
	var broken error
	h := &meter.Health{Life: time.Nanosecond, Checks: []meter.Check{{Name: "store", Run: func(context.Context) error { asked++; return broken }},
		{Name: "feed", Run: func(context.Context) error { return nil }}}}
	get := func(f http.HandlerFunc, method string) (int, string) {
		w := httptest.NewRecorder()
		f(w, httptest.NewRequest(method, "/readyz", nil))
		return w.Code, w.Body.String()
	}
	if code, body := get(h.ReadyPlain, http.MethodGet); code != 200 || body != "ready\n" {
		t.Errorf("%d %s", code, body)
	}
	broken = errors.New("disk full at /var/lib/x")
	if code, body := get(h.ReadyPlain, http.MethodGet); code != 503 || body != "not ready\n" {
		t.Errorf("the public answer tells more: %d %s", code, body)
	}
	code, body := get(h.ReadyInFull, http.MethodGet)
	var in struct{ Checks []meter.Finding }
	if err := json.Unmarshal([]byte(body), &in); err != nil || code != 503 || len(in.Checks) != 2 || in.Checks[0].Ready || in.Checks[0].Detail != broken.Error() || !in.Checks[1].Ready {
		t.Errorf("%d %s %v", code, body, err)
	}
	if code, _ := get(meter.Live, http.MethodGet); code != 200 {
		t.Errorf("live: %d", code)
	}
	if code, _ := get(h.ReadyPlain, http.MethodPost); code != 405 {
		t.Errorf("POST: %d", code)
	}
	h.Life, asked = time.Hour, 0
	for range 100 {
		get(h.ReadyPlain, http.MethodGet)
	}
	if asked > 1 {
		t.Errorf("100 requests asked the store %d times", asked)
	}
}

func BenchmarkCount(b *testing.B) {
	m := meter.New()
	e := &reqlog.Event{Service: "est", Operation: "simpleenroll", Profile: cradle.LDevID, Issued: true, Took: 3 * time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		m.Count(e)
	}
}
