package mqtt_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle/internal/mqtt"
)

func ptr[T any](v T) *T { return &v }

// samples holds every packet type, as this package writes it.
var samples = map[string][]byte{
	"connect":      (&mqtt.Connect{Protocol: "MQTT", Level: 4, Clean: true, KeepAlive: 180, ClientID: "dev-1", Username: ptr("h/dev-1/?api-version=1")}).Append(nil),
	"connect all":  (&mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: "d", Username: ptr("u"), Password: []byte("p"), Will: &mqtt.Will{Topic: "t", Message: []byte("m"), QoS: 1, Retain: true}}).Append(nil),
	"connect bare": (&mqtt.Connect{Protocol: "MQTT", Level: 4}).Append(nil),
	"connect 3.1":  (&mqtt.Connect{Protocol: "MQIsdp", Level: 3}).Append(nil),
	"connack":      mqtt.Connack{Code: mqtt.NotAuthorized}.Append(nil),
	"connack ok":   mqtt.Connack{SessionPresent: true}.Append(nil),
	"publish 0":    (&mqtt.Publish{Topic: "a/b", Payload: []byte("x"), Retain: true}).Append(nil),
	"publish 1":    (&mqtt.Publish{Topic: "a/b", QoS: 1, ID: 7, Dup: true}).Append(nil),
	"publish long": (&mqtt.Publish{Topic: "a", QoS: 2, ID: 65535, Payload: make([]byte, 40000)}).Append(nil),
	"puback":       mqtt.AppendID(nil, mqtt.PUBACK, 7),
	"pubrel":       mqtt.AppendID(nil, mqtt.PUBREL, 7),
	"subscribe":    (&mqtt.Subscribe{ID: 1, Subscriptions: []mqtt.Subscription{{"a/+/b", 1}, {"#", 2}}}).Append(nil),
	"suback":       (&mqtt.Suback{ID: 1, Granted: []mqtt.QoS{1, mqtt.Refused}}).Append(nil),
	"unsubscribe":  (&mqtt.Unsubscribe{ID: 9, Filters: []string{"a", "b/#"}}).Append(nil),
	"unsuback":     mqtt.AppendID(nil, mqtt.UNSUBACK, 9),
	"pingreq":      mqtt.AppendEmpty(nil, mqtt.PINGREQ),
	"disconnect":   mqtt.AppendEmpty(nil, mqtt.DISCONNECT),
}

// recode decodes a packet by type and encodes it again.
func recode(p mqtt.Packet) ([]byte, error) {
	switch p.Type() {
	case mqtt.CONNECT:
		v, err := mqtt.ParseConnect(p)
		if err != nil || !v.Known() {
			return nil, errors.Join(err, io.EOF)
		}
		return v.Append(nil), nil
	case mqtt.CONNACK:
		v, err := mqtt.ParseConnack(p)
		return v.Append(nil), err
	case mqtt.PUBLISH:
		v, err := mqtt.ParsePublish(p)
		return v.Append(nil), err
	case mqtt.SUBSCRIBE:
		v, err := mqtt.ParseSubscribe(p)
		return v.Append(nil), err
	case mqtt.SUBACK:
		v, err := mqtt.ParseSuback(p)
		return v.Append(nil), err
	case mqtt.UNSUBSCRIBE:
		v, err := mqtt.ParseUnsubscribe(p)
		return v.Append(nil), err
	case mqtt.PINGREQ, mqtt.PINGRESP, mqtt.DISCONNECT:
		return mqtt.AppendEmpty(nil, p.Type()), nil
	}
	id, err := mqtt.ParseID(p)
	return mqtt.AppendID(nil, p.Type(), id), err
}

func TestRoundTrip(t *testing.T) {
	for name, in := range samples {
		p, err := mqtt.Read(bufio.NewReader(bytes.NewReader(in)), 1<<20)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if name == "connect 3.1" {
			if c, err := mqtt.ParseConnect(p); err != nil || c.Known() || c.Protocol != "MQIsdp" {
				t.Errorf("%s: got %+v, %v", name, c, err)
			}
			continue
		}
		if out, err := recode(p); err != nil || !bytes.Equal(in, out) {
			t.Errorf("%s: got % x, %v\nwant % x", name, out, err, in)
		}
	}
}

