package provisioning_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

func TestFirstRegistrationAndTwoSlots(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r := w.start(true, nil)
		w.enrol(r)
		a, b, c := w.ca.Leaf("dev-1", nil), w.ca.Leaf("dev-1", nil), w.ca.Leaf("dev-1", nil)

		reg := r.arrive("DEV-1", a.Leaf)
		if reg.Status != provisioning.Assigned || reg.Hub != "hub-1" || reg.ID != "dev-1" || reg.Substatus != provisioning.InitialAssignment {
			t.Fatalf("got %+v", reg)
		}
		if got := slots(w.hub.Device("dev-1")); got != [2]string{print(a), ""} {
			t.Errorf("after the first registration: %v", got)
		}
		if w.hub.Calls("get") != 0 {
			t.Errorf("the first registration asked the hub %d times before creating", w.hub.Calls("get"))
		}
		r.arrive("dev-1", a.Leaf)
		if got := slots(w.hub.Device("dev-1")); got != [2]string{print(a), ""} {
			t.Errorf("after the same certificate again: %v", got)
		}
		if reg := r.arrive("dev-1", b.Leaf); reg.Substatus != provisioning.Reprovisioned {
			t.Errorf("substatus %q", reg.Substatus)
		}
		if got := slots(w.hub.Device("dev-1")); got != [2]string{print(a), print(b)} {
			t.Errorf("after the second certificate: %v", got)
		}
		r.arrive("dev-1", c.Leaf) // b was never used: its slot is free for the next
		if got := slots(w.hub.Device("dev-1")); got != [2]string{print(a), print(c)} {
			t.Errorf("after the third certificate: %v", got)
		}
		w.hub.Promote("dev-1")
		r.arrive("dev-1", c.Leaf)
		if got := slots(w.hub.Device("dev-1")); got != [2]string{print(c), ""} {
			t.Errorf("after promotion: %v", got)
		}
	})
}

// An older certificate whose turn is over does not come back.
func TestSupersededCertificate(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	w.enrol(r)
	old := w.ca.Leaf("dev-1", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(-30 * time.Minute) })
	young := w.ca.Leaf("dev-1", nil)
	r.arrive("dev-1", old.Leaf)
	r.arrive("dev-1", young.Leaf)
	if reg := r.arrive("dev-1", old.Leaf); reg.Status != provisioning.Assigned {
		t.Errorf("old certificate while it still has a slot: %+v", reg)
	}
	w.hub.Promote("dev-1")
	reg := r.arrive("dev-1", old.Leaf)
	if reg.Status != provisioning.Failed || !strings.Contains(reg.ErrorMessage, "superseded") {
		t.Errorf("old certificate after promotion: %+v", reg)
	}
	if got := slots(w.hub.Device("dev-1")); got != [2]string{print(young), ""} {
		t.Errorf("slots %v", got)
	}
	if reg := r.arrive("dev-1", young.Leaf); reg.Status != provisioning.Assigned {
		t.Errorf("the newest one after that: %+v", reg)
	}
}

func TestHubDownThenUp(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r := w.start(true, nil)
		w.enrol(r)
		w.hub.Fail(provisioningtest.ErrDown)
		const n = 20
		callers, ops := make([]*provisioning.Caller, n), make([]string, n)
		for i := range n {
			id := fmt.Sprintf("dev-%d", i)
			reg, c, err := r.register(id, w.ca.Leaf(id, nil).Leaf)
			if err != nil || reg.Status != provisioning.Assigning {
				t.Fatalf("with the hub down: %v %v", reg.Status, err)
			}
			callers[i], ops[i] = c, reg.Operation
		}
		testenv.Eventually(t, "the hub is found to be in trouble", func() bool {
			reg, err := r.Operation(t.Context(), callers[0], ops[0], time.Millisecond)
			return err == nil && reg.Status == provisioning.Assigning && r.Troubled(reg)
		})
		w.hub.Fail(nil)
		for i := range n {
			if reg := r.await(callers[i], ops[i]); reg.Status != provisioning.Assigned {
				t.Errorf("device %d: %+v", i, reg)
			}
		}
		if p, err := r.Pending(t.Context()); p != 0 || err != nil {
			t.Errorf("pending %d, %v", p, err)
		}
	})
}

