package system_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// TestKillServer kills the server while devices onboard: each time at a seeded commit of a
// request that is open, before, during or after it; devices arrive between the kills. All must arrive in
// the end, with one certificate each: no lost reply led to a second one.
func TestKillServer(t *testing.T) {
	testenv.Long(t)
	t.Run("sqlite", func(t *testing.T) { killServer(t, world.Options{}, 200, 50) })
	t.Run("postgres", func(t *testing.T) { killServer(t, world.Options{DB: testenv.Postgres(t)}, 40, 10) })
}

// seed is random, or what CRADLE_TEST_SEED says, to repeat a failure.
func seed(t *testing.T) uint64 {
	s := rand.Uint64()
	if v := os.Getenv("CRADLE_TEST_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with CRADLE_TEST_SEED=%d", s)
		}
	})
	return s
}

func killServer(t *testing.T, o world.Options, devices, kills int) {
	random := rand.New(rand.NewPCG(seed(t), 0))
	o.TelemetryInterval = 5 * time.Second
	w := world.New(t, o)
	w.Acts()
	units := w.Make(devices)
	if code := w.Server().Stop(); code != 0 {
		t.Fatalf("cradle serve ended with %d", code)
	}
	power := w.Devices()
	// The first quarter waits for the server when it starts; the others arrive between kills.
	waiting := units
	arrive := func(n int) {
		power.PowerOn(waiting[:n]...)
		waiting = waiting[n:]
	}
	arrive(devices / 4)
	for i := range kills {
		at := fmt.Sprintf("%s:%d", []string{"before", "during", "after"}[random.IntN(3)], 1+random.IntN(12))
		p, ready := w.Launch("CRADLE_KILL_AT_COMMIT=" + at)
		if i > 0 {
			arrive(len(waiting) / (kills - i))
		}
		select {
		case <-p.Done():
		case <-time.After(3 * time.Minute):
			t.Fatalf("kill %d at %s: no such commit came", i, at)
		}
		if !p.Killed() {
			t.Fatalf("kill %d at %s: the server ended otherwise:\n%s", i, at, p.Log())
		}
		select {
		case <-ready:
		default: // killed before it was ready: a device was quicker
		}
	}
	if len(waiting) != 0 {
		t.Fatalf("%d devices were never powered on", len(waiting))
	}
	w.Start()
	t.Logf("%d kills done; %d of %d devices have their certificates", kills, onboarded(w, units), devices)
	w.AwaitConnected(5*time.Minute, units...)
	w.AwaitTelemetry(1, units...)
	w.Check()
	power.Off()
	w.Check()
	a := w.Admin()
	for _, u := range units {
		n := w.Count(a, u)
		if n[cradle.LDevID] != 1 || n[cradle.Operational] != 1 {
			t.Errorf("%s has %v certificates, want one of each", u.ID, n)
		}
	}
	w.GapFree(w.Events(), 1, units...)
}

// onboarded counts the devices that hold an operational certificate.
func onboarded(w *world.World, units []*world.Unit) (n int) {
	for _, u := range units {
		for _, c := range w.Status(u).Credentials {
			if c.Name == "operational" && c.Serial != "" {
				n++
				break
			}
		}
	}
	return n
}
