package mqttserve_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/internal/testenv"
)

const deadline = 10 * time.Second

// pipe is one end of a connection between two addresses that counts what was read from it.
type pipe struct {
	net.Conn
	from string
	read int
}

func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.read += n
	return n, err
}

func (p *pipe) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", p.from)
	if err != nil {
		panic(err)
	}
	return a
}

// rig is a server in a synctest bubble, whose clients are pipes.
type rig struct {
	logs testenv.Buffer
	in   func(context.Context, net.Conn, tls.ConnectionState)
	ctx  context.Context
}

// newRig serves h; without one, connections that come through are echoed until they end.
func newRig(ctx context.Context, c mqttserve.Config, h mqttserve.Handler) *rig {
	r := &rig{ctx: ctx}
	c.Log = slog.New(slog.NewTextHandler(&r.logs, nil))
	if h == nil {
		h = mqttserve.HandlerFunc(echo)
	}
	r.in = mqttserve.New(c).For(h)
	return r
}

// echo acknowledges CONNECT and sends every packet back.
func echo(_ context.Context, c *mqttserve.Conn, p *mqtt.Connect) {
	c.Write(mqtt.Connack{}.Append(nil))
	c.SetDeadline(time.Time{})
	for {
		p, err := c.ReadPacket(100)
		if err != nil {
			return
		}
		c.Write([]byte{p.Header, byte(len(p.Body))})
		c.Write(p.Body)
	}
}

// dial connects from an address.
func (r *rig) dial(from string) *pipe {
	client, server := net.Pipe()
	go r.in(r.ctx, &pipe{Conn: server, from: from}, tls.ConnectionState{})
	return &pipe{Conn: client}
}

func hello(change func(*mqtt.Connect)) []byte {
	user := "hub/dev/?api-version=2021-04-12"
	p := &mqtt.Connect{Protocol: "MQTT", Level: 4, Clean: true, KeepAlive: 60, ClientID: "dev", Username: &user}
	if change != nil {
		change(p)
	}
	return p.Append(nil)
}

// TestLimits: what is refused before anybody is known, the answer it gets, and the reason in the log.
func TestLimits(t *testing.T) {
	long := strings.Repeat("x", 9000)
	for _, c := range []struct {
		name   string
		send   []byte
		answer []byte
		why    string
	}{
		{"too large", hello(func(p *mqtt.Connect) { p.Username = &long }), nil, "packet too large: CONNECT of 9017 bytes, at most 8192"},
		{"announced too large", []byte{0x10, 0xff, 0xff, 0xff, 0x7f}, nil, "CONNECT of 268435455 bytes"},
		{"length of five bytes", []byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x01}, nil, "remaining length"},
		{"something else first", mqtt.AppendEmpty(nil, mqtt.PINGREQ), nil, "PINGREQ before CONNECT"},
		{"a message first", (&mqtt.Publish{Topic: "t"}).Append(nil), nil, "PUBLISH before CONNECT"},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), nil, "malformed packet"},
		{"AMQP", []byte("AMQP\x03\x01\x00\x00"), nil, "malformed packet"},
		{"cut short", []byte{0x10, 2, 0, 4}, nil, "protocol name is cut short"},
		{"bytes too many", append([]byte{0x10, byte(len(hello(nil)) - 2 + 1)}, append(hello(nil)[2:], 0)...), nil, "1 bytes too many"},
		{"reserved flag", flipped(9, 1), nil, "reserved connect flag"},
		{"not UTF-8", hello(func(p *mqtt.Connect) { p.ClientID = "\xff" }), nil, "client id is not UTF-8"},
		{"MQTT 3.1", hello(func(p *mqtt.Connect) { p.Protocol, p.Level = "MQIsdp", 3 }), []byte{0x20, 2, 0, 1}, "level 3 is not MQTT 3.1.1"},
		{"MQTT 5", hello(func(p *mqtt.Connect) { p.Level = 5 }), []byte{0x20, 3, 0, 0x84, 0}, "level 5 is not MQTT 3.1.1"},
		{"MQTT 6", hello(func(p *mqtt.Connect) { p.Level = 6 }), []byte{0x20, 2, 0, 1}, "level 6 is not MQTT 3.1.1"},
		{"silence", nil, nil, "no CONNECT within 10s"},
		{"half of it", hello(nil)[:9], nil, "no CONNECT within 10s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t.Context(), mqttserve.Config{}, mqttserve.HandlerFunc(func(context.Context, *mqttserve.Conn, *mqtt.Connect) {
					t.Error("the handler was called")
				}))
				nc := r.dial("192.0.2.1:1000")
				go nc.Write(c.send)
				start := time.Now()
				got, err := io.ReadAll(nc)
				if err != nil || !bytes.Equal(got, c.answer) {
					t.Errorf("answer % x %v, want % x", got, err, c.answer)
				}
				if d := time.Since(start); d > deadline {
					t.Errorf("took %v", d)
				}
				synctest.Wait()
				if log := r.logs.String(); !strings.Contains(log, c.why) || strings.Count(log, "\n") != 1 {
					t.Errorf("log %q, want %q", log, c.why)
				}
			})
		})
	}
}

func flipped(i int, bit byte) []byte {
	b := hello(nil)
	b[i] ^= bit
	return b
}

// Packets may come byte by byte, and several at once.
func TestFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t.Context(), mqttserve.Config{}, nil)
		nc := r.dial("192.0.2.1:1000")
		packet := (&mqtt.Publish{QoS: 1, ID: 7, Topic: "a/b", Payload: []byte("hello")}).Append(nil)
		go func() {
			for _, b := range append(hello(nil), packet...) {
				nc.Write([]byte{b})
			}
			nc.Write(bytes.Repeat(packet, 3))
		}()
		want := append(mqtt.Connack{}.Append(nil), bytes.Repeat(packet, 4)...)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(nc, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got % x %v", got, err)
		}
		nc.Close()
	})
}

