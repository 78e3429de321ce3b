package reqlog_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/reqlog"
)

func request() *http.Request {
	return &http.Request{Method: "POST", URL: &url.URL{Path: "/x/" + strings.Repeat("y", 1000)}, RemoteAddr: "192.0.2.1:7",
		TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Raw: []byte("x")}}}}
}

func done(t *testing.T, e reqlog.Event) map[string]any {
	t.Helper()
	var b bytes.Buffer
	counted := 0
	l := reqlog.New(slog.New(slog.NewJSONHandler(&b, nil)), func(*reqlog.Event) { counted++ })
	e.Start = time.Now()
	l.Done(request(), &e)
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || counted != 1 {
		t.Fatalf("%s %v, counted %d", b.Bytes(), err, counted)
	}
	return line
}

func TestLine(t *testing.T) {
	line := done(t, reqlog.Event{Service: "est", Operation: "simpleenroll", Account: "acme", Label: "acme-ldevid", Status: 200, Trace: "t1"})
	for k, want := range map[string]any{"msg": "est", "op": "simpleenroll", "account": "acme", "label": "acme-ldevid", "status": 200.0, "outcome": "ok", "trace": "t1",
		"client": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "level": "INFO"} {
		if line[k] != want {
			t.Errorf("%s is %v, want %v", k, line[k], want)
		}
	}
	if line["took"] == nil || line["path"] != nil {
		t.Errorf("%v", line)
	}
	line = done(t, reqlog.Event{Service: "est", Err: cradle.Errorf(cradle.Forbidden, "no: %w", errors.New("the cause")), Status: 403})
	if line["level"] != "WARN" || line["outcome"] != "forbidden" || line["reason"] != "no: the cause" || line["cause"] != "the cause" || len(line["path"].(string)) != 200 {
		t.Errorf("%v", line)
	}
	line = done(t, reqlog.Event{Service: "est", Err: errors.New("secret"), Status: 500})
	if line["level"] != "ERROR" || line["cause"] != "secret" || strings.Contains(line["reason"].(string), "secret") {
		t.Errorf("%v", line)
	}
	if line = done(t, reqlog.Event{Service: "est", Err: cradle.Errorf(cradle.Pending, "waits"), Status: 202}); line["level"] != "INFO" || line["outcome"] != "pending" {
		t.Errorf("%v", line)
	}
}

// TestShedIsNotAFlood: of a storm some lines are written, and the number of the others.
func TestShedIsNotAFlood(t *testing.T) {
	var b bytes.Buffer
	counted := 0
	l := reqlog.New(slog.New(slog.NewJSONHandler(&b, nil)), func(e *reqlog.Event) {
		if e.Outcome() == "shed" {
			counted++
		}
	})
	const n = 10000
	for range n {
		l.Done(request(), &reqlog.Event{Service: "est", Shed: true, Err: cradle.Errorf(cradle.Busy, "too many"), Start: time.Now()})
	}
	if lines := strings.Count(b.String(), "\n"); lines == 0 || lines > n/2 {
		t.Errorf("%d lines of %d", lines, n)
	}
	if counted != n {
		t.Errorf("%d counted", counted)
	}
}

func TestTrace(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := reqlog.Trace()
		if seen[id] || len(id) != 15 {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
}
