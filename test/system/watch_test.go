package system_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// fetch returns the status and body of a page.
func fetch(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestWatching looks at metrics, health and readiness of a server, before, in and after an outage of its database.
func TestWatching(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	pg := testenv.PostgresServer(t)
	w := world.New(t, world.Options{DB: pg.Database(t), Serve: []string{"--metrics-listen", "127.0.0.1:0", "--log-format", "json"}})
	w.Acts()
	var own string
	lines := bufio.NewScanner(strings.NewReader(w.Server().Log()))
	for lines.Scan() {
		var line struct{ Msg, Metrics string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("a log line is no JSON: %s", lines.Bytes())
		}
		if line.Metrics != "" {
			own = line.Metrics
		}
	}
	public := w.HTTP(nil)
	if _, err := w.EST(cradle.Operational, nil).CACerts(t.Context()); err != nil {
		t.Fatal(err)
	}
	code, figures := fetch(t, http.DefaultClient, own+"/metrics")
	for _, want := range []string{`cradle_requests_total{operation="cacerts",outcome="ok",service="est"} 1`, `cradle_requests_total{operation="POST /accounts",outcome="ok",service="admin"} 1`,
		"cradle_open_intents 0", "cradle_crls_due ", "cradle_crl_seconds_left ", "cradle_oldest_intent_seconds NaN", `cradle_store_waiting{store="provider"} 0`, `cradle_connections{kind="http"} `} {
		if code != 200 || !strings.Contains(figures, want) {
			t.Errorf("%d, missing: %s", code, want)
		}
	}
	for _, name := range []string{"cradle_feed_age_seconds", "cradle_checkpoint_age_seconds"} { // more or less than the heartbeat's second; NaN before the first
		if !regexp.MustCompile(`(?m)^` + name + ` [0-9]`).MatchString(figures) {
			t.Errorf("%s is no number", name)
		}
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\n"} {
		if code, body := fetch(t, public, w.URL()+path); code != 200 || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, _ := fetch(t, public, w.URL()+"/metrics"); code == 200 {
		t.Error("metrics are on the public port")
	}
	pg.Stop()
	w.Wait("not ready", time.Minute, func() (bool, string) {
		code, body := fetch(t, public, w.URL()+"/readyz")
		return code == http.StatusServiceUnavailable && body == "not ready\n", body
	})
	if code, body := fetch(t, http.DefaultClient, own+"/readyz"); code != 503 || !strings.Contains(body, `"check": "store"`) {
		t.Errorf("the own listener: %d %s", code, body)
	}
	if code, _ := fetch(t, public, w.URL()+"/healthz"); code != 200 {
		t.Errorf("health in the outage: %d", code)
	}
	if code, figures := fetch(t, http.DefaultClient, own+"/metrics"); code != 200 || !strings.Contains(figures, "cradle_open_intents NaN") {
		t.Errorf("metrics in the outage: %d", code)
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	w.Wait("ready again", 60*time.Second, func() (bool, string) {
		code, body := fetch(t, public, w.URL()+"/readyz")
		return code == 200, body
	})
}

// TestLimitFlag: limits can be set, and a wrong one is said at the start.
func TestLimitFlag(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{Serve: []string{"--limit", "address=0.001:30", "--limit", "operator=off"}})
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Anchors()}}}
	codes := map[int]int{}
	for range 60 {
		code, _ := fetch(t, c, w.URL()+"/admin/v1/openapi.json")
		codes[code]++
	}
	if codes[http.StatusTooManyRequests] < 30 || codes[200] == 0 {
		t.Errorf("%v", codes)
	}
	v := verbs{t, w}
	for _, bad := range []string{"address=1", "device=1:1", "address=x:1"} {
		if r := v.run("cradle serve --limit " + bad + " --listen 127.0.0.1:0 --json --data @/other"); r.Code != 2 || !strings.Contains(r.Stderr, "limit") {
			t.Errorf("%s: exit %d, %s", bad, r.Code, r.Stderr)
		}
	}
}
