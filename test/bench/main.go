// Command bench measures what one onboarding costs the server, as a ratio to the cryptography that it
// cannot avoid, and how that changes with the number of devices that are there already.
//
//	go run ./test/bench [--json FILE] [--devices N] [--status N] [--only PART] [--quick]
//
// It builds the commands, runs a real "cradle serve" over SQLite and over PostgreSQL, and onboards devices
// with software keys from this process (package sim), the factory line included, log on and durable. In the
// same seconds it samples the crypto floor (package floor). docs/performance.md says how to read the
// table. The exit status is 0 when the measurement could be made, whatever it says.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle/test/bench/enrol"
	"github.com/cradle-iot/cradle/test/bench/fleet"
	"github.com/cradle-iot/cradle/test/bench/floor"
	"github.com/cradle-iot/cradle/test/bench/hubload"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

type options struct {
	json     string
	devices  int
	small    int
	rounds   int
	units    int
	parallel int
	clients  int // at once, of plain enrolments and registrations
	stores   string
	pprof    string
	dir      string
	bin      string
	against  string
	enrol    int
	peers    bool
	only     string
	status   int
	few      int
	quick    bool

	registrations int // of one round
	registeredFew int
	registered    int
	connections   int // idle
	later         time.Duration
	telemetry     int // connections
	publish       time.Duration
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == hubload.IdleArg {
		if err := hubload.RunIdle(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "idle devices: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == enrol.BareArg {
		fmt.Fprintln(os.Stderr, enrol.RunBare(os.Args[2]))
		os.Exit(1)
	}
	runtime.LockOSThread() // children die with the thread that started them
	debug.SetGCPercent(400)
	var o options
	flag.StringVar(&o.json, "json", "", "write all figures to `FILE`")
	flag.IntVar(&o.devices, "devices", 200_000, "devices of the large installation; 0 leaves growth out")
	flag.IntVar(&o.small, "small", 10_000, "devices of the small installation")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each kind, interleaved")
	flag.IntVar(&o.units, "units", 300, "onboardings per round")
	flag.IntVar(&o.parallel, "parallel", 32, "units under way at once")
	flag.IntVar(&o.clients, "clients", 128, "clients at once that enrol plainly or register")
	flag.StringVar(&o.stores, "stores", "sqlite,postgres", "stores to measure")
	flag.StringVar(&o.pprof, "pprof", "", "`ADDR` at which the server being measured serves its profiles; one store and, without --only enrol, --devices 0")
	flag.StringVar(&o.dir, "dir", "", "keep the installations in `DIR`")
	flag.StringVar(&o.bin, "bin", "", "measure the commands in `DIR` instead of building them")
	flag.IntVar(&o.enrol, "enrol", 1280, "plain enrolments of each kind per round; 0 leaves them out")
	flag.StringVar(&o.only, "only", "", "\"enrol\": the plain enrolments alone; \"status\": revocation, OCSP and CRLs alone; \"hub\": provisioning service and hub alone")
	flag.IntVar(&o.registrations, "registrations", 1280, "registrations of each kind per round; 0 leaves provisioning service and hub out")
	flag.IntVar(&o.registeredFew, "registered-small", 1000, "registrations that are there before in the small store")
	flag.IntVar(&o.registered, "registered", 20_000, "registrations that are there before in the large store")
	flag.IntVar(&o.telemetry, "telemetry", 2000, "connections that send telemetry, at most; at least 1")
	flag.DurationVar(&o.publish, "publish", 1500*time.Millisecond, "how long they do")
	flag.DurationVar(&o.later, "later", 10*time.Second, "how long after the last idle connection memory is measured again")
	flag.IntVar(&o.connections, "idle", 19_000, "idle connections to the hub; 0 leaves them out")
	flag.IntVar(&o.status, "status", 50_000, "certificates in the large store for revocation, OCSP and CRLs; 0 leaves them out")
	flag.IntVar(&o.few, "status-small", 1000, "certificates in the small store for them")
	flag.BoolVar(&o.peers, "peers", true, "put the plain enrolments on other people's servers too")
	flag.StringVar(&o.against, "against", "", "compare with the commands in `DIR`, by turns, and print nothing else; onboardings, or with --only hub registrations, with --only enrol plain enrolments")
	flag.BoolVar(&o.quick, "quick", false, "a smoke run: small numbers, figures that mean nothing")
	flag.Parse()
	o.telemetry = max(o.telemetry, 1)
	if o.quick {
		o.devices, o.small, o.rounds, o.units, o.parallel, o.clients, o.enrol, o.status, o.few = 200, 100, 2, 8, 4, 4, 20, 400, 100
		o.registrations, o.registeredFew, o.registered, o.connections, o.later, o.telemetry, o.publish = 8, 10, 100, 50, 0, 20, 100*time.Millisecond
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, stdout, progress io.Writer) (err error) {
	if o.rounds < 1 || o.units < 1 || o.parallel < 1 || o.clients < 1 || o.devices < 0 || o.small < 1 {
		return fmt.Errorf("numbers must be positive")
	}
	if !slices.Contains([]string{"", "enrol", "status", "hub"}, o.only) {
		return fmt.Errorf("--only %q: it is enrol, status or hub", o.only)
	}
	wanted := func(part string) bool { return o.only == "" || o.only == part }
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "cradle-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	b := &bench{o: o, dir: dir, bin: o.bin, log: progress, start: time.Now()}
	if b.bin == "" {
		b.say("building")
		b.bin = filepath.Join(dir, "bin")
		if err := os.MkdirAll(b.bin, 0o700); err != nil {
			return err
		}
		if err := plant.Build(ctx, b.bin); err != nil {
			return err
		}
	}
	f := &Figures{Time: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), CPUs: runtime.NumCPU(), KeyExchange: floor.KeyExchange,
		EKProfile: floor.EKProfile, Parallel: o.parallel, Clients: o.clients, Stores: map[string]*Result{},
		Targets: map[string]float64{"ratio": TargetRatio, "growth_percent": TargetGrowth, "status_percent": TargetStatus, "crl_seconds": TargetCRL.Seconds()}}
	for _, store := range strings.Split(o.stores, ",") {
		if o.against != "" {
			compare := map[string]func(context.Context, string, io.Writer) error{"": b.against, "hub": b.againstHub, "enrol": b.againstEnrol}[o.only]
			if compare == nil {
				return fmt.Errorf("--against does not go with --only %s", o.only)
			}
			if err := compare(ctx, store, stdout); err != nil {
				return err
			}
			continue
		}
		if o.only != "" {
			break
		}
		if f.Stores[store], err = b.store(ctx, store); err != nil {
			return err
		}
	}
	if o.against != "" {
		return nil
	}
	if o.status > 0 && wanted("status") {
		if f.Status, err = b.status(ctx); err != nil {
			return err
		}
	}
	if o.enrol > 0 && wanted("enrol") {
		if f.Enrolments, err = b.enrolments(ctx); err != nil {
			return err
		}
	}
	if o.registrations > 0 && wanted("hub") {
		if f.Hubs, err = b.hubs(ctx); err != nil {
			return err
		}
	}
	f.FloorParts, f.Met = floorParts(b.all), f.met()
	f.table(stdout)
	statusTable(stdout, f.Status)
	enrolTable(stdout, f.Enrolments)
	hubTable(stdout, f.Hubs)
	if f.Met {
		fmt.Fprintln(stdout, "Targets met.")
	} else {
		fmt.Fprintln(stdout, "Targets NOT met.")
	}
	if o.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(text, '\n'), 0o644)
}

