package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// services starts cradle serve and waits until it is ready.
func (s *story) services(ctx context.Context) error {
	s.show.chapter("Services start on loopback, over an embedded store")
	s.listen = s.cmd.Listen
	if s.listen == "" {
		s.listen = "127.0.0.1:8443"
		l, err := net.Listen("tcp", s.listen)
		if err != nil {
			s.show.say("  (port 8443 is taken: using a free one)")
			if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return cradle.Errorf(cradle.Conflict, "no free port on 127.0.0.1: %v", err)
			}
			s.listen = l.Addr().String()
		}
		l.Close()
	}
	args := []string{"serve", "--data", s.data(), "--listen", s.listen}
	line := s.fam.line("cradle", args...)
	s.show.command(line)
	log, err := newTail(s.dir.path("logs", "serve.log"))
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := s.fam.command(context.Background(), "cradle", args...)
	cmd.Stdout, cmd.Stderr = w, log
	s.serve, err = s.fam.background(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	ready := make(chan string, 1)
	go func() {
		defer r.Close()
		in := bufio.NewScanner(r)
		for in.Scan() {
			if strings.HasPrefix(in.Text(), "ready") {
				ready <- in.Text()
				break
			}
		}
		io.Copy(log, r)
	}()
	go func() {
		<-s.serve.done
		s.fail(errEnded(line, log.String(), s.serve.err))
	}()
	t := time.NewTimer(time.Minute)
	defer t.Stop()
	select {
	case text := <-ready:
		s.show.outcome(text, 1)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return cradle.Errorf(cradle.Busy, "the services were not ready within a minute").WithHint("see %s", s.dir.path("logs", "serve.log"))
	}
	return nil
}

// powerOn switches all devices on and waits until each one's telemetry is in the hub.
func (s *story) powerOn(ctx context.Context) error {
	n := s.cmd.Devices
	s.show.chapter("Power on: nobody touches anything any more")
	if err := s.followEvents(ctx); err != nil {
		return err
	}
	s.show.command(s.fam.line("cradle-agent", "run", "--config", s.fleet.devices[0].config))
	processes := min(n, mostProcesses)
	switch {
	case n > processes:
		s.show.say("      %d devices in %d processes: up to %d devices share one", n, processes, (n+processes-1)/processes)
	case n > 1:
		s.show.say("      and the same for %d more: one process per device", n-1)
	}
	began := time.Now()
	if err := s.fleet.powerOn(s.fam, s.dir.path, processes, s.fail); err != nil {
		return err
	}
	sends := func(d *device) bool { return !d.reached[stageTelemetry].IsZero() }
	err := s.watch(ctx, "", func() (bool, func() string) {
		c := s.fleet.count(sends)
		return c == n, func() string {
			return fmt.Sprintf("%d of %d devices sent no telemetry: %s", n-c, n, s.fleet.lacking(func(d *device) bool { return !sends(d) }))
		}
	})
	if err != nil {
		return err
	}
	s.show.settle("all %d devices are connected and send telemetry, %s after power-on (%.1f devices per second)", n, took(began), float64(n)/time.Since(began).Seconds())
	return nil
}

// followEvents runs cradle hub events --follow beside the devices.
func (s *story) followEvents(ctx context.Context) error {
	args := []string{"hub", "events", "--follow", "--data", s.data()}
	line := s.fam.line("cradle", args...)
	s.show.command(line + " &")
	log, err := newTail(s.dir.path("logs", "events.log"))
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := s.fam.command(context.WithoutCancel(ctx), "cradle", args...)
	cmd.Stdout, cmd.Stderr = w, log
	s.events, err = s.fam.background(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	p := s.events
	go func() {
		defer r.Close()
		in := bufio.NewScanner(r)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			e := new(iothub.Event)
			if json.Unmarshal(in.Bytes(), e) == nil && !s.sdk.event(e) {
				s.fleet.event(e)
			}
		}
		<-p.done
		if !s.fleet.off() {
			s.fail(errEnded(line, log.String(), p.err))
		}
	}()
	return nil
}

// watch shows how the devices are until done says so, an error ends the story, or, with --exit, time is up. missing
// names what is lacking.
func (s *story) watch(ctx context.Context, note string, done func() (ok bool, missing func() string)) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	type sample struct {
		at     time.Time
		events int
	}
	samples := []sample{{time.Now(), s.fleet.taken()}}
	for {
		ok, missing := done()
		if ok {
			return nil
		}
		now := time.Now()
		samples = append(samples, sample{now, s.fleet.taken()})
		for now.Sub(samples[0].at) > 5*time.Second {
			samples = samples[1:]
		}
		first, last := samples[0], samples[len(samples)-1]
		text := s.fleet.state()
		if took := last.at.Sub(first.at).Seconds(); took > 1 {
			text += fmt.Sprintf(" (%.0f/s)", float64(last.events-first.events)/took)
		}
		if note != "" {
			text += "; " + note
		}
		s.show.progress("%s", text)
		if !s.deadline.IsZero() && now.After(s.deadline) {
			return cradle.Errorf(cradle.Busy, "time is up after %s: %s", took(s.began), missing()).
				WithHint("the logs are in %s; a slower machine may need fewer devices", s.dir.path("logs"))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
