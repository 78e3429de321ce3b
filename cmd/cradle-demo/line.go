package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
)

// lifetimes are how long operational certificates live and when they are renewed: early enough for a
// person who watches, and for larger fleets as slowly as this machine can renew them all.
func (s *story) lifetimes() (validity time.Duration, fraction float64) {
	validity, fraction = 4*time.Minute, 0.4
	if s.cmd.Exit {
		validity, fraction = 3*time.Minute, 0.3
	}
	slower := max(1, math.Ceil(float64(s.cmd.Devices)/250))
	return time.Duration(slower) * validity, fraction
}

// order is the content of the order file.
func (s *story) order(fraction float64) string {
	interval := max(2*time.Second, time.Duration(s.cmd.Devices)*25*time.Millisecond).Round(time.Second)
	return fmt.Sprintf(`# What %s orders from %s. URLs, anchors, dates and the ID scope are filled in by "cradle order create".
id            = %q
model         = "Demo sensor"
quantity      = %d
serial_prefix = "sn-"
serial_first  = %q
serial_last   = %q
naming        = "{account}-{serial}"
tiers         = [%q]
tpm_makers    = [%q]

[agent]
telemetry_interval = %q
renewal_fraction   = %v
`, account, oemName, orderID, s.cmd.Devices, serialDigits(1), serialDigits(s.cmd.Devices), cradle.Simulator, makerName, interval.String(), fraction)
}

func serialDigits(n int) string { return fmt.Sprintf("%06d", n) }
func serial(n int) string       { return "sn-" + serialDigits(n) }

// makeTPMs is the TPM maker's part: virtual TPMs as a chip maker delivers them.
func (s *story) makeTPMs(ctx context.Context) error {
	n := s.cmd.Devices
	s.show.chapter("A TPM maker (demo only) makes virtual TPMs")
	s.show.say("  one swtpm process each, with an EK certificate of %q in NV", s.maker.Intermediate().Subject.CommonName)
	began := time.Now()
	s.tpms, s.made = make([]*swtpm.TPM, n), make([]time.Duration, n)
	var done counter
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			from := time.Now()
			t, err := swtpm.Start(ctx, s.dir.path("tpms", serial(i+1)), swtpm.Options{})
			if err != nil {
				return fmt.Errorf("TPM %d: %w", i+1, err)
			}
			s.tpms[i] = t
			if _, err := s.maker.Manufacture(ctx, t.Socket(), tpmmaker.Options{}); err != nil {
				return fmt.Errorf("TPM %d: %w", i+1, err)
			}
			s.made[i] = time.Since(from)
			s.show.progress("%d of %d TPMs made", done.add(), n)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.show.settle("%d TPMs made in %s", n, took(began))
	return nil
}

// line is the OEM's factory line: every unit with a command of its own, several at a time.
func (s *story) line(ctx context.Context) error {
	n := s.cmd.Devices
	s.show.chapter("The line personalises the units")
	args := func(i int) []string {
		sn := serial(i + 1)
		return []string{"personalise", "--dir", s.dir.path("oem"), "--order", orderID, "--serial", sn,
			"--tpm", swtpm.Socket(s.dir.path("tpms", sn)), "--unit", s.dir.path("units", sn)}
	}
	s.show.command(s.fam.line("cradle-oem", args(0)...))
	if n > 1 {
		s.show.say("      and the same for %d more, %d at a time", n-1, min(s.cmd.Line, n))
	}
	began := time.Now()
	s.personalised = make([]time.Duration, n)
	var done counter
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cmd.Line)
	for i := range n {
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			from := time.Now()
			text, err := s.fam.run(gctx, "cradle-oem", append(args(i), "--json")...)
			if err != nil {
				return err
			}
			var unit struct{ Device cradle.DeviceID }
			if err := json.Unmarshal(text, &unit); err != nil || unit.Device == "" {
				return fmt.Errorf("what cradle-oem personalise printed for %s: %q", serial(i+1), text)
			}
			s.personalised[i] = time.Since(from)
			s.fleet.add(&device{id: unit.Device, serial: serial(i + 1), config: s.dir.path("units", serial(i+1), "agent.toml")})
			c := done.add()
			s.show.progress("%d of %d units personalised, %.1f per second", c, n, float64(c)/time.Since(began).Seconds())
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.fleet.sort()
	s.show.settle("%d units personalised in %s: IAK and IDevID made in each TPM, certificates, anchors and settings written", n, took(began))
	return s.run(ctx, 5, "cradle-oem", "lot", "close", "--dir", s.dir.path("oem"), "--order", orderID, "--out", s.dir.path("lot"))
}
