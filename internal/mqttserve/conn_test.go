package mqttserve_test

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
)

// held keeps what is written until it is let go, so that several TLS records travel together.
type held struct {
	net.Conn
	hold bool
	kept []byte
}

func (h *held) Write(p []byte) (int, error) {
	if h.hold {
		h.kept = append(h.kept, p...)
		return len(p), nil
	}
	return h.Conn.Write(p)
}

// TestBufferedOverTLS: packets that came together, a TLS record each, are at hand one after the other, a part of one
// is not, and the connection goes on after it was asked about what has not come.
func TestBufferedOverTLS(t *testing.T) {
	cert := newCert(t, "localhost")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	atHand := make(chan bool, 10)
	topics := make(chan string, 10)
	h := mqttserve.HandlerFunc(func(_ context.Context, c *mqttserve.Conn, _ *mqtt.Connect) {
		c.Write(mqtt.Connack{}.Append(nil))
		for {
			c.SetReadDeadline(time.Time{})
			p, err := c.ReadPacket(1000)
			if err != nil {
				return
			}
			m, err := mqtt.ParsePublish(p)
			if err != nil {
				t.Error(err)
				return
			}
			topics <- m.Topic
			atHand <- c.Buffered()
		}
	})
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		s := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			mqttserve.New(mqttserve.Config{}).For(h)(t.Context(), s, s.ConnectionState())
		}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	line := &held{Conn: raw}
	c := tls.Client(line, &tls.Config{InsecureSkipVerify: true})
	c.Write(hello(nil))
	if _, err := c.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	send := func(parts ...[]byte) {
		t.Helper()
		line.hold = true
		for _, p := range parts {
			c.Write(p)
		}
		line.hold = false
		if _, err := raw.Write(line.kept); err != nil {
			t.Fatal(err)
		}
		line.kept = nil
	}
	expect := func(want []bool, names ...string) {
		t.Helper()
		var got []bool
		for _, n := range names {
			if topic := <-topics; topic != n {
				t.Errorf("topic %q, want %q", topic, n)
			}
			got = append(got, <-atHand)
		}
		if !slices.Equal(got, want) {
			t.Errorf("another packet at hand: %v, want %v", got, want)
		}
	}
	publish := func(topic string) []byte {
		m := mqtt.Publish{Topic: topic, Payload: []byte("1")}
		return m.Append(nil)
	}
	for range 2 {
		send(publish("a"), publish("b"), publish("c"))
		expect([]bool{true, true, false}, "a", "b", "c")
	}
	cut := publish("e")
	send(publish("d"), cut[:3])
	expect([]bool{false}, "d")
	send(cut[3:])
	expect([]bool{false}, "e")
}
