package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cradle-iot/cradle/internal/cli"
)

// row is how long a stage took.
type row struct {
	Stage   string  `json:"stage"`
	Count   int     `json:"count"`
	Median  float64 `json:"median_s"`
	P95     float64 `json:"p95_s"`
	Slowest float64 `json:"slowest_s"`
}

func newRow(stage string, took []time.Duration) row {
	r := row{Stage: stage, Count: len(took)}
	if len(took) == 0 {
		return r
	}
	took = slices.Sorted(slices.Values(took))
	at := func(q float64) float64 { // nearest rank
		i := int(q*float64(len(took)) + 0.999999)
		return took[min(max(i, 1), len(took))-1].Seconds()
	}
	r.Median, r.P95, r.Slowest = at(0.5), at(0.95), at(1)
	return r
}

// rows are the stages of the whole story; made and personalised were measured by who ran them.
func (f *fleet) rows(made, personalised []time.Duration) []row {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []row{newRow("TPM made", made), newRow("personalised on the line", personalised)}
	between := func(name string, from, to func(*device) time.Time) {
		var took []time.Duration
		for _, d := range f.devices {
			if a, b := from(d), to(d); !a.IsZero() && !b.IsZero() {
				took = append(took, max(0, b.Sub(a)))
			}
		}
		out = append(out, newRow(name, took))
	}
	on := func(d *device) time.Time { return d.on }
	at := func(s stage) func(*device) time.Time { return func(d *device) time.Time { return d.reached[s] } }
	between("power-on to LDevID", on, at(stageLDevID))
	between("operational certificate", at(stageLDevID), at(stageOperational))
	between("registration, hub assigned", at(stageOperational), at(stageRegistered))
	between("hub accepts the connection", at(stageRegistered), at(stageConnected))
	between("first message in the hub", at(stageConnected), at(stageTelemetry))
	between("power-on to telemetry", on, at(stageTelemetry))
	var renewed []time.Duration
	for _, d := range f.devices {
		renewed = append(renewed, d.renewed...)
	}
	return append(out, newRow("renewed certificate to hub", renewed))
}

func printTable(w io.Writer, rows []row) {
	cells := make([][]string, len(rows))
	for i, r := range rows {
		show := func(s float64) string {
			if r.Count == 0 {
				return "-"
			}
			if s < 1 {
				return fmt.Sprintf("%.0f ms", s*1000)
			}
			return fmt.Sprintf("%.2f s", s)
		}
		cells[i] = []string{r.Stage, fmt.Sprint(r.Count), show(r.Median), show(r.P95), show(r.Slowest)}
	}
	cli.Table(w, []string{"stage", "count", "median", "p95", "slowest"}, cells)
}
