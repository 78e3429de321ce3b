package main

import (
	"slices"
	"time"

	"github.com/cradle-iot/cradle/test/bench/floor"
)

// Targets of issue and design.
const (
	TargetRatio  = 3.0  // server CPU of one onboarding over its crypto floor
	TargetGrowth = 20.0 // percent, from the small to the large installation
)

// Figures are what a run found out, as the JSON file has them. Times are microseconds of CPU per onboarding.
type Figures struct {
	Time        time.Time          `json:"time"`
	Go          string             `json:"go"`
	CPUs        int                `json:"cpus"`
	KeyExchange string             `json:"key_exchange"`
	EKProfile   string             `json:"ek_profile"`
	Parallel    int                `json:"parallel"` // units under way at once
	Clients     int                `json:"clients"`  // of plain enrolments and registrations at once
	FloorParts  map[string]Part    `json:"floor_parts"`
	Stores      map[string]*Result `json:"stores"`
	Status      []Status           `json:"status,omitempty"`
	Enrolments  []Enrolment        `json:"enrolments,omitempty"`
	Hubs        *Hubs              `json:"provisioning_and_hub,omitempty"`
	Targets     map[string]float64 `json:"targets"`
	Met         bool               `json:"targets_met"`
}

// Part is one kind of operation of the floor, over the whole run.
type Part struct {
	Count        int     `json:"count"` // per onboarding
	Microseconds float64 `json:"us_each"`
}

// Result is a store's.
type Result struct {
	Empty  *Level  `json:"empty"` // nothing registered before
	Small  *Level  `json:"small,omitempty"`
	Large  *Level  `json:"large,omitempty"`
	Growth float64 `json:"growth_percent"` // of the ratio, small to large
}

// Level is a number of registered devices, and the medians of its rounds.
type Level struct {
	Registered int     `json:"registered"`
	Rounds     int     `json:"rounds"`
	Units      int     `json:"onboardings"` // in all rounds
	Floor      float64 `json:"floor_us"`
	Server     float64 `json:"server_us"`
	Database   float64 `json:"database_us"` // 0 for SQLite, which is within the server
	Total      float64 `json:"total_us"`
	Ratio      float64 `json:"ratio"`
	// RatioSpared counts in the floor only what ours does (floor.Spared less).
	RatioSpared float64   `json:"ratio_without_spared"`
	Rate        float64   `json:"onboardings_per_second"`
	Ratios      []float64 `json:"ratio_by_round"`
}

func micro(d time.Duration, n int) float64 {
	return float64(d) / float64(time.Microsecond) / float64(n)
}

// level makes the medians of rounds with the same number of registered devices.
func level(rounds []Sample) *Level {
	l := &Level{Registered: rounds[0].Registered, Rounds: len(rounds)}
	for _, r := range rounds {
		l.Units += r.Units
		l.Ratios = append(l.Ratios, ratio(r, floor.Onboarding))
	}
	of := func(f func(r Sample) float64) float64 {
		var v []float64
		for _, r := range rounds {
			v = append(v, f(r))
		}
		return median(v)
	}
	l.Floor = of(func(r Sample) float64 { return micro(r.Floor.Of(floor.Onboarding), 1) })
	l.Server = of(func(r Sample) float64 { return micro(r.CPU.Server, r.Units) })
	l.Database = of(func(r Sample) float64 { return micro(r.CPU.Database, r.Units) })
	l.Total = of(func(r Sample) float64 { return micro(r.CPU.Total(), r.Units) })
	l.Rate = of(func(r Sample) float64 { return float64(r.Units) / r.Wall.Seconds() })
	l.Ratio = median(l.Ratios)
	l.RatioSpared = of(func(r Sample) float64 { return ratio(r, floor.Onboarding.Add(floor.Spared.Times(-1))) })
	return l
}

// ratio is the server's CPU over the floor's, both of the same seconds.
func ratio(r Sample, n floor.Counts) float64 {
	return micro(r.CPU.Total(), r.Units) / micro(r.Floor.Of(n), 1)
}

// growth is how much more small costs than large, in percent. Ratios are compared, not times: the
// processor's clock moves between rounds.
func growth(small, large *Level) float64 { return 100 * (large.Ratio/small.Ratio - 1) }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}

// floorParts is the mean over all rounds.
func floorParts(rounds []Sample) map[string]Part {
	out := map[string]Part{}
	for p, n := range floor.Onboarding {
		if n == 0 {
			continue
		}
		var sum float64
		var samples int
		for _, r := range rounds {
			sum += micro(r.Floor[p], 1) * float64(r.Floors)
			samples += r.Floors
		}
		out[floor.Part(p).String()] = Part{n, sum / float64(max(samples, 1))}
	}
	return out
}

// met says whether every store is within the targets.
func (f *Figures) met() bool {
	for _, r := range f.Stores {
		for _, l := range []*Level{r.Empty, r.Small, r.Large} {
			if l != nil && l.Ratio > TargetRatio {
				return false
			}
		}
		if r.Large != nil && r.Growth > TargetGrowth {
			return false
		}
	}
	return statusMet(f.Status) && enrolmentsMet(f.Enrolments) && f.Hubs.met()
}
