package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/meter"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

// still is a store in which nothing moves.
type still struct{ refuses error }

func (still) Stats() sqldb.Stats               { return sqldb.Stats{Waiting: 3} }
func (s still) Writable(context.Context) error { return s.refuses }

func TestWatchFeed(t *testing.T) {
	var w watch
	w.meter = meter.New()
	fresh := false
	w.feed(func() time.Time { return time.Time{} }, func(time.Time) bool { return fresh })
	w.store("provider", still{})
	if ready, found := w.health.Ready(); ready || !strings.Contains(found[0].Detail, "stale") {
		t.Errorf("a stale feed: %v", found)
	}
	rec := httptest.NewRecorder()
	w.meter.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"cradle_feed_age_seconds NaN", `cradle_store_waiting{store="provider"} 3`} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("missing %s", want)
		}
	}
}

// TestWatchOff: without a listener nothing is counted, and readiness still is.
func TestWatchOff(t *testing.T) {
	var w watch
	w.store("provider", still{})
	w.check("x", func(context.Context) error { return errors.New("no") })
	if w.count() != nil {
		t.Error("counts for nobody")
	}
	rec := httptest.NewRecorder()
	w.paths().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if b, _ := io.ReadAll(rec.Body); rec.Code != http.StatusServiceUnavailable || string(b) != "not ready\n" {
		t.Errorf("%d %s", rec.Code, b)
	}
}

// TestWatchWrites: each store that takes no writes is named.
func TestWatchWrites(t *testing.T) {
	var w watch
	w.store("provider", still{})
	w.store("hub", still{errors.New("no space left")})
	want := []meter.Finding{{Check: "provider writes", Ready: true}, {Check: "hub writes", Detail: "no space left"}}
	if ready, found := w.health.Ready(); ready || !slices.Equal(found, want) {
		t.Errorf("got %v, want %v", found, want)
	}
}