// A process dies after each step of a delivery; the next one goes on. Steps: committed but not
// delivered; hub told but the answer lost; answer had but not settled.
func TestCrashAfterEachStep(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		for _, step := range []string{"before delivery", "answer lost", "not settled"} {
			t.Run(step, func(t *testing.T) {
				w := newWorld(t, url)
				w.ca = provisioningtest.NewCA(t, "acme", step)
				id := "dev-" + strings.ReplaceAll(step, " ", "-")
				leaf := w.ca.Leaf(id, nil)
				r := w.start(step != "before delivery", nil)
				if _, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: id, Attestation: provisioning.SignedBy(w.ca.Cert, nil), Terms: provisioning.Terms{Enabled: true}}); err != nil {
					t.Fatal(err)
				}
				reached := make(chan struct{})
				var once sync.Once
				switch step {
				case "answer lost":
					w.hub.Lose(func(string, cradle.DeviceID) bool { once.Do(func() { close(reached) }); return true })
				case "not settled":
					w.hub.Before(func(string, cradle.DeviceID) { once.Do(func() { close(reached) }); r.store.Close() })
				default:
					close(reached)
				}
				reg, _, err := r.register(id, leaf.Leaf)
				if err != nil {
					t.Fatal(err)
				}
				<-reached
				r.stop()
				w.hub.Lose(nil)
				w.hub.Before(nil)

				r = w.start(true, nil)
				c, err := r.Authenticate(t.Context(), shown(id, leaf.Leaf))
				if err != nil {
					t.Fatal(err)
				}
				if got := r.await(c, reg.Operation); got.Status != provisioning.Assigned {
					t.Errorf("after the restart: %+v", got)
				}
				if got := slots(w.hub.Device(cradle.DeviceID(id))); got != [2]string{print(leaf), ""} {
					t.Errorf("slots %v", got)
				}
			})
		}
	})
}

// The hub's entry changes under our hands: read again, lose nothing.
func TestHubConflict(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	w.enrol(r)
	a, b := w.ca.Leaf("dev-1", nil), w.ca.Leaf("dev-1", nil)
	r.arrive("dev-1", a.Leaf)
	n := 0
	w.hub.Before(func(method string, id cradle.DeviceID) {
		if method == "update" && n < 3 {
			n++
			w.hub.Edit(id, func(d *iothub.Device) { d.Capabilities.IoTEdge = true })
		}
	})
	r.arrive("dev-1", b.Leaf)
	d := w.hub.Device("dev-1")
	if got := slots(d); got != [2]string{print(a), print(b)} || !d.Capabilities.IoTEdge || n != 3 {
		t.Errorf("slots %v, other change kept %v, conflicts %d", got, d.Capabilities.IoTEdge, n)
	}
}

// The same device registers from many callers and two replicas at once (azure-iot-sdk-c PR 2250).
func TestConcurrentRegistration(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r1 := w.start(true, nil)
		w.enrol(r1)
		r2 := w.start(true, nil)
		a, b := w.ca.Leaf("dev-1", nil), w.ca.Leaf("dev-1", nil)
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				r, leaf := r1, a
				if i%2 == 1 {
					r = r2
				}
				if i%3 == 0 {
					leaf = b
				}
				if _, _, err := r.register("dev-1", leaf.Leaf); err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		testenv.Eventually(t, "the outbox is empty", func() bool { n, err := r1.Pending(t.Context()); return err == nil && n == 0 })
		reg, err := r1.Registration(t.Context(), "dev-1")
		if err != nil || reg.Status != provisioning.Assigned {
			t.Fatalf("%+v %v", reg, err)
		}
		have := slots(w.hub.Device("dev-1"))
		if have[0] == have[1] || have[0] != reg.Thumbprint.String() && have[1] != reg.Thumbprint.String() {
			t.Errorf("slots %v, registered last %s", have, reg.Thumbprint)
		}
	})
}

// Two replicas share the work; each delivery is made, and none waits for a replica that died.
func TestTwoReplicas(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		idle := w.start(false, nil) // takes leases and never delivers, like one that hangs
		w.enrol(idle)
		leaf := w.ca.Leaf("dev-1", nil)
		reg, _, err := idle.register("dev-1", leaf.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		r := w.start(true, nil)
		c, err := r.Authenticate(t.Context(), shown("dev-1", leaf.Leaf))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.await(c, reg.Operation); got.Status != provisioning.Assigned {
			t.Errorf("got %+v", got)
		}
	})
}

