package hubserver_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// flaky fails an AppendEvents now and then: before storing, or after it, so that only the answer is lost.
type flaky struct {
	hub.Store
	fail func(n int) (before, after bool)
	n    int
}

func (f *flaky) AppendEvents(ctx context.Context, name hub.Name, es []hub.Event) error {
	f.n++
	before, after := f.fail(f.n)
	if before {
		return cradle.Errorf(cradle.Busy, "not stored")
	}
	err := f.Store.AppendEvents(ctx, name, es)
	if err == nil && after {
		return cradle.Errorf(cradle.Busy, "answer lost")
	}
	return err
}

// tell sends numbered messages as a device must: what was not acknowledged is sent again on the next
// connection. It returns how often it had to connect.
func (r *rig) tell(i ident, n int) (connects int) {
	r.t.Helper()
	next := 0
	for deadline := time.Now().Add(3 * time.Minute); next < n; {
		if time.Now().After(deadline) {
			r.t.Fatalf("only %d of %d told\n%s", next, n, r.logs)
		}
		c, err := r.connect(i)
		if err != nil {
			if !refusedWith(err, mqtt.ServerUnavailable) {
				r.t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		connects++
		for next < n && c.say(r.t.Context(), fmt.Sprint(next), "{}") == nil {
			next++
		}
		c.Close()
	}
	return connects
}

// wantAll checks that every sequence number arrived, first occurrences in order.
func (r *rig) wantAll(es []*iothub.Event, n int) {
	r.t.Helper()
	next := int64(0)
	for _, e := range es {
		if *e.Sequence > next {
			r.t.Fatalf("got %d, want at most %d", *e.Sequence, next)
		}
		next = max(next, *e.Sequence+1)
	}
	if next != int64(n) {
		r.t.Errorf("got %d of %d", next, n)
	}
}

func TestStoreFails(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		f := &flaky{fail: func(n int) (bool, bool) { return n%5 == 0, n%5 == 3 }}
		r := newRigOver(t, url, func(s hub.Store) hub.Store { f.Store = s; return f })
		i := r.register("dev")
		if n := r.tell(i, 30); n < 5 {
			t.Errorf("connected %d times", n)
		}
		r.wantAll(r.events(""), 30)
		r.wantLog("the hub's store does not answer: not stored")
	})
}

// TestPostgresGone kills the database under a connected device.
func TestPostgresGone(t *testing.T) {
	testenv.Long(t)
	s := testenv.PostgresServer(t)
	r := newRig(t, s.Database(t))
	i := r.register("dev")
	r.tell(i, 5)
	c := r.mustConnect(i)
	s.Kill()
	if err := c.say(t.Context(), "5", "{}"); err == nil {
		t.Error("PUBACK without a store")
	}
	r.wantGone(c, "hub closed a connection")
	if _, err := r.connect(i); !refusedWith(err, mqtt.ServerUnavailable) {
		t.Errorf("connecting without a store: got %v", err)
	}
	if _, err := r.reg.GetDevice(t.Context(), "dev"); cradle.KindOf(err) != cradle.Busy {
		t.Errorf("registry without a store: got %v", err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the database answers again", func() bool { // it may still be recovering
		_, err := r.reg.GetDevice(t.Context(), "dev")
		return err == nil
	})
	r.tell(i, 20)
	r.wantAll(r.events(""), 20)
}