// bench is one run.
type bench struct {
	o        options
	dir, bin string
	log      io.Writer
	start    time.Time
	all      []Sample
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, "%5.0f s  %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// store measures one store: rounds on an installation where nobody is registered, then, small and large
// by turns, rounds where many are.
func (b *bench) store(ctx context.Context, store string) (*Result, error) {
	small, err := newSite(ctx, store, b.bin, filepath.Join(b.dir, store+"-small"), b.o.pprof)
	if err != nil {
		return nil, err
	}
	defer small.plant.Close()
	empty, err := b.rounds(ctx, small)
	if err != nil {
		return nil, err
	}
	r := &Result{Empty: level(empty)}
	if b.o.devices == 0 {
		return r, nil
	}
	large, err := newSite(ctx, store, b.bin, filepath.Join(b.dir, store+"-large"), "")
	if err != nil {
		return nil, err
	}
	defer large.plant.Close()
	if err := b.load(ctx, small, b.o.small); err != nil {
		return nil, err
	}
	if err := b.load(ctx, large, b.o.devices); err != nil {
		return nil, err
	}
	if err := b.warm(ctx, small, large); err != nil {
		return nil, err
	}
	var few, many []Sample
	for range b.o.rounds {
		for _, s := range []*site{small, large} {
			x, err := b.round(ctx, s)
			if err != nil {
				return nil, err
			}
			if s == small {
				few = append(few, x)
			} else {
				many = append(many, x)
			}
		}
	}
	r.Small, r.Large = level(few), level(many)
	r.Growth = growth(r.Small, r.Large)
	return r, nil
}

func (b *bench) warm(ctx context.Context, sites ...*site) error {
	for _, s := range sites {
		if _, err := s.round(ctx, max(b.o.units/4, 1), b.o.parallel); err != nil {
			return err
		}
	}
	return nil
}

// settled warms sites up that were empty.
func (b *bench) settled(ctx context.Context, sites ...*site) error {
	if err := b.warm(ctx, sites...); err != nil {
		return err
	}
	for _, s := range sites {
		if err := s.plant.Settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) rounds(ctx context.Context, s *site) (out []Sample, err error) {
	if err := b.settled(ctx, s); err != nil {
		return nil, err
	}
	for range b.o.rounds {
		x, err := b.round(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

func (b *bench) round(ctx context.Context, s *site) (Sample, error) {
	x, err := s.round(ctx, b.o.units, b.o.parallel)
	if err != nil {
		return x, err
	}
	b.all = append(b.all, x)
	b.say("%-8s %9d registered: %.2f x the floor of %.2f ms, %.0f onboardings/s", s.plant.Store, s.registered, ratio(x, floor.Onboarding),
		micro(x.Floor.Of(floor.Onboarding), 1)/1000, float64(x.Units)/x.Wall.Seconds())
	return x, nil
}

// load registers devices while the server is down.
func (b *bench) load(ctx context.Context, s *site, n int) error {
	start := time.Now()
	if err := s.plant.Stop(); err != nil {
		return err
	}
	if err := fleet.Load(ctx, s.plant, n); err != nil {
		return fmt.Errorf("registering %d devices: %w", n, err)
	}
	if err := s.plant.Settle(ctx); err != nil {
		return err
	}
	s.registered = n
	b.say("%-8s %9d devices registered in bulk, %.0f a second", s.plant.Store, n, float64(n)/time.Since(start).Seconds())
	return s.plant.Start(ctx)
}