// FuzzRead: what is read and decoded is encoded to the same bytes; errors are ours.
func FuzzRead(f *testing.F) {
	for _, s := range samples {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		whole := false
		if len(in) < 4000 {
			r.Peek(len(in))
			whole = mqtt.Buffered(r)
		}
		p, err := mqtt.Read(r, 1<<16)
		if whole && err != nil && !errors.Is(err, mqtt.ErrMalformed) && !errors.Is(err, mqtt.ErrTooLarge) {
			t.Fatalf("Buffered, but Read says %v", err)
		}
		if !whole && err == nil && len(in) < 4000 {
			t.Fatalf("not Buffered, but Read took %d bytes", len(p.Body))
		}
		if err != nil {
			if !errors.Is(err, mqtt.ErrMalformed) && !errors.Is(err, mqtt.ErrTooLarge) && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("foreign error %v", err)
			}
			return
		}
		out, err := recode(p)
		if err != nil {
			if !errors.Is(err, mqtt.ErrMalformed) && !errors.Is(err, io.EOF) {
				t.Fatalf("foreign error %v", err)
			}
			return
		}
		again, err := mqtt.Read(bufio.NewReader(bytes.NewReader(out)), 1<<16)
		if err != nil || again.Header != p.Header || !bytes.Equal(again.Body, p.Body) {
			t.Fatalf("%v: got %x % x, %v\nwant %x % x", p.Type(), again.Header, again.Body, err, p.Header, p.Body)
		}
	})
}

func TestReadLimits(t *testing.T) {
	read := func(b []byte, limit int) error {
		_, err := mqtt.Read(bufio.NewReader(bytes.NewReader(b)), limit)
		return err
	}
	big := samples["publish long"]
	for name, c := range map[string]struct {
		in    []byte
		limit int
		want  error
	}{
		"empty":             {nil, 10, io.EOF},
		"half a header":     {[]byte{0x10}, 10, io.ErrUnexpectedEOF},
		"half a body":       {big[:100], 1 << 20, io.ErrUnexpectedEOF},
		"over the limit":    {big, 100, mqtt.ErrTooLarge},
		"announced only":    {[]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, 1 << 16, mqtt.ErrTooLarge},
		"five length bytes": {[]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x01}, 1 << 30, mqtt.ErrMalformed},
		"type 0":            {[]byte{0x00, 0}, 10, mqtt.ErrMalformed},
		"type 15":           {[]byte{0xf0, 0}, 10, mqtt.ErrMalformed},
		"QoS 3":             {[]byte{0x36, 5, 0, 1, 'a', 0, 1}, 10, mqtt.ErrMalformed},
		"SUBSCRIBE flags":   {[]byte{0x80, 6, 0, 1, 0, 1, 'a', 0}, 10, mqtt.ErrMalformed},
		"long PINGREQ":      {[]byte{0xc0, 1, 0}, 10, mqtt.ErrMalformed},
		"long PUBACK":       {[]byte{0x40, 3, 0, 1, 0}, 10, mqtt.ErrMalformed},
	} {
		if err := read(c.in, c.limit); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	// A large announcement within the limit costs a chunk, not the announced size.
	n := testing.AllocsPerRun(1, func() { read([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 1}, mqtt.MaxRemaining) })
	if n > 20 {
		t.Errorf("%v allocations", n)
	}
}

