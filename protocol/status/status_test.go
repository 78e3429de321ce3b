package status_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/status"
)

func TestVerifyRefuses(t *testing.T) {
	pub, priv, _ := ed25519.GenerateKey(nil)
	_, other, _ := ed25519.GenerateKey(nil)
	good := status.Statement{Time: time.Now(), After: 3, Newest: 5, Events: []status.Event{{Seq: 4}, {Seq: 5}}}
	for _, c := range []struct {
		name string
		key  ed25519.PrivateKey
		bend func(*status.Statement)
		wire func(*status.Envelope)
		kind cradle.Kind
	}{
		{"signed by another key", other, nil, nil, cradle.Unauthorized},
		{"body changed", priv, nil, func(e *status.Envelope) { e.Body[10] ^= 1 }, cradle.Unauthorized},
		{"no signature", priv, nil, func(e *status.Envelope) { e.Signature = nil }, cradle.Unauthorized},
		{"signed without our context", priv, nil, func(e *status.Envelope) { e.Signature = ed25519.Sign(priv, e.Body) }, cradle.Unauthorized},
		{"answers another question", priv, func(s *status.Statement) { s.After = 2 }, nil, cradle.Invalid},
		{"event left out", priv, func(s *status.Statement) { s.Events = s.Events[1:] }, nil, cradle.Invalid},
		{"events reordered", priv, func(s *status.Statement) { s.Events[0], s.Events[1] = s.Events[1], s.Events[0] }, nil, cradle.Invalid},
		{"newest behind its events", priv, func(s *status.Statement) { s.Newest = 4 }, nil, cradle.Invalid},
		{"events withheld", priv, func(s *status.Statement) { s.Events = nil }, nil, cradle.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good
			s.Events = append([]status.Event(nil), good.Events...)
			if c.bend != nil {
				c.bend(&s)
			}
			e, err := status.Sign(s, c.key)
			if err != nil {
				t.Fatal(err)
			}
			if c.wire != nil {
				c.wire(&e)
			}
			if _, err := status.Verify(e, pub, 3); cradle.KindOf(err) != c.kind || err == nil {
				t.Errorf("got %v, want %v", err, c.kind)
			}
		})
	}
	e, err := status.Sign(good, priv)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := status.Verify(e, pub, 3); err != nil {
		t.Errorf("an honest statement: %v", err)
	}
}

// feed is a provider's feed in memory; it signs like one.
type feed struct {
	mu     sync.Mutex
	key    ed25519.PrivateKey
	events []status.Event
	down   bool
	skew   time.Duration
}

func (f *feed) After(ctx context.Context, seq int64, now bool) (status.Envelope, error) {
	wait := status.Heartbeat
	if now {
		wait = 0
	}
	select {
	case <-ctx.Done():
		return status.Envelope{}, ctx.Err()
	case <-time.After(wait):
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return status.Envelope{}, cradle.Errorf(cradle.Busy, "down")
	}
	s := status.Statement{Time: time.Now().Add(f.skew), After: seq, Newest: int64(len(f.events)), Events: f.events[seq:]}
	return status.Sign(s, f.key)
}

func (f *feed) add(e status.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Seq = int64(len(f.events)) + 1
	f.events = append(f.events, e)
}

func (f *feed) set(down bool, skew time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down, f.skew = down, skew
}

func TestFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pub, priv, _ := ed25519.GenerateKey(nil)
		src := &feed{key: priv}
		var mu sync.Mutex
		var seen []int64
		f := status.NewFollower(src, pub, slog.New(slog.DiscardHandler), func(e status.Event) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, e.Seq)
		})
		if f.Fresh(time.Now()) {
			t.Error("fresh before anything was read")
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go f.Run(ctx)

		src.add(status.Event{Account: "acme", Device: "d1", State: cradle.Revoked})
		sum := sha256.Sum256([]byte("certificate"))
		src.add(status.Event{Account: "acme", Device: "d2", State: cradle.Active, Certificate: hex.EncodeToString(sum[:])})
		src.add(status.Event{Account: "acme", Device: "d3", State: cradle.Suspended})
		time.Sleep(2 * status.Heartbeat)
		if st, blocked := f.Blocked("acme", "d1"); !blocked || st != cradle.Revoked {
			t.Errorf("d1 is %q, %v", st, blocked)
		}
		if _, blocked := f.Blocked("other", "d1"); blocked {
			t.Error("d1 of another account is blocked")
		}
		if _, blocked := f.Blocked("acme", "d2"); blocked || !f.CertBlocked(sum) {
			t.Error("an event about a certificate must block it alone")
		}
		src.add(status.Event{Account: "acme", Device: "d3", State: cradle.Active})
		time.Sleep(2 * status.Heartbeat)
		if _, blocked := f.Blocked("acme", "d3"); blocked {
			t.Error("a released device is still blocked")
		}
		src.add(status.Event{Account: "acme", Device: "d2", State: cradle.Active, Certificate: hex.EncodeToString(sum[:]), Released: true})
		time.Sleep(2 * status.Heartbeat)
		if f.CertBlocked(sum) {
			t.Error("a released certificate is still blocked")
		}
		if !f.Fresh(time.Now()) || f.Seq() != 5 {
			t.Errorf("fresh %v, seq %d", f.Fresh(time.Now()), f.Seq())
		}

		src.set(true, 0)
		time.Sleep(status.StaleAfter + time.Second)
		if f.Fresh(time.Now()) {
			t.Error("fresh although the feed is down")
		}
		if _, blocked := f.Blocked("acme", "d1"); !blocked {
			t.Error("what is known was forgotten")
		}
		src.set(false, -time.Hour) // a replayed statement
		time.Sleep(5 * time.Second)
		if f.Fresh(time.Now()) {
			t.Error("an old statement made the follower fresh")
		}
		src.set(false, 0)
		time.Sleep(5 * time.Second)
		if !f.Fresh(time.Now()) {
			t.Error("not fresh after the feed came back")
		}
		stop()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(seen) != 5 {
			t.Errorf("told of %v, want each event once", seen)
		}
	})
}

// FuzzVerify: what is not signed by the key is refused, whatever it is.
func FuzzVerify(f *testing.F) {
	pub, priv, _ := ed25519.GenerateKey(nil)
	e, err := status.Sign(status.Statement{After: 0, Newest: 1, Events: []status.Event{{Seq: 1}}}, priv)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Body, int64(0))
	f.Fuzz(func(t *testing.T, body []byte, after int64) {
		if _, err := status.Verify(status.Envelope{Body: body, Signature: e.Signature}, pub, after); err == nil && string(body) != string(e.Body) {
			t.Errorf("accepted %q", body)
		}
		// Signed nonsense: either it has the property that numbers are in order, or it is refused.
		env := status.Envelope{Body: body, Signature: ed25519.Sign(priv, append([]byte("cradle-status-v1\n"), body...))}
		s, err := status.Verify(env, pub, after)
		if err != nil {
			return
		}
		for i, ev := range s.Events {
			if ev.Seq != after+int64(i)+1 {
				t.Errorf("event %d has number %d after %d", i, ev.Seq, after)
			}
		}
		if !json.Valid(body) {
			t.Errorf("accepted %q", body)
		}
	})
}
