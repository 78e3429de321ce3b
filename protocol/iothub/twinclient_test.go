package iothub_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// The client's requests for twins, and what it makes of Azure's refusals.
func TestTwinClient(t *testing.T) {
	var seen []string
	answer := func(w http.ResponseWriter) {
		io.WriteString(w, `{"deviceId":"d","etag":"AAE=","tags":{"a":1},"properties":{"desired":{"x":1,"$version":2}}}`)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen = append(seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("If-Match")+" "+string(b))
		answer(w)
	}))
	defer s.Close()
	r := &iothub.Registry{HTTP: s.Client(), BaseURL: s.URL, KeyName: "iothubowner", Key: []byte("k")}
	p := &iothub.TwinPatch{Tags: json.RawMessage(`{"a":1}`)}
	p.Properties.Desired = json.RawMessage(`{"x":1}`)
	for _, f := range []func() (*iothub.Twin, error){
		func() (*iothub.Twin, error) { return r.Twin(t.Context(), "a b") },
		func() (*iothub.Twin, error) { return r.PatchTwin(t.Context(), "d", p, "AAE=") },
		func() (*iothub.Twin, error) { return r.ReplaceTwin(t.Context(), "d", p, iothub.AnyETag) },
	} {
		if tw, err := f(); err != nil || tw.ETag != "AAE=" || string(tw.Tags) != `{"a":1}` {
			t.Errorf("%+v %v", tw, err)
		}
	}
	want := []string{`GET /twins/a b  `, `PATCH /twins/d "AAE=" {"tags":{"a":1},"properties":{"desired":{"x":1}}}`, `PUT /twins/d * {"tags":{"a":1},"properties":{"desired":{"x":1}}}`}
	if strings.Join(seen, "\n") != strings.Join(want, "\n") {
		t.Errorf("requests:\n%s", strings.Join(seen, "\n"))
	}

	for _, c := range []struct {
		status int
		retry  string
		kind   cradle.Kind
		after  time.Duration
	}{
		{429, "10", cradle.Busy, 10 * time.Second},
		{503, "86400", cradle.Busy, time.Hour},
		{429, "", cradle.Busy, 0},
		{429, "-5", cradle.Busy, 0},
		{429, "Mon, 02 Jan 2026 15:04:05 GMT", cradle.Busy, 0},
		{403, "", cradle.Forbidden, 0}, // IotHubQuotaExceeded
	} {
		answer = func(w http.ResponseWriter) {
			if c.retry != "" {
				w.Header().Set("Retry-After", c.retry)
			}
			w.WriteHeader(c.status)
			io.WriteString(w, `{"Message":"ErrorCode:ThrottlingException;slow down","ExceptionMessage":"Tracking ID:1"}`)
		}
		_, err := r.Twin(context.Background(), "d")
		if cradle.KindOf(err) != c.kind || after(err) != c.after || !strings.Contains(err.Error(), "slow down") {
			t.Errorf("%d %q: %v, kind %v, after %v", c.status, c.retry, err, cradle.KindOf(err), after(err))
		}
	}
}

func after(err error) time.Duration {
	var e *cradle.Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}
