package hubdb_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 891000, time.UTC)

// kek is what the tests' stores seal their keys by.
var kek = sync.OnceValue(func() *filekey.Vault {
	dir, err := os.MkdirTemp("", "hubdb")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	v, err := filekey.CreateVault(filepath.Join(dir, "kek"))
	if err != nil {
		panic(err)
	}
	return v
})

func open(t *testing.T, url string) *hubdb.Store {
	t.Helper()
	return openWith(t, url, kek())
}

func openWith(t *testing.T, url string, v hubdb.Vault) *hubdb.Store {
	t.Helper()
	s, err := hubdb.Open(t.Context(), url, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func withHubs(t *testing.T, url string, names ...hub.Name) *hubdb.Store {
	t.Helper()
	s := open(t, url)
	for _, n := range names {
		if err := s.CreateHub(t.Context(), n, []hub.Policy{{Name: "p", Primary: []byte{0, 1}, Secondary: []byte{2}, Rights: 5}}, now); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func wantKind(t *testing.T, what string, err error, k cradle.Kind) {
	t.Helper()
	if err == nil || cradle.KindOf(err) != k {
		t.Errorf("%s: got %v, want kind %v", what, err, k)
	}
}

func TestHubs(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-2", "hub-1")
		wantKind(t, "second hub-1", s.CreateHub(ctx, "hub-1", nil, now), cradle.Conflict)
		names, err := s.Hubs(ctx)
		if err != nil || !slices.Equal(names, []hub.Name{"hub-1", "hub-2"}) {
			t.Errorf("got %v %v", names, err)
		}
		ps, err := s.Policies(ctx, "hub-1")
		if err != nil || len(ps) != 1 || !reflect.DeepEqual(ps[0], hub.Policy{Name: "p", Primary: []byte{0, 1}, Secondary: []byte{2}, Rights: 5}) {
			t.Errorf("got %+v %v", ps, err)
		}
		_, err = s.Policies(ctx, "hub-3")
		wantKind(t, "policies of no hub", err, cradle.NotFound)
		_, err = s.Events(ctx, "hub-3", 0, 1)
		wantKind(t, "events of no hub", err, cradle.NotFound)
	})
}

// TestDevices runs random operations against a map.
func TestDevices(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1", "hub-2")
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		ids := []cradle.DeviceID{"A", "a", "a-1", "a_1", "a.1", "b", "Z", "é"}
		model := map[hub.Name]map[cradle.DeviceID]hub.Device{"hub-1": {}, "hub-2": {}}
		for i := range 300 {
			h := []hub.Name{"hub-1", "hub-2"}[r.IntN(2)]
			id := ids[r.IntN(len(ids))]
			have, there := model[h][id]
			etag := have.ETag
			if r.IntN(4) == 0 {
				etag = "stale"
			}
			d := hub.Device{ID: id, Generation: "g", ETag: fmt.Sprint(i), Disabled: r.IntN(2) == 0, Reason: "because 'ü'", Primary: "aa",
				IoTEdge: r.IntN(2) == 0, StatusChanged: now, Created: now.Add(time.Microsecond), Updated: now.Add(time.Duration(i) * time.Second), Scope: fmt.Sprint("scope ", i), Parent: "p"}
			if d.Auth.Type = "selfSigned"; r.IntN(2) == 0 {
				d.Auth = hub.Auth{Type: "sas", Primary: []byte{0, byte(i)}, Secondary: []byte{1}}
			}
			var err error
			want := cradle.Kind(-1)
			switch op := r.IntN(3); {
			case op == 0:
				err = s.InsertDevice(ctx, h, &d, nil)
				if there {
					want = cradle.Conflict
				} else {
					model[h][id] = d
				}
			case !there:
				want = cradle.NotFound
				err = s.UpdateDevice(ctx, h, &d, etag)
			case etag != have.ETag:
				want = cradle.Conflict
				err = s.DeleteDevice(ctx, h, id, etag)
			case op == 1:
				err = s.UpdateDevice(ctx, h, &d, etag)
				model[h][id] = d
			default:
				err = s.DeleteDevice(ctx, h, id, etag)
				delete(model[h], id)
			}
			if want < 0 && err != nil || want >= 0 && cradle.KindOf(err) != want {
				t.Fatalf("seed %d step %d: got %v, want kind %v", seed, i, err, want)
			}
			got, err := s.Device(ctx, h, id)
			if have, there := model[h][id]; there {
				if err != nil || !reflect.DeepEqual(*got, have) {
					t.Fatalf("seed %d step %d: got %+v %v, want %+v", seed, i, got, err, have)
				}
			} else {
				wantKind(t, "absent device", err, cradle.NotFound)
			}
		}
		for h, m := range model {
			var want, got []cradle.DeviceID
			for id := range m {
				want = append(want, id)
			}
			slices.Sort(want) // byte order
			for after := cradle.DeviceID(""); ; {
				page, err := s.Devices(ctx, h, after, 2)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				for _, d := range page {
					got = append(got, d.ID)
				}
				after = got[len(got)-1]
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", h, got, want)
			}
		}
	})
}

