package azure_test

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
)

// transports of registration.
var transports = []string{"http", "mqtt", "ws"}

// registered is what a device learns.
type registered struct {
	AssignedHub, DeviceID, Status, Substatus string
	Payload                                  any
}

// device is what a script of a device needs to know.
func (p *place) device(id, transport string, c pair) with {
	return with{"host": p.host, "hub": p.host, "idScope": p.idScope, "id": id, "transport": transport, "cert": c.cert, "key": c.key}
}

func (p *place) registers(t *testing.T, d with) {
	t.Helper()
	var r registered
	p.must(t, &r, "register", d)
	if r.AssignedHub != p.host || r.DeviceID != d["id"] || r.Status != "assigned" {
		t.Errorf("%s over %s: %+v", d["id"], d["transport"], r)
	}
}

func (s suite) TestRegisterX509(t *testing.T) {
	for _, transport := range transports {
		s.registers(t, s.device("x509-"+transport, transport, s.ca.leaf(t, "x509-"+transport, nil)))
	}
}

func (s suite) TestRegisterX509Refused(t *testing.T) {
	foreign, disabled := newCA(t, "Nobody's devices"), newCA(t, "Disabled devices")
	s.group(t, "disabled", "disabled", disabled.pem)
	for _, transport := range transports {
		for _, c := range []struct {
			name   string
			device with
			reason string
		}{
			{"wrong CN", s.device("x509-wrong-cn", transport, s.ca.leaf(t, "x509-other", nil)), `certificate is for \"x509-other\"`},
			{"expired", s.device("x509-expired", transport, s.ca.leaf(t, "x509-expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), "expired"},
			{"unknown CA", s.device("x509-foreign", transport, foreign.leaf(t, "x509-foreign", nil)), "signing certificate not registered"},
			{"disabled group", s.device("x509-disabled", transport, disabled.leaf(t, "x509-disabled", nil)), `\"disabled\" is disabled`},
		} {
			e := s.refused(t, "register", c.device)
			if e.Name != "UnauthorizedError" || transport == "http" && e.Status != 401 || !e.says(c.reason) {
				t.Errorf("%s over %s: %v", c.name, transport, e)
			}
		}
	}
}

// Devices send their chain: a group may hold the root of it, or an intermediate.
func (s suite) TestRegisterX509Chain(t *testing.T) {
	root := newCA(t, "Tester root")
	factory := root.below(t, "Tester factory")
	s.group(t, "roots", "enabled", root.pem)
	for _, transport := range transports {
		id := "chain-" + transport
		own := factory.leaf(t, id, nil)
		s.registers(t, s.device(id, transport, own))
		s.must(t, nil, "device.connect", s.device(id, "mqtt", own))
	}
	short := factory.leaf(t, "chain-short", nil)
	block, _ := pem.Decode([]byte(short.cert))
	short.cert = string(pem.EncodeToMemory(block))
	if e := s.refused(t, "register", s.device("chain-short", "http", short)); e.Name != "UnauthorizedError" || !e.says("chain") {
		t.Errorf("without the intermediate: %v", e)
	}
}
