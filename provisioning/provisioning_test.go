package provisioning_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
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
	"github.com/cradle-iot/cradle/provisioning/allocate"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// world is a provisioning service with a hub, a feed and one registered CA.
type world struct {
	t    *testing.T
	url  string
	hub  *provisioningtest.Hub
	feed *provisioningtest.Feed
	ca   *provisioningtest.CA
}

func newWorld(t *testing.T, url string) *world {
	return &world{t, url, provisioningtest.NewHub(t), provisioningtest.NewFeed(), provisioningtest.NewCA(t, "acme", "acme operational")}
}

// replica is one process of the service.
type replica struct {
	*provisioning.Service
	t     *testing.T
	store *provisioningdb.DB
	stop  func()
	once  sync.Once
}

// start opens a replica; run says whether its worker runs.
func (w *world) start(run bool, change func(*provisioning.Config)) *replica {
	w.t.Helper()
	store, err := provisioningdb.Open(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	c := provisioning.Config{Store: store, Feed: w.feed, Hubs: []provisioning.Hub{{Name: "hub-1", Host: "localhost:8443", Registry: w.hub}}, Lease: time.Second}
	if change != nil {
		change(&c)
	}
	svc, err := provisioning.New(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	r := &replica{Service: svc, t: w.t, store: store}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if run {
			svc.Run(ctx)
		}
	}()
	r.stop = func() {
		r.once.Do(func() {
			cancel()
			<-done
			store.Close()
		})
	}
	w.t.Cleanup(r.stop)
	return r
}

func (w *world) enrol(r *replica) {
	w.t.Helper()
	if _, err := r.PutGroup(w.t.Context(), provisioning.GroupRequest{ID: "acme-devices", Attestation: provisioning.SignedBy(w.ca.Cert, nil), Terms: provisioning.Terms{Enabled: true}}); err != nil {
		w.t.Fatal(err)
	}
}

// shown are a device's credentials when it connects with one certificate.
func shown(id string, leaf *x509.Certificate) provisioning.Credentials {
	c := provisioning.Credentials{RegistrationID: id}
	if leaf != nil {
		c.Chain = []*x509.Certificate{leaf}
	}
	return c
}

func (r *replica) register(id string, leaf *x509.Certificate) (provisioning.Registration, *provisioning.Caller, error) {
	c, err := r.Authenticate(r.t.Context(), shown(id, leaf))
	if err != nil {
		return provisioning.Registration{}, nil, err
	}
	reg, err := r.Register(r.t.Context(), c, provisioning.Ask{})
	return reg, c, err
}

// arrive registers and waits for the decision.
func (r *replica) arrive(id string, leaf *x509.Certificate) provisioning.Registration {
	r.t.Helper()
	reg, c, err := r.register(id, leaf)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.await(c, reg.Operation)
}

func (r *replica) await(c *provisioning.Caller, op string) provisioning.Registration {
	r.t.Helper()
	for range 600 {
		reg, err := r.Operation(r.t.Context(), c, op, 100*time.Millisecond)
		if err != nil {
			r.t.Fatal(err)
		}
		if reg.Status != provisioning.Assigning {
			return reg
		}
		time.Sleep(20 * time.Millisecond) // while the hub is in trouble polls are not held
	}
	r.t.Fatal("registration is still assigning after a minute")
	panic("unreachable")
}

// eventually waits for something that a worker does.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 3000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never happened: %s", what)
}

func print(c tls.Certificate) string {
	return provisioning.Thumbprint(sha256.Sum256(c.Leaf.Raw)).String()
}

