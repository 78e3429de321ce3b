package adminserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/reqlog"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/adminserver"
	"github.com/cradle-iot/cradle/provider/providerdb"
	"github.com/cradle-iot/cradle/provider/shed"
)

// watched is a server whose log lines and counted events are kept, and whose store counts how often it is asked for tokens.
type watched struct {
	*httptest.Server
	p *provider.Provider

	mu     sync.Mutex
	lines  bytes.Buffer
	counts map[string]int // "operation outcome"
	asked  int
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines.Write(b)
}

type askedStore struct {
	provider.Store
	w *watched
}

func (s askedStore) OperatorByToken(ctx context.Context, id string) (provider.Operator, error) {
	s.w.mu.Lock()
	s.w.asked++
	s.w.mu.Unlock()
	return s.Store.OperatorByToken(ctx, id)
}

func watch(t *testing.T, limits shed.Limits) *watched {
	t.Helper()
	vault, err := filekey.OpenVault(filepath.Join(t.TempDir(), "kek"), false)
	if err != nil {
		t.Fatal(err)
	}
	db, err := providerdb.Open(t.Context(), filepath.Join(t.TempDir(), "p.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w := &watched{counts: map[string]int{}}
	if w.p, err = provider.New(t.Context(), provider.Config{Store: askedStore{db, w}, Vault: vault, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	w.Server = httptest.NewServer(adminserver.New(adminserver.Config{Provider: w.p, Key: tokenKey, Log: slog.New(slog.NewJSONHandler(w, nil)), Gate: shed.New(limits, nil),
		Count: func(e *reqlog.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.counts[e.Operation+" "+e.Outcome()]++
		},
		Status: func(context.Context) admin.Status { return admin.Status{} }}))
	t.Cleanup(w.Close)
	return w
}

func (w *watched) do(t *testing.T, method, path, token, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return resp
}

// line is the only log line since the last call.
func (w *watched) line(t *testing.T) map[string]any {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var line map[string]any
	if err := json.Unmarshal(w.lines.Bytes(), &line); err != nil {
		t.Fatalf("not one line: %s", w.lines.Bytes())
	}
	w.lines.Reset()
	return line
}

// TestOneLinePerRequest: each request is one line with who, what, outcome and why.
func TestOneLinePerRequest(t *testing.T) {
	w := watch(t, shed.Limits{})
	alice, _, err := w.p.AddOperator(t.Context(), provider.Operator{Name: "alice", Role: admin.Auditor})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, token, body string
		status                    int
		want                      map[string]string
	}{
		{"GET", "/admin/v1/status", alice, "", 200, map[string]string{"op": "GET /status", "by": "alice", "outcome": "ok"}},
		{"POST", "/admin/v1/oems", alice, "{}", 403, map[string]string{"op": "POST /oems", "by": "alice", "outcome": "forbidden", "reason": "the role auditor may not do this"}},
		{"GET", "/admin/v1/accounts/acme", alice, "", 404, map[string]string{"op": "GET /accounts/{account}", "account": "acme", "outcome": "not_found"}},
		{"GET", "/admin/v1/status", "", "", 401, map[string]string{"op": "GET /status", "outcome": "unauthorized"}},
		{"GET", "/admin/v1/nothing", alice, "", 404, map[string]string{"outcome": "not_found", "path": "/admin/v1/nothing"}},
		{"GET", "/admin/v1/accounts/../status", alice, "", 400, map[string]string{"outcome": "invalid"}},
		{"POST", "/admin/v1//oems", alice, "{}", 400, map[string]string{"outcome": "invalid"}},
		{"DELETE", "/admin/v1/status", alice, "", 405, map[string]string{"outcome": "invalid", "method": "DELETE"}},
		{"GET", "/admin/v1/devices?account=acme&limit=x", alice, "", 400, map[string]string{"outcome": "invalid"}},
		{"GET", "/admin/v1/devices?account=acme&colour=red", alice, "", 400, map[string]string{"outcome": "invalid"}},
		{"GET", "/admin/v1/devices?account=acme&limit=1&limit=2", alice, "", 400, map[string]string{"outcome": "invalid"}},
		{"POST", "/admin/v1/oems", adminserver.Token(tokenKey, ""), `{"name":"` + strings.Repeat("x", 33<<20), 413, map[string]string{"outcome": "too_large"}},
	} {
		resp := w.do(t, c.method, c.path, c.token, c.body)
		line := w.line(t)
		if resp.StatusCode != c.status || line["status"] != float64(c.status) || line["msg"] != "admin" || line["trace"] == nil || line["took"] == nil {
			t.Errorf("%s %s: %s, logged %v", c.method, c.path, resp.Status, line)
		}
		for k, v := range c.want {
			if line[k] != v {
				t.Errorf("%s %s: %s is %v, want %q", c.method, c.path, k, line[k], v)
			}
		}
		if c.status >= 400 {
			var p admin.Problem
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || p.Detail == "" || resp.Header.Get(reqlog.Header) != line["trace"] {
				t.Errorf("%s %s: problem %+v (%v), trace %q, logged %v", c.method, c.path, p, err, resp.Header.Get(reqlog.Header), line["trace"])
			}
			if allow := resp.Header.Get("Allow"); (c.status == 405) != (allow == "GET") {
				t.Errorf("%s %s: Allow: %q", c.method, c.path, allow)
			}
		}
		for _, secret := range []string{alice, adminserver.Token(tokenKey, "")} {
			if strings.Contains(toJSON(t, line), secret) {
				t.Error("a token is in the log")
			}
		}
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestShed: over the limit nothing is looked up; the answer says when to come again.
func TestShed(t *testing.T) {
	t.Run("before authentication", func(t *testing.T) {
		w := watch(t, shed.Limits{Address: shed.Rate{PerSecond: 0.001, Burst: 5}})
		guess := "cradle2.AAAAAAAAAAAA." + strings.Repeat("A", 43)
		shedded := 0
		for range 20 {
			resp := w.do(t, "GET", "/admin/v1/status", guess, "")
			if resp.StatusCode == http.StatusTooManyRequests {
				shedded++
				if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || n < 1 {
					t.Errorf("Retry-After %q", resp.Header.Get("Retry-After"))
				}
			}
		}
		if shedded != 15 || w.asked != 5 || w.counts["GET /status shed"] != 15 {
			t.Errorf("%d of 20 shed, the store was asked %d times, counted %v", shedded, w.asked, w.counts)
		}
	})
	t.Run("per token", func(t *testing.T) {
		w := watch(t, shed.Limits{Operator: shed.Rate{PerSecond: 0.001, Burst: 3}})
		var codes [2]int
		for i, token := range []string{adminserver.Token(tokenKey, ""), adminserver.Token(tokenKey, "acme")} {
			for range 10 {
				if w.do(t, "GET", "/admin/v1/status", token, "").StatusCode == http.StatusOK {
					codes[i]++
				}
			}
		}
		if codes != [2]int{3, 3} {
			t.Errorf("served %v of 10 each", codes)
		}
	})
	t.Run("the client understands", func(t *testing.T) {
		w := watch(t, shed.Limits{Operator: shed.Rate{PerSecond: 0.001, Burst: 1}})
		c := &admin.Client{HTTP: w.Client(), URL: w.URL, Token: adminserver.Token(tokenKey, "")}
		_ = c.Call(t.Context(), http.MethodGet, "/status", nil, nil)
		if err := c.Call(t.Context(), http.MethodGet, "/status", nil, nil); cradle.KindOf(err) != cradle.Busy {
			t.Errorf("%v", err)
		}
	})
}
