package provisioning_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/allocate"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

var (
	keep    = provisioning.Reprovision{}
	migrate = provisioning.Reprovision{UpdateHub: true, MigrateData: true}
	reset   = provisioning.Reprovision{UpdateHub: true}
)

const twin = `{"tags":{"site":"north"},"properties":{"desired":{"interval":30}}}`

// twoHubs are hub-1 and hub-2, both with twins.
func (w *world) twoHubs() (func(*provisioning.Config), *provisioningtest.Hub) {
	second := provisioningtest.NewHub(w.t)
	return func(c *provisioning.Config) {
		c.Hubs[0].Twins = w.hub
		c.Hubs = append(c.Hubs, provisioning.Hub{Name: "hub-2", Host: "h2:8443", Registry: second, Twins: second})
	}, second
}

// replaceGroup makes a group, or replaces the one that is there.
func (r *replica) replaceGroup(q provisioning.GroupRequest) (provisioning.Group, error) {
	q.IfMatch = "*"
	g, err := r.PutGroup(r.t.Context(), q)
	if cradle.KindOf(err) == cradle.NotFound {
		q.IfMatch = ""
		g, err = r.PutGroup(r.t.Context(), q)
	}
	return g, err
}

func (w *world) group(r *replica, id string, ca *provisioningtest.CA, t provisioning.Terms) {
	w.t.Helper()
	t.Enabled = true
	if _, err := r.replaceGroup(provisioning.GroupRequest{ID: id, Attestation: provisioning.SignedBy(ca.Cert, nil), Terms: t}); err != nil {
		w.t.Fatal(err)
	}
}

func values(tags, desired string) *provisioningtest.Twin {
	t := &provisioningtest.Twin{Tags: map[string]any{}, Desired: map[string]any{}}
	for s, to := range map[string]*map[string]any{tags: &t.Tags, desired: &t.Desired} {
		if s != "" {
			if err := json.Unmarshal([]byte(s), to); err != nil {
				panic(err)
			}
		}
	}
	return t
}

// Azure's three policies, at a hub that stays and at one that changes.
func TestReprovision(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		change, second := w.twoHubs()
		r := w.start(true, change)
		for i, c := range []struct {
			name      string
			policy    provisioning.Reprovision
			other     bool // the enrolment names the other hub now
			hub       string
			substatus string
			twin      *provisioningtest.Twin
		}{
			{"keep", keep, false, "hub-1", provisioning.Reprovisioned, values(`{"site":"north","owner":"me"}`, `{"interval":10}`)},
			{"keep, other hub", keep, true, "hub-1", provisioning.Reprovisioned, values(`{"site":"north","owner":"me"}`, `{"interval":10}`)},
			{"migrate", migrate, false, "hub-1", provisioning.Reprovisioned, values(`{"site":"north","owner":"me"}`, `{"interval":10}`)},
			{"migrate, other hub", migrate, true, "hub-2", provisioning.DataMigrated, values(`{"site":"north","owner":"me"}`, `{"interval":10}`)},
			{"reset", reset, false, "hub-1", provisioning.Reprovisioned, values(`{"site":"north"}`, `{"interval":30}`)},
			{"reset, other hub", reset, true, "hub-2", provisioning.DataReset, values(`{"site":"north"}`, `{"interval":30}`)},
		} {
			t.Run(c.name, func(t *testing.T) {
				id := fmt.Sprintf("dev-%d", i)
				ca := provisioningtest.NewCA(t, "acme", c.name)
				terms := provisioning.Terms{Hubs: []string{"hub-1"}, Reprovision: c.policy, InitialTwin: json.RawMessage(twin)}
				w.group(r, id, ca, terms)
				leaf := ca.Leaf(id, nil)
				if reg := r.arrive(id, leaf.Leaf); reg.Hub != "hub-1" || reg.Substatus != provisioning.InitialAssignment {
					t.Fatalf("first: %+v", reg)
				}
				if got := w.hub.TwinOf(cradle.DeviceID(id)); !reflect.DeepEqual(got, values(`{"site":"north"}`, `{"interval":30}`)) {
					t.Fatalf("initial twin %+v", got)
				}
				w.hub.EditTwin(cradle.DeviceID(id), func(tw *provisioningtest.Twin) { tw.Tags["owner"], tw.Desired["interval"] = "me", 10.0 })
				if c.other {
					terms.Hubs = []string{"hub-2"}
					w.group(r, id, ca, terms)
				}
				reg := r.arrive(id, leaf.Leaf)
				if reg.Hub != c.hub || reg.Substatus != c.substatus || reg.Move != (provisioning.Move{}) {
					t.Errorf("again: %+v", reg)
				}
				at, gone := w.hub, second
				if c.hub == "hub-2" {
					at, gone = second, w.hub
				}
				if got := at.TwinOf(cradle.DeviceID(id)); !reflect.DeepEqual(got, c.twin) {
					t.Errorf("twin %+v, want %+v", got, c.twin)
				}
				testenv.Eventually(t, "the other hub has no entry", func() bool { return gone.Device(cradle.DeviceID(id)) == nil })
				// Once more: nothing moves any more.
				if reg := r.arrive(id, leaf.Leaf); reg.Hub != c.hub || reg.Substatus != provisioning.Reprovisioned {
					t.Errorf("a third time: %+v", reg)
				}
			})
		}
	})
}