// A sender that lets a byte go every second does not keep its connection beyond the deadline.
func TestSlowSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t.Context(), mqttserve.Config{}, nil)
		nc := r.dial("192.0.2.1:1000")
		start := time.Now()
		var err error
		for _, b := range hello(nil) {
			if _, err = nc.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if d := time.Since(start); err == nil || d > deadline+2*time.Second {
			t.Errorf("it could write for %v: %v", d, err)
		}
	})
}

// Connections of one address that wait for authentication are bounded, and all of them; one that is authenticated or
// gone makes place.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := make(chan *mqttserve.Conn, 1)
		r := newRig(t.Context(), mqttserve.Config{MaxPerIP: 2, MaxWaiting: 5}, mqttserve.HandlerFunc(func(ctx context.Context, c *mqttserve.Conn, p *mqtt.Connect) {
			known <- c
			echo(ctx, c, p)
		}))
		taken := func(nc net.Conn) bool {
			synctest.Wait()
			nc.SetReadDeadline(time.Now().Add(time.Millisecond))
			defer nc.SetReadDeadline(time.Time{})
			_, err := nc.Read(make([]byte, 1))
			return !errors.Is(err, io.EOF)
		}
		a1, a2 := r.dial("192.0.2.1:1"), r.dial("192.0.2.1:2")
		if !taken(a1) || !taken(a2) || taken(r.dial("192.0.2.1:3")) {
			t.Error("of one address two are taken")
		}
		if !taken(r.dial("[2001:db8::1]:1")) || !taken(r.dial("[2001:db8::2]:1")) || taken(r.dial("[2001:db8::3]:1")) {
			t.Error("of one /64 two are taken")
		}
		if !taken(r.dial("192.0.2.8:1")) || taken(r.dial("192.0.2.9:1")) {
			t.Error("of all addresses five are taken")
		}
		if log := r.logs.String(); strings.Count(log, "of this address wait for authentication") != 2 || strings.Count(log, "5 connections wait for authentication") != 1 {
			t.Errorf("log %s", log)
		}
		a1.Write(hello(nil))
		if a3 := r.dial("192.0.2.1:4"); taken(a3) {
			t.Error("CONNECT alone made place")
		}
		(<-known).Authenticated()
		a4 := r.dial("192.0.2.1:5")
		if !taken(a4) {
			t.Error("who is authenticated still counts")
		}
		a4.Close()
		a1.Close() // counts no second time
		synctest.Wait()
		if !taken(r.dial("192.0.2.1:6")) || taken(r.dial("192.0.2.1:7")) {
			t.Error("who is gone still counts, or counted twice")
		}
	})
}

// The end of the server ends who has not said CONNECT yet.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := newRig(ctx, mqttserve.Config{}, nil)
		nc := r.dial("192.0.2.1:1000")
		nc.Write(hello(nil)[:5])
		cancel()
		start := time.Now()
		if got, err := io.ReadAll(nc); len(got) > 0 || err != nil || time.Since(start) > 0 {
			t.Errorf("% x %v after %v", got, err, time.Since(start))
		}
		if log := r.logs.String(); log != "" {
			t.Errorf("log %s", log)
		}
	})
}

// FuzzAccept: of what does not come through, no more than the bound is read; what comes through is the CONNECT that was
// sent, within the bound.
func FuzzAccept(f *testing.F) {
	f.Add(hello(nil))
	f.Add(append(hello(nil), (&mqtt.Publish{Topic: "a", Payload: []byte("x")}).Append(nil)...))
	f.Add(hello(func(p *mqtt.Connect) { p.Level = 5 }))
	f.Add([]byte{0x10, 0xff, 0xff, 0x7f, 0, 4, 'M', 'Q', 'T', 'T'})
	f.Add([]byte{0xc0, 0})
	f.Add([]byte{0x10, 0x80, 0x00})
	f.Fuzz(func(t *testing.T, sent []byte) {
		const limit, header, ahead = 200, 5, 4 << 10
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			counted := &pipe{Conn: server, from: "192.0.2.1:1"}
			var got *mqtt.Connect
			in := mqttserve.New(mqttserve.Config{MaxConnect: limit, Log: slog.New(slog.DiscardHandler)}).For(mqttserve.HandlerFunc(
				func(_ context.Context, c *mqttserve.Conn, p *mqtt.Connect) {
					got = p
					for {
						p, err := c.ReadPacket(limit)
						if err != nil {
							return
						}
						if len(p.Body) > limit {
							t.Errorf("%v with %d bytes came through", p.Type(), len(p.Body))
						}
					}
				}))
			go func() {
				client.Write(sent)
				client.Close()
			}()
			go io.Copy(io.Discard, client)
			in(t.Context(), counted, tls.ConnectionState{})
			if got == nil && counted.read > limit+header+ahead {
				t.Errorf("read %d bytes of a refused connection", counted.read)
			}
			if got != nil {
				if body := after(got.Append(nil)); len(body) > limit || !bytes.HasPrefix(after(sent), body) {
					t.Errorf("sent % x, came through %+v", sent, got)
				}
			}
			client.Close()
		})
	})
}

// after is what follows a packet's remaining length.
func after(packet []byte) []byte {
	i := 1
	for packet[i] >= 128 {
		i++
	}
	return packet[i+1:]
}
