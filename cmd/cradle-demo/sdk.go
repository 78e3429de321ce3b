package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// sdkDevice is the one device beside the fleet that runs Microsoft's SDK for Node.js in place of our agent.
const sdkDevice cradle.DeviceID = "azure-sdk-1"

//go:embed azure/device.js
var sdkProgram string

// sdk is what the demo sees of that device. Whatever becomes of it, the story goes on: it is no part of what must come true.
type sdk struct {
	p   *process // nil until it was started
	log *tail

	mu      sync.Mutex
	on      time.Time
	reached map[string]time.Time // by what the program printed first, and "in the hub"
	got     int                  // messages in the hub
}

func newSDK() *sdk { return &sdk{reached: map[string]time.Time{}} }

// sdkWords are what the program prints, and what the demo adds, in order.
var sdkWords = []string{"registered", "connected", "reported", "in the hub"}

func (d *sdk) reach(word string, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reached[word].IsZero() {
		d.reached[word] = at
	}
}

func (d *sdk) at(word string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reached[word]
}

// event takes a message that the hub has, if it is this device's.
func (d *sdk) event(e *iothub.Event) bool {
	if e.Device != sdkDevice {
		return false
	}
	d.reach("in the hub", e.Enqueued)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got++
	return true
}

// withSDK adds the device that runs Microsoft's SDK, where Node.js and the SDK are here.
func (s *story) withSDK(ctx context.Context) error {
	s.show.chapter("Beside them: a device written for Azure, with Microsoft's SDK for Node.js")
	node, err := exec.LookPath("node")
	switch {
	case err != nil:
		s.show.say("  Node.js is not installed here, so there is none (make deps installs it)")
		return nil
	case s.cmd.AzureSDK == "":
		s.show.say("  Microsoft's packages are not here, so there is none (make deps fetches them from npm)")
		return nil
	}
	if err := s.startSDK(ctx, node); err != nil {
		if ctx.Err() != nil {
			return err
		}
		s.show.say("  it did not start: %v; the story goes on without it", err)
		return nil
	}
	limit := time.Now().Add(30 * time.Second)
	err = s.watch(ctx, "waiting for the device with Microsoft's SDK", func() (bool, func() string) {
		select {
		case <-s.sdk.p.done:
			return true, nil
		default:
		}
		return !s.sdk.at("in the hub").IsZero() || time.Now().After(limit), func() string { return string(sdkDevice) + " sent nothing" }
	})
	if err != nil {
		return err
	}
	if s.sdk.at("in the hub").IsZero() {
		s.show.settle("")
		s.show.say("  %s has sent nothing; the story goes on without it. What it said is in %s: %s", sdkDevice, s.dir.path("logs", "azure-sdk.log"), lastLine(s.sdk.log.String()))
		return nil
	}
	s.show.settle("%s registered, reads and reports its twin and sends telemetry, %.1f s after its start; only the host names in its program are ours", sdkDevice, s.sdk.at("in the hub").Sub(s.sdk.on).Seconds())
	return nil
}

// startSDK enrols the device and starts its program.
func (s *story) startSDK(ctx context.Context, node string) error {
	key := s.dir.path("azure", "device.key")
	if err := os.MkdirAll(s.dir.path("azure"), 0o755); err != nil {
		return err
	}
	program := s.dir.path("azure", "device.js")
	if err := os.WriteFile(program, []byte(sdkProgram), 0o644); err != nil {
		return err
	}
	anchors := s.dir.path("azure", "anchors.pem")
	for _, args := range [][]string{{"anchors", "--out", anchors}, {"enrollment", "create", string(sdkDevice), "--key-out", key}} {
		if err := s.run(ctx, 1, "cradle", append(args, "--data", s.data())...); err != nil {
			return err
		}
	}
	s.show.command(s.fam.line("cradle", "status", "--json", "--data", s.data()))
	text, err := s.fam.run(ctx, "cradle", "status", "--json", "--data", s.data())
	if err != nil {
		return err
	}
	var st admin.Status
	if err := json.Unmarshal(text, &st); err != nil {
		return fmt.Errorf("what cradle status printed: %w", err)
	}
	args := []string{program, st.DPSHost, st.IDScope, string(sdkDevice), key, "2"}
	s.show.command("NODE_EXTRA_CA_CERTS=" + anchors + " NODE_PATH=" + s.cmd.AzureSDK + " node " + strings.Join(args, " "))
	log, err := newTail(s.dir.path("logs", "azure-sdk.log"))
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(node, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+anchors, "NODE_PATH="+s.cmd.AzureSDK)
	cmd.Stdout, cmd.Stderr = w, log
	d := s.sdk
	d.mu.Lock()
	d.on = time.Now()
	d.mu.Unlock()
	p, err := s.fam.background(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	d.p, d.log = p, log
	go func() {
		defer r.Close()
		in := bufio.NewScanner(r)
		for in.Scan() {
			d.reach(in.Text(), time.Now())
		}
		io.Copy(log, r)
	}()
	return nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return cli.Line(text[strings.LastIndexByte(text, '\n')+1:])
}

// stop ends the program, which closes its connection.
func (d *sdk) stop() {
	if d.p != nil {
		d.p.stop(5 * time.Second)
	}
}

// sayRow shows how the device did, apart from the fleet's table.
func (d *sdk) sayRow(show func(string, ...any)) {
	if d.p == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var parts []string
	for _, w := range sdkWords {
		if at := d.reached[w]; !at.IsZero() {
			parts = append(parts, fmt.Sprintf("%s after %.1f s", w, at.Sub(d.on).Seconds()))
		}
	}
	show("  and %s, with Microsoft's SDK for Node.js: %s; %d messages", sdkDevice, strings.Join(parts, ", "), d.got)
}
