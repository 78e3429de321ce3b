package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cradle-iot/cradle/test/bench/enrol"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// TargetKept is what a simplereenroll on a kept connection may cost, over its crypto.
const TargetKept = 2.5

// Enrolment is one kind of plain enrolment on one server: medians of the rounds, microseconds of CPU per certificate.
type Enrolment struct {
	Server string  `json:"server"`
	Kind   string  `json:"kind"`
	CPU    float64 `json:"cpu_us"`
	Floor  float64 `json:"crypto_us"`
	Ratio  float64 `json:"ratio"`
	Rate   float64 `json:"per_second"`
	Rounds int     `json:"rounds"`
}

// enrolmentsMet says whether ours are within the target on kept connections, and take less CPU than the peers.
func enrolmentsMet(list []Enrolment) bool {
	for _, e := range list {
		if !strings.HasPrefix(e.Server, enrol.OursPrefix) {
			continue
		}
		if e.Kind == enrol.ReenrollKept.String() && e.Ratio > TargetKept {
			return false
		}
		for _, p := range list {
			if p.Server != enrol.BareName && p.Kind == e.Kind && !strings.HasPrefix(p.Server, enrol.OursPrefix) && p.CPU < e.CPU {
				return false
			}
		}
	}
	return true
}

// buildPeers compiles other people's servers, each in the module of its own that names it.
func buildPeers(ctx context.Context, dir string) error {
	for _, p := range []struct{ module, tags string }{{"est", ""}, {"stepca", "nomysql nopgx nobbolt"}} {
		cmd := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join("test", "bench", "peers", p.module), "-tags", p.tags, "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
			"-o", dir+"/", "tool")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", p.module, err, out)
		}
	}
	return nil
}

// oursFor starts our server of a build, which knows the devices of all rounds.
func (b *bench) oursFor(ctx context.Context, store, bin, dir string) (enrol.Server, error) {
	p, err := plant.New(ctx, store, bin, filepath.Join(b.dir, dir), b.o.pprof)
	if err != nil {
		return nil, err
	}
	s, err := enrol.NewOurs(ctx, p, b.o.rounds+1, b.o.enrol)
	if err != nil {
		p.Close()
		return nil, err
	}
	return s, nil
}

// enrolments puts plain enrolments on our server over each store and on the peers, by turns.
func (b *bench) enrolments(ctx context.Context) (out []Enrolment, err error) {
	var servers []enrol.Server
	defer func() {
		for _, s := range servers {
			s.Close()
		}
	}()
	for _, store := range strings.Split(b.o.stores, ",") {
		s, err := b.oursFor(ctx, store, b.bin, "enrol-"+store)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	bare, err := enrol.NewBare(filepath.Join(b.dir, "enrol-bare"))
	if err != nil {
		return nil, err
	}
	servers = append(servers, bare)
	if b.o.peers {
		b.say("building the peers")
		bin := filepath.Join(b.dir, "peers")
		if err := buildPeers(ctx, bin); err != nil {
			return nil, err
		}
		for name, start := range map[string]func(bin, dir string) (enrol.Server, error){"peer-est": enrol.NewESTServer, "peer-stepca": enrol.NewStepCA} {
			s, err := start(bin, filepath.Join(b.dir, name))
			if err != nil {
				return nil, err
			}
			servers = append(servers, s)
		}
	}
	samples := make([][enrol.Kinds][]enrol.Sample, len(servers))
	rounds := b.o.rounds
	if b.o.only == "" { // a whole run is to end within ten minutes
		rounds = min(rounds, 3)
	}
	for round := -1; round < rounds; round++ { // the first warms up
		for i := range servers {
			n := (i + round + 1) % len(servers)
			devices := b.o.enrol
			if round < 0 {
				devices = max(devices/4, 1)
			}
			r, err := enrol.Run(ctx, servers[n], round+1, devices, b.o.clients)
			if err != nil {
				return nil, err
			}
			if round < 0 {
				continue
			}
			for k := range r {
				samples[n][k] = append(samples[n][k], r[k])
			}
			b.say("%-16s %s", servers[n].Name(), r[enrol.ReenrollKept].CPU.Round(time.Microsecond))
		}
	}
	for i, s := range servers {
		for k := range enrol.Kinds {
			of := func(f func(enrol.Sample) float64) float64 {
				var v []float64
				for _, x := range samples[i][k] {
					v = append(v, f(x))
				}
				return median(v)
			}
			out = append(out, Enrolment{Server: s.Name(), Kind: k.String(), Rounds: rounds,
				CPU:   of(func(x enrol.Sample) float64 { return micro(x.CPU, 1) }),
				Floor: of(func(x enrol.Sample) float64 { return micro(x.Floor, 1) }),
				Ratio: of(func(x enrol.Sample) float64 { return float64(x.CPU) / float64(x.Floor) }),
				Rate:  of(func(x enrol.Sample) float64 { return float64(x.Count) / x.Wall.Seconds() })})
		}
	}
	return out, nil
}

// enrolTable prints them, one kind after the other.
func enrolTable(w io.Writer, list []Enrolment) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "\nServer CPU per plain enrolment, durable record and log at ours, no evidence, key exchange P-256; medians of %d rounds by turns\n\n", list[0].Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "enrolment\tserver\tus\tcrypto us\tratio\tper second\t\n")
	for k := range enrol.Kinds {
		for _, e := range list {
			if e.Kind == k.String() {
				fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.2f\t%.0f\t\n", e.Kind, e.Server, e.CPU, e.Floor, e.Ratio, e.Rate)
			}
		}
	}
	t.Flush()
	fmt.Fprintf(w, "\n%s: the same requests at net/http; x509.CreateCertificate signs, and nothing is stored or looked up.\n", enrol.BareName)
	fmt.Fprintf(w, "crypto: CSR, issuing signature, and on a new connection a mutual handshake. Target for simplereenroll on a kept connection at ours: %.1f.\n", TargetKept)
}
