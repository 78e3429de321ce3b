package hubserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// phone is a hub.Sink that answers method calls, takes messages, and notes what it heard of its twin.
type phone struct {
	name string
	mu   sync.Mutex
	sess *hub.Session
	down bool
	last int64 // version of the desired properties
	back int   // times that an older one came after a newer one
}

func (p *phone) Drop(string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
}

func (p *phone) session() *hub.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sess
}

func (p *phone) Method(rid, name string, payload []byte) bool {
	if name == "silent" {
		return true
	}
	go func() {
		if s := p.session(); s != nil {
			s.Respond(rid, 200, fmt.Appendf(nil, `{"by":%q,"call":%s}`, p.name, payload))
		}
	}()
	return true
}

func (p *phone) Desired(version int64, _ []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if version <= p.last {
		p.back++
	}
	p.last = version
	return true
}

func (p *phone) Message(id uint16, _ bool, _ iothub.Bag, _ []byte) bool {
	go func() {
		if s := p.session(); s != nil {
			s.Acknowledge(context.Background(), id)
		}
	}()
	return true
}

// TestDeviceSideUnderChange: while two devices come and go, their twins are patched, methods called, messages sent and the
// registry written. Every call is answered by its device or refused; nobody hears of a twin's changes out of order; in
// the end no message is lost.
func TestDeviceSideUnderChange(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ctx, cancel := context.WithCancel(t.Context())
		ids := []cradle.DeviceID{"a", "b"}
		keys := map[cradle.DeviceID]*unit{}
		for _, id := range ids {
			keys[id] = r.keyed(id)
		}
		var answered, refused atomic.Int64
		var comers, workers sync.WaitGroup
		for _, id := range ids {
			for range 2 { // two programs under one identity push each other out
				comers.Go(func() {
					for ctx.Err() == nil {
						p := &phone{name: string(id)}
						s, err := r.hub.Connect(ctx, hub.DefaultName, id, "", &hub.Login{Token: keys[id].token(), Host: host}, rand.IntN(4) == 0, p)
						if err != nil {
							if k := cradle.KindOf(err); k != cradle.Busy && ctx.Err() == nil {
								t.Errorf("connecting: %v", err)
							}
							continue
						}
						p.mu.Lock()
						p.sess = s
						p.mu.Unlock()
						s.Start()
						subs := hub.HearMethods | hub.HearDesired | hub.HearMessages
						if s.Subscribe(ctx, subs, 0) == nil {
							s.Listen(subs)
						}
						for range rand.IntN(3) {
							s.Report(ctx, []byte(`{"up":true}`))
							s.Twin(ctx, func([]byte) {})
						}
						s.End()
						p.mu.Lock()
						if p.back > 0 {
							t.Errorf("%s heard %d changes out of order", id, p.back)
						}
						p.mu.Unlock()
					}
				})
			}
		}
		for w := range 4 {
			workers.Go(func() {
				for i := range 15 {
					id := ids[(w+i)%2]
					call := fmt.Sprintf(`"%s-%d-%d"`, id, w, i)
					res, err := r.hub.InvokeMethod(ctx, hub.DefaultName, id, "", &iothub.Method{MethodName: "m", Payload: json.RawMessage(call), ConnectTimeoutInSeconds: 20, ResponseTimeoutInSeconds: 5})
					switch {
					case err == nil && string(res.Payload) != fmt.Sprintf(`{"by":%q,"call":%s}`, id, call):
						t.Errorf("call %s answered %s", call, res.Payload)
					case err == nil:
						answered.Add(1)
					case hub.Offline(err) || hub.NoAnswer(err):
						refused.Add(1)
					default:
						t.Errorf("call %s: %v", call, err)
					}
					p := &iothub.TwinPatch{}
					p.Properties.Desired = json.RawMessage(fmt.Sprintf(`{"w%d":%d}`, w, i))
					if _, err := r.hub.PatchTwin(ctx, hub.DefaultName, id, "", p, "", false); err != nil {
						t.Errorf("patching: %v", err)
					}
					if err := r.hub.SendC2D(ctx, hub.DefaultName, &hub.C2D{Device: id, Body: []byte(call)}); err != nil && !hub.MailFull(err) {
						t.Errorf("sending: %v", err)
					}
					if i%5 == 0 {
						d, err := r.hub.GetDevice(ctx, hub.DefaultName, id)
						if err == nil {
							_, err = r.hub.PutDevice(ctx, hub.DefaultName, d, iothub.AnyETag)
						}
						if err != nil {
							t.Errorf("writing the registry: %v", err)
						}
					}
				}
			})
		}
		workers.Wait()
		cancel()
		comers.Wait()
		if answered.Load() == 0 {
			t.Errorf("no call was answered, %d refused", refused.Load())
		}
		for _, id := range ids {
			tw, err := r.hub.Twin(t.Context(), hub.DefaultName, id, "")
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(tw.Properties.Desired, &got); err != nil {
				t.Fatal(err)
			}
			for w := range 4 {
				want := float64(14 - (14+w+int(id[0]-'a'))%2)
				if got[fmt.Sprint("w", w)] != want {
					t.Errorf("%s: w%d is %v, want %v", id, w, got[fmt.Sprint("w", w)], want)
				}
			}
			// The last one to come gets what is left.
			u := keys[id].online(keys[id].filter())
			r.waiting(id, 0)
			u.Close()
		}
	})
}

