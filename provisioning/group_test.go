package provisioning_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/allocate"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

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
			testenv.Eventually(t, id+" has left hub-1", func() bool { return w.hub.Device(cradle.DeviceID(id)) == nil })
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
		testenv.Eventually(t, "the other replica knows the CA", func() bool { _, _, err := r2.register("dev-1", leaf.Leaf); return err == nil })
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
		testenv.Eventually(t, "the certificate that was taken out of the group is refused for that", func() bool {
			_, _, err := r2.register("dev-1", leaf.Leaf)
			return cradle.KindOf(err) == cradle.Unauthorized && strings.Contains(err.Error(), "registered")
		})
	})
}
