package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle/test/bench/enrol"
	"github.com/cradle-iot/cradle/test/bench/fleet"
	"github.com/cradle-iot/cradle/test/bench/hubload"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// Targets of provisioning service and hub.
const (
	TargetRegistration = 2.0            // server CPU of a registration over its handshake's crypto
	TargetIdle         = 40 << 10       // bytes of an idle connection
	TargetRate         = 20 * azureRate // registrations per second on two cores shared with the load
	azureRate          = 1000.0 / 60    // Azure's published limit
	TargetRegistered   = 20.0           // percent that one may cost more among many
)

// Hubs are the figures of provisioning service and hub.
type Hubs struct {
	Registrations []Registration `json:"registrations"`
	Telemetry     []Telemetry    `json:"telemetry"`
	Idle          []IdleMemory   `json:"idle"`
}

// Telemetry is messages of 120 bytes at QoS 1 from some connections.
type Telemetry struct {
	Server      string  `json:"server"`
	Connections int     `json:"connections"`
	Window      int     `json:"window"` // messages of a connection without their PUBACK
	Rate        float64 `json:"messages_per_second"`
	CPU         float64 `json:"cpu_us"` // per message
}

// IdleMemory is what connections to the hub take that say nothing.
type IdleMemory struct {
	Store       string  `json:"store"`
	Connections int     `json:"connections"`
	AtOnce      float64 `json:"bytes_at_once"` // resident, per connection, when the last one was there
	Later       float64 `json:"bytes_later"`   // when the garbage of the handshakes was collected
}

func (h *Hubs) met() bool {
	if h == nil {
		return true
	}
	for _, r := range h.Registrations {
		if r.Store != enrol.BareName && (r.Ratio > TargetRegistration || r.Rate < TargetRate || r.Growth > TargetRegistered) {
			return false
		}
	}
	for _, i := range h.Idle {
		if i.Later > TargetIdle {
			return false
		}
	}
	return true
}

// levels are connections, of which there are at most --telemetry, and messages that each has under way.
var levels = [][2]int{{1, 1}, {1, 100}, {100, 1}, {2000, 1}}

// hubSite is an installation under this load.
type hubSite struct {
	*hubload.Server
	plant    *plant.Plant
	profiles string // address of the server's
	next     int    // client that has not registered
}

// hubs measures registrations, telemetry and idle connections.
func (b *bench) hubs(ctx context.Context) (*Hubs, error) {
	out := &Hubs{}
	for i, store := range strings.Split(b.o.stores, ",") {
		if err := b.hub(ctx, store, i == 0, out); err != nil {
			return nil, err
		}
	}
	b.say("telemetry to mosquitto")
	m, err := hubload.StartMosquitto(ctx, filepath.Join(b.dir, "mosquitto"), b.o.telemetry)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	t, err := b.telemetry(ctx, "mosquitto", &m.Server, m.CPU)
	out.Telemetry = append(out.Telemetry, t...)
	return out, err
}

// newHubSite has known of the clients in its hub's registry, and registered devices besides.
func (b *bench) newHubSite(ctx context.Context, store, name string, known, clients, registered int) (*hubSite, error) {
	profiles := ""
	if known > 0 {
		if profiles = b.o.pprof; profiles == "" { // for the collection of garbage that idle asks for
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			profiles = ln.Addr().String()
			ln.Close()
		}
	}
	p, err := plant.New(ctx, store, b.bin, filepath.Join(b.dir, name), profiles)
	if err != nil {
		return nil, err
	}
	s := &hubSite{plant: p, profiles: profiles, next: known, Server: &hubload.Server{Addr: p.Addr()}}
	err = func() (err error) {
		if s.Roots, err = p.Roots(); err != nil {
			return err
		}
		if s.IDScope, err = p.IDScope(); err != nil {
			return err
		}
		if err := p.Stop(); err != nil {
			return err
		}
		if s.Clients, err = fleet.NewClients(ctx, p, known+clients); err != nil {
			return err
		}
		first := *s.Clients
		first.List = first.List[:known]
		if err := first.LoadHub(ctx, p); err != nil {
			return err
		}
		if err := fleet.LoadRegistrations(ctx, p, registered); err != nil {
			return err
		}
		if err := p.Settle(ctx); err != nil {
			return err
		}
		return p.Start(ctx)
	}()
	if err != nil {
		p.Close()
		return nil, err
	}
	return s, nil
}

