package hubserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// listen has a rig's hub listen to the others.
func (r *rig) listen() {
	r.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.hub.Listen(ctx) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	})
}

// TestReplicas: what is done at one replica reaches a device that is connected to another, and a device has one connection.
func TestReplicas(t *testing.T) {
	testenv.EachStore(t, testReplicas)
}

func testReplicas(t *testing.T, url string) {
	a := newRig(t, url)
	if sqldb.EngineOf(url) == sqldb.SQLite { // which one process has
		a.listen()
		a.keyed("dev").online()
		if !a.hub.Alone() {
			t.Error("there are others")
		}
		return
	}
	b := newRig(t, url)
	a.listen()
	b.listen()
	for _, r := range []*rig{a, b} {
		testenv.Eventually(t, "the replicas know of each other", func() bool { return !r.hub.Alone() })
	}
	u := a.keyed("dev")
	at := func(r *rig) *unit { x := *u; x.r = r; return &x }
	ua := at(a).online(u.filter(), iothub.DesiredChanges, iothub.TwinAnswers)

	// A message.
	b.send("dev", "over there", "iothub-messageid", "m", "iothub-ack", "positive")
	if h := ua.next(); h.body != "over there" {
		t.Errorf("heard %+v", h)
	}
	b.waiting("dev", 0)

	// Desired properties, in order, from both sides.
	for i, r := range []*rig{b, b, a, a, b} {
		if status, _, out := r.asOwner("PATCH", "/twins/dev", fmt.Sprintf(`{"properties":{"desired":{"n":%d,"gone":null}}}`, i)); status != 200 {
			t.Fatalf("%d %s", status, out)
		}
		var got struct {
			N       int `json:"n"`
			Version int `json:"$version"`
		}
		h := ua.next()
		if err := json.Unmarshal([]byte(h.body), &got); err != nil || got.N != i || got.Version != i+2 || !strings.Contains(h.body, `"gone":null`) || h.topic != fmt.Sprintf("$iothub/twin/PATCH/properties/desired/?$version=%d", i+2) {
			t.Errorf("change %d: heard %+v %v", i, h, err)
		}
	}
	// One that is too large to be passed on ends the connection: the device comes again and asks.
	if status, _, out := b.asOwner("PATCH", "/twins/dev", fmt.Sprintf(`{"properties":{"desired":{"a":%q,"b":%q,"c":%q}}}`, strings.Repeat("x", 4000), strings.Repeat("y", 4000), strings.Repeat("z", 4000))); status != 200 {
		t.Fatalf("%d %s", status, out)
	}
	ua.gone("desired properties were changed at another replica")

	// One connection: the newer one wins, wherever it is; and again.
	where := []*rig{a, b, a, a, b}
	var before *unit
	for i, r := range where {
		x := at(r).online(iothub.TwinAnswers)
		if before != nil {
			ends(t, before.ended, "a newer connection")
		}
		testenv.Eventually(t, fmt.Sprintf("connection %d alone", i), func() bool { return a.hub.Connected()+b.hub.Connected() == 1 }, a.logs, b.logs)
		if r.hub.Connected() != 1 {
			t.Fatalf("connection %d: %d and %d", i, a.hub.Connected(), b.hub.Connected())
		}
		before = x
	}
	// At the same moment at both: one stays.
	before.Close()
	ends(t, before.ended, "its end")
	for range 5 {
		both := make(chan error, 2)
		for _, r := range []*rig{a, b} {
			go func() { both <- at(r).connect() }()
		}
		<-both
		<-both
		testenv.Eventually(t, "one connection", func() bool { return a.hub.Connected()+b.hub.Connected() == 1 }, a.logs, b.logs)
	}

	// The registry: what a write takes away ends at the other replica, too; a module's with its device's.
	if _, err := a.reg.GetDevice(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	ua = at(a).online(iothub.TwinAnswers)
	m := a.module(u, "mod").online(iothub.TwinAnswers)
	d, err := b.reg.GetDevice(t.Context(), "dev")
	if err != nil {
		t.Fatal(err)
	}
	d.Status = iothub.Disabled
	if _, err := b.reg.PutDevice(t.Context(), d, iothub.AnyETag); err != nil {
		t.Fatal(err)
	}
	ends(t, ua.ended, "device was disabled")
	ends(t, m.ended, "device was disabled")
	a.wantLog("device was disabled")
	if n, err := a.hub.WaitingC2D(t.Context(), hub.DefaultName, "dev"); n != 0 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}
