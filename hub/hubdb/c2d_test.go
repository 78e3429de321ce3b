package hubdb_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// letter is what the model knows of a message.
type letter struct {
	body            string
	expires, locked time.Time
	lock            string
	deliveries      int
	ack             hub.Ack
}

// TestMailbox runs random operations against a list.
func TestMailbox(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1")
		for _, id := range []cradle.DeviceID{"d", "other"} {
			if err := s.InsertDevice(ctx, "hub-1", &hub.Device{ID: id, ETag: "e"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		const limit, deliveries = 6, 3
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		clock := now
		var model []*letter
		live := func() []*letter {
			return slices.DeleteFunc(slices.Clone(model), func(l *letter) bool { return !l.expires.After(clock) })
		}
		locks := []string{"http-x 1"}
		want := map[string]hub.Outcome{} // feedback, by the message's id
		end := func(l *letter, o hub.Outcome) {
			if l.ack.Wants(o) {
				want[l.body] = o
			}
		}
		expire := func() {
			for _, l := range model {
				if !l.expires.After(clock) {
					end(l, hub.Expired)
				}
			}
			model = live()
		}
		for i := range 300 {
			clock = clock.Add(time.Duration(r.IntN(5)) * time.Second)
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d step %d: %s", seed, i, fmt.Sprintf(format, args...))
			}
			switch op := r.IntN(6); op {
			case 0, 1:
				m := &hub.C2D{Device: "d", Ack: hub.Ack(r.IntN(4)), Properties: iothub.Bag{{Name: "n", Value: "ü&"}, {Name: iothub.PropMessageID, Value: fmt.Sprint(i)}}, Body: fmt.Append(nil, i), Enqueued: clock, Expires: clock.Add(time.Duration(5+r.IntN(40)) * time.Second)}
				err := s.Enqueue(ctx, "hub-1", m, limit)
				if len(model) >= limit {
					expire()
				}
				if full := len(live()) >= limit; full != (cradle.KindOf(err) == cradle.Forbidden) || !full && err != nil {
					fail("enqueue into %d: %v", len(live()), err)
				}
				if err == nil {
					model = append(model, &letter{body: string(m.Body), expires: m.Expires, ack: m.Ack})
				}
			case 2, 3:
				tk := hub.Taking{Owner: []string{"mqtt-a", "mqtt-b", "http-c"}[r.IntN(3)], Max: 1 + r.IntN(3), Until: clock.Add(10 * time.Second)}
				tk.Void = tk.Owner != "http-c"
				got, err := s.Take(ctx, "hub-1", "d", clock, deliveries, tk)
				if err != nil {
					fail("take: %v", err)
				}
				expire()
				var want []*letter
				for _, l := range slices.Clone(model) {
					switch {
					case !tk.MayTake(l.lock, l.locked, clock):
					case l.deliveries >= deliveries:
						end(l, hub.DeliveredTooOften)
						model = slices.DeleteFunc(model, func(o *letter) bool { return o == l })
					case len(want) < tk.Max:
						want = append(want, l)
					}
				}
				if len(got) != len(want) {
					fail("took %d, want %d", len(got), len(want))
				}
				for n, l := range want {
					l.deliveries++
					l.lock, l.locked = got[n].Lock, tk.Until
					if g := got[n]; string(g.Body) != l.body || g.Deliveries != l.deliveries || !g.Expires.Equal(l.expires) || g.Properties[0].Value != "ü&" {
						fail("took %+v, want %+v", g, l)
					}
					locks = append(locks, l.lock)
				}
			default:
				lock := locks[r.IntN(len(locks))]
				at := slices.IndexFunc(model, func(l *letter) bool { return l.lock == lock })
				outcome := hub.Outcome(r.IntN(2)) * hub.RejectedByDevice
				err := s.Settle(ctx, "hub-1", "other", lock, outcome, clock)
				wantKind(t, "another device's lock", err, cradle.NotFound)
				if op == 4 {
					err = s.Settle(ctx, "hub-1", "d", lock, outcome, clock)
				} else {
					err = s.Release(ctx, "hub-1", "d", lock)
				}
				if (at < 0) != (cradle.KindOf(err) == cradle.NotFound) || at >= 0 && err != nil {
					fail("op %d of lock %q: %v", op, lock, err)
				}
				if at >= 0 && op == 4 {
					end(model[at], outcome)
					model = slices.Delete(model, at, at+1)
				} else if at >= 0 {
					model[at].lock, model[at].locked = "", time.Time{}
				}
			}
			if n, err := s.Waiting(ctx, "hub-1", "d", clock); err != nil || n != len(live()) {
				fail("%d wait, want %d (%v)", n, len(live()), err)
			}
		}
		wantKind(t, "no device", s.Enqueue(ctx, "hub-1", &hub.C2D{Device: "nobody", Enqueued: now, Expires: now.Add(time.Hour)}, limit), cradle.NotFound)
		expire()
		for _, l := range model {
			end(l, hub.ThrownAway)
		}
		if n, err := s.Purge(ctx, "hub-1", "d", clock); err != nil || n < len(model) {
			t.Fatalf("seed %d: purged %d of %d, %v", seed, n, len(model), err)
		}
		got := map[string]hub.Outcome{}
		for i := 0; ; i++ {
			fs, err := s.TakeFeedback(ctx, "hub-1", clock, fmt.Sprint("lock-", i), clock.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fs {
				if _, twice := got[f.Message]; twice || f.Device != "d" || f.At.After(clock) {
					t.Errorf("seed %d: feedback %+v, twice: %v", seed, f, twice)
				}
				got[f.Message] = f.Outcome
			}
			if len(fs) == 0 {
				break
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("seed %d: feedback %v, want %v", seed, got, want)
		}
		// Many at once: never more than allowed, and each is taken by one.
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				s.Enqueue(ctx, "hub-1", &hub.C2D{Device: "d", Body: fmt.Append(nil, i), Enqueued: now, Expires: now.Add(time.Hour)}, limit)
			})
		}
		wg.Wait()
		taken := make(chan string, 100)
		for i := range 6 {
			wg.Go(func() {
				ms, err := s.Take(ctx, "hub-1", "d", now, 10, hub.Taking{Owner: fmt.Sprint("http-", i), Max: 2, Until: now.Add(time.Minute)})
				if err != nil {
					t.Error(err)
				}
				for _, m := range ms {
					taken <- string(m.Body)
				}
			})
		}
		wg.Wait()
		close(taken)
		seen := map[string]bool{}
		for b := range taken {
			if seen[b] {
				t.Errorf("%s taken twice", b)
			}
			seen[b] = true
		}
		if len(seen) != limit {
			t.Errorf("%d taken, want %d", len(seen), limit)
		}
		// They go with their device.
		if err := s.DeleteDevice(ctx, "hub-1", "d", "e"); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Waiting(ctx, "hub-1", "d", now); n != 0 || err != nil {
			t.Errorf("%d left, %v", n, err)
		}
	})
}