// TestLateSubscription: what a dropped connection still has under way is not kept for the one that took its place.
func TestLateSubscription(t *testing.T) {
	r := newRig(t, sqlite(t))
	u := r.keyed("dev")
	connect := func(clean bool) *hub.Session {
		t.Helper()
		s, err := r.hub.Connect(t.Context(), hub.DefaultName, "dev", "", &hub.Login{Token: u.token(), Host: host}, clean, onDrop(func(string) {}))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := connect(false)
	if err := old.Subscribe(t.Context(), hub.HearTwin, 0); err != nil {
		t.Fatal(err)
	}
	if s := connect(false); !s.Present() {
		t.Error("no session present")
	}
	old = connect(false)
	connect(true) // discards what was kept
	if err := old.Subscribe(t.Context(), hub.HearMethods, 0); cradle.KindOf(err) != cradle.Unauthorized {
		t.Errorf("a dropped session subscribed: %v", err)
	}
	if s := connect(false); s.Present() {
		t.Error("what a dropped session subscribed to was kept")
	}
	if _, err := old.Report(t.Context(), []byte(`{"a":1}`)); cradle.KindOf(err) != cradle.Unauthorized {
		t.Errorf("a dropped session reported: %v", err)
	}
}

// lame is a store whose mailbox and twins can be switched off.
type lame struct {
	hub.Store
	off atomic.Bool
}

var errLame = errors.New("the disk is on fire")

func (l *lame) PutTwin(ctx context.Context, name hub.Name, d cradle.DeviceID, m iothub.ModuleID, g string, tw *hub.Twin, was int64, notes ...hub.Event) error {
	if l.off.Load() {
		return errLame
	}
	return l.Store.PutTwin(ctx, name, d, m, g, tw, was, notes...)
}

func (l *lame) Settle(ctx context.Context, name hub.Name, d cradle.DeviceID, lock string, o hub.Outcome, now time.Time) error {
	if l.off.Load() {
		return errLame
	}
	return l.Store.Settle(ctx, name, d, lock, o, now)
}

func (l *lame) Enqueue(ctx context.Context, name hub.Name, m *hub.C2D, limit int) error {
	if l.off.Load() {
		return errLame
	}
	return l.Store.Enqueue(ctx, name, m, limit)
}

func (l *lame) KeepSession(ctx context.Context, name hub.Name, d cradle.DeviceID, m iothub.ModuleID, g string, s hub.Subscriptions) error {
	if l.off.Load() {
		return errLame
	}
	return l.Store.KeepSession(ctx, name, d, m, g, s)
}

func (l *lame) KeptSession(ctx context.Context, name hub.Name, d cradle.DeviceID, m iothub.ModuleID) (hub.Subscriptions, bool, error) {
	if l.off.Load() {
		return 0, false, errLame
	}
	return l.Store.KeptSession(ctx, name, d, m)
}

// TestDeviceSideWithoutStore: what is not durable is not acknowledged, and nothing of it leaves the server in words.
func TestDeviceSideWithoutStore(t *testing.T) {
	l := &lame{}
	r := newRigOver(t, sqlite(t), func(s hub.Store) hub.Store { l.Store = s; return l })
	u := r.keyed("dev").online(iothub.TwinAnswers, iothub.DesiredChanges)
	l.off.Store(true)
	status, _, body := u.ask(iothub.TwinReport, `{"a":1}`)
	if status != "503" || !json.Valid([]byte(body)) {
		t.Errorf("report: got %s %s", status, body)
	}
	if status, _, out := r.asOwner("PATCH", "/twins/dev", `{"properties":{"desired":{"a":1}}}`); status != 503 {
		t.Errorf("patch: got %d %s", status, out)
	}
	if status, _, out := r.asOwner("POST", "/devices/dev/messages/devicebound", "x"); status != 503 {
		t.Errorf("send: got %d %s", status, out)
	}
	if err := u.Subscribe(t.Context(), u.filter(), 1); err == nil {
		t.Error("a subscription that is not kept was granted")
	}
	u.gone("the hub's store does not answer: the disk is on fire")
	u.refused(u.options(), mqtt.ServerUnavailable, "the hub's store does not answer: the disk is on fire")
	if n := r.hub.Connected(); n != 0 {
		t.Errorf("%d connected", n)
	}
	l.off.Store(false)
	u.online(iothub.TwinAnswers, u.filter())
	u.quiet()
	if tw := r.twin("GET", "/twins/dev", ""); tw.Version != 1 {
		t.Errorf("refused writes left version %d", tw.Version)
	}
	// The PUBACK arrives, and cannot be stored: the message comes again.
	l2 := make(chan struct{})
	u.on = func(heard) error { l.off.Store(true); close(l2); return nil }
	u.Close()
	if err := u.connect(); err != nil {
		t.Fatal(err)
	}
	r.send("dev", "x")
	<-l2
	u.gone("the hub's store does not answer: the disk is on fire")
	l.off.Store(false)
	u.on = nil
	if err := u.connect(); err != nil {
		t.Fatal(err)
	}
	if h := u.next(); h.body != "x" {
		t.Errorf("heard %+v", h)
	}
	r.waiting("dev", 0)
}
