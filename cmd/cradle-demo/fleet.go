package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// stage is a step of a device's way, in order.
type stage int

// The stages after power-on.
const (
	stageLDevID stage = iota
	stageOperational
	stageRegistered
	stageConnected
	stageTelemetry
	stageCount
)

func (s stage) String() string {
	return [...]string{"LDevID", "operational certificate", "registered", "connected", "telemetry"}[s]
}

// device is what the demo sees of one device: in its agent's log and in the hub's events.
type device struct {
	id     cradle.DeviceID
	serial string
	config string // its agent.toml

	on      time.Time // power-on
	reached [stageCount]time.Time

	renewing   time.Time // a renewed certificate has come
	registered bool      // and is registered
	renewed    []time.Duration
	trouble    string             // what it is retrying, empty when nothing
	dropped    time.Time          // when the hub last ended its connection
	refused    map[string]refusal // by what was refused, since the device was revoked

	got  int       // different messages in the hub
	seen []bool    // by sequence number
	last time.Time // when the hub took the newest one
}

type refusal struct {
	at   time.Time
	text string
}

// The services of which the revoked device's refusal is wanted, as the agent names what it tried.
const (
	atHub          = "hub"
	atProvisioning = "provisioning"
	atEST          = "operational" // the renewal of its certificate
)

// fleet is all devices and their agents.
type fleet struct {
	agents []*process

	mu      sync.Mutex
	devices []*device
	byID    map[cradle.DeviceID]*device
	revoked cradle.DeviceID
	events  int
	ended   bool // switched off: agents may end
}

func newFleet() *fleet { return &fleet{byID: map[cradle.DeviceID]*device{}} }

func (f *fleet) add(d *device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d.refused = map[string]refusal{}
	f.devices = append(f.devices, d)
	f.byID[d.id] = d
}

// sort puts the devices in the order of their serial numbers.
func (f *fleet) sort() {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortFunc(f.devices, func(a, b *device) int { return strings.Compare(a.serial, b.serial) })
}

// powerOn starts the agents, at most processes of them, and follows their logs. fail is called when an
// agent ends by itself, which none should.
func (f *fleet) powerOn(fam *family, dir func(...string) string, processes int, fail func(error)) error {
	n := len(f.devices)
	for i := range processes {
		group := f.devices[i*n/processes : (i+1)*n/processes]
		args := []string{"run"}
		for _, d := range group {
			args = append(args, "--config", d.config)
		}
		cmd := fam.command(context.Background(), "cradle-agent", args...)
		log, err := os.Create(dir("logs", "agent-"+group[0].serial+".log"))
		if err != nil {
			return writable(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("starting an agent: %w", err)
		}
		cmd.Stderr = w
		now := time.Now()
		f.mu.Lock()
		for _, d := range group {
			d.on = now
		}
		f.mu.Unlock()
		p, err := fam.background(cmd)
		w.Close()
		if err != nil {
			r.Close()
			return err
		}
		f.agents = append(f.agents, p)
		go func() {
			last := f.follow(r, log)
			<-p.done
			if p.err != nil && !f.off() {
				fail(said(fam.line("cradle-agent", args[:3]...), last, p.err))
			}
		}()
	}
	return nil
}

// follow reads an agent's log until it ends and returns its last line.
func (f *fleet) follow(r io.ReadCloser, log io.WriteCloser) (last string) {
	defer r.Close()
	defer log.Close()
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		fmt.Fprintln(log, in.Text())
		if m := parseLog(in.Text()); m != nil {
			f.logged(m)
		} else {
			last += in.Text() + "\n"
		}
	}
	io.Copy(log, r) // a line of over a megabyte: go on without understanding
	return last
}

