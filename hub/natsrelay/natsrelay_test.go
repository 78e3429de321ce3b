package natsrelay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/hub/natsrelay"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// rig is a store with hubs, as the processes that share it see them.
type rig struct {
	t    *testing.T
	url  string // of the store
	kek  *filekey.Vault
	db   *hubdb.Store
	hub  *hub.Hub
	nats *testenv.NATS
	logs *testenv.Buffer

	seq map[cradle.DeviceID]int
}

func newRig(t *testing.T, url string, nats *testenv.NATS, names ...hub.Name) *rig {
	t.Helper()
	r := &rig{t: t, url: url, nats: nats, logs: new(testenv.Buffer), seq: map[cradle.DeviceID]int{}}
	var err error
	if r.kek, err = filekey.CreateVault(filepath.Join(t.TempDir(), "kek")); err != nil {
		t.Fatal(err)
	}
	r.db, r.hub = r.open()
	for _, n := range names {
		if err := r.hub.Ensure(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *rig) open() (*hubdb.Store, *hub.Hub) {
	r.t.Helper()
	db, err := hubdb.Open(r.t.Context(), r.url, r.kek)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { db.Close() })
	return db, hub.New(hub.Config{Store: db, Log: slog.New(slog.NewTextHandler(r.logs, nil))})
}

// relay runs one as a process of its own would; the function returned ends it.
func (r *rig) relay(replica string) (stop func()) {
	r.t.Helper()
	_, h := r.open()
	n, err := natsrelay.New(natsrelay.Config{Hub: h, URL: r.nats.URL, Replica: replica, Lease: time.Second, Keep: time.Hour,
		Log: slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("relay %s: %v", replica, err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// tell stores n numbered events of each device.
func (r *rig) tell(name hub.Name, n int, devices ...cradle.DeviceID) {
	r.t.Helper()
	for range n {
		var es []hub.Event
		for _, d := range devices {
			es = append(es, hub.Event{Device: d, Enqueued: time.Now().Truncate(time.Microsecond), Body: []byte(fmt.Sprintf(`{"n":%d}`, r.seq[d])),
				Properties: iothub.Bag{{Name: iothub.PropContentType, Value: "application/json"}, {Name: iothub.PropSequence, Value: fmt.Sprint(r.seq[d])}}})
			r.seq[d]++
		}
		if err := r.db.AppendEvents(r.t.Context(), name, es); err != nil {
			r.t.Fatal(err)
		}
	}
}

// passed waits until the relay has passed everything on.
func (r *rig) passed(name hub.Name) {
	r.t.Helper()
	testenv.Eventually(r.t, "everything is passed on", func() bool {
		st, relays, err := r.hub.StreamState(r.t.Context(), name)
		if err != nil {
			r.t.Fatal(err)
		}
		return len(relays) == 1 && relays[0].Cursor == st.Last
	}, r.logs)
}

// js connects as a consumer would.
func (r *rig) js() jetstream.JetStream {
	r.t.Helper()
	nc, err := nats.Connect(r.nats.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		r.t.Fatal(err)
	}
	return js
}

// wantAll reads a hub's stream from its beginning: every event told, in the order of each device once those are left
// out that came before under the same id. It returns how many came twice.
func (r *rig) wantAll(name hub.Name, devices ...cradle.DeviceID) (twice int) {
	r.t.Helper()
	ctx := r.t.Context()
	js := r.js()
	s, err := js.Stream(ctx, natsrelay.StreamName(name))
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		r.t.Fatal(err)
	}
	total := int(s.CachedInfo().State.Msgs)
	next := map[cradle.DeviceID]int{}
	ids := map[string]bool{}
	for i := 0; i < total; {
		b, err := c.Fetch(total-i, jetstream.FetchMaxWait(time.Minute))
		if err != nil {
			r.t.Fatal(err)
		}
		got := 0
		for m := range b.Messages() {
			got++
			var e iothub.Event
			if err := json.Unmarshal(m.Data(), &e); err != nil {
				r.t.Fatal(err)
			}
			if id := m.Headers().Get("Nats-Msg-Id"); id != e.ID || id == "" || m.Subject() != natsrelay.Subject(name, e.Device, "") {
				r.t.Fatalf("message %s on %s is %+v", id, m.Subject(), e)
			}
			if ids[e.ID] {
				twice++
				continue
			}
			ids[e.ID] = true
			if *e.Sequence != int64(next[e.Device]) || string(e.Body) != fmt.Sprintf(`{"n":%d}`, next[e.Device]) {
				r.t.Fatalf("device %s: got %d, want %d", e.Device, *e.Sequence, next[e.Device])
			}
			next[e.Device]++
		}
		if i += got; got == 0 {
			r.t.Fatalf("only %d of %d messages: %v", i, total, b.Error())
		}
	}
	for _, d := range devices {
		if next[d] != r.seq[d] {
			r.t.Errorf("device %s: %d of %d", d, next[d], r.seq[d])
		}
	}
	return twice
}

// TestRelay kills NATS and the relay in turn, in the midst of a flow of events.
func TestRelay(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url, testenv.StartNATS(t), "hub-1", "hub.two")
		devices := []cradle.DeviceID{"a", "b.c*d", "e%"}
		stopA := r.relay("A")
		r.tell("hub-1", 40, devices...)
		r.tell("hub.two", 1, "x")
		r.passed("hub-1")
		r.nats.Kill()
		r.tell("hub-1", 40, devices...) // nobody waits for NATS
		testenv.Eventually(t, "events do not pass to NATS", func() bool { return strings.Contains(r.logs.String(), "events do not pass to NATS") }, r.logs)
		r.nats.Start()
		r.tell("hub-1", 100, devices...)
		stopA() // somewhere in between
		r.tell("hub-1", 20, devices...)
		r.relay("B")
		r.relay("C") // one of them works
		r.tell("hub-1", 100, devices...)
		r.nats.Kill()
		r.nats.Start()
		r.tell("hub-1", 20, devices...)
		r.passed("hub-1")
		r.passed("hub.two")
		if n := r.wantAll("hub-1", devices...); n != 0 {
			t.Errorf("%d messages are in the stream twice: JetStream did not know their ids", n)
		}
		r.wantAll("hub.two", "x")
	})
}

// TestAgain: a relay whose place was lost, as by a restored backup, sends everything again; JetStream leaves it out by
// the ids. Outside of its window a reader leaves it out.
func TestAgain(t *testing.T) {
	n := testenv.StartNATS(t)
	url := t.TempDir() + "/hub.db"
	r := newRig(t, url, n, "hub-1")
	ctx := t.Context()
	// A stream that was there before, with a window too short to help, and with somebody else's messages in it.
	js := r.js()
	s, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: natsrelay.StreamName("hub-1"), Subjects: []string{"cradle.*.>"}, Duplicates: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stop := r.relay("A")
	r.tell("hub-1", 100, "a", "b")
	r.passed("hub-1")
	stop()
	if n := r.wantAll("hub-1", "a", "b"); n != 0 {
		t.Errorf("%d twice", n)
	}
	relays, err := r.db.Relays(ctx, "hub-1")
	if err != nil || len(relays) != 1 {
		t.Fatalf("%+v %v", relays, err)
	}
	time.Sleep(150 * time.Millisecond) // the window of JetStream, whose clock is not ours; it reads the ids within it at its start
	n.Kill()
	n.Start()
	// The same events by another relay's name in the store stand for a lost place.
	before := s.CachedInfo().State.Msgs
	other := newRig(t, t.TempDir()+"/copy.db", n, "hub-1")
	es, err := r.db.Events(ctx, "hub-1", 0, 1000)
	if err == nil {
		err = other.db.AppendEvents(ctx, "hub-1", es)
	}
	if err != nil {
		t.Fatal(err)
	}
	other.relay("A")
	other.passed("hub-1")
	if twice := r.wantAll("hub-1", "a", "b"); twice != len(es) {
		t.Errorf("%d of %d came twice (%d before)", twice, len(es), before)
	}
}

// TestRelayHoldsEvents: retention waits for the relay, until the events take up too much.
func TestRelayHoldsEvents(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url, testenv.StartNATS(t), "hub-1")
		ctx := t.Context()
		stop := r.relay("A")
		r.tell("hub-1", 10, "a")
		r.passed("hub-1")
		stop()
		r.tell("hub-1", 30, "a")
		old := hub.Retention{Age: time.Microsecond}
		if got, err := r.hub.Trim(ctx, "hub-1", old); err != nil || got != (hub.Trimmed{Events: 10}) {
			t.Errorf("trimmed %+v %v", got, err)
		}
		st, _, err := r.hub.StreamState(ctx, "hub-1")
		if err != nil || st.First != 11 {
			t.Fatalf("left %+v %v", st, err)
		}
		old.Size = st.Bytes / 2
		got, err := r.hub.Trim(ctx, "hub-1", old)
		if err != nil || got.Events != got.Held || got.Held < 14 || got.Held > 16 || r.hub.Trimmed("hub-1").Held != got.Held || !strings.Contains(r.logs.String(), "events were lost to a relay") {
			t.Errorf("trimmed %+v %v", got, err)
		}
	})
}

func TestConfig(t *testing.T) {
	for _, u := range []string{"", "localhost:4222", "nats://", "nats://a:4222,", "%", "http://a:4222"} {
		if _, err := natsrelay.New(natsrelay.Config{URL: u}); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%q: %v", u, err)
		}
	}
	n, err := natsrelay.New(natsrelay.Config{URL: "nats://127.0.0.1:1", Creds: "/none"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context()); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("credentials that are not there: %v", err)
	}
}

func TestSubject(t *testing.T) {
	got := []string{natsrelay.Subject("hub-1", "a", ""), natsrelay.Subject("h.1", "a.b*c>d%e f", "$edgeAgent"), natsrelay.StreamName("h.1")}
	want := []string{"cradle.hub-1.a", "cradle.h~2E1.a~2Eb~2Ac~3Ed%e~20f.$edgeAgent", "cradle-h~2E1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
