package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/cradle-iot/cradle/test/bench/floor"
)

// table prints the figures for people.
func (f *Figures) table(w io.Writer) {
	if len(f.Stores) == 0 {
		return
	}
	fmt.Fprintf(w, "\nCrypto floor of one onboarding, sampled under load (key exchange %s, EK %s)\n\n", f.KeyExchange, f.EKProfile)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "operation\ttimes\tus each\tus\t\n")
	var sum float64
	for p, n := range floor.Onboarding {
		if n == 0 {
			continue
		}
		v := f.FloorParts[floor.Part(p).String()]
		sum += v.Microseconds * float64(v.Count)
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t\n", floor.Part(p), v.Count, v.Microseconds, v.Microseconds*float64(v.Count))
	}
	fmt.Fprintf(t, "floor\t\t\t%.0f\t\n", sum)
	t.Flush()

	fmt.Fprintf(w, "\nServer CPU per full onboarding, line included, log on and durable; medians of %d rounds, %d units at once, %d CPUs shared with the load\n\n",
		f.rounds(), f.Parallel, f.CPUs)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "store\tregistered\tserver us\tdatabase us\tfloor us\tratio\tspared\tper second\t\n")
	for _, store := range []string{"sqlite", "postgres"} {
		r := f.Stores[store]
		if r == nil {
			continue
		}
		for _, l := range []*Level{r.Empty, r.Small, r.Large} {
			if l != nil {
				fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t%.0f\t\n", store, l.Registered, l.Server, l.Database, l.Floor,
					l.Ratio, l.RatioSpared, l.Rate)
			}
		}
	}
	t.Flush()
	fmt.Fprintf(w, "\nratio: (server + database) / floor; target at most %.1f. spared: floor without what ours need not do (a resumed connection, certificates verified before).\n", TargetRatio)
	for _, store := range []string{"sqlite", "postgres"} {
		if r := f.Stores[store]; r != nil && r.Large != nil {
			fmt.Fprintf(w, "growth, %s: %+.1f %% from %d to %d devices; target at most %.0f %%\n", store, r.Growth, r.Small.Registered, r.Large.Registered, TargetGrowth)
		}
	}
}

func (f *Figures) rounds() int {
	for _, r := range f.Stores {
		return r.Empty.Rounds
	}
	return 0
}
