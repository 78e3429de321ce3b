package main

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/meter"
	"github.com/cradle-iot/cradle/internal/reqlog"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
)

// watch is what a monitoring system and a load balancer are shown of a process.
type watch struct {
	meter  *meter.Meter // nil without --metrics-listen
	health meter.Health
	stores map[string]store
}

// store is a custodian's, as it is watched.
type store interface {
	Stats() sqldb.Stats
	Writable(ctx context.Context) error
}

// count is nil when nobody can read the counts.
func (w *watch) count() func(*reqlog.Event) {
	if w.meter == nil {
		return nil
	}
	return w.meter.Count
}

func (w *watch) gauge(name, help string, read func() float64, labels ...string) {
	if w.meter != nil {
		w.meter.Gauge(name, help, read, labels...)
	}
}

func (w *watch) check(name string, run func(ctx context.Context) error) {
	w.health.Checks = append(w.health.Checks, meter.Check{Name: name, Run: run})
}

func (w *watch) store(name string, s store) {
	stats := s.Stats
	w.gauge("cradle_store_waiting", "Updates that wait for a writer of the store.", func() float64 { return float64(stats().Waiting) }, "store", name)
	w.gauge("cradle_store_reading", "Connections that read from the store.", func() float64 { return float64(stats().Reading) }, "store", name)
	w.gauge("cradle_store_updates", "Updates committed since the start.", func() float64 { return float64(stats().Updates) }, "store", name)
	w.gauge("cradle_store_commits", "Commits that they shared.", func() float64 { return float64(stats().Commits) }, "store", name)
	w.check(name+" writes", s.Writable)
	if w.stores == nil {
		w.stores = map[string]store{}
	}
	w.stores[name] = s
}

// age is how long ago t was; NaN when it was never.
func age(t time.Time) float64 {
	if t.IsZero() {
		return math.NaN()
	}
	return time.Since(t).Seconds()
}

// provider asks its store once for all gauges of a scrape.
func (w *watch) provider(p *provider.Provider) {
	var mu sync.Mutex
	var asked time.Time
	var last provider.Vitals
	var lastErr error
	vitals := func() (provider.Vitals, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(asked) > time.Second/2 {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			last, lastErr = p.Vitals(ctx)
			asked = time.Now()
		}
		return last, lastErr
	}
	of := func(read func(provider.Vitals) float64) func() float64 {
		return func() float64 {
			v, err := vitals()
			if err != nil {
				return math.NaN()
			}
			return read(v)
		}
	}
	w.gauge("cradle_open_intents", "Issuances begun and not ended.", of(func(v provider.Vitals) float64 { return float64(v.OpenIntents) }))
	w.gauge("cradle_oldest_intent_seconds", "Age of the oldest open intent; NaN without one.", of(func(v provider.Vitals) float64 { return age(v.OldestIntent) }))
	w.gauge("cradle_checkpoint_age_seconds", "Since this process last saw every log signed to its end.", of(func(v provider.Vitals) float64 { return age(v.Signed) }))
	w.gauge("cradle_crls_due", "CRL shards whose newest CRL does not show every revocation.", of(func(v provider.Vitals) float64 { return float64(v.CRLsDue) }))
	w.gauge("cradle_crl_seconds_left", "Until the first CRL ends that still covers a certificate; NaN without one.", of(func(v provider.Vitals) float64 { return -age(v.CRLsEnd) }))
	w.check("caught up", func(context.Context) error {
		v, err := vitals()
		if err == nil && v.Closed > 0 {
			err = cradle.Errorf(cradle.Busy, "%d logs have not caught up after a restore", v.Closed)
		}
		return err
	})
	w.check("store", func(context.Context) error {
		_, err := vitals()
		return err
	})
}

// feed watches the age of the newest statement of the status feed.
func (w *watch) feed(newest func() time.Time, fresh func(time.Time) bool) {
	w.gauge("cradle_feed_age_seconds", "Age of the newest statement of the status feed that this process has.", func() float64 { return age(newest()) })
	w.check("feed", func(context.Context) error {
		if !fresh(time.Now()) {
			return cradle.Errorf(cradle.Busy, "the status feed is stale")
		}
		return nil
	})
}

// front watches the port.
func (w *watch) front(s *front.Server) {
	for i, kind := range []string{"handshake", "http", "mqtt"} {
		w.gauge("cradle_connections", "Open connections.", func() float64 {
			var n [3]int
			n[0], n[1], n[2] = s.Connections()
			return float64(n[i])
		}, "kind", kind)
	}
}

// paths are for the public port: they say no more than yes or no.
func (w *watch) paths() front.Paths {
	return front.Paths{{Pattern: "/healthz", Handler: http.HandlerFunc(meter.Live)}, {Pattern: "/readyz", Handler: http.HandlerFunc(w.health.ReadyPlain)}}
}

// listen serves metrics and health until ctx ends, without TLS and without a token: the address is for the
// monitoring system alone.
func (w *watch) listen(ctx context.Context, addr string) (serve func() error, url string, err error) {
	ln, err := front.Listen(ctx, addr)
	if err != nil {
		return nil, "", err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", w.meter.Handler())
	mux.HandleFunc("/healthz", meter.Live)
	mux.HandleFunc("/readyz", w.health.ReadyInFull)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	return func() error {
		stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer stop()
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, "http://" + ln.Addr().String(), nil
}