func slots(d *iothub.Device) [2]string {
	x := d.Authentication.X509Thumbprint
	return [2]string{x.PrimaryThumbprint, x.SecondaryThumbprint}
}

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
		eventually(t, "the hub is found to be in trouble", func() bool {
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
		eventually(t, "the outbox is empty", func() bool { n, err := r1.Pending(t.Context()); return err == nil && n == 0 })
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

func TestBlockAndRelease(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r := w.start(true, nil)
		w.enrol(r)
		leaf := w.ca.Leaf("dev-1", nil)
		r.arrive("dev-1", leaf.Leaf)
		set := func(s cradle.DeviceState) {
			w.feed.Set("acme", "dev-1", s)
			r.OnBlock("acme", "dev-1", s)
		}
		status := func(want string, prefix string) func() bool {
			return func() bool {
				d := w.hub.Device("dev-1")
				return d.Status == want && strings.HasPrefix(d.StatusReason, prefix)
			}
		}
		set(cradle.Suspended)
		eventually(t, "the hub's entry is disabled", status(iothub.Disabled, "cradle: "))
		if _, _, err := r.register("dev-1", leaf.Leaf); cradle.KindOf(err) != cradle.Unauthorized || !strings.Contains(err.Error(), "suspended") {
			t.Errorf("suspended: %v", err)
		}
		set(cradle.Active)
		eventually(t, "the hub's entry is enabled", status(iothub.Enabled, ""))
		eventually(t, "the registration is assigned again", func() bool {
			reg, err := r.Registration(t.Context(), "dev-1")
			return err == nil && reg.Status == provisioning.Assigned && reg.Blocked == ""
		})
		r.arrive("dev-1", leaf.Leaf)

		// Revoked while the hub is down, then the process dies: the next one carries it out, although
		// its feed says nothing new.
		w.hub.Fail(provisioningtest.ErrDown)
		set(cradle.Revoked)
		eventually(t, "the registration is disabled", func() bool {
			reg, err := r.Registration(t.Context(), "dev-1")
			return err == nil && reg.Status == provisioning.Disabled && reg.Blocked == cradle.Revoked
		})
		r.stop()
		w.hub.Fail(nil)
		r = w.start(true, nil)
		eventually(t, "the hub's entry is disabled for good", status(iothub.Disabled, "cradle: "))
		w.feed.Set("acme", "dev-1", cradle.Active) // a feed may forget; revoked is final
		r.OnBlock("acme", "dev-1", cradle.Active)
		if _, _, err := r.register("dev-1", leaf.Leaf); err == nil || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("revoked: %v", err)
		}
	})
}

// News that came while no process ran: releases are found at the start, and only once the feed has caught up.
func TestReconcileAtStart(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	w.enrol(r)
	leaf := w.ca.Leaf("dev-1", nil)
	r.arrive("dev-1", leaf.Leaf)
	w.feed.Set("acme", "dev-1", cradle.Suspended)
	r.OnBlock("acme", "dev-1", cradle.Suspended)
	eventually(t, "disabled", func() bool { return w.hub.Device("dev-1").Status == iothub.Disabled })
	r.stop()

	w.feed.Set("acme", "dev-1", cradle.Active)
	w.feed.SetStale(true)
	r = w.start(true, nil)
	r.OnBlock("acme", "dev-1", cradle.Active) // from the middle of the feed's history
	time.Sleep(50 * time.Millisecond)
	if reg, err := r.Registration(t.Context(), "dev-1"); err != nil || reg.Blocked == "" {
		t.Errorf("released by a feed that has not caught up: %+v %v", reg, err)
	}
	w.feed.SetStale(false)
	eventually(t, "enabled", func() bool { return w.hub.Device("dev-1").Status == iothub.Enabled })
}

