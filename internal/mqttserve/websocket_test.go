package mqttserve_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
)

func newCert(t *testing.T, name string) tls.Certificate {
	t.Helper()
	return testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, nil).TLS()
}

// site is a real port behind which MQTT over WebSocket is served.
type site struct {
	t    *testing.T
	addr string
	cert tls.Certificate
	logs testenv.Buffer
	seen chan *mqttserve.Conn
	stop func() // ends the server and waits for it
}

func newSite(t *testing.T, c mqttserve.Config) *site {
	t.Helper()
	s := &site{t: t, cert: newCert(t, "localhost"), seen: make(chan *mqttserve.Conn, 10)}
	c.Log = slog.New(slog.NewTextHandler(&s.logs, nil))
	entrance := mqttserve.New(c).WebSocket(mqttserve.HandlerFunc(func(ctx context.Context, c *mqttserve.Conn, p *mqtt.Connect) {
		s.seen <- c
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		echo(ctx, c, p)
	}))
	f := front.New(front.Config{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &s.cert, nil },
		Default: front.Route{HTTP: front.Paths{{Pattern: mqttserve.WebSocketPath, Handler: entrance}}}, Log: c.Log})
	ln, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, ln) }()
	s.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(s.stop)
	return s
}

func (s *site) client(certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", Certificates: certs}}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (s *site) dial(certs ...tls.Certificate) *websocket.Conn {
	s.t.Helper()
	ws, resp, err := websocket.Dial(s.t.Context(), "wss://"+s.addr+mqttserve.WebSocketPath+"?iothub-no-client-cert=true", &websocket.DialOptions{HTTPClient: s.client(certs...),
		Subprotocols: []string{"mqttv3.1", "mqtt"}, CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ws.CloseNow() })
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != "mqtt" || resp.Header.Get("Sec-WebSocket-Extensions") != "" {
		s.t.Errorf("subprotocol %q, extensions %q", got, resp.Header.Get("Sec-WebSocket-Extensions"))
	}
	return ws
}

