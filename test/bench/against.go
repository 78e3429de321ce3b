package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

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
	if err := b.warm(ctx, sites[:]...); err != nil {
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
