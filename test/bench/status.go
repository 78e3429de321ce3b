package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cradle-iot/cradle/test/bench/standing"
)

// Targets of revocation, OCSP and CRLs.
const (
	TargetStatus = 20.0        // percent that one operation may cost more in the large store
	TargetCRL    = time.Second // to make a CRL shard in the large store
)

// Status is one operation over one store: medians of the rounds, microseconds of CPU of server and database for each.
type Status struct {
	Store     string  `json:"store"`
	Operation string  `json:"operation"`
	Few       int     `json:"small_certificates"`
	Many      int     `json:"large_certificates"`
	Small     float64 `json:"small_us"`
	Large     float64 `json:"large_us"`
	// Ratio is the median of large / small of each round.
	Ratio    float64   `json:"ratio"`
	Ratios   []float64 `json:"ratio_by_round"`
	Wall     float64   `json:"large_wall_us"`
	Slowest  float64   `json:"large_slowest_wall_us"`       // round
	SmallCRL int       `json:"small_crl_entries,omitempty"` // at the end
	LargeCRL int       `json:"large_crl_entries,omitempty"`
	Rounds   int       `json:"rounds"`
	Met      bool      `json:"target_met"`
}

// newStatus makes the figures of the rounds of one kind.
func newStatus(store string, k standing.Kind, few, many int, small, large []standing.Sample) Status {
	s := Status{Store: store, Operation: k.String(), Few: few, Many: many, Rounds: len(small)}
	var a, b, wall []float64
	for i := range small {
		a, b, wall = append(a, micro(small[i].CPU, 1)), append(b, micro(large[i].CPU, 1)), append(wall, micro(large[i].Wall, 1))
		s.Ratios = append(s.Ratios, b[i]/a[i])
		s.SmallCRL, s.LargeCRL = small[i].Entries, large[i].Entries
	}
	s.Small, s.Large, s.Ratio, s.Wall, s.Slowest = median(a), median(b), median(s.Ratios), median(wall), slices.Max(wall)
	if k == standing.CRL { // its shards are not equally full
		s.Met = s.Slowest < micro(TargetCRL, 1)
	} else {
		s.Met = s.Ratio <= 1+TargetStatus/100
	}
	return s
}

func statusMet(list []Status) bool {
	return !slices.ContainsFunc(list, func(s Status) bool { return !s.Met })
}

// status measures each store with few and with many certificates, by turns: one kind of operation small, large, then
// the next kind; every other round begins with the large one.
func (b *bench) status(ctx context.Context) (out []Status, err error) {
	for _, store := range strings.Split(b.o.stores, ",") {
		list, err := b.statusOf(ctx, store)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", store, err)
		}
		out = append(out, list...)
	}
	return out, nil
}

// statusRounds: the operations are short, so a few more rounds than of onboardings cost little.
func (b *bench) statusRounds() int { return b.o.rounds + b.o.rounds/2 }

func (b *bench) statusOf(ctx context.Context, store string) ([]Status, error) {
	rounds := b.statusRounds()
	var sites [2]*standing.Site
	for i, n := range []int{b.o.few, b.o.status} {
		start := time.Now()
		s, err := standing.Open(ctx, store, b.bin, filepath.Join(b.dir, fmt.Sprintf("status-%s-%d", store, i)), n, rounds+1)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		sites[i] = s
		b.say("%-8s %9d certificates with distribution points loaded in %.0f s", store, s.Certificates, time.Since(start).Seconds())
	}
	n := min(80, sites[0].Revocable()/(rounds+1), sites[1].Revocable()/(rounds+1))
	if n < 1 {
		return nil, fmt.Errorf("%d certificates are too few for %d rounds", b.o.few, rounds)
	}
	var samples [standing.Kinds][2][]standing.Sample
	for round := -1; round < rounds; round++ { // the first warms up
		for k := range standing.Kinds {
			for turn := range sites {
				i := (turn + round + 1) % 2
				x, err := sites[i].Measure(ctx, k, n)
				if err != nil {
					return nil, err
				}
				if round >= 0 {
					samples[k][i] = append(samples[k][i], x)
				}
			}
		}
	}
	var out []Status
	for k := range standing.Kinds {
		s := newStatus(store, k, sites[0].Certificates, sites[1].Certificates, samples[k][0], samples[k][1])
		b.say("%-8s %-22s %.0f us with %d certificates, %.0f us with %d", store, s.Operation, s.Small, s.Few, s.Large, s.Many)
		out = append(out, s)
	}
	return out, nil
}

// statusTable prints them.
func statusTable(w io.Writer, list []Status) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "\nCPU of one revocation, OCSP answer and CRL shard with %d and with %d certificates in the store, us of server and database; medians of %d rounds by turns\n\n",
		list[0].Few, list[0].Many, list[0].Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "store\toperation\tsmall us\tlarge us\tratio\ttarget\t\t\n")
	for _, s := range list {
		ratio, target := fmt.Sprintf("%.2f", s.Ratio), fmt.Sprintf("%.2f", 1+TargetStatus/100)
		if s.LargeCRL > 0 {
			ratio, target = "", fmt.Sprintf("%.0f s", TargetCRL.Seconds())
		}
		met := "met"
		if !s.Met {
			met = "NOT met"
		}
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%s\t%s\t%s\t\n", s.Store, s.Operation, s.Small, s.Large, ratio, target, met)
	}
	t.Flush()
	fmt.Fprintln(w, "\nratio: large / small, the median of the rounds' ratios.")
	for _, s := range list {
		if s.LargeCRL > 0 {
			fmt.Fprintf(w, "CRL shard, %s: %d entries (small: %d) made and stored in %.0f ms, the slowest in %.0f ms\n", s.Store, s.LargeCRL, s.SmallCRL, s.Wall/1000, s.Slowest/1000)
		}
	}
}
