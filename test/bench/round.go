package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle/test/bench/floor"
	"github.com/cradle-iot/cradle/test/bench/plant"
	"github.com/cradle-iot/cradle/test/bench/sim"
)

// Sample is what one round of onboardings took.
type Sample struct {
	Registered int // devices that were there before
	Units      int
	Wall       time.Duration
	CPU        plant.CPU
	Floor      floor.Cost
	Floors     int // how often the floor was sampled
}

// site is an installation under measurement.
type site struct {
	plant      *plant.Plant
	line       *sim.Line
	registered int
}

func newSite(ctx context.Context, store, bin, dir, pprof string) (*site, error) {
	p, err := plant.New(ctx, store, bin, dir, pprof)
	if err != nil {
		return nil, err
	}
	l, err := sim.OpenLine(p)
	if err != nil {
		p.Close()
		return nil, err
	}
	return &site{plant: p, line: l}, nil
}

// settle is the pause before a reading: for what the server still does for the round before.
const settle = 400 * time.Millisecond

// round makes units on the line, closes their lot and powers them on, each several at a time, and
// measures it from the first request to the last device's CONNACK.
func (s *site) round(ctx context.Context, units, parallel int) (r Sample, err error) {
	us := make([]*sim.Unit, units)
	for i := range us {
		if us[i], err = s.line.Next(); err != nil {
			return r, err
		}
	}
	time.Sleep(settle)
	sampler, err := floor.Start()
	if err != nil {
		return r, err
	}
	before, err := s.plant.CPU()
	if err != nil {
		return r, err
	}
	start := time.Now()
	err = each(ctx, us, parallel, s.line.Make)
	if err == nil {
		err = s.line.CloseLot(ctx, us)
	}
	if err == nil {
		err = each(ctx, us, parallel, s.line.PowerOn)
	}
	r.Wall = time.Since(start)
	after, cpuErr := s.plant.CPU()
	var floorErr error
	r.Floor, r.Floors, floorErr = sampler.Stop()
	for _, u := range us {
		u.Off()
	}
	for _, e := range []error{err, cpuErr, floorErr} {
		if e != nil {
			return r, fmt.Errorf("%s with %d devices: %w", s.plant.Store, s.registered, e)
		}
	}
	r.CPU, r.Units, r.Registered = after.Sub(before), units, s.registered
	return r, nil
}

func each(ctx context.Context, us []*sim.Unit, parallel int, do func(context.Context, *sim.Unit) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, u := range us {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(ctx, u) })
	}
	return g.Wait()
}