func TestNoLostUpdate(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		s := withHubs(t, url, "hub-1")
		if err := s.InsertDevice(t.Context(), "hub-1", &hub.Device{ID: "d", ETag: "0"}, nil); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		won := make(chan int, 20)
		for i := range 20 {
			wg.Go(func() {
				if s.UpdateDevice(t.Context(), "hub-1", &hub.Device{ID: "d", ETag: fmt.Sprint(i + 1)}, "0") == nil {
					won <- i
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Errorf("%d of 20 swaps won", len(won))
		}
	})
}

func TestEvents(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1", "hub-2")
		in := []hub.Event{
			{Device: "a", Enqueued: now, Properties: iothub.Bag{{Name: "seq", Value: "0"}, {Name: "odd key", Value: "ü&="}}, Body: []byte{0, 255}},
			{Device: "b", Enqueued: now.Add(time.Second)},
		}
		for _, h := range []hub.Name{"hub-1", "hub-2", "hub-1"} {
			if err := s.AppendEvents(ctx, h, in); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Events(ctx, "hub-1", 0, 10)
		if err != nil || len(got) != 4 {
			t.Fatalf("got %v %v", got, err)
		}
		for i, e := range got {
			w := in[i%2]
			if e.Cursor != hub.Cursor(i+1) || e.Device != w.Device || !e.Enqueued.Equal(w.Enqueued) || !slices.Equal(e.Properties, w.Properties) || !bytes.Equal(e.Body, w.Body) {
				t.Errorf("event %d: got %+v, want %+v", i, e, w)
			}
		}
		for _, c := range []struct {
			after hub.Cursor
			limit int
			want  int
		}{{0, 3, 3}, {3, 10, 1}, {4, 10, 0}, {1 << 62, 10, 0}} {
			if got, err := s.Events(ctx, "hub-1", c.after, c.limit); err != nil || len(got) != c.want {
				t.Errorf("after %d limit %d: got %d %v", c.after, c.limit, len(got), err)
			}
		}
		// Trimming leaves the other hub alone, and cursors are never used again.
		all := hub.Trim{Before: now.Add(time.Hour), Held: math.MaxInt64}
		for _, c := range []struct {
			t    hub.Trim
			want hub.Trimmed
		}{
			{hub.Trim{Before: now, Held: math.MaxInt64}, hub.Trimmed{}},
			{hub.Trim{Held: math.MaxInt64, Size: 1 << 20}, hub.Trimmed{}},
			{hub.Trim{Before: now.Add(time.Second), Held: math.MaxInt64}, hub.Trimmed{Events: 1}}, // up to the first that is young
			{hub.Trim{Before: now.Add(time.Hour), Held: 2}, hub.Trimmed{Events: 1}},               // a relay waits for 3
			{hub.Trim{Before: now.Add(time.Hour), Held: 2, Size: 100}, hub.Trimmed{Events: 1, Held: 1}},
			{all, hub.Trimmed{Events: 1}},
			{all, hub.Trimmed{}},
		} {
			if got, err := s.TrimEvents(ctx, "hub-1", c.t, 3); got != c.want || err != nil {
				t.Errorf("%+v: trimmed %+v %v, want %+v", c.t, got, err, c.want)
			}
		}
		if st, err := s.Stream(ctx, "hub-1"); err != nil || *st != (hub.StreamState{Last: 4}) {
			t.Errorf("emptied: %+v %v", st, err)
		}
		if err := s.AppendEvents(ctx, "hub-1", in[:1]); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Events(ctx, "hub-1", 0, 10); err != nil || len(got) != 1 || got[0].Cursor != 5 {
			t.Errorf("after trimming: got %+v %v", got, err)
		}
		if got, err := s.Events(ctx, "hub-2", 0, 10); err != nil || len(got) != 2 {
			t.Errorf("hub-2: got %+v %v", got, err)
		}
		size := int64(0)
		for _, e := range in {
			size += int64(len(e.Body)+len(e.Properties.Encode())) + 64
		}
		if st, err := s.Stream(ctx, "hub-2"); err != nil || *st != (hub.StreamState{First: 1, Last: 2, Oldest: now, Bytes: size}) {
			t.Errorf("hub-2: %+v %v, want %d bytes", st, err, size)
		}
	})
}