// hub measures one store; idle connections, which the store knows nothing of, only where asked.
func (b *bench) hub(ctx context.Context, store string, idle bool, out *Hubs) error {
	transports := []string{"HTTPS", "MQTT"}
	clients := (b.o.rounds + 1) * b.o.registrations * len(transports)
	few, err := b.newHubSite(ctx, store, "hub-"+store, max(b.o.connections, b.o.telemetry), clients, b.o.registeredFew)
	if err != nil {
		return err
	}
	defer few.plant.Close()
	many, err := b.newHubSite(ctx, store, "hub-"+store+"-many", 0, clients, b.o.registered)
	if err != nil {
		return err
	}
	defer many.plant.Close()
	bare, err := newBare(filepath.Join(b.dir, "hub-"+store+"-bare"), few.Clients)
	if err != nil {
		return err
	}
	defer bare.server.Close()
	var handshakes []Sample
	b.say("%-8s registrations among %d and %d", store, b.o.registeredFew, b.o.registered)
	samples := map[string][2][]Sample{}
	for round := -1; round < b.o.rounds; round++ { // the first warms up
		for _, transport := range transports {
			pair := samples[transport]
			for k := range pair {
				i := (k + round + 1) % 2
				x, err := []*hubSite{few, many}[i].register(ctx, transport, b.o.registrations, b.o.clients)
				if err != nil {
					return fmt.Errorf("registering over %s, %s: %w", transport, store, err)
				}
				if round >= 0 {
					pair[i] = append(pair[i], x)
				}
			}
			samples[transport] = pair
		}
		if !idle { // it knows no stores: once is enough
			continue
		}
		x, err := bare.refuse(ctx, b.o.registrations, b.o.clients)
		if err != nil {
			return fmt.Errorf("asking a bare server: %w", err)
		}
		if round >= 0 {
			handshakes = append(handshakes, x)
		}
	}
	for _, transport := range transports {
		out.Registrations = append(out.Registrations, newRegistration(store, transport, b.o.registeredFew, b.o.registered, samples[transport]))
	}
	if idle {
		out.Registrations = append(out.Registrations, newRegistration(enrol.BareName, "HTTPS", 0, 0, [2][]Sample{handshakes, handshakes}))
	}
	if err := many.plant.Stop(); err != nil {
		return err
	}
	b.say("%-8s telemetry", store)
	t, err := b.telemetry(ctx, "cradle, "+store, few.Server, func() (time.Duration, error) {
		c, err := few.plant.CPU()
		return c.Total(), err
	})
	out.Telemetry = append(out.Telemetry, t...)
	if err != nil || !idle || b.o.connections == 0 {
		return err
	}
	b.say("%-8s %d idle connections", store, b.o.connections)
	i, err := few.idle(ctx, b.o.connections, b.o.later)
	out.Idle = append(out.Idle, i)
	return err
}

// telemetry puts each level of load on a server.
func (b *bench) telemetry(ctx context.Context, name string, s *hubload.Server, cpu func() (time.Duration, error)) (out []Telemetry, err error) {
	for _, l := range levels {
		n := min(l[0], b.o.telemetry)
		d, err := s.Devices(ctx, n)
		if err != nil {
			return out, fmt.Errorf("%s, %d connections: %w", name, n, err)
		}
		_, err = d.Publish(ctx, l[1], b.o.publish/4) // warms up
		before, cpuErr := cpu()
		start := time.Now()
		var acked int64
		if err == nil {
			acked, err = d.Publish(ctx, l[1], b.o.publish)
		}
		wall := time.Since(start)
		after, cpuErr2 := cpu()
		d.Close()
		for _, e := range []error{err, cpuErr, cpuErr2} {
			if e != nil {
				return out, fmt.Errorf("%s, %d connections: %w", name, n, e)
			}
		}
		out = append(out, Telemetry{name, n, l[1], float64(acked) / wall.Seconds(), micro(after-before, int(max(acked, 1)))})
	}
	return out, nil
}