// A device of another account cannot take a name that is in use, nor its place in the hub.
func TestOwnersAreApart(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	w.enrol(r)
	other := provisioningtest.NewCA(t, "beta", "beta operational")
	if _, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: "beta", Attestation: provisioning.SignedBy(other.Cert, nil), Terms: provisioning.Terms{Enabled: true}}); err != nil {
		t.Fatal(err)
	}
	mine := w.ca.Leaf("dev-1", nil)
	r.arrive("dev-1", mine.Leaf)
	if _, _, err := r.register("dev-1", other.Leaf("dev-1", nil).Leaf); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("other account: %v", err)
	}
	// The same account's next CA may go on with the device, also after its group has changed.
	next := provisioningtest.NewCA(t, "acme", "acme operational 2")
	if _, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: "acme-2", Attestation: provisioning.SignedBy(next.Cert, nil), Terms: provisioning.Terms{Enabled: true}}); err != nil {
		t.Fatal(err)
	}
	if reg := r.arrive("dev-1", next.Leaf("dev-1", nil).Leaf); reg.Group != "acme-2" || reg.Status != provisioning.Assigned {
		t.Errorf("same account: %+v", reg)
	}
}

// Register with Hold returns with the outcome, to every caller of one operation, and to a device that was assigned before.
func TestRegisterHold(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r := w.start(true, nil)
		w.enrol(r)
		leaf := w.ca.Leaf("dev-1", nil).Leaf
		c, err := r.Authenticate(t.Context(), shown("dev-1", leaf))
		if err != nil {
			t.Fatal(err)
		}
		told, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		w.hub.Before(func(string, cradle.DeviceID) {
			once.Do(func() { close(told) })
			<-release
		})
		var calls sync.WaitGroup
		var got [2]provisioning.Registration
		call := func(i int) {
			calls.Go(func() {
				var err error
				if got[i], err = r.Register(t.Context(), c, provisioning.Ask{Hold: time.Hour}); err != nil {
					t.Error(err)
				}
			})
		}
		call(0)
		<-told
		call(1)
		if reg, err := r.Register(t.Context(), c, provisioning.Ask{}); err != nil || reg.Status != provisioning.Assigning {
			t.Errorf("without Hold: %+v %v", reg, err)
		}
		if reg, err := r.Register(t.Context(), c, provisioning.Ask{Hold: time.Millisecond}); err != nil || reg.Status != provisioning.Assigning {
			t.Errorf("with a short one: %+v %v", reg, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Register(ctx, c, provisioning.Ask{Hold: time.Hour}); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that has gone: %v", err)
		}
		close(release)
		calls.Wait()
		for i, reg := range got {
			if reg.Status != provisioning.Assigned || reg.Hub != "hub-1" {
				t.Errorf("call %d: %+v", i, reg)
			}
		}
		w.hub.Before(nil)
		again, err := r.Register(t.Context(), c, provisioning.Ask{Hold: time.Hour})
		if err != nil || again.Status != provisioning.Assigned || again.Substatus != provisioning.Reprovisioned || again.Operation == got[0].Operation {
			t.Errorf("again: %+v %v", again, err)
		}
	})
}

// lateSettle is a store whose first Settle returns only when it is released, although it has committed.
type lateSettle struct {
	provisioning.Store
	committed, release chan struct{}
	once               sync.Once
	read               chan struct{}
}

func (l *lateSettle) Settle(ctx context.Context, d provisioning.Delivery, lease provisioning.Lease, done provisioning.Settled) (*provisioning.Registration, *provisioning.Delivery, error) {
	r, again, err := l.Store.Settle(ctx, d, lease, done)
	l.once.Do(func() {
		close(l.committed)
		<-l.release
	})
	return r, again, err
}

func (l *lateSettle) Registration(ctx context.Context, id provisioning.RegistrationID) (provisioning.Registration, error) {
	select {
	case l.read <- struct{}{}:
	default:
	}
	return l.Store.Registration(ctx, id)
}

// TestPollOfALaterOperation: who waits for an operation is not answered with what became of the one before.
func TestPollOfALaterOperation(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	l := &lateSettle{committed: make(chan struct{}), release: make(chan struct{}), read: make(chan struct{}, 1)}
	r := w.start(true, func(c *provisioning.Config) { l.Store, c.Store = c.Store, l })
	w.enrol(r)
	if _, _, err := r.register("dev-1", w.ca.Leaf("dev-1", nil).Leaf); err != nil {
		t.Fatal(err)
	}
	<-l.committed
	reg, c, err := r.register("dev-1", w.ca.Leaf("dev-1", nil).Leaf)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.read: // of before
	default:
	}
	polled := make(chan error, 1)
	go func() {
		_, err := r.Operation(t.Context(), c, reg.Operation, time.Minute)
		polled <- err
	}()
	<-l.read // it looks into the store while it waits: whatever is settled from now on wakes it
	close(l.release)
	if err := <-polled; err != nil {
		t.Error(err)
	}
	if got := r.await(c, reg.Operation); got.Status != provisioning.Assigned {
		t.Errorf("%+v", got)
	}
}