// Packets go through whatever frames they come in, with the certificate of the TLS connection beneath.
func TestWebSocket(t *testing.T) {
	s := newSite(t, mqttserve.Config{})
	device := newCert(t, "dev-1")
	ws := s.dial(device)
	packet := (&mqtt.Publish{QoS: 1, ID: 7, Topic: "a/b", Payload: []byte("hello")}).Append(nil)
	large := (&mqtt.Publish{Topic: "a", Payload: bytes.Repeat([]byte{1}, 90)}).Append(nil)
	for _, b := range append(hello(nil), packet...) { // a byte a frame
		if err := ws.Write(t.Context(), websocket.MessageBinary, []byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	bytewise := append(mqtt.Connack{}.Append(nil), packet...)
	got := make([]byte, len(bytewise))
	if _, err := io.ReadFull(websocket.NetConn(t.Context(), ws, websocket.MessageBinary), got); err != nil || !bytes.Equal(got, bytewise) {
		t.Errorf("byte by byte: % x %v", got, err)
	}
	ws = s.dial(device)
	if err := ws.Write(t.Context(), websocket.MessageBinary, append(hello(nil), bytes.Repeat(large, 40)...)); err != nil { // many packets a frame
		t.Fatal(err)
	}
	for range 3 {
		if err := ws.Write(t.Context(), websocket.MessageBinary, packet); err != nil {
			t.Fatal(err)
		}
	}
	want := append(append(mqtt.Connack{}.Append(nil), bytes.Repeat(large, 40)...), bytes.Repeat(packet, 3)...)
	got = make([]byte, len(want))
	if _, err := io.ReadFull(websocket.NetConn(t.Context(), ws, websocket.MessageBinary), got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes %v", len(got), err)
	}
	for range 2 {
		c := <-s.seen
		if p := c.State.PeerCertificates; c.Transport != mqttserve.WebSocket || len(p) != 1 || !bytes.Equal(p[0].Raw, device.Certificate[0]) {
			t.Errorf("transport %s, certificates %d", c.Transport, len(p))
		}
		if _, ok := c.RemoteAddr().(*net.TCPAddr); !ok || !strings.HasPrefix(c.RemoteAddr().String(), "127.0.0.1:") { // by which it is counted
			t.Errorf("address %v", c.RemoteAddr())
		}
	}
}

// What is refused before it is MQTT, and that the limits are the same as without WebSocket.
func TestWebSocketRefusals(t *testing.T) {
	s := newSite(t, mqttserve.Config{})
	url := "https://" + s.addr + mqttserve.WebSocketPath
	ask := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol", "mqtt"}
	for _, c := range []struct {
		name   string
		header []string
		status int
		why    string
	}{
		{"no WebSocket", nil, 400, "subprotocol mqtt"},
		{"no subprotocol", ask[:8], 400, "subprotocol mqtt"},
		{"another subprotocol", append(ask[:8:8], "Sec-WebSocket-Protocol", "mqttx, soap"), 400, "subprotocol mqtt"},
		{"AMQP", append(ask[:8:8], "Sec-WebSocket-Protocol", "AMQPWSB10"), 400, "subprotocol mqtt"},
		{"no upgrade", ask[8:], 426, "Upgrade"},
		{"another version", append([]string{"Sec-WebSocket-Version", "8"}, append(append([]string{}, ask[:4]...), ask[6:]...)...), 400, "ersion"},
		{"a page of another site", append(ask[:10:10], "Origin", "https://evil.example"), 403, "evil.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(c.header); i += 2 {
				req.Header.Set(c.header[i], c.header[i+1])
			}
			resp, err := s.client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != c.status || !strings.Contains(string(b), c.why) {
				t.Errorf("got %d %s", resp.StatusCode, b)
			}
			if log := s.logs.String(); !strings.Contains(log, "mqtt connection refused") {
				t.Errorf("log %s", log)
			}
		})
	}
	long := strings.Repeat("x", 9000)
	for _, c := range []struct {
		name   string
		kind   websocket.MessageType
		send   []byte
		answer []byte
		why    string
	}{
		{"text", websocket.MessageText, hello(nil), nil, "unexpected frame type"},
		{"too large", websocket.MessageBinary, hello(func(p *mqtt.Connect) { p.Username = &long }), nil, "packet too large"},
		{"MQTT 5", websocket.MessageBinary, hello(func(p *mqtt.Connect) { p.Level = 5 }), []byte{0x20, 3, 0, 0x84, 0}, "level 5 is not MQTT 3.1.1"},
		{"half of it", websocket.MessageBinary, hello(nil)[:9], nil, "no CONNECT within 2s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, mqttserve.Config{Connect: 2 * time.Second})
			ws := s.dial()
			if err := ws.Write(t.Context(), c.kind, c.send); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(websocket.NetConn(t.Context(), ws, websocket.MessageBinary))
			if !bytes.Equal(got, c.answer) {
				t.Errorf("answer % x", got)
			}
			testenv.Eventually(t, fmt.Sprintf("%q in the log", c.why), func() bool { return strings.Contains(s.logs.String(), c.why) }, &s.logs)
			if len(s.seen) > 0 {
				t.Error("a handler was called")
			}
		})
	}
}

// The end of the server ends WebSockets, before and after CONNECT.
func TestWebSocketShutdown(t *testing.T) {
	s := newSite(t, mqttserve.Config{})
	s.dial()
	ws := s.dial()
	if err := ws.Write(t.Context(), websocket.MessageBinary, hello(nil)); err != nil {
		t.Fatal(err)
	}
	<-s.seen
	s.stop()
	if got, err := io.ReadAll(websocket.NetConn(t.Context(), ws, websocket.MessageBinary)); !bytes.Equal(got, mqtt.Connack{}.Append(nil)) {
		t.Errorf("% x %v", got, err)
	}
}
