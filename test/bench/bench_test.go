package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/bench/enrol"
	"github.com/cradle-iot/cradle/test/bench/floor"
	"github.com/cradle-iot/cradle/test/bench/hubload"
	"github.com/cradle-iot/cradle/test/bench/plant"
	"github.com/cradle-iot/cradle/test/bench/standing"
)

// TestMain: the tests start this program as the process that holds idle connections, and as the bare server.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == hubload.IdleArg {
		if err := hubload.RunIdle(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == enrol.BareArg {
		fmt.Fprintln(os.Stderr, enrol.RunBare(os.Args[2]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9*max(math.Abs(a), math.Abs(b), 1) }

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 5}, 5}, {[]float64{1, 2, 3, 40}, 2.5}} {
		if got := median(c.in); !near(got, c.want) {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
	}
}

// One part costs 100 us, so the floor is the number of parts times that.
func TestFigures(t *testing.T) {
	var cost floor.Cost
	for p := range cost {
		cost[p] = 100 * time.Microsecond
	}
	parts := func(n floor.Counts) (sum int) {
		for _, v := range n {
			sum += v
		}
		return sum
	}
	floorUS := 100 * float64(parts(floor.Onboarding)) // 36 parts
	round := func(registered int, times float64) Sample {
		total := time.Duration(times * floorUS * 50 * float64(time.Microsecond))
		return Sample{Registered: registered, Units: 50, Wall: 2 * time.Second, CPU: plant.CPU{Server: total * 3 / 4, Database: total / 4}, Floor: cost, Floors: 3}
	}
	small := level([]Sample{round(10, 2), round(10, 4), round(10, 2.5)})
	if parts(floor.Onboarding) != 36 || !near(small.Floor, 3600) || small.Rounds != 3 || small.Units != 150 {
		t.Errorf("floor %v of %d parts, %d rounds of %d", small.Floor, parts(floor.Onboarding), small.Rounds, small.Units)
	}
	if !near(small.Ratio, 2.5) || !near(small.Total, 2.5*3600) || !near(small.Server, 2.5*3600*3/4) || !near(small.Rate, 25) {
		t.Errorf("%+v", small)
	}
	if !near(small.RatioSpared, 2.5*36/30) {
		t.Errorf("without the spared %v", small.RatioSpared)
	}
	large := level([]Sample{round(20, 2.75)})
	if g := growth(small, large); !near(g, 10) {
		t.Errorf("growth %v, want 10", g)
	}
	f := Figures{Stores: map[string]*Result{"sqlite": {Empty: small, Small: small, Large: large, Growth: 10}}}
	if !f.met() {
		t.Error("the targets are met")
	}
	f.Stores["sqlite"].Growth = 20.1
	if f.met() {
		t.Error("growth is over its target")
	}
	f.Stores["sqlite"].Growth, large.Ratio = 0, 3.1
	if f.met() {
		t.Error("a ratio is over its target")
	}
	if p := floorParts([]Sample{round(1, 1)})["verify CSR"]; p.Count != 4 || !near(p.Microseconds, 100) {
		t.Errorf("%+v", p)
	}
}