// The old hub's entry goes only when the new one stands; a crash at any step, before or after it took
// effect, loses nothing.
func TestMoveCrashes(t *testing.T) {
	testenv.Long(t)
	testenv.EachStore(t, func(t *testing.T, url string) {
		for i, at := range []string{"hub-2 create", "hub-1 twin", "hub-2 replace", "hub-1 delete"} {
			for _, lost := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, answer lost %v", at, lost), func(t *testing.T) {
					w := newWorld(t, url)
					change, second := w.twoHubs()
					id := fmt.Sprintf("dev-%d-%v", i, lost)
					dev := cradle.DeviceID(id)
					ca := provisioningtest.NewCA(t, "acme", id)
					r := w.start(true, change)
					terms := provisioning.Terms{Hubs: []string{"hub-1"}, Reprovision: migrate}
					w.group(r, id, ca, terms)
					leaf := ca.Leaf(id, nil)
					r.arrive(id, leaf.Leaf)
					w.hub.EditTwin(dev, func(tw *provisioningtest.Twin) { tw.Desired["a"] = "mine" })
					terms.Hubs = []string{"hub-2"}
					w.group(r, id, ca, terms)

					reached := make(chan struct{})
					var once sync.Once
					die := func() { once.Do(func() { r.store.Close(); close(reached) }) }
					hubs := map[string]*provisioningtest.Hub{"hub-1": w.hub, "hub-2": second}
					name, method, _ := strings.Cut(at, " ")
					if lost {
						hubs[name].Lose(func(m string, _ cradle.DeviceID) bool {
							if m == method {
								die()
							}
							return m == method
						})
						if method == "twin" {
							return // reading has no effect that could be lost
						}
					} else {
						hubs[name].Before(func(m string, _ cradle.DeviceID) {
							if m == method {
								die()
							}
						})
					}
					reg, _, err := r.register(id, leaf.Leaf)
					if err != nil {
						t.Fatal(err)
					}
					<-reached
					r.stop()
					if w.hub.Device(dev) == nil && (second.Device(dev) == nil || second.TwinOf(dev).Desired["a"] != "mine") {
						t.Fatal("the old entry has gone before the new one stands")
					}
					for _, h := range hubs {
						h.Lose(nil)
						h.Before(nil)
					}
					r = w.start(true, change)
					c, err := r.Authenticate(t.Context(), shown(id, leaf.Leaf))
					if err != nil {
						t.Fatal(err)
					}
					if got := r.await(c, reg.Operation); got.Status != provisioning.Assigned || got.Hub != "hub-2" || got.Substatus != provisioning.DataMigrated {
						t.Errorf("after the restart: %+v", got)
					}
					if got := second.TwinOf(dev); got == nil || got.Desired["a"] != "mine" {
						t.Errorf("twin at the new hub: %+v", got)
					}
					testenv.Eventually(t, "the old entry has gone", func() bool { return w.hub.Device(dev) == nil })
				})
			}
		}
	})
}