// idle measures the memory of n connections, after the server was started anew: at once, and later, when the garbage
// of their handshakes was collected and its memory given back.
func (s *hubSite) idle(ctx context.Context, n int, later time.Duration) (m IdleMemory, err error) {
	m = IdleMemory{Store: s.plant.Store, Connections: n}
	if err := s.plant.Stop(); err != nil {
		return m, err
	}
	if err := s.plant.Start(ctx); err != nil {
		return m, err
	}
	roots, err := s.plant.RootsDER()
	if err != nil {
		return m, err
	}
	before, err := hubload.Resident(s.plant.PID())
	if err != nil {
		return m, err
	}
	i, err := s.StartIdle(roots, n)
	if err != nil {
		return m, err
	}
	defer i.Close()
	per := func() (float64, error) {
		now, err := hubload.Resident(s.plant.PID())
		return float64(now-before) / float64(n), err
	}
	if m.AtOnce, err = per(); err != nil {
		return m, err
	}
	for range 2 { // what the handshakes left, and what a first collection only marked
		if err := s.collect(ctx); err != nil {
			return m, err
		}
	}
	select {
	case <-time.After(later):
	case <-ctx.Done():
		return m, ctx.Err()
	}
	if m.Later, err = per(); err != nil {
		return m, err
	}
	return m, i.Alive()
}

// collect has the server collect its garbage now, as it does by itself every two minutes.
func (s *hubSite) collect(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.profiles+"/debug/pprof/heap?gc=1", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// hubTable prints the figures.
func hubTable(w io.Writer, h *Hubs) {
	if h == nil {
		return
	}
	table := func(head string, rows func(io.Writer)) {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, head)
		rows(t)
		t.Flush()
	}
	fmt.Fprintf(w, "\nServer CPU per registration over a new connection, its entry in the hub's registry included; medians of rounds by turns\n\n")
	table("store\ttransport\tus\tcrypto us\tratio\tper second\tregistered\tamong more us\tgrowth\tregistered\t", func(t io.Writer) {
		for _, r := range h.Registrations {
			if r.Store == enrol.BareName {
				fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.2f\t%.0f\t\t\t\t\t\n", r.Store, r.Transport, r.CPU, r.Crypto, r.Ratio, r.Rate)
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.2f\t%.0f\t%d\t%.0f\t%+.1f %%\t%d\t\n", r.Store, r.Transport, r.CPU, r.Crypto, r.Ratio, r.Rate, r.Few, r.Large, r.Growth, r.Many)
		}
	})
	fmt.Fprintf(w, "\n%s: the same connection and request at net/http, answered 404.\n", enrol.BareName)
	fmt.Fprintf(w, "crypto: one mutual handshake. Targets: ratio %.1f, %.0f per second (20 times Azure's limit), growth %.0f %%.\n", TargetRegistration, TargetRate, TargetRegistered)
	fmt.Fprintf(w, "\nTelemetry, 120 bytes at QoS 1; ours is durable before the PUBACK, mosquitto writes its file every second or so\n\n")
	table("server\tconnections\tunder way each\tper second\tCPU us each\t", func(t io.Writer) {
		for _, x := range h.Telemetry {
			fmt.Fprintf(t, "%s\t%d\t%d\t%.0f\t%.1f\t\n", x.Server, x.Connections, x.Window, x.Rate, x.CPU)
		}
	})
	if len(h.Idle) > 0 {
		fmt.Fprintf(w, "\nResident memory of the server per idle connection (MQTT over mutual TLS), target below %d KB\n\n", TargetIdle>>10)
		table("store\tconnections\tKB at once\tKB collected\t", func(t io.Writer) {
			for _, i := range h.Idle {
				fmt.Fprintf(t, "%s\t%d\t%.1f\t%.1f\t\n", i.Store, i.Connections, i.AtOnce/1024, i.Later/1024)
			}
		})
	}
}

// inParallel runs do for 0 to n-1.
func inParallel(n, parallel int, do func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(parallel)
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}