func TestKeptSessions(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1")
		insert := func(g string) {
			if err := s.InsertDevice(ctx, "hub-1", &hub.Device{ID: "d", Generation: g, ETag: "e"}, []hub.Module{{Device: "d", ID: "m", Generation: g, ETag: "e"}}); err != nil {
				t.Fatal(err)
			}
		}
		want := func(module iothub.ModuleID, subs hub.Subscriptions, there bool) {
			t.Helper()
			got, ok, err := s.KeptSession(ctx, "hub-1", "d", module)
			if err != nil || ok != there || got != subs {
				t.Errorf("module %q: got %b %v %v", module, got, ok, err)
			}
		}
		insert("g1")
		for _, m := range []iothub.ModuleID{"", "m"} {
			want(m, 0, false)
			for _, subs := range []hub.Subscriptions{0, 1 << 31, 5} {
				if err := s.KeepSession(ctx, "hub-1", "d", m, "g1", subs); err != nil {
					t.Fatal(err)
				}
				want(m, subs, true)
			}
			wantKind(t, "another generation", s.KeepSession(ctx, "hub-1", "d", m, "g0", 1), cradle.NotFound)
			want(m, 5, true)
		}
		if err := s.ForgetSession(ctx, "hub-1", "d", ""); err != nil {
			t.Fatal(err)
		}
		want("", 0, false)
		want("m", 5, true)
		if err := s.DeleteModule(ctx, "hub-1", "d", "m", "e"); err != nil {
			t.Fatal(err)
		}
		want("m", 0, false)
		if err := s.KeepSession(ctx, "hub-1", "d", "", "g1", 1); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteDevice(ctx, "hub-1", "d", "e"); err != nil {
			t.Fatal(err)
		}
		insert("g2")
		want("", 0, false)
	})
}

func TestTrustedCAs(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1", "hub-2")
		for _, name := range []string{"b", "a"} {
			if err := s.AddCA(ctx, "hub-1", &hub.TrustedCA{Name: name, DER: []byte{0, 1}, Added: now}); err != nil {
				t.Fatal(err)
			}
		}
		wantKind(t, "again", s.AddCA(ctx, "hub-1", &hub.TrustedCA{Name: "a", DER: []byte{2}}), cradle.Conflict)
		cas, err := s.CAs(ctx, "hub-1")
		if err != nil || len(cas) != 2 || cas[0].Name != "a" || string(cas[0].DER) != "\x00\x01" || !cas[0].Added.Equal(now) {
			t.Errorf("got %+v %v", cas, err)
		}
		if cas, err := s.CAs(ctx, "hub-2"); err != nil || len(cas) != 0 {
			t.Errorf("hub-2: got %+v %v", cas, err)
		}
		wantKind(t, "of another hub", s.RemoveCA(ctx, "hub-2", "a"), cradle.NotFound)
		if err := s.RemoveCA(ctx, "hub-1", "a"); err != nil {
			t.Error(err)
		}
		wantKind(t, "twice", s.RemoveCA(ctx, "hub-1", "a"), cradle.NotFound)
	})
}
