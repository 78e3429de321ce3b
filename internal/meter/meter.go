// Package meter counts what services say of their requests (package reqlog) and shows it, with gauges that are
// read when asked for, in Prometheus' text format.
//
// Every label has few values: services and operations are those of the program, outcomes are kinds of errors, and
// of profiles, which operators name, the first hundred are told apart.
package meter

import (
	"cmp"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/reqlog"
)

// Meter holds the counts of a process.
type Meter struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	issued   *prometheus.CounterVec

	mu       sync.Mutex
	profiles map[cradle.Profile]bool // that have a label of their own
}

// maxProfiles bounds the label profile.
const maxProfiles = 100

// New makes a Meter with the process's own figures in it.
func New() *Meter {
	m := &Meter{registry: prometheus.NewRegistry(), profiles: map[cradle.Profile]bool{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cradle_requests_total", Help: "Requests answered."}, []string{"service", "operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "cradle_request_duration_seconds", Help: "From the request's head to its answer; without those shed.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}, []string{"service", "operation"}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cradle_certificates_given_total", Help: "Certificates given out; one that is asked for again is given again."}, []string{"profile"})}
	m.registry.MustRegister(m.requests, m.seconds, m.issued, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Count takes one request.
func (m *Meter) Count(e *reqlog.Event) {
	op := cmp.Or(e.Operation, "none")
	m.requests.WithLabelValues(e.Service, op, e.Outcome()).Inc()
	if !e.Shed {
		m.seconds.WithLabelValues(e.Service, op).Observe(e.Took.Seconds())
	}
	if e.Issued && e.Err == nil {
		m.issued.WithLabelValues(m.profile(e.Profile)).Inc()
	}
}

func (m *Meter) profile(p cradle.Profile) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.profiles[p] {
		if len(m.profiles) >= maxProfiles {
			return "other"
		}
		m.profiles[p] = true
	}
	return string(p)
}

// Gauge adds a figure that is read at each scrape. labels are name, value pairs. A figure that is not known is NaN.
func (m *Meter) Gauge(name, help string, read func() float64, labels ...string) {
	l := prometheus.Labels{}
	for i := 0; i+1 < len(labels); i += 2 {
		l[labels[i]] = labels[i+1]
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: l}, read))
}

// Handler serves the figures.
func (m *Meter) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