// An operator's own disabling in the hub is not taken back.
func TestForeignDisableStays(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	w.enrol(r)
	a, b := w.ca.Leaf("dev-1", nil), w.ca.Leaf("dev-1", nil)
	r.arrive("dev-1", a.Leaf)
	w.hub.Edit("dev-1", func(d *iothub.Device) { d.Status, d.StatusReason = iothub.Disabled, "under repair" })
	r.arrive("dev-1", b.Leaf)
	if d := w.hub.Device("dev-1"); d.Status != iothub.Disabled || slots(d)[1] != print(b) {
		t.Errorf("got %+v", d)
	}
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

func TestAllocation(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	hub2, hub3 := provisioningtest.NewHub(t), provisioningtest.NewHub(t)
	three := func(closed string) func(*provisioning.Config) {
		return func(c *provisioning.Config) {
			c.Hubs = append(c.Hubs, provisioning.Hub{Name: "hub-2", Host: "h2:8443", Registry: hub2}, provisioning.Hub{Name: "hub-3", Host: "h3:8443", Registry: hub3})
			for i := range c.Hubs {
				if c.Hubs[i].Name == closed {
					c.Hubs[i].State = allocate.Maintenance
				}
			}
		}
	}
	r := w.start(true, three(""))
	w.enrol(r)
	at := map[string]string{}
	count := map[string]int{}
	for i := range 60 {
		id := fmt.Sprintf("dev-%d", i)
		reg := r.arrive(id, w.ca.Leaf(id, nil).Leaf)
		at[id] = reg.Hub
		count[reg.Hub]++
	}
	if len(count) != 3 {
		t.Errorf("hashed allocation used %v", count)
	}
	r.stop()

	r = w.start(true, three("hub-2"))
	for id, hub := range at { // a closed hub keeps what it has
		if reg := r.arrive(id, w.ca.Leaf(id, nil).Leaf); reg.Hub != hub {
			t.Errorf("%s moved from %s to %s", id, hub, reg.Hub)
		}
	}
	// The group is bound to hub-3: devices move when they register again, and leave the old hub.
	g, err := r.Group(t.Context(), "acme-devices")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: g.ID, Attestation: provisioning.SignedBy(w.ca.Cert, nil), Terms: provisioning.Terms{Enabled: true, Hubs: []string{"H3"}, Reprovision: provisioning.Reprovision{UpdateHub: true, MigrateData: true}}, IfMatch: g.ETag}); err != nil {
		t.Fatal(err)
	}
	for id, hub := range at {
		if reg := r.arrive(id, w.ca.Leaf(id, nil).Leaf); reg.Hub != "hub-3" {
			t.Errorf("%s is at %s", id, reg.Hub)
		}
		if hub == "hub-1" {
			eventually(t, id+" has left hub-1", func() bool { return w.hub.Device(cradle.DeviceID(id)) == nil })
		}
	}
}

// One certificate in both slots is one.
func TestGroupOneCertificateTwice(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(false, nil)
	g, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: "twice", Attestation: provisioning.Attestation{Kind: provisioning.X509CA, Primary: w.ca.Cert.Raw, Secondary: w.ca.Cert.Raw},
		Terms: provisioning.Terms{Enabled: true}})
	if err != nil || len(g.Secondary) != 0 {
		t.Fatalf("%+v %v", g, err)
	}
	if _, _, err := r.register("dev-1", w.ca.Leaf("dev-1", nil).Leaf); err != nil {
		t.Error(err)
	}
}

// Another replica's change of groups is seen: a new CA at once (at most a second later), a disabled group at
// the very next registration.
func TestGroupsAcrossReplicas(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r1, r2 := w.start(true, nil), w.start(true, nil)
		if r1.Identity().IDScope != r2.Identity().IDScope || !strings.HasPrefix(r1.Identity().IDScope, "0ne") {
			t.Errorf("id scopes %q and %q", r1.Identity().IDScope, r2.Identity().IDScope)
		}
		w.enrol(r1)
		leaf := w.ca.Leaf("dev-1", nil)
		eventually(t, "the other replica knows the CA", func() bool { _, _, err := r2.register("dev-1", leaf.Leaf); return err == nil })
		g, err := r1.Group(t.Context(), "ACME-devices")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r1.PutGroup(t.Context(), provisioning.GroupRequest{ID: g.ID, Attestation: provisioning.SignedBy(w.ca.Cert, nil), IfMatch: g.ETag}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r2.register("dev-1", leaf.Leaf); err == nil || !strings.Contains(err.Error(), "disabled") {
			t.Errorf("disabled group: %v", err)
		}
		// The group holds another certificate now; r2 may still have the old one in its cache.
		if g, err = r1.Group(t.Context(), g.ID); err != nil {
			t.Fatal(err)
		}
		next := provisioningtest.NewCA(t, "acme", "acme operational 2")
		if _, err := r1.PutGroup(t.Context(), provisioning.GroupRequest{ID: g.ID, Attestation: provisioning.SignedBy(next.Cert, nil), Terms: provisioning.Terms{Enabled: true}, IfMatch: g.ETag}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the certificate that was taken out of the group is refused for that", func() bool {
			_, _, err := r2.register("dev-1", leaf.Leaf)
			return cradle.KindOf(err) == cradle.Unauthorized && strings.Contains(err.Error(), "registered")
		})
	})
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
