package main

import (
	"net"
	"testing"
)

type listener struct {
	net.Listener
	addr string
}

func (l listener) Addr() net.Addr { return address(l.addr) }

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// Azure's SDKs take a host name without a port: it is left out where the port is the one that they use.
func TestPublicNames(t *testing.T) {
	c := &ServeCmd{Host: "iot.example.com"}
	for _, o := range []struct {
		port, mqtt, host, hub string
	}{
		{"8443", "0.0.0.0:8883", "iot.example.com:8443", "iot.example.com:8443"},
		{"443", "0.0.0.0:8883", "iot.example.com", "iot.example.com"},
		{"443", "0.0.0.0:1884", "iot.example.com", "iot.example.com:443"},
		{"443", "", "iot.example.com", "iot.example.com:443"},
	} {
		var others []net.Listener
		if o.mqtt != "" {
			others = append(others, listener{addr: o.mqtt})
		}
		if host, hub := c.names(o.port, others); host != o.host || hub != o.hub {
			t.Errorf("port %s, MQTT %q: %s and %s, want %s and %s", o.port, o.mqtt, host, hub, o.host, o.hub)
		}
	}
}
