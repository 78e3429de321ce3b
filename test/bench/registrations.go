package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/test/bench/enrol"
	"github.com/cradle-iot/cradle/test/bench/fleet"
	"github.com/cradle-iot/cradle/test/bench/floor"
	"github.com/cradle-iot/cradle/test/bench/hubload"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// Registration is one kind over one store: medians of the rounds, microseconds of CPU of server and database for each.
type Registration struct {
	Store     string  `json:"store"`
	Transport string  `json:"transport"`
	Few       int     `json:"registered"`
	Many      int     `json:"registered_many"`
	CPU       float64 `json:"cpu_us"`
	Crypto    float64 `json:"handshake_crypto_us"`
	Ratio     float64 `json:"ratio"`
	Rate      float64 `json:"per_second"`
	Large     float64 `json:"cpu_many_us"`
	Growth    float64 `json:"growth_percent"` // of the ratio, median of the rounds
	Rounds    int     `json:"rounds"`
}

// register has n more devices register.
func (s *hubSite) register(ctx context.Context, transport string, n, parallel int) (Sample, error) {
	do := s.RegisterHTTPS
	if transport == "MQTT" {
		do = s.RegisterMQTT
	}
	first := s.next
	s.next += n
	return load(s.plant.CPU, n, parallel, func(i int) error { return do(ctx, first+i) })
}

// bareSite is a bare server that is asked what a provisioning service is asked first.
type bareSite struct {
	*hubload.Server
	server enrol.Server
}

func newBare(dir string, clients *fleet.Clients) (*bareSite, error) {
	s, err := enrol.NewBare(dir, clients.Issuer)
	if err != nil {
		return nil, err
	}
	return &bareSite{&hubload.Server{Addr: s.Addr(), Roots: s.Roots(), IDScope: "none", Clients: clients}, s}, nil
}

// refuse has n devices connect and be answered 404.
func (s *bareSite) refuse(ctx context.Context, n, parallel int) (Sample, error) {
	cpu := func() (plant.CPU, error) {
		t, err := s.server.CPU()
		return plant.CPU{Server: t}, err
	}
	return load(cpu, n, parallel, func(i int) error {
		if err := s.RegisterHTTPS(ctx, i%len(s.Clients.List)); cradle.KindOf(err) != cradle.NotFound {
			return fmt.Errorf("got %v, not 404", err)
		}
		return nil
	})
}

// load measures n things done, parallel at once.
func load(cpu func() (plant.CPU, error), n, parallel int, do func(i int) error) (x Sample, err error) {
	time.Sleep(settle)
	sampler, err := floor.Start()
	if err != nil {
		return x, err
	}
	before, err := cpu()
	if err != nil {
		return x, err
	}
	start := time.Now()
	err = inParallel(n, parallel, do)
	x.Wall = time.Since(start)
	after, cpuErr := cpu()
	var floorErr error
	x.Floor, x.Floors, floorErr = sampler.Stop()
	for _, e := range []error{err, cpuErr, floorErr} {
		if e != nil {
			return x, e
		}
	}
	x.CPU, x.Units = after.Sub(before), n
	return x, nil
}

func newRegistration(store, transport string, few, many int, s [2][]Sample) Registration {
	of := func(list []Sample, f func(Sample) float64) float64 {
		var v []float64
		for _, x := range list {
			v = append(v, f(x))
		}
		return median(v)
	}
	cpu := func(x Sample) float64 { return micro(x.CPU.Total(), x.Units) }
	over := func(x Sample) float64 { return ratio(x, floor.MutualHandshake) }
	var growth []float64
	for i := range s[0] {
		growth = append(growth, 100*(over(s[1][i])/over(s[0][i])-1))
	}
	return Registration{Store: store, Transport: transport, Few: few, Many: many, Rounds: len(s[0]),
		CPU: of(s[0], cpu), Large: of(s[1], cpu), Ratio: of(s[0], over), Growth: median(growth),
		Crypto: of(s[0], func(x Sample) float64 { return micro(x.Floor.Of(floor.MutualHandshake), 1) }),
		Rate:   of(s[0], func(x Sample) float64 { return float64(x.Units) / x.Wall.Seconds() })}
}