func TestEnrolmentTargets(t *testing.T) {
	kept := enrol.ReenrollKept.String()
	ours := func(cpu, ratio float64) Enrolment {
		return Enrolment{Server: enrol.OursPrefix + "sqlite", Kind: kept, CPU: cpu, Ratio: ratio}
	}
	for name, c := range map[string]struct {
		list []Enrolment
		want bool
	}{
		"none":          {nil, true},
		"met":           {[]Enrolment{ours(200, 2.4), {Server: "peer", Kind: kept, CPU: 300, Ratio: 4}}, true},
		"over":          {[]Enrolment{ours(200, 2.6)}, false},
		"behind a peer": {[]Enrolment{ours(200, 2.4), {Server: "peer", Kind: kept, CPU: 150}}, false},
		"bare server":   {[]Enrolment{ours(200, 2.4), {Server: enrol.BareName, Kind: kept, CPU: 150}}, true},
		"other kinds":   {[]Enrolment{ours(200, 2.4), {Server: "peer", Kind: enrol.EnrollNew.String(), CPU: 150}}, true},
	} {
		if got := enrolmentsMet(c.list); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestStatusFigures(t *testing.T) {
	sample := func(us ...int) (out []standing.Sample) {
		for i, v := range us {
			out = append(out, standing.Sample{Count: 1, CPU: time.Duration(v) * time.Microsecond, Wall: time.Duration(v) * time.Microsecond, Entries: i + 1})
		}
		return out
	}
	s := newStatus("sqlite", standing.Revocation, 10, 20, sample(100, 200, 100), sample(110, 230, 900))
	if !near(s.Small, 100) || !near(s.Large, 230) || !near(s.Ratio, 1.15) || !s.Met || s.Rounds != 3 {
		t.Errorf("%+v", s)
	}
	slow := newStatus("sqlite", standing.Cached, 10, 20, sample(100), sample(121))
	crl := newStatus("sqlite", standing.CRL, 10, 20, sample(100, 100), sample(5000, 999_000))
	slowCRL := newStatus("sqlite", standing.CRL, 10, 20, sample(100, 100), sample(5000, 1_000_000))
	if slow.Met || !crl.Met || slowCRL.Met || crl.LargeCRL != 2 {
		t.Errorf("%+v\n%+v\n%+v", slow, crl, slowCRL)
	}
	if !statusMet(nil) || !statusMet([]Status{s, crl}) || statusMet([]Status{s, slow}) {
		t.Error("the sum is met when all are")
	}
	f := Figures{Status: []Status{slow}}
	if f.met() {
		t.Error("a target is missed")
	}
}

// stores are what smoke runs go over.
var stores = []string{"sqlite", "postgres"}

// smoke runs the bench over both stores and returns its file and its tables.
func smoke(t *testing.T, o options) (Figures, string) {
	t.Helper()
	testenv.Long(t)
	testenv.Postgres(t) // skips where there is none
	o.json, o.stores, o.dir = filepath.Join(t.TempDir(), "bench.json"), strings.Join(stores, ","), t.TempDir()
	var out, progress bytes.Buffer
	if err := run(t.Context(), o, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	b, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	var f Figures
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	return f, out.String()
}

// A smoke run of revocation, OCSP and CRLs, over both stores.
func TestStatusRun(t *testing.T) {
	f, out := smoke(t, options{devices: 60, small: 20, rounds: 1, units: 4, parallel: 2, clients: 2, only: "status", few: 40, status: 120})
	if want := len(stores) * int(standing.Kinds); len(f.Status) != want || len(f.Stores) > 0 {
		t.Errorf("%d operations, want %d; %d stores", len(f.Status), want, len(f.Stores))
	}
	for _, s := range f.Status {
		if s.Few != 40 || s.Many != 120 || s.Small <= 0 || s.Large <= 0 || s.Rounds != 1 || !strings.Contains(out, s.Operation) {
			t.Errorf("%+v", s)
		}
		if crl := s.Operation == standing.CRL.String(); crl && (s.SmallCRL != 10 || s.LargeCRL != 30) || crl != (s.LargeCRL > 0) {
			t.Errorf("%+v", s)
		}
	}
}

// A smoke run of everything else: both stores, bulk-loaded fleets, the table and the file.
func TestQuickRun(t *testing.T) {
	f, out := smoke(t, options{devices: 60, small: 20, rounds: 1, units: 4, parallel: 2, clients: 2, enrol: 10})
	for _, store := range stores {
		r := f.Stores[store]
		if r == nil || r.Empty == nil || r.Small == nil || r.Large == nil {
			t.Fatalf("%s: %+v", store, r)
		}
		for n, l := range map[int]*Level{0: r.Empty, 20: r.Small, 60: r.Large} {
			if l.Registered != n || l.Units != 4 || l.Rounds != 1 || l.Floor <= 0 || l.Server <= 0 || l.Rate <= 0 {
				t.Errorf("%s: %+v", store, l)
			}
		}
		if !strings.Contains(out, "growth, "+store) {
			t.Errorf("the table says nothing of %s:\n%s", store, out)
		}
	}
	if want := (len(stores) + 1) * int(enrol.Kinds); len(f.Enrolments) != want { // the bare server too
		t.Errorf("%d enrolments, want %d", len(f.Enrolments), want)
	}
	for _, e := range f.Enrolments {
		if e.Floor <= 0 || e.Rate <= 0 || !strings.Contains(out, e.Kind) {
			t.Errorf("%+v", e)
		}
	}
	if len(f.FloorParts) != len(floor.Onboarding)-1 { // P-256 alone is no part of it
		t.Errorf("%d parts of the floor", len(f.FloorParts))
	}
}

func TestRegistrationFigures(t *testing.T) {
	var cost floor.Cost
	for p := range cost {
		cost[p] = 100 * time.Microsecond // a mutual handshake: 400 us
	}
	rounds := func(us ...int) (out []Sample) {
		for _, v := range us {
			out = append(out, Sample{Units: 10, Wall: 20 * time.Millisecond, CPU: plant.CPU{Server: time.Duration(v) * 10 * time.Microsecond}, Floor: cost})
		}
		return out
	}
	r := newRegistration("sqlite", "HTTPS", 10, 20, [2][]Sample{rounds(800, 400, 1200), rounds(880, 480, 1200)})
	if !near(r.CPU, 800) || !near(r.Ratio, 2) || !near(r.Rate, 500) || !near(r.Large, 880) || !near(r.Growth, 10) || !near(r.Crypto, 400) || r.Rounds != 3 {
		t.Errorf("%+v", r)
	}
	met := func(change func(*Hubs)) bool {
		h := &Hubs{Registrations: []Registration{r}, Idle: []IdleMemory{{Later: TargetIdle}}}
		change(h)
		return h.met()
	}
	if !(*Hubs)(nil).met() || !met(func(*Hubs) {}) {
		t.Error("the targets are met")
	}
	for name, change := range map[string]func(*Hubs){
		"ratio":  func(h *Hubs) { h.Registrations[0].Ratio = 2.01 },
		"rate":   func(h *Hubs) { h.Registrations[0].Rate = 333 },
		"growth": func(h *Hubs) { h.Registrations[0].Growth = 20.1 },
		"memory": func(h *Hubs) { h.Idle[0].Later++ },
	} {
		if name == "ratio" && !met(func(h *Hubs) { change(h); h.Registrations[0].Store = enrol.BareName }) {
			t.Error("a bare server has no target")
		}
		if met(change) {
			t.Errorf("%s: its target is missed", name)
		}
	}
}

// A smoke run of provisioning service and hub: registrations over HTTPS and MQTT, telemetry beside mosquitto, and 300
// idle connections from another process, each of which is still there at the end.
func TestHubRun(t *testing.T) {
	testenv.Require(t, "mosquitto")
	f, out := smoke(t, options{small: 1, rounds: 1, units: 1, parallel: 4, clients: 4, only: "hub", registrations: 6, registeredFew: 10, registered: 700,
		connections: 300, telemetry: 20, publish: 100 * time.Millisecond})
	n := len(stores)
	if h := f.Hubs; h == nil || len(h.Registrations) != 2*n+1 || len(h.Telemetry) != (n+1)*len(levels) || len(h.Idle) != 1 {
		t.Fatalf("%+v", f.Hubs)
	}
	for _, r := range f.Hubs.Registrations {
		if r.Store == enrol.BareName {
			r.Few, r.Many = 10, 700
		}
		if r.CPU <= 0 || r.Large <= 0 || r.Crypto <= 0 || r.Rate <= 0 || r.Few != 10 || r.Many != 700 || !strings.Contains(out, r.Transport) {
			t.Errorf("%+v", r)
		}
	}
	for _, x := range f.Hubs.Telemetry {
		if x.Rate <= 0 || x.CPU <= 0 || x.Connections > 20 || !strings.Contains(out, x.Server) {
			t.Errorf("%+v", x)
		}
	}
	if i := f.Hubs.Idle[0]; i.Connections != 300 || i.AtOnce <= 0 || i.Later <= 0 {
		t.Errorf("%+v", i)
	}
}

// Two builds compared by registrations and by enrolments; here the second is the first.
func TestAgainst(t *testing.T) {
	testenv.Long(t)
	bin := t.TempDir()
	if err := plant.Build(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	compare := func(only string) (string, error) {
		var out, progress bytes.Buffer
		o := options{bin: bin, against: bin, small: 1, rounds: 1, units: 1, parallel: 4, clients: 4, stores: "sqlite", dir: t.TempDir(), only: only, registrations: 6, enrol: 6}
		err := run(t.Context(), o, &out, &progress)
		return out.String(), err
	}
	for only, kinds := range map[string][]string{
		"hub":   {"registrations over HTTPS", "registrations over MQTT"},
		"enrol": {enrol.EnrollNew.String(), enrol.EnrollKept.String(), enrol.ReenrollNew.String(), enrol.ReenrollKept.String()},
	} {
		out, err := compare(only)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range kinds {
			if strings.Count(out, "sqlite, "+k+": ") != 1 {
				t.Errorf("%s: %q is not there once in %q", only, k, out)
			}
		}
	}
	if _, err := compare("status"); err == nil {
		t.Error("--against with --only status passed")
	}
}
