package world

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// Unit is a device: its TPM and its folder.
type Unit struct {
	ID     cradle.DeviceID
	Serial string
	Dir    string // with agent.toml
	TPM    *swtpm.TPM
}

// Config is the unit's agent.toml.
func (u *Unit) Config() string { return filepath.Join(u.Dir, "agent.toml") }

// Serial is the serial number of the world's nth unit, from 1.
func Serial(n int) string { return fmt.Sprintf("sn-%04d", n) }

// Make has n more units made and closes their lot.
func (w *World) Make(n int) []*Unit {
	w.T.Helper()
	units := w.Personalise(n)
	w.CloseLot()
	return units
}

// GoodTPM is a TPM without a fault.
var GoodTPM = tpmmaker.Options{}

// NewTPM starts a software TPM and has the maker finish it.
func (w *World) NewTPM(name string, o tpmmaker.Options) *swtpm.TPM {
	w.T.Helper()
	t, err := w.newTPM(name, o)
	if err != nil {
		w.T.Fatalf("making TPM %s: %v", name, err)
	}
	return t
}

func (w *World) newTPM(name string, o tpmmaker.Options) (*swtpm.TPM, error) {
	ctx := w.T.Context()
	t, err := swtpm.Start(ctx, w.path("tpms", name), swtpm.Options{})
	if err != nil {
		return nil, err
	}
	w.T.Cleanup(t.Kill)
	_, err = w.Maker.Manufacture(ctx, t.Socket(), o)
	return t, err
}

