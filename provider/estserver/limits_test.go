package estserver_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle/internal/reqlog"
	"github.com/cradle-iot/cradle/provider/estserver"
	"github.com/cradle-iot/cradle/provider/shed"
)

// counted counts the provider's calls that cost.
type counted struct {
	estserver.Provider
	mu    sync.Mutex
	calls int
}

func (c *counted) Enroll(ctx context.Context, e estserver.Enrolment) (estserver.Issued, error) {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	return c.Provider.Enroll(ctx, e)
}

// TestShed is a client in a crash loop that asks with the same certificate again and again: over the limit its CSR
// is not looked at, it is told when to come again, and others are served.
func TestShed(t *testing.T) {
	var p *counted
	outcomes := map[string]int{}
	var mu sync.Mutex
	s := start(t, func(c *estserver.Config) {
		p = &counted{Provider: c.Provider}
		c.Provider = p
		c.Gate = shed.New(shed.Limits{Certificate: shed.Rate{PerSecond: 0.001, Burst: 5}}, nil)
		c.Count = func(e *reqlog.Event) {
			mu.Lock()
			defer mu.Unlock()
			outcomes[e.Operation+" "+e.Outcome()]++
		}
	})
	body := base64.StdEncoding.EncodeToString(newCSR(t, "device-1"))
	header := map[string]string{"Content-Type": "application/pkcs10"}
	storm := s.client(s.device)
	for i := range 20 {
		r := s.do(storm, "POST", "simpleenroll", body, header)
		want := http.StatusOK
		if i >= 5 {
			want = http.StatusTooManyRequests
			if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 1 || r.header.Get(reqlog.Header) == "" {
				t.Errorf("Retry-After %q, trace %q", r.header.Get("Retry-After"), r.header.Get(reqlog.Header))
			}
		}
		if r.code != want {
			t.Errorf("request %d: %d", i, r.code)
		}
	}
	if p.calls != 5 {
		t.Errorf("the provider was asked %d times", p.calls)
	}
	if outcomes["simpleenroll ok"] != 5 || outcomes["simpleenroll shed"] != 15 {
		t.Errorf("counted %v", outcomes)
	}
	s.device = makeCert(t, "device-2", s.ca.pair(), []string{}).TLS()
	if r := s.do(s.client(s.device), "POST", "simpleenroll", body, header); r.code != http.StatusOK {
		t.Errorf("another device: %d", r.code)
	}
	// Labels that are nobody's count too.
	for range 10 {
		r := s.do(storm, "GET", "../nobody-ldevid/cacerts", "", nil)
		if r.code != http.StatusTooManyRequests {
			t.Errorf("an unknown label: %d", r.code)
		}
	}
}

// TestLogLine: what one line says of a refusal.
func TestLogLine(t *testing.T) {
	s := start(t, nil)
	r := s.do(s.client(s.device), "POST", "simpleenroll", "!", map[string]string{"Content-Type": "application/pkcs10"})
	var line map[string]any
	if err := json.Unmarshal([]byte(s.logs.Take()), &line); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{"msg": "est", "op": "simpleenroll", "account": "acme", "label": "acme-operational", "profile": "operational", "status": 400.0, "outcome": "invalid",
		"kind": "invalid", "peer": "device-1", "trace": r.header.Get(reqlog.Header)} {
		if line[k] != want {
			t.Errorf("%s is %v, want %v", k, line[k], want)
		}
	}
	if digest, _ := line["client"].(string); len(digest) != 64 {
		t.Errorf("client %v", line["client"])
	}
	if line["reason"] == nil || strings.Contains(toText(t, line), "MII") {
		t.Errorf("%v", line)
	}
}

func toText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
