package azure_test

import (
	"crypto/x509"
	"testing"
	"time"
)

// A hub refuses over MQTT without a word of its own, which the SDK calls unauthorized; over HTTPS, and in the log, it says why.
func (s suite) TestConnectRefused(t *testing.T) {
	foreign := newCA(t, "Nobody's hub devices")
	s.assigned(t, "hub-good", "mqtt")
	s.assigned(t, "hub-disabled", "mqtt")
	disabled := s.ca.leaf(t, "hub-disabled", nil)
	s.registers(t, s.device("hub-disabled", "http", disabled)) // the certificate that takes over
	s.must(t, nil, "device.connect", s.device("hub-disabled", "mqtt", disabled))
	s.must(t, nil, "hub.disable", with{"connection": s.hub, "id": "hub-disabled"})
	for _, c := range []struct {
		name, id, reason string
		cert             pair
	}{
		{"another certificate of the same CA", "hub-good", "is not the device's", s.ca.leaf(t, "hub-good", nil)},
		{"unknown CA", "hub-good", "is not the device's", foreign.leaf(t, "hub-good", nil)},
		{"expired", "hub-good", "valid", s.ca.leaf(t, "hub-good", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		{"unknown device", "hub-nobody", "not registered", s.ca.leaf(t, "hub-nobody", nil)},
		{"disabled", "hub-disabled", "disabled", disabled},
	} {
		for _, transport := range []string{"mqtt", "ws"} {
			if e := s.refused(t, "device.connect", s.device(c.id, transport, c.cert)); e.Name != "UnauthorizedError" || !e.says("Not authorized") {
				t.Errorf("%s over %s: %v", c.name, transport, e)
			}
		}
		d := s.device(c.id, "http", c.cert)
		d["body"] = with{}
		if e := s.refused(t, "device.telemetry", d); e.Status < 401 || e.Status > 404 || !e.says(c.reason) {
			t.Errorf("%s over HTTPS: %v", c.name, e)
		}
	}
}