func TestRelaysAndLeases(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1", "hub-2")
		for _, c := range []hub.Cursor{5, 9, 7} { // it never goes back
			if err := s.PutRelay(ctx, "hub-1", hub.Relay{Name: "nats", Cursor: c, Seen: now.Add(time.Duration(c))}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Relays(ctx, "hub-1"); err != nil || len(got) != 1 || got[0].Cursor != 9 || got[0].Name != "nats" {
			t.Errorf("got %+v %v", got, err)
		}
		if got, err := s.Relays(ctx, "hub-2"); err != nil || got != nil {
			t.Errorf("hub-2: %+v %v", got, err)
		}
		for i, c := range []struct {
			holder string
			at     time.Duration
			want   bool
		}{{"a", 0, true}, {"b", 5, false}, {"a", 6, true}, {"b", 15, false}, {"b", 17, true}, {"a", 18, false}} {
			at := now.Add(c.at * time.Second)
			if got, err := s.Lease(ctx, "work", c.holder, at, at.Add(10*time.Second)); err != nil || got != c.want {
				t.Errorf("%d: %s at %d: %v %v", i, c.holder, c.at, got, err)
			}
		}
	})
}

// TestCursorOrder: with several writers, also in several stores over one database, a reader that goes on
// from the last cursor seen misses nothing.
func TestCursorOrder(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		stores := []*hubdb.Store{withHubs(t, url, "hub-1"), open(t, url)}
		const writers, each = 6, 30
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					e := hub.Event{Device: cradle.DeviceID(fmt.Sprint(w)), Enqueued: now, Body: []byte{byte(i)}}
					if err := stores[w%2].AppendEvents(ctx, "hub-1", []hub.Event{e}); err != nil {
						t.Error(err)
						cancel()
					}
				}
			})
		}
		next := map[cradle.DeviceID]int{}
		var after hub.Cursor
		for seen := 0; seen < writers*each && ctx.Err() == nil; {
			es, err := stores[0].Events(ctx, "hub-1", after, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range es {
				if e.Cursor != after+1 || int(e.Body[0]) != next[e.Device] {
					t.Fatalf("after cursor %d: got %+v, want number %d of this device", after, e, next[e.Device])
				}
				after = e.Cursor
				next[e.Device]++
				seen++
			}
		}
		wg.Wait()
	})
}
