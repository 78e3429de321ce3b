package hubdb_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func twinOf(version int64, value any) *hub.Twin {
	m := func(k string) map[string]any { return map[string]any{k: value, "odd 'ü'": "\x00<"} }
	return &hub.Twin{Version: version, Writes: version, Tags: hub.Section{Values: m("t"), Version: 1},
		Desired: hub.Section{Values: m("d"), Meta: map[string]any{"$lastUpdated": "x"}, Version: 7},
		Report:  hub.Section{Values: m("r"), Meta: map[string]any{}, Version: 8}}
}

// TestTwins: what is stored, what moved meanwhile, and that twins end with their owners.
func TestTwins(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1", "hub-2")
		insert := func(generation string) {
			t.Helper()
			d := &hub.Device{ID: "d", Generation: generation, ETag: "e"}
			m := hub.Module{Device: "d", ID: "m", Generation: generation, ETag: "e"}
			if err := s.InsertDevice(ctx, "hub-1", d, []hub.Module{m}); err != nil {
				t.Fatal(err)
			}
		}
		insert("g1")
		put := func(module iothub.ModuleID, generation string, tw *hub.Twin, was int64) error {
			return s.PutTwin(ctx, "hub-1", "d", module, generation, tw, was)
		}
		want := func(module iothub.ModuleID, w *hub.Twin) {
			t.Helper()
			got, err := s.Twin(ctx, "hub-1", "d", module)
			if err != nil || !reflect.DeepEqual(got, w) {
				t.Errorf("module %q: got %+v %v, want %+v", module, got, err, w)
			}
		}
		for _, module := range []iothub.ModuleID{"", "m"} {
			want(module, nil)
			first := twinOf(2, json.Number("1.50"))
			if err := put(module, "g1", first, 1); err != nil {
				t.Fatal(err)
			}
			want(module, first)
			wantKind(t, "a second first", put(module, "g1", first, 1), cradle.Conflict)
			wantKind(t, "stale", put(module, "g1", twinOf(4, true), 3), cradle.Conflict)
			wantKind(t, "another generation", put(module, "g0", twinOf(3, true), 2), cradle.NotFound)
			want(module, first)
			if err := put(module, "", twinOf(3, []any{"a", nil}), 2); err != nil {
				t.Fatal(err)
			}
			want(module, twinOf(3, []any{"a", nil}))
		}
		wantKind(t, "no such device", s.PutTwin(ctx, "hub-2", "d", "", "", twinOf(2, true), 1), cradle.NotFound)
		wantKind(t, "no such module", put("n", "", twinOf(2, true), 1), cradle.NotFound)
		if err := s.DeleteModule(ctx, "hub-1", "d", "m", "e"); err != nil {
			t.Fatal(err)
		}
		want("m", nil)
		want("", twinOf(3, []any{"a", nil}))
		if err := s.DeleteDevice(ctx, "hub-1", "d", "e"); err != nil {
			t.Fatal(err)
		}
		insert("g2")
		want("", nil)
		want("m", nil)
		wantKind(t, "the generation before", put("", "g1", twinOf(2, true), 1), cradle.NotFound)
	})
}
