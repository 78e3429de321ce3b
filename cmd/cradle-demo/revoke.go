package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// dropWithin is how soon the hub must have dropped a revoked device.
const dropWithin = 5 * time.Second

// victim is the device that is revoked.
func (s *story) victim() *device { return s.fleet.devices[len(s.fleet.devices)/2] }

// revoke revokes one device while all run, and waits until the hub has dropped it.
func (s *story) revoke(ctx context.Context) error {
	d := s.victim()
	if !s.cmd.Exit { // a person watches: let things go their way for a moment
		few := func(d *device) bool { return d.got < 5 }
		if err := s.watch(ctx, "", func() (bool, func() string) { return s.fleet.count(few) == 0, nil }); err != nil {
			return err
		}
	}
	s.show.chapter("One device is revoked while it runs")
	began := time.Now()
	s.fleet.mu.Lock()
	s.fleet.revoked, d.dropped = d.id, time.Time{}
	s.fleet.mu.Unlock()
	s.revokedAt = began
	if err := s.run(ctx, 4, "cradle", "device", "revoke", string(d.id), "--reason", "the demo shows it", "--data", s.data()); err != nil {
		return err
	}
	late := began.Add(dropWithin)
	err := s.watch(ctx, "waiting for the hub to drop it", func() (bool, func() string) {
		s.fleet.mu.Lock()
		defer s.fleet.mu.Unlock()
		return !d.dropped.IsZero() || time.Now().After(late), func() string { return "the hub did not drop " + string(d.id) }
	})
	if err != nil {
		return err
	}
	s.fleet.mu.Lock()
	dropped := d.dropped
	s.fleet.mu.Unlock()
	if dropped.IsZero() || dropped.After(late) {
		return cradle.Errorf(cradle.Internal, "the hub did not drop the revoked device %s within %v", d.id, dropWithin).
			WithHint("see its agent's log and serve.log in %s", s.dir.path("logs"))
	}
	s.revocation = dropped.Sub(began)
	s.show.settle("the hub dropped %s %v after the command was given", d.id, s.revocation.Round(time.Millisecond))
	return nil
}

// renewals waits until the revoked device was refused everywhere, and all others have renewed and go on.
func (s *story) renewals(ctx context.Context) error {
	victim, n := s.victim(), len(s.fleet.devices)
	s.show.chapter("The others renew their certificates; the revoked device is refused everywhere")
	wanted := []struct{ what, service string }{{atHub, "hub"}, {atProvisioning, "provisioning"}, {atEST, "EST"}}
	said := map[string]bool{}
	first := false
	err := s.watch(ctx, "", func() (bool, func() string) {
		s.fleet.mu.Lock()
		defer s.fleet.mu.Unlock()
		var missing []string
		for _, w := range wanted {
			r, ok := victim.refused[w.what]
			if !ok {
				missing = append(missing, fmt.Sprintf("%s was not seen refused by %s", victim.id, w.service))
				continue
			}
			if !said[w.what] {
				said[w.what] = true
				defer s.show.say("  %s is refused by %s: %s", victim.id, w.service, r.text)
			}
		}
		var slow, silent []string
		for _, d := range s.fleet.devices {
			if d == victim {
				continue
			}
			if len(d.renewed) == 0 {
				slow = append(slow, string(d.id))
			} else if !first {
				first = true
				defer s.show.say("  %s renewed its certificate and the hub accepted it: the first renewal", d.id)
			}
			if d.last.Before(s.revokedAt.Add(dropWithin)) {
				silent = append(silent, string(d.id))
			}
		}
		if len(slow) > 0 {
			missing = append(missing, fmt.Sprintf("%d of %d devices have not renewed: %s", len(slow), n-1, few(slow)))
		}
		if len(silent) > 0 {
			missing = append(missing, fmt.Sprintf("%d devices sent nothing since the revocation: %s", len(silent), few(silent)))
		}
		return len(missing) == 0, func() string { return strings.Join(missing, "; ") }
	})
	if err != nil {
		return err
	}
	if n == 1 {
		s.show.settle("%s is refused by hub, provisioning and EST", victim.id)
		return nil
	}
	s.show.settle("all %d others have renewed at least once and go on sending; %s is refused by hub, provisioning and EST", n-1, victim.id)
	return nil
}

