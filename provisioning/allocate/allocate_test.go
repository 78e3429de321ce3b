package allocate_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

func hub(name string, weight int) allocate.Hub { return allocate.Hub{Name: name, Weight: weight} }

func TestDecide(t *testing.T) {
	eu := allocate.Hub{Name: "eu", Region: "eu", Latency: map[string]int{"us": 95}, Weight: 1}
	us := allocate.Hub{Name: "us", Region: "us", Latency: map[string]int{"eu": 90, "asia": 160}, Weight: 1}
	asia := allocate.Hub{Name: "asia", Region: "asia", Weight: 1}
	state := func(h allocate.Hub, s allocate.State) allocate.Hub { h.State = s; return h }
	all := []allocate.Hub{eu, us, asia}
	for _, c := range []struct {
		name   string
		rule   allocate.Rule
		hubs   []allocate.Hub
		device allocate.Device
		prefer []string
		want   string
		err    string
		kind   cradle.Kind
	}{
		{name: "static takes the first of its list", rule: allocate.Rule{Policy: allocate.Static, Hubs: []string{"us", "eu"}}, hubs: all, want: "us"},
		{name: "static without a list", rule: allocate.Rule{Policy: allocate.Static}, hubs: all, want: "eu"},
		{name: "static passes over maintenance", rule: allocate.Rule{Policy: allocate.Static, Hubs: []string{"us", "eu"}}, hubs: []allocate.Hub{eu, state(us, allocate.Maintenance)}, want: "eu"},
		{name: "maintenance keeps what it has", rule: allocate.Rule{Policy: allocate.Static, Hubs: []string{"us", "eu"}}, hubs: []allocate.Hub{eu, state(us, allocate.Maintenance)}, device: allocate.Device{Hub: "us"}, want: "us"},
		{name: "draining does not", rule: allocate.Rule{Policy: allocate.Static, Hubs: []string{"us", "eu"}}, hubs: []allocate.Hub{eu, state(us, allocate.Draining)}, device: allocate.Device{Hub: "us"}, want: "eu"},
		{name: "nobody takes devices", rule: allocate.Rule{Policy: allocate.Hashed}, hubs: []allocate.Hub{state(us, allocate.Draining)}, err: "no linked hub", kind: cradle.Busy},
		{name: "hashed knows no weight but 0", rule: allocate.Rule{Policy: allocate.Hashed}, hubs: []allocate.Hub{hub("a", 0), hub("b", -3)}, err: "weight 0", kind: cradle.Busy},
		{name: "hashed by the enrolment's weights", rule: allocate.Rule{Policy: allocate.Hashed, Weights: map[string]int{"a": 0, "b": 1}}, hubs: []allocate.Hub{hub("a", 100), hub("b", 0)}, want: "b"},
		{name: "at home", rule: allocate.Rule{Policy: allocate.GeoLatency}, hubs: all, device: allocate.Device{Region: "asia"}, want: "asia"},
		{name: "nearest abroad", rule: allocate.Rule{Policy: allocate.GeoLatency, Hubs: []string{"eu", "us"}}, hubs: all, device: allocate.Device{Region: "asia"}, want: "us"},
		{name: "the nearest is drained", rule: allocate.Rule{Policy: allocate.GeoLatency}, hubs: []allocate.Hub{state(eu, allocate.Draining), us, asia}, device: allocate.Device{Region: "eu"}, want: "us"},
		{name: "custom", rule: allocate.Rule{Policy: allocate.Custom}, hubs: all, prefer: []string{"asia"}, want: "asia"},
		{name: "custom, second choice", rule: allocate.Rule{Policy: allocate.Custom, Hubs: []string{"us"}}, hubs: all, prefer: []string{"asia", "us"}, want: "us"},
		{name: "custom names a hub that is not linked", rule: allocate.Rule{Policy: allocate.Custom}, hubs: all, prefer: []string{"evil.example"}, err: "not linked", kind: cradle.Invalid},
		{name: "custom names a hub that is not the enrolment's", rule: allocate.Rule{Policy: allocate.Custom, Hubs: []string{"us"}}, hubs: all, prefer: []string{"eu"}, err: "does not allow", kind: cradle.Invalid},
		{name: "custom names a hub by another case", rule: allocate.Rule{Policy: allocate.Custom}, hubs: all, prefer: []string{"EU"}, err: "not linked", kind: cradle.Invalid},
		{name: "custom names a hub in maintenance", rule: allocate.Rule{Policy: allocate.Custom}, hubs: []allocate.Hub{state(us, allocate.Maintenance), eu}, prefer: []string{"us"}, err: "maintenance", kind: cradle.Busy},
		{name: "custom names nobody", rule: allocate.Rule{Policy: allocate.Custom}, hubs: all, err: "no hub", kind: cradle.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.device.ID = "dev-1"
			got, err := allocate.Decide(c.rule, c.hubs, c.device, c.prefer)
			if c.err != "" {
				if err == nil || cradle.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %q %v (%v), want an error of kind %v with %q", got, err, cradle.KindOf(err), c.kind, c.err)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %q %v, want %q", got, err, c.want)
			}
		})
	}
	// Where nothing is declared, latency spreads as hashed does.
	used := map[string]bool{}
	for i := range 100 {
		got, err := allocate.Decide(allocate.Rule{Policy: allocate.GeoLatency}, []allocate.Hub{eu, us, asia}, allocate.Device{ID: fmt.Sprint(i), Region: "mars"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		used[got] = true
	}
	if len(used) != 3 {
		t.Errorf("devices of an unknown region are at %v", used)
	}
}

// A hub that joins, leaves or changes its weight moves only its own share.
func TestHashedMovesOnlyItsShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.MapOfN(rapid.StringMatching(`hub-[a-z]{1,6}`), rapid.IntRange(0, 20), 2, 8).Draw(t, "weights")
		names := slices.Sorted(maps.Keys(weights))
		hubs := func(weights map[string]int) (out []allocate.Hub) {
			for _, n := range names {
				if w, ok := weights[n]; ok {
					out = append(out, hub(n, w))
				}
			}
			return out
		}
		ids := rapid.SliceOfN(rapid.StringMatching(`[a-z0-9]{1,12}`), 20, 50).Draw(t, "ids")
		changed := rapid.SampledFrom(names).Draw(t, "changed")
		after := maps.Clone(weights)
		kind := rapid.SampledFrom([]string{"leaves", "grows", "shrinks"}).Draw(t, "kind")
		switch kind {
		case "leaves":
			delete(after, changed)
		case "grows":
			after[changed] += rapid.IntRange(1, 20).Draw(t, "by")
		case "shrinks":
			after[changed] = after[changed] / 2
		}
		for _, id := range ids {
			d := allocate.Device{ID: id}
			before, err1 := allocate.Decide(allocate.Rule{}, hubs(weights), d, nil)
			now, err2 := allocate.Decide(allocate.Rule{}, hubs(after), d, nil)
			if err1 != nil || err2 != nil {
				continue // no hub has a weight
			}
			switch {
			case kind == "grows" && now != before && now != changed:
				t.Fatalf("%s went from %s to %s though only %s grew", id, before, now, changed)
			case kind != "grows" && now != before && before != changed:
				t.Fatalf("%s went from %s to %s though only %s %s", id, before, now, changed, kind)
			}
		}
	})
}

// Each hub gets its weight's share.
func TestHashedShares(t *testing.T) {
	hubs := []allocate.Hub{hub("a", 1), hub("b", 3), hub("c", 6)}
	const n = 20000
	count := map[string]int{}
	for i := range n {
		got, err := allocate.Decide(allocate.Rule{Policy: allocate.Hashed}, hubs, allocate.Device{ID: fmt.Sprintf("dev-%d", i)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		count[got]++
	}
	for _, h := range hubs {
		if want := n * h.Weight / 10; count[h.Name] < want*95/100-100 || count[h.Name] > want*105/100+100 {
			t.Errorf("hub %s has %d devices of %d, want about %d", h.Name, count[h.Name], n, want)
		}
	}
}
