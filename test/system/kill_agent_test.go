package system_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// journalSteps are the writes of an agent's journal on the way to its first renewal and a clean end, with
// how often each comes: the LDevID's, the first operational certificate's, the renewed one's.
var journalSteps = []struct {
	step  string
	times []int
}{
	{"journal/start", []int{1}},
	{"journal/cacerts", []int{1}},
	{"journal/request", []int{1, 2, 3}},
	{"journal/issued", []int{1, 2, 3}},
	{"journal/provisioned", []int{1, 2}},
	{"journal/active", []int{1, 2}},
	{"telemetry/message", []int{1, 2, 5}},
	{"telemetry/flush", []int{1}},
}

// mortal is a device whose agent is killed at one place after the other.
type mortal struct {
	*world.Unit
	kills []string // values of CRADLE_AGENT_KILL_AT still to come
	plan  string   // all of them
	agent *world.Process
}

func (m *mortal) String() string { return fmt.Sprintf("%s (kills %s; left %v)", m.ID, m.plan, m.kills) }

// on switches the device on, to be killed if it still has to be.
func (m *mortal) on(w *world.World) {
	if len(m.kills) > 0 {
		m.agent = w.Agent([]*world.Unit{m.Unit}, "CRADLE_AGENT_KILL_AT="+m.kills[0])
	} else {
		m.agent = w.Agent([]*world.Unit{m.Unit})
	}
}

// TestKillAgent kills agents at every write of their journals: before it, in its middle, and after it; and
// some several times in a row wherever it happens. All end connected, with all they had: one LDevID, one
// operational lineage whose key is in the TPM, no request made twice.
func TestKillAgent(t *testing.T) {
	testenv.Long(t)
	random := rand.New(rand.NewPCG(seed(t), 1))
	w := world.New(t, world.Options{OperationalValidity: 2 * time.Minute, RenewalFraction: 0.1})
	w.Acts()
	var devices []*mortal
	for _, s := range journalSteps {
		for _, n := range s.times {
			for _, when := range []string{"write", "torn", "written"} {
				devices = append(devices, &mortal{kills: []string{fmt.Sprintf("%s:%s:%d", s.step, when, n)}})
			}
		}
	}
	for range 10 {
		m := &mortal{}
		for range 6 {
			m.kills = append(m.kills, fmt.Sprintf("step:%d", 1+random.IntN(12)))
		}
		devices = append(devices, m)
	}
	for i, u := range w.Make(len(devices)) {
		devices[i].Unit, devices[i].plan = u, strings.Join(devices[i].kills, ", ")
		devices[i].on(w)
	}
	w.Wait("all agents to be killed where they should be", 3*time.Minute, func() (bool, string) {
		var left []string
		for _, m := range devices {
			if len(m.kills) == 0 {
				continue
			}
			left = append(left, m.String())
			select {
			case <-m.agent.Done():
				if !m.agent.Killed() {
					t.Fatalf("%s: the agent ended otherwise:\n%s", m, m.agent.Log())
				}
				m.kills = m.kills[1:]
				m.on(w)
			default:
				if strings.HasPrefix(m.kills[0], "telemetry/flush") && w.Status(m.Unit).Stage == device.StageConnected {
					m.agent.Terminate() // a flush is what comes at a clean end
				}
			}
		}
		return len(left) == 0, fmt.Sprintf("%d are not: %s", len(left), strings.Join(left[:min(len(left), 5)], "; "))
	})
	w.AwaitConnected(2*time.Minute, w.Units...)
	a := w.Admin()
	w.Wait("every device to renew", 2*time.Minute, func() (bool, string) {
		for _, m := range devices {
			if renewals(w.Credentials(a, m.Unit)) == 0 {
				return false, m.String() + ": " + world.Problem(w.Status(m.Unit))
			}
		}
		return true, ""
	})
	w.AwaitConnected(time.Minute, w.Units...)
	w.AwaitTelemetry(5, w.Units...)
	for _, m := range devices {
		if code := m.agent.Stop(); code != 0 {
			t.Errorf("the agent of %s ended with %d", m, code)
		}
	}
	w.Check()
	w.GapFree(w.Events(), 5, w.Units...)
	for _, m := range devices {
		lineage := 0
		var current string
		for _, c := range w.Credentials(a, m.Unit) {
			if c.Profile == cradle.Operational && c.Slot != "superseded" {
				lineage++
			}
			if c.Profile == cradle.Operational && c.Slot == "current" {
				current = c.PEM
			}
		}
		n := w.Count(a, m.Unit)
		if n[cradle.LDevID] != 1 || n[cradle.IDevID] != 1 || lineage > 2 || current == "" {
			t.Errorf("%s has %v certificates, %d in the operational lineage", m, n, lineage)
		}
		if log := m.agent.Log(); strings.Contains(log, "giving up the open certificate request") {
			t.Errorf("%s made a request twice:\n%s", m, log)
		}
		c := w.Client(m.Unit) // its keys are in the TPM: the services believe them
		if err := c.Register(t.Context(), c.Certificate(c.Active())); err != nil {
			t.Errorf("%s: %v", m, err)
		}
		c.Close()
	}
}
