package hubserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// sse reads server-sent events as HTML §9.2.6 says and calls fn with each; it returns the last event id.
func (r *rig) sse(ctx context.Context, path, lastID string, fn func(id string, e *iothub.Event) bool) string {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", r.reg.BaseURL+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Authorization", r.service().auth)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := r.reg.HTTP.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" || resp.StatusCode != 200 {
		r.t.Fatalf("%d %s", resp.StatusCode, ct)
	}
	id, data := lastID, ""
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		name, value, _ := strings.Cut(sc.Text(), ": ")
		switch {
		case name == "id":
			id = value
		case name == "data":
			data = value
		case sc.Text() == "" && data != "":
			e := new(iothub.Event)
			if err := json.Unmarshal([]byte(data), e); err != nil {
				r.t.Fatalf("%v in %s", err, data)
			}
			if data = ""; !fn(id, e) {
				return id
			}
		}
	}
	return id
}

func TestServerSentEvents(t *testing.T) {
	r := newRig(t, sqlite(t))
	a, b := r.mustConnect(r.register("a")), r.mustConnect(r.register("b"))
	ctx := t.Context()
	seen := map[string]bool{}
	lastID, n := "", 0
	for i := range 20 { // the reader goes away and comes back all the time
		if err := a.say(ctx, fmt.Sprint(i), `{"line":"one\ntwo"}`); err != nil {
			t.Fatal(err)
		}
		if err := b.say(ctx, fmt.Sprint(i), "{}"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			lastID = r.sse(ctx, "/events?hub=hub-1", lastID, func(id string, e *iothub.Event) bool {
				if id != string(e.Cursor) || seen[e.ID] || e.ID == "" || *e.Sequence != int64(n/2) {
					t.Errorf("event %d: id %s of %+v", n, id, e)
				}
				seen[e.ID] = true
				n++
				return false
			})
		}
	}
	// One device alone; the place moves past the others'.
	n = 0
	r.sse(ctx, "/events?hub=hub-1&device=b&follow=0", "10", func(id string, e *iothub.Event) bool {
		if n++; e.Device != "b" {
			t.Errorf("got %+v", e)
		}
		return true
	})
	if n != 15 {
		t.Errorf("%d events of b", n)
	}
	if id := r.sse(ctx, "/events?hub=hub-1&device=nobody&follow=0", "7", func(string, *iothub.Event) bool { t.Error("an event of nobody"); return false }); id != "40" {
		t.Errorf("the reader goes on from %s", id)
	}
	if code, _, text := r.request("GET", "/events", r.service().auth, "", "Accept", "text/event-stream", "Last-Event-ID", "x"); code != 400 || !strings.Contains(text, "Last-Event-ID") {
		t.Errorf("got %d %s", code, text)
	}
	// JSON lines by the client, filtered.
	n = 0
	if err := r.reg.Events(ctx, iothub.EventQuery{Device: "a", Limit: 5}, func(e *iothub.Event) error { n++; return nil }); err != nil || n != 5 {
		t.Errorf("%d of 5: %v", n, err)
	}
}

// TestSlowReader: one who does not read what he asked for holds up no device, and is cut off.
func TestSlowReader(t *testing.T) {
	r := newRig(t, sqlite(t))
	c := r.mustConnect(r.register("dev"))
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.reg.BaseURL, "https://"), &tls.Config{RootCAs: r.roots, ServerName: "example.com", NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /events?hub=hub-1&follow=1 HTTP/1.1\r\nHost: hub-1\r\nAuthorization: %s\r\n\r\n", r.service().auth); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 200<<10)
	for i := range 150 { // 30 MB: more than the sockets between hold
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		err := c.Publish(ctx, iothub.TelemetryTopic("dev", nil), mqtt.AtLeastOnce, body)
		cancel()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	got := 0
	var from iothub.Cursor
	if err := r.reg.Events(t.Context(), iothub.EventQuery{}, func(e *iothub.Event) error { got++; from = e.Cursor; return nil }); err != nil || got != 150 {
		t.Errorf("another reader: %d events up to %s, %v", got, from, err)
	}
	if n := r.hub.Connected(); n != 1 {
		t.Errorf("%d are connected", n)
	}
}
