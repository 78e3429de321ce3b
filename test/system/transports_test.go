package system_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"testing"

	"github.com/coder/websocket"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/test/world"
)

// TestMQTTRoutes: who answers a CONNECT, by address, TLS server name, transport and user name. Provisioning accepts
// whatever it says; a hub refuses who is not registered, and a malformed user name in another way.
func TestMQTTRoutes(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{Serve: []string{"--also-listen", "127.0.0.1:0", "--also-listen", "127.0.0.1:0"}})
	st := world.Decode[admin.Status](t, w.MustCradle("status"))
	if len(st.Listen) != 3 || st.Listen[0] != w.Addr && st.Listen[0] != "127.0.0.1:"+portOf(t, w.Addr) {
		t.Fatalf("it listens on %v", st.Listen)
	}
	toDPS, toHub := dps.UserName(st.IDScope, "dev-1", dps.FirstAPIVersion), iothub.UserName(st.Hubs[0], "dev-1")
	const none = mqtt.Code(99) // nothing is served
	for _, c := range []struct {
		name, user string
		code       mqtt.Code
	}{
		{"localhost", toDPS, mqtt.Accepted},
		{"localhost", toHub, mqtt.NotAuthorized},
		{"localhost", "dev-1", mqtt.BadUserOrPassword},
		{"dps.localhost", toDPS, mqtt.Accepted},
		{"dps.localhost", toHub, mqtt.Accepted}, // and refused in each answer
		{"hub-1.localhost", toHub, mqtt.NotAuthorized},
		{"hub-1.localhost", toDPS, mqtt.BadUserOrPassword},
		{"est.localhost", toDPS, none},
	} {
		hello := (&mqtt.Connect{Protocol: "MQTT", Level: 4, Clean: true, ClientID: "dev-1", Username: &c.user}).Append(nil)
		for i, addr := range st.Listen {
			for _, transport := range []string{mqttserve.TCP, mqttserve.WebSocket} {
				got := none
				if nc := connect(t, w, addr, c.name, transport); nc != nil {
					if _, err := nc.Write(hello); err != nil {
						t.Fatal(err)
					}
					if p, err := mqtt.Read(bufio.NewReader(nc), 2); err == nil {
						ack, err := mqtt.ParseConnack(p)
						if err != nil {
							t.Fatal(err)
						}
						got = ack.Code
					}
					nc.Close()
				}
				if got != c.code {
					t.Errorf("%s %q over %s at address %d: code %d, want %d", c.name, c.user, transport, i, got, c.code)
				}
			}
		}
	}
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// connect opens a connection on which MQTT is spoken; nil where there is no WebSocket.
func connect(t *testing.T, w *world.World, addr, name, transport string) net.Conn {
	t.Helper()
	c := w.TLS(nil)
	c.ServerName = name
	if transport == mqttserve.TCP {
		nc, err := tls.Dial("tcp", addr, c)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
	tr := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}
	ws, resp, err := websocket.Dial(t.Context(), "wss://"+addr+mqttserve.WebSocketPath, &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}, Subprotocols: []string{"mqtt"}})
	if err != nil {
		if resp == nil || resp.StatusCode != http.StatusNotFound {
			t.Fatal(err)
		}
		return nil
	}
	return websocket.NetConn(context.WithoutCancel(t.Context()), ws, websocket.MessageBinary)
}
