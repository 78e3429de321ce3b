// Package allocate decides which hub a device belongs to. It is pure: the hubs that are linked, what the
// enrolment says and what is known of the device go in, the name of a hub comes out; it reads no clock, calls
// nobody and keeps nothing.
//
// The policies are Azure DPS's (hashed, static, geoLatency, custom). Custom answers, of a webhook or of an
// expression (Expression), enter here as preferences and are held to the same bounds as our own choice: a hub
// that is not linked, or not allowed to the enrolment, or that takes no devices, is never the answer.
package allocate

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Policies, in Azure's words.
const (
	Hashed     = "hashed"     // spread over the hubs by the registration id, each hub its weight's share
	Static     = "static"     // the first hub of the enrolment's list that takes devices
	GeoLatency = "geoLatency" // the nearest hub by the declared latencies
	Custom     = "custom"     // an answer from outside: a webhook or an expression
)

// ParsePolicy accepts the names in any case.
func ParsePolicy(s string) (string, error) {
	for _, p := range []string{Hashed, Static, GeoLatency, Custom} {
		if strings.EqualFold(s, p) {
			return p, nil
		}
	}
	return "", cradle.Errorf(cradle.Invalid, "allocation policy %.40q is not supported", s).
		WithHint("use %s, %s, %s or %s", Hashed, Static, GeoLatency, Custom)
}

// State of a hub towards devices.
type State string

// The states.
const (
	Open        State = ""            // takes devices
	Maintenance State = "maintenance" // takes no new ones; those it has stay
	Draining    State = "draining"    // takes none; those it has leave when they register again, if their enrolment lets them move
)

// Hub is a linked hub as far as allocation cares.
type Hub struct {
	Name    string
	Region  string         // may be empty
	Latency map[string]int // from a device's region to this hub, in ms; its own region counts 0 unless it is listed
	Weight  int            // share among hashed devices; 0 takes none
	State   State
}

// Rule is what an enrolment says.
type Rule struct {
	Policy  string
	Hubs    []string       // names of the hubs allowed, for Static in order of preference; empty: all
	Weights map[string]int // by name, in place of the hubs' own
}

// Device is what is known of the device.
type Device struct {
	ID     string
	Region string // empty: unknown
	Hub    string // where it is now; empty: nowhere
}

// Linked returns the hub of a name, or nil.
func Linked(hubs []Hub, name string) *Hub {
	for i := range hubs {
		if hubs[i].Name == name {
			return &hubs[i]
		}
	}
	return nil
}

// Allows reports whether the rule lets devices be at a hub, whatever the hub's state.
func (r Rule) Allows(hub string) bool { return len(r.Hubs) == 0 || slices.Contains(r.Hubs, hub) }

// weight of a hub under the rule; negative ones count as 0.
func (r Rule) weight(h Hub) int {
	if w, ok := r.Weights[h.Name]; ok {
		return max(w, 0)
	}
	return max(h.Weight, 0)
}

// Candidates are the hubs that may be the answer, in the order of hubs.
func Candidates(r Rule, hubs []Hub, d Device) []Hub {
	var out []Hub
	for _, h := range hubs {
		if r.Allows(h.Name) && (h.State == Open || h.State == Maintenance && h.Name == d.Hub) {
			out = append(out, h)
		}
	}
	return out
}

// Decide names the hub of a device that is to be allocated anew. preferences are what a custom policy answered,
// best first; the other policies ignore them. Busy: no hub takes the device now. Invalid: the custom
// answer names no hub that may be had.
func Decide(r Rule, hubs []Hub, d Device, preferences []string) (string, error) {
	c := Candidates(r, hubs, d)
	if len(c) == 0 {
		return "", cradle.Errorf(cradle.Busy, "no linked hub takes devices of this enrolment").
			WithHint("link a hub, end the maintenance of one, or allow the enrolment another one")
	}
	switch r.Policy {
	case Custom:
		return preferred(r, hubs, c, preferences)
	case Static:
		return first(r, c), nil
	case GeoLatency:
		return spread(r, nearest(c, d.Region), d.ID)
	}
	return spread(r, c, d.ID)
}

// preferred is the first preference that is a candidate.
func preferred(r Rule, hubs, candidates []Hub, preferences []string) (string, error) {
	for _, name := range preferences {
		if Linked(candidates, name) != nil {
			return name, nil
		}
	}
	if len(preferences) == 0 {
		return "", cradle.Errorf(cradle.Invalid, "custom allocation named no hub")
	}
	switch h := Linked(hubs, preferences[0]); {
	case h == nil:
		return "", cradle.Errorf(cradle.Invalid, "custom allocation named hub %.100q, which is not linked", preferences[0])
	case !r.Allows(h.Name):
		return "", cradle.Errorf(cradle.Invalid, "custom allocation named hub %q, which this enrolment does not allow", h.Name)
	}
	return "", cradle.Errorf(cradle.Busy, "custom allocation named hub %q, which takes no devices now (maintenance)", preferences[0])
}

// first in the order of the rule's list; without one, of the linked hubs.
func first(r Rule, c []Hub) string {
	if len(r.Hubs) == 0 {
		return c[0].Name
	}
	return slices.MinFunc(c, func(a, b Hub) int {
		return cmp.Compare(slices.Index(r.Hubs, a.Name), slices.Index(r.Hubs, b.Name))
	}).Name
}

// nearest keeps the candidates with the least declared latency; all of them when nothing is declared.
func nearest(c []Hub, region string) []Hub {
	const unknown = math.MaxInt
	latency := func(h Hub) int {
		if ms, ok := h.Latency[region]; ok && region != "" {
			return ms
		}
		if region != "" && h.Region == region {
			return 0
		}
		return unknown
	}
	best := unknown
	for _, h := range c {
		best = min(best, latency(h))
	}
	var out []Hub
	for _, h := range c {
		if latency(h) == best {
			out = append(out, h)
		}
	}
	return out
}

// spread is weighted rendezvous hashing: each hub draws a number u in (0,1) from a hash over hub and device, and
// the largest of -w/ln(u) wins. So a hub that joins or leaves, or whose weight changes, moves no device but its own
// share (Schindelhauer, Schomaker: Weighted Distributed Hash Tables, 2005).
func spread(r Rule, c []Hub, id string) (string, error) {
	best, score := "", 0.0
	for _, h := range c {
		w := r.weight(h)
		if w == 0 {
			continue
		}
		sum := sha256.Sum256([]byte(h.Name + "\x00" + id))
		u := (float64(binary.BigEndian.Uint64(sum[:8])>>11) + 0.5) / (1 << 53)
		if s := -float64(w) / math.Log(u); best == "" || s > score {
			best, score = h.Name, s
		}
	}
	if best == "" {
		return "", cradle.Errorf(cradle.Busy, "every hub that this enrolment allows has weight 0").
			WithHint("give one of them a weight")
	}
	return best, nil
}