// Personalise has TPMs made and runs the line's command for each, several at a time.
func (w *World) Personalise(n int) []*Unit {
	w.T.Helper()
	from := len(w.Units)
	units := make([]*Unit, n)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range n {
		g.Go(func() error {
			serial := Serial(from + i + 1)
			tpm, err := w.newTPM(serial, tpmmaker.Options{})
			if err != nil {
				return err
			}
			u := &Unit{Serial: serial, Dir: w.path("units", serial), TPM: tpm}
			r := w.Run("cradle-oem", w.PersonaliseArgs(u.Serial, tpm.Socket())...)
			if r.Code != 0 {
				return fmt.Errorf("%s: exit %d: %s", r.Line, r.Code, r.Stderr)
			}
			var made struct{ Device cradle.DeviceID }
			if err := json.Unmarshal([]byte(r.Stdout), &made); err != nil {
				return err
			}
			u.ID, units[i] = made.Device, u
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		w.T.Fatalf("the line: %v", err)
	}
	w.Units = append(w.Units, units...)
	return units
}

// PersonaliseArgs are the arguments of the line's command for one unit.
func (w *World) PersonaliseArgs(serial, tpm string) []string {
	return []string{"personalise", "--dir", w.path("oem"), "--order", Order, "--serial", serial, "--tpm", tpm, "--unit", w.path("units", serial), "--json"}
}

// CloseLot closes the lot of what was made since the last one.
func (w *World) CloseLot() {
	w.T.Helper()
	w.Must("cradle-oem", "lot", "close", "--dir", w.path("oem"), "--order", Order, "--out", w.path("lot"))
}

// Agent starts one cradle-agent for units; env is added to its environment.
func (w *World) Agent(units []*Unit, env ...string) *Process {
	w.T.Helper()
	args := []string{"run"}
	for _, u := range units {
		args = append(args, "--config", u.Config())
	}
	cmd := w.Command("cradle-agent", args...)
	cmd.Env = append(cmd.Environ(), env...)
	return StartProcess(w.T, cmd, filepath.Join(units[0].Dir, "agent.log"))
}

// AgentCommand is the command of Agent, for a caller that starts it by itself.
func (w *World) AgentCommand(units ...*Unit) *exec.Cmd {
	args := []string{"run"}
	for _, u := range units {
		args = append(args, "--config", u.Config())
	}
	return w.Command("cradle-agent", args...)
}

// Devices are devices that run inside the test's own process, for when there are too many for
// processes. Their TPMs and connections are real.
type Devices struct {
	w    *World
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	errs []error
	log  bytes.Buffer
}

// Devices makes a power supply for in-process devices, which is switched off at the end of the test.
func (w *World) Devices() *Devices {
	d := &Devices{w: w}
	d.ctx, d.stop = context.WithCancel(context.WithoutCancel(w.T.Context()))
	w.T.Cleanup(func() {
		d.stop()
		d.wg.Wait()
		if w.T.Failed() {
			w.T.Logf("end of the devices' log:\n%s", tail(d.log.String(), 60))
		}
	})
	return d
}

// Write collects the devices' log.
func (d *Devices) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

// PowerOn starts devices.
func (d *Devices) PowerOn(units ...*Unit) {
	d.w.T.Helper()
	log := slog.New(slog.NewTextHandler(d, nil))
	for _, u := range units {
		s, err := settings.Load(u.Config())
		if err != nil {
			d.w.T.Fatal(err)
		}
		d.wg.Go(func() {
			if err := device.Run(d.ctx, s, device.Options{OpenTPM: device.OpenTPM(s.TPM), Log: log}); err != nil {
				d.mu.Lock()
				d.errs = append(d.errs, fmt.Errorf("%s: %w", u.ID, err))
				d.mu.Unlock()
			}
		})
	}
}

// Off switches all off and fails the test if a device ended by itself.
func (d *Devices) Off() {
	d.w.T.Helper()
	d.stop()
	d.wg.Wait()
	if err := errors.Join(d.errs...); err != nil {
		d.w.T.Errorf("devices ended by themselves: %v", err)
	}
}

// Log is what the devices logged so far.
func (d *Devices) Log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// Status reads a device's report from its files.
func (w *World) Status(u *Unit) *device.Report {
	w.T.Helper()
	s, err := settings.Load(u.Config())
	if err != nil {
		w.T.Fatal(err)
	}
	r, err := device.Status(s)
	if err != nil {
		w.T.Fatalf("status of %s: %v", u.ID, err)
	}
	return r
}

// Problem is a device's last error, for failure texts.
func Problem(r *device.Report) string {
	if r.LastError == nil {
		return string(r.Stage)
	}
	return fmt.Sprintf("%s (%s: %s)", r.Stage, r.LastError.What, r.LastError.Error)
}

// AwaitConnected waits until all units are connected to their hub.
func (w *World) AwaitConnected(limit time.Duration, units ...*Unit) {
	w.T.Helper()
	w.Wait(fmt.Sprintf("%d devices to be connected", len(units)), limit, func() (bool, string) {
		var missing []string
		for _, u := range units {
			if r := w.Status(u); r.Stage != device.StageConnected {
				missing = append(missing, string(u.ID)+" "+Problem(r))
			}
		}
		return len(missing) == 0, fmt.Sprintf("%d are not: %s", len(missing), strings.Join(missing[:min(5, len(missing))], "; "))
	})
}

// Events reads all of the hub's events.
func (w *World) Events() []iothub.Event {
	w.T.Helper()
	return Lines[iothub.Event](w.T, w.MustCradle("hub", "events"))
}

// Sequences are the different sequence numbers that the hub has of a device, sorted.
func Sequences(events []iothub.Event, id cradle.DeviceID) []int64 {
	var out []int64
	for _, e := range events {
		if e.Device == id && e.Sequence != nil {
			out = append(out, *e.Sequence)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// AwaitTelemetry waits until the hub has so many messages of each device: one that is connected may not have sent any yet.
func (w *World) AwaitTelemetry(least int, units ...*Unit) {
	w.T.Helper()
	w.Wait(fmt.Sprintf("%d messages of each device", least), testenv.Patience, func() (bool, string) {
		events := w.Events()
		for _, u := range units {
			if n := len(Sequences(events, u.ID)); n < least {
				return false, fmt.Sprintf("%s has sent %d: %s", u.ID, n, Problem(w.Status(u)))
			}
		}
		return true, ""
	})
}

// GapFree fails the test unless the hub has every number from 1 to at least least of each unit.
func (w *World) GapFree(events []iothub.Event, least int64, units ...*Unit) {
	w.T.Helper()
	for _, u := range units {
		got := Sequences(events, u.ID)
		for i, n := range got {
			if n != int64(i+1) {
				w.T.Errorf("%s: number %d is missing in the hub", u.ID, i+1)
				break
			}
		}
		if int64(len(got)) < least {
			w.T.Errorf("%s: %d messages in the hub, want at least %d", u.ID, len(got), least)
		}
	}
}
