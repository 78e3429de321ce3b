package azure_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle/internal/tpmio"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/test/world"
)

// Commands of the TCP protocol of Microsoft's TPM simulator, which tss.js speaks (TPM 2.0 Part 4, simulator).
const (
	simPowerOn     = 1
	simSendCommand = 8
	simNVOn        = 11
	simHandshake   = 15
	simSessionEnd  = 20
)

// chip is a real software TPM behind the simulator's two ports.
type chip struct {
	host string
	port int

	ctx  context.Context
	mu   sync.Mutex
	conn *tpmio.Conn
}

// newChip starts a swtpm and serves it to tss.js.
func (p *place) newChip(t *testing.T, name string) *chip {
	t.Helper()
	return serveChip(t, p.NewTPM(name, world.GoodTPM).Socket())
}

func serveChip(t *testing.T, socket string) *chip {
	t.Helper()
	conn, err := tpmio.Open(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	c := &chip{host: "127.0.0.1", ctx: t.Context(), conn: conn}
	var listeners [2]net.Listener
	for listeners[1] == nil { // two ports side by side
		if listeners[0], err = net.Listen("tcp", c.host+":0"); err != nil {
			t.Fatal(err)
		}
		c.port = listeners[0].Addr().(*net.TCPAddr).Port
		if listeners[1], err = net.Listen("tcp", net.JoinHostPort(c.host, strconv.Itoa(c.port+1))); err != nil {
			listeners[0].Close()
			listeners[1] = nil
		}
	}
	var wg sync.WaitGroup
	for _, l := range listeners {
		wg.Go(func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer nc.Close()
					_ = c.serve(nc)
				})
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			l.Close()
		}
		conn.Close()
	})
	return c
}

// serve answers one connection of either port until it ends.
func (c *chip) serve(nc net.Conn) error {
	r := bufio.NewReader(nc)
	read := func(n uint32) ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	word := func() (uint32, error) {
		b, err := read(4)
		if err != nil {
			return 0, err
		}
		return binary.BigEndian.Uint32(b), nil
	}
	for {
		command, err := word()
		if err != nil {
			return err
		}
		var answer []byte
		switch command {
		case simHandshake:
			if _, err = word(); err == nil {
				answer = []byte{0, 0, 0, 1, 0, 0, 0, 1} // protocol 1; it has a platform port
			}
		case simSendCommand:
			var head []byte
			if head, err = read(5); err != nil { // locality, length
				break
			}
			var body []byte
			if body, err = read(min(binary.BigEndian.Uint32(head[1:]), 4096)); err != nil {
				break
			}
			c.mu.Lock()
			body, err = c.conn.With(c.ctx).Send(body)
			c.mu.Unlock()
			answer = append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
		case simPowerOn, simNVOn: // it runs
		case simSessionEnd:
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := nc.Write(append(answer, 0, 0, 0, 0)); err != nil {
			return err
		}
	}
}

// given adds the TPM to what a script is given.
func (c *chip) given(w with) with {
	w["tpmHost"], w["tpmPort"] = c.host, c.port
	return w
}

// keys reads the TPM's, as a line would.
func (c *chip) keys(t *testing.T, p *place) (k struct{ ID, EK, SRK string }) {
	t.Helper()
	p.must(t, &k, "tpm.keys", c.given(with{}))
	return k
}

// enrolsTPM makes an individual enrolment of a TPM.
func (p *place) enrolsTPM(t *testing.T, id, status, ek string) {
	t.Helper()
	p.must(t, nil, "enrolments.put", with{"connection": p.dps, "enrolment": with{"registrationId": id, "provisioningStatus": status,
		"attestation": with{"type": "tpm", "tpm": with{"endorsementKey": ek}}}})
}

// A TPM takes in the key that the service sealed for it, and with it the device logs in at its hub and sends.
func (s suite) TestTPM(t *testing.T) {
	c := s.newChip(t, "azure-1")
	k := c.keys(t, s.place)
	s.enrolsTPM(t, k.ID, "enabled", k.EK)
	d := c.given(s.keyed(k.ID, "http", ""))
	d["telemetry"] = with{"sealed": true}
	var r registered
	s.must(t, &r, "tpm.register", d)
	if r.AssignedHub != s.host || r.DeviceID != k.ID || r.Status != "assigned" {
		t.Errorf("%+v", r)
	}
	if got := s.events(t, k.ID); len(got) != 1 {
		t.Errorf("the hub has %+v", got)
	}
	s.must(t, &r, "tpm.register", d) // again, as after a restart: with a new key
}

func (s suite) TestTPMRefused(t *testing.T) {
	mine, other := s.newChip(t, "azure-2"), s.newChip(t, "azure-3")
	ek := mine.keys(t, s.place).EK
	s.enrolsTPM(t, "tpm-enrolled", "enabled", ek)
	s.enrolsTPM(t, "tpm-disabled", "disabled", ek)
	for _, c := range []struct {
		name, id, reason string
		chip             *chip
	}{
		{"another TPM", "tpm-enrolled", "endorsement key", other},
		{"disabled", "tpm-disabled", "disabled", mine},
		{"unknown", "tpm-nobody", "enrol", mine},
	} {
		// Node's SDK shows a reason only to a device whose TPM had a challenge; the operator's log has it always.
		e := s.refused(t, "tpm.register", c.chip.given(s.keyed(c.id, "http", "")))
		if e.Name != "FormatError" && !e.says(c.reason) {
			t.Errorf("%s: %v", c.name, e)
		}
		var logged bool
		for l := range strings.Lines(s.Server().Log()) {
			logged = logged || strings.Contains(l, c.id) && strings.Contains(l, c.reason)
		}
		if !logged {
			t.Errorf("%s: the log does not say %q", c.name, c.reason)
		}
	}
}

// A group admits the units that the line made under an order, by their TPMs, once their lot is accepted; nobody enrols them
// one by one.
func (s suite) TestTPMUnits(t *testing.T) {
	tpm := s.NewTPM("unit", tpmmaker.Options{EKType: tpmmaker.RSA2048})
	unit := world.Decode[struct{ Device string }](t, s.Must("cradle-oem", s.PersonaliseArgs(world.Serial(1), tpm.Socket())...))
	s.MustCradle("enrollment", "units", "order-1-units", "--account", world.Account, "--order", world.Order)
	s.CloseLot()
	c := serveChip(t, tpm.Socket())
	d := c.given(s.keyed(unit.Device, "http", ""))
	d["telemetry"] = with{"unit": true}
	var r registered
	s.must(t, &r, "tpm.register", d)
	if r.AssignedHub != s.host || r.DeviceID != unit.Device {
		t.Errorf("%+v", r)
	}
	if got := s.events(t, unit.Device); len(got) != 1 {
		t.Errorf("the hub has %+v", got)
	}
}