// The old hub is down: the device waits, its data are not left behind. It is blocked meanwhile: both hubs hear of it.
func TestMoveFromAHubThatIsDown(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	change, second := w.twoHubs()
	r := w.start(true, change)
	terms := provisioning.Terms{Hubs: []string{"hub-1"}, Reprovision: migrate}
	w.group(r, "g", w.ca, terms)
	leaf := w.ca.Leaf("dev-1", nil)
	r.arrive("dev-1", leaf.Leaf)
	w.hub.EditTwin("dev-1", func(tw *provisioningtest.Twin) { tw.Tags["a"] = "b" })
	terms.Hubs = []string{"hub-2"}
	w.group(r, "g", w.ca, terms)
	w.hub.Fail(provisioningtest.ErrDown)
	reg, c, err := r.register("dev-1", leaf.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the old hub was asked for the twin", func() bool { return w.hub.Calls("twin") > 0 })
	if got, err := r.Operation(t.Context(), c, reg.Operation, 0); err != nil || got.Status != provisioning.Assigning || got.From != "hub-1" {
		t.Fatalf("while the old hub is down: %+v %v", got, err)
	}
	w.feed.Set("acme", "dev-1", cradle.Suspended)
	r.OnBlock("acme", "dev-1", cradle.Suspended)
	w.hub.Fail(nil)
	for name, h := range map[string]*provisioningtest.Hub{"hub-1": w.hub, "hub-2": second} {
		testenv.Eventually(t, name+" has the device disabled", func() bool { d := h.Device("dev-1"); return d != nil && d.Status == "disabled" })
	}
	testenv.Eventually(t, "its registration says so", func() bool {
		reg, err := r.Registration(t.Context(), "dev-1")
		return err == nil && reg.Blocked == cradle.Suspended
	})
	w.feed.Set("acme", "dev-1", cradle.Active)
	r.OnBlock("acme", "dev-1", cradle.Active)
	testenv.Eventually(t, "it is released", func() bool { reg, err := r.Registration(t.Context(), "dev-1"); return err == nil && reg.Blocked == "" })
	if got := r.await(c, reg.Operation); got.Hub != "hub-2" || got.Substatus != provisioning.DataMigrated || second.TwinOf("dev-1").Tags["a"] != "b" {
		t.Errorf("released: %+v", got)
	}
	testenv.Eventually(t, "the old entry has gone", func() bool { return w.hub.Device("dev-1") == nil })
}

// Draining moves devices when they register, maintenance only keeps new ones away; both hold on every replica
// and over a restart.
func TestMaintenance(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		change, second := w.twoHubs()
		r := w.start(true, change)
		w.group(r, "g", w.ca, provisioning.Terms{Allocation: provisioning.Static, Reprovision: migrate})
		other := w.start(true, change)
		leaf := w.ca.Leaf("dev-1", nil)
		if reg := r.arrive("dev-1", leaf.Leaf); reg.Hub != "hub-1" {
			t.Fatalf("first: %+v", reg)
		}
		if _, err := r.SetState(t.Context(), "HUB-1", allocate.Maintenance); err != nil {
			t.Fatal(err)
		}
		if reg := r.arrive("dev-1", leaf.Leaf); reg.Hub != "hub-1" {
			t.Errorf("maintenance moved a device: %+v", reg)
		}
		if reg := r.arrive("dev-2", w.ca.Leaf("dev-2", nil).Leaf); reg.Hub != "hub-2" {
			t.Errorf("a new device got the hub in maintenance: %+v", reg)
		}
		if _, err := r.SetState(t.Context(), "hub-1", allocate.Draining); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Links(t.Context()); err != nil { // as linkRefresh does every five seconds
			t.Fatal(err)
		}
		if reg := other.arrive("dev-1", leaf.Leaf); reg.Hub != "hub-2" || reg.Substatus != provisioning.DataMigrated {
			t.Errorf("draining: %+v", reg)
		}
		r.stop()
		again := w.start(true, change)
		if ls, err := again.Links(t.Context()); err != nil || ls[0].State != allocate.Draining || ls[1].State != allocate.Open {
			t.Errorf("after a restart: %+v %v", ls, err)
		}
		if _, err := again.SetState(t.Context(), "hub-3", allocate.Open); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("a hub that is not linked: %v", err)
		}
		if second.Device("dev-1") == nil {
			t.Error("dev-1 is not at hub-2")
		}
	})
}
