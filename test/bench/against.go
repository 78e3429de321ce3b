package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cradle-iot/cradle/test/bench/enrol"
	"github.com/cradle-iot/cradle/test/bench/floor"
)

// against measures two builds by turns, nobody registered before, and prints how the ratios of the second compare with
// those of the first: what a noisy machine allows to be said.
func (b *bench) against(ctx context.Context, store string, stdout io.Writer) error {
	var sites [2]*site
	for i, bin := range []string{b.o.against, b.bin} {
		s, err := newSite(ctx, store, bin, filepath.Join(b.dir, fmt.Sprintf("%s-%d", store, i)), "")
		if err != nil {
			return err
		}
		defer s.plant.Close()
		sites[i] = s
	}
	if err := b.settled(ctx, sites[:]...); err != nil {
		return err
	}
	var ratios [2][]float64
	var change []float64
	for n := range b.o.rounds {
		for k := range sites {
			i := (n + k) % 2
			x, err := b.round(ctx, sites[i])
			if err != nil {
				return err
			}
			ratios[i] = append(ratios[i], ratio(x, floor.Onboarding))
		}
		change = append(change, 100*(ratios[1][n]/ratios[0][n]-1))
	}
	fmt.Fprintf(stdout, "%s: %.2f against %.2f; pairwise %+.1f %% (median of %d)\n", store, median(ratios[1]), median(ratios[0]), median(change), len(change))
	return nil
}

// againstHub is against for registrations over new connections.
func (b *bench) againstHub(ctx context.Context, store string, stdout io.Writer) error {
	transports := []string{"HTTPS", "MQTT"}
	var sites [2]*hubSite
	for i, bin := range []string{b.o.against, b.bin} {
		one := *b
		one.bin = bin
		s, err := one.newHubSite(ctx, store, fmt.Sprintf("hub-%s-%d", store, i), 0, (b.o.rounds+1)*b.o.registrations*len(transports), 0)
		if err != nil {
			return err
		}
		defer s.plant.Close()
		sites[i] = s
	}
	ratios := map[string][2][]float64{}
	change := map[string][]float64{}
	for n := -1; n < b.o.rounds; n++ { // the first warms up
		for _, transport := range transports {
			var now [2]float64
			for k := range sites {
				i := (n + 1 + k) % 2
				x, err := sites[i].register(ctx, transport, b.o.registrations, b.o.clients)
				if err != nil {
					return fmt.Errorf("registering over %s, %s: %w", transport, store, err)
				}
				now[i] = ratio(x, floor.MutualHandshake)
			}
			if n < 0 {
				continue
			}
			r := ratios[transport]
			ratios[transport] = [2][]float64{append(r[0], now[0]), append(r[1], now[1])}
			change[transport] = append(change[transport], 100*(now[1]/now[0]-1))
		}
	}
	for _, t := range transports {
		fmt.Fprintf(stdout, "%s, registrations over %s: %.2f against %.2f; pairwise %+.1f %% (median of %d)\n", store, t, median(ratios[t][1]), median(ratios[t][0]), median(change[t]), len(change[t]))
	}
	return nil
}

// againstEnrol is against for plain enrolments at our server alone.
func (b *bench) againstEnrol(ctx context.Context, store string, stdout io.Writer) error {
	var servers [2]enrol.Server
	for i, bin := range []string{b.o.against, b.bin} {
		s, err := b.oursFor(ctx, store, bin, fmt.Sprintf("enrol-%s-%d", store, i))
		if err != nil {
			return err
		}
		defer s.Close()
		servers[i] = s
	}
	var us, ratios [enrol.Kinds][2][]float64
	var change [enrol.Kinds][]float64
	for n := -1; n < b.o.rounds; n++ { // the first warms up
		var now [2][enrol.Kinds]enrol.Sample
		for k := range servers {
			i := (n + 1 + k) % 2
			var err error
			if now[i], err = enrol.Run(ctx, servers[i], n+1, b.o.enrol, b.o.clients); err != nil {
				return err
			}
		}
		if n < 0 {
			continue
		}
		for k := range enrol.Kinds {
			for i := range now {
				us[k][i] = append(us[k][i], micro(now[i][k].CPU, 1))
				ratios[k][i] = append(ratios[k][i], float64(now[i][k].CPU)/float64(now[i][k].Floor))
			}
			change[k] = append(change[k], 100*(ratios[k][1][n]/ratios[k][0][n]-1))
		}
	}
	for k := range enrol.Kinds {
		fmt.Fprintf(stdout, "%s, %s: %.2f (%.0f us) against %.2f (%.0f us); pairwise %+.1f %% (median of %d)\n", store, k, median(ratios[k][1]), median(us[k][1]),
			median(ratios[k][0]), median(us[k][0]), median(change[k]), len(change[k]))
	}
	return nil
}
