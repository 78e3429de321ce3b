package provisioning_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

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
		testenv.Eventually(t, "the hub's entry is disabled", status(iothub.Disabled, "cradle: "))
		if _, _, err := r.register("dev-1", leaf.Leaf); cradle.KindOf(err) != cradle.Unauthorized || !strings.Contains(err.Error(), "suspended") {
			t.Errorf("suspended: %v", err)
		}
		set(cradle.Active)
		testenv.Eventually(t, "the hub's entry is enabled", status(iothub.Enabled, ""))
		testenv.Eventually(t, "the registration is assigned again", func() bool {
			reg, err := r.Registration(t.Context(), "dev-1")
			return err == nil && reg.Status == provisioning.Assigned && reg.Blocked == ""
		})
		r.arrive("dev-1", leaf.Leaf)

		// Revoked while the hub is down, then the process dies: the next one carries it out, although
		// its feed says nothing new.
		w.hub.Fail(provisioningtest.ErrDown)
		set(cradle.Revoked)
		testenv.Eventually(t, "the registration is disabled", func() bool {
			reg, err := r.Registration(t.Context(), "dev-1")
			return err == nil && reg.Status == provisioning.Disabled && reg.Blocked == cradle.Revoked
		})
		r.stop()
		w.hub.Fail(nil)
		r = w.start(true, nil)
		testenv.Eventually(t, "the hub's entry is disabled for good", status(iothub.Disabled, "cradle: "))
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
	testenv.Eventually(t, "disabled", func() bool { return w.hub.Device("dev-1").Status == iothub.Disabled })
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
	testenv.Eventually(t, "enabled", func() bool { return w.hub.Device("dev-1").Status == iothub.Enabled })
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