// logged takes a line of an agent's log.
func (f *fleet) logged(m map[string]string) {
	at, err := time.Parse(time.RFC3339Nano, m["time"])
	if err != nil {
		at = time.Now()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.byID[cradle.DeviceID(m["device"])]
	if d == nil {
		return
	}
	switch m["msg"] {
	case "certificate issued":
		d.trouble = ""
		switch {
		case m["profile"] == string(cradle.LDevID):
			d.reach(stageLDevID, at)
		case m["profile"] == string(cradle.Operational) && !d.reach(stageOperational, at):
			d.renewing, d.registered = at, false
		}
	case "registered with the provisioning service":
		d.trouble = ""
		d.reach(stageRegistered, at)
		d.registered = true
	case "connected to the hub":
		d.trouble = ""
		d.reach(stageConnected, at)
		if !d.renewing.IsZero() && d.registered {
			d.renewed = append(d.renewed, at.Sub(d.renewing))
			d.renewing = time.Time{}
		}
	case "will try again":
		d.trouble = m["what"] + ": " + m["err"]
		if m["what"] == atHub && strings.HasPrefix(m["err"], "connection to the hub") {
			d.dropped = at
		}
		if d.id == f.revoked && m["refused"] == "true" {
			if _, ok := d.refused[m["what"]]; !ok {
				d.refused[m["what"]] = refusal{at, m["err"]}
			}
		}
	}
}

// reach notes when a stage was reached first.
func (d *device) reach(s stage, at time.Time) bool {
	if !d.reached[s].IsZero() {
		return false
	}
	d.reached[s] = at
	return true
}

// event takes a message that the hub has.
func (f *fleet) event(e *iothub.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events++
	d := f.byID[e.Device]
	if d == nil {
		return
	}
	d.reach(stageTelemetry, e.Enqueued)
	if e.Enqueued.After(d.last) {
		d.last = e.Enqueued
	}
	if e.Sequence == nil || *e.Sequence < 1 || *e.Sequence > 1<<24 {
		return
	}
	for n := int(*e.Sequence); len(d.seen) <= n; {
		d.seen = append(d.seen, false)
	}
	if !d.seen[*e.Sequence] {
		d.seen[*e.Sequence] = true
		d.got++
	}
}

// gaps returns the numbers up to at least last that are not in the hub.
func (d *device) gaps(last int) (missing []int) {
	for n := 1; n < max(len(d.seen), last+1); n++ {
		if n >= len(d.seen) || !d.seen[n] {
			missing = append(missing, n)
		}
	}
	return missing
}

// off reports whether the devices were switched off.
func (f *fleet) off() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// taken is how many messages the hub has shown.
func (f *fleet) taken() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.events
}

// stop switches all devices off.
func (f *fleet) stop() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range f.agents {
		wg.Go(func() { p.stop(20 * time.Second) })
	}
	wg.Wait()
}

// count counts devices.
func (f *fleet) count(is func(*device) bool) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.devices {
		if is(d) {
			n++
		}
	}
	return n
}

// state is one line about all devices.
func (f *fleet) state() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var reached [stageCount]int
	renewals := 0
	troubles := map[string]int{}
	for _, d := range f.devices {
		for s, t := range d.reached {
			if !t.IsZero() {
				reached[s]++
			}
		}
		renewals += len(d.renewed)
		if d.trouble != "" && d.id != f.revoked {
			troubles[d.reason()]++
		}
	}
	n := len(f.devices)
	var parts []string
	if reached[stageTelemetry] < n {
		for s, c := range reached {
			parts = append(parts, fmt.Sprintf("%d %s", c, stage(s)))
		}
	} else {
		if f.revoked != "" {
			parts = append(parts, fmt.Sprintf("%d sending, 1 revoked", n-1))
		} else {
			parts = append(parts, fmt.Sprintf("%d sending", n))
		}
	}
	parts = append(parts, fmt.Sprintf("%d messages", f.events))
	if renewals > 0 {
		parts = append(parts, fmt.Sprintf("%d renewals", renewals))
	}
	if len(troubles) > 0 {
		total, most := 0, ""
		for r, c := range troubles {
			total += c
			if most == "" || c > troubles[most] || c == troubles[most] && r < most {
				most = r
			}
		}
		parts = append(parts, fmt.Sprintf("%d retrying (%s)", total, most))
	}
	return strings.Join(parts, ", ")
}

// reason is a device's trouble without what is its own, so that equal troubles are counted together.
func (d *device) reason() string {
	r := strings.ReplaceAll(d.trouble, string(d.id), "it")
	if len(r) > 160 {
		r = r[:160] + "..."
	}
	return r
}

// lacking names the devices for which is holds, and what each is retrying.
func (f *fleet) lacking(is func(*device) bool) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	n := 0
	for _, d := range f.devices {
		if !is(d) {
			continue
		}
		if n++; n > 3 {
			continue
		}
		why := d.trouble
		if why == "" {
			why = "no error seen; its log is in the folder logs"
		}
		out = append(out, fmt.Sprintf("%s (%s)", d.id, why))
	}
	if n > 3 {
		out = append(out, fmt.Sprintf("and %d more", n-3))
	}
	return strings.Join(out, "; ")
}