func TestMalformed(t *testing.T) {
	connect := func(flags byte, tail ...byte) mqtt.Packet {
		return mqtt.Packet{Header: 0x10, Body: append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 60}, tail...)}
	}
	for name, p := range map[string]mqtt.Packet{
		"reserved connect flag":     connect(1, 0, 1, 'a'),
		"will QoS 3":                connect(0x1c, 0, 1, 'a'),
		"will QoS without will":     connect(0x08, 0, 1, 'a'),
		"password without user":     connect(0x40, 0, 1, 'a', 0, 0),
		"client id cut short":       connect(2, 0, 9, 'a'),
		"user name missing":         connect(0x82, 0, 1, 'a'),
		"trailing bytes":            connect(2, 0, 1, 'a', 9),
		"client id not UTF-8":       connect(2, 0, 1, 0xff),
		"client id with zero":       connect(2, 0, 1, 0),
		"client id with surrogate":  connect(2, 0, 3, 0xed, 0xa0, 0x80),
		"topic with wildcard":       {Header: 0x30, Body: []byte{0, 1, '#'}},
		"empty topic":               {Header: 0x30, Body: []byte{0, 0}},
		"QoS 1 without id":          {Header: 0x32, Body: []byte{0, 1, 'a'}},
		"QoS 1 with id 0":           {Header: 0x32, Body: []byte{0, 1, 'a', 0, 0}},
		"QoS 0 with DUP":            {Header: 0x38, Body: []byte{0, 1, 'a'}},
		"SUBSCRIBE without filter":  {Header: 0x82, Body: []byte{0, 1}},
		"SUBSCRIBE QoS 3":           {Header: 0x82, Body: []byte{0, 1, 0, 1, 'a', 3}},
		"SUBSCRIBE a/#/b":           {Header: 0x82, Body: append([]byte{0, 1, 0, 5}, "a/#/b\x00"...)},
		"SUBSCRIBE a+":              {Header: 0x82, Body: append([]byte{0, 1, 0, 2}, "a+\x00"...)},
		"UNSUBSCRIBE without topic": {Header: 0xa2, Body: []byte{0, 1}},
		"CONNACK flags":             {Header: 0x20, Body: []byte{2, 0}},
	} {
		if _, err := recode(p); !errors.Is(err, mqtt.ErrMalformed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// server answers a client over a pipe; answer returns what to write for each packet.
func server(t *testing.T, answer func(mqtt.Packet) []byte) (net.Conn, <-chan struct{}) {
	a, b := net.Pipe()
	done, answers := make(chan struct{}), make(chan []byte, 100)
	// A pipe has no buffer, as sockets have: who reads must not wait for what he writes.
	go func() {
		for out := range answers {
			b.Write(out)
		}
	}()
	go func() {
		defer close(done)
		defer b.Close()
		defer close(answers)
		r := bufio.NewReader(b)
		for {
			p, err := mqtt.Read(r, 1<<20)
			if err != nil {
				return
			}
			if out := answer(p); out != nil {
				answers <- out
			}
		}
	}()
	return a, done
}

func TestClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pings := 0
		var got []string
		conn, gone := server(t, func(p mqtt.Packet) []byte {
			switch p.Type() {
			case mqtt.CONNECT:
				return mqtt.Connack{}.Append(nil)
			case mqtt.PINGREQ:
				pings++
				return mqtt.AppendEmpty(nil, mqtt.PINGRESP)
			case mqtt.SUBSCRIBE:
				s, _ := mqtt.ParseSubscribe(p)
				out := (&mqtt.Suback{ID: s.ID, Granted: []mqtt.QoS{0}}).Append(nil)
				if s.Subscriptions[0].Filter == "no" {
					out = (&mqtt.Suback{ID: s.ID, Granted: []mqtt.QoS{mqtt.Refused}}).Append(nil)
				}
				return (&mqtt.Publish{Topic: "hello", Payload: []byte("there"), QoS: 1, ID: 3}).Append(out)
			case mqtt.PUBLISH:
				m, _ := mqtt.ParsePublish(p)
				got = append(got, string(m.Payload))
				if m.QoS == 1 && string(m.Payload) != "lost" {
					return mqtt.AppendID(nil, mqtt.PUBACK, m.ID)
				}
			}
			return nil
		})
		var heard []string
		c, err := mqtt.Dial(t.Context(), conn, mqtt.Options{ClientID: "d", KeepAlive: 10 * time.Second,
			OnMessage: func(topic string, b []byte) error { heard = append(heard, topic+":"+string(b)); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error)
		go func() { ran <- c.Run(t.Context()) }()
		if err := c.Subscribe(t.Context(), "yes", 0); err != nil {
			t.Error(err)
		}
		if err := c.Subscribe(t.Context(), "no", 0); err != mqtt.ErrSubscription {
			t.Errorf("refused subscription: got %v", err)
		}
		for _, s := range []string{"a", "b"} {
			if err := c.Publish(t.Context(), "t", mqtt.AtLeastOnce, []byte(s)); err != nil {
				t.Error(err)
			}
		}
		lost, err := c.Send("t", mqtt.AtLeastOnce, []byte("lost"))
		if err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-lost; !errors.Is(err, mqtt.ErrClosed) {
			t.Errorf("message without PUBACK: got %v", err)
		}
		if err := <-ran; err != nil {
			t.Errorf("Run after Close: got %v", err)
		}
		if err := c.Publish(t.Context(), "t", mqtt.AtLeastOnce, nil); !errors.Is(err, mqtt.ErrClosed) {
			t.Errorf("Publish after Close: got %v", err)
		}
		<-gone
		if strings.Join(got, " ") != "a b lost" || strings.Join(heard, " ") != "hello:there hello:there" || pings < 10 {
			t.Errorf("got %v, heard %v, %d pings", got, heard, pings)
		}
	})
}

func TestClientRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, _ := server(t, func(mqtt.Packet) []byte { return mqtt.Connack{Code: mqtt.NotAuthorized}.Append(nil) })
		var refused *mqtt.ConnackError
		if _, err := mqtt.Dial(t.Context(), conn, mqtt.Options{}); !errors.As(err, &refused) || refused.Code != mqtt.NotAuthorized {
			t.Errorf("got %v", err)
		}
		conn, _ = server(t, func(mqtt.Packet) []byte { return nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := mqtt.Dial(ctx, conn, mqtt.Options{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("silent server: got %v", err)
		}
	})
}

// A server that stops answering is noticed by the pings.
func TestClientDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, _ := server(t, func(p mqtt.Packet) []byte {
			if p.Type() == mqtt.CONNECT {
				return mqtt.Connack{}.Append(nil)
			}
			return nil
		})
		c, err := mqtt.Dial(t.Context(), conn, mqtt.Options{KeepAlive: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(t.Context()); err == nil {
			t.Error("Run ended without an error")
		}
	})
}