func few(names []string) string {
	if len(names) > 3 {
		return strings.Join(names[:3], ", ") + " ..."
	}
	return strings.Join(names, ", ")
}

// readBack switches the devices off and reads all telemetry from the hub again.
func (s *story) readBack(ctx context.Context) error {
	s.show.chapter("Switch off, and read all telemetry back")
	s.sdk.stop()
	s.fleet.stop()
	s.events.stop(5 * time.Second)
	devices := s.fleet.devices
	sent, err := s.acknowledged(ctx)
	if err != nil {
		return err
	}
	line := []string{"hub", "events", "--data", s.data()}
	s.show.command(s.fam.line("cradle", line...))
	text, err := s.fam.run(ctx, "cradle", line...)
	if err != nil {
		return err
	}
	all := newFleet() // counts afresh, what was followed does not count
	for _, d := range devices {
		all.add(&device{id: d.id})
	}
	in := bufio.NewScanner(bytes.NewReader(text))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		e := new(iothub.Event)
		if err := json.Unmarshal(in.Bytes(), e); err != nil {
			return fmt.Errorf("what cradle hub events printed: %w", err)
		}
		if e.Device == sdkDevice {
			continue // it counts apart
		}
		var body struct {
			Device cradle.DeviceID
			Seq    int64
		}
		if json.Unmarshal(e.Body, &body) != nil || e.Sequence == nil || body.Device != e.Device || body.Seq != *e.Sequence {
			return cradle.Errorf(cradle.Internal, "event %s of %s holds %s, which is not what its device sent under that number", e.Cursor, e.Device, e.Body)
		}
		all.event(e)
	}
	different := 0
	for i, d := range all.devices {
		if missing := d.gaps(sent[i]); len(missing) > 0 {
			return cradle.Errorf(cradle.Internal, "telemetry of %s has gaps: of %d numbers, %d are missing, the first is %d", d.id, max(len(d.seen)-1, sent[i]), len(missing), missing[0])
		}
		if victim := s.victim(); d.id == victim.id && d.last.After(s.revokedAt.Add(dropWithin)) {
			return cradle.Errorf(cradle.Internal, "the hub took a message of the revoked device %s at %s, revoked at %s", d.id, d.last.Format(time.RFC3339Nano), s.revokedAt.Format(time.RFC3339Nano))
		}
		different += d.got
	}
	s.show.say("      %d messages of %d devices: every number that a device gave out and saw acknowledged is there, no gap; %d came twice", different, len(all.devices), all.events-different)
	return nil
}

// acknowledged asks each agent's files up to which number the hub acknowledged its messages.
func (s *story) acknowledged(ctx context.Context) ([]int, error) {
	devices := s.fleet.devices
	s.show.command(s.fam.line("cradle-agent", "status", "--config", devices[0].config, "--json"))
	if n := len(devices) - 1; n > 0 {
		s.show.say("      and the same for %d more", n)
	}
	out := make([]int, len(devices))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cmd.Line)
	for i, d := range devices {
		g.Go(func() error {
			text, err := s.fam.run(ctx, "cradle-agent", "status", "--config", d.config, "--json")
			if err != nil {
				return err
			}
			var r struct {
				NextSeq int `json:"next_seq"`
				Unacked int `json:"unacked"`
			}
			if err := json.Unmarshal(text, &r); err != nil {
				return fmt.Errorf("what cradle-agent status printed for %s: %w", d.id, err)
			}
			if out[i] = r.NextSeq - 1 - r.Unacked; out[i] < 1 {
				return cradle.Errorf(cradle.Internal, "%s says that the hub acknowledged none of its messages", d.id)
			}
			return nil
		})
	}
	return out, g.Wait()
}

// audited has the log exported and verified offline.
func (s *story) audited(ctx context.Context) error {
	s.show.chapter("The log proves what was issued")
	file := s.dir.path("audit.jsonl")
	if err := s.run(ctx, 2, "cradle", "audit", "export", "--out", file, "--data", s.data()); err != nil {
		return err
	}
	return s.run(ctx, 4, "cradle", "audit", "verify", file)
}
