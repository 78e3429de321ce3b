package dpsserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// Limits of an MQTT connection.
const (
	maxPacket = dps.MaxBody + 1<<10    // body of any packet after CONNECT: payload and topic
	maxIdle   = 1767 * time.Second     // the cap of 1.5 times the keep alive, as at the hub
	writeTime = 15 * time.Second       // for one write
	maxCalls  = 4                      // requests of one connection under way at once
	ackTime   = 100 * time.Millisecond // that a PUBACK waits for the answer
)

// conn is one device's MQTT connection. One goroutine reads; each request has one that answers it, so that a poll
// that is held back holds up nothing else.
type conn struct {
	*mqttserve.Conn
	h    *Handler
	of   call  // what every request of the connection has in common
	bad  error // why there can be none: CONNECT makes no sense
	full chan struct{}
	idle time.Duration // longest silence
	end  time.Time     // of a connection that nobody known has made use of

	mu      sync.Mutex // one packet is written at a time
	hears   bool       // the device has subscribed
	granted mqtt.QoS
	id      uint16      // of the last message sent
	owed    []byte      // PUBACKs that wait for company: they go out with the next packet, or when late ends
	late    *time.Timer // nil until needed
}

// ServeMQTT serves one device over MQTT; it implements mqttserve.Handler. CONNECT is accepted whatever it says, and what is
// wrong with it stands in the answers to the requests, where SDKs show it to people; with CONNACK they would
// say "not authorized" and no more. Sessions are never kept and wills never published.
func (h *Handler) ServeMQTT(ctx context.Context, mc *mqttserve.Conn, p *mqtt.Connect) {
	c := &conn{Conn: mc, h: h, full: make(chan struct{}, maxCalls)}
	c.bad = c.read(p)
	ctx, cancel := context.WithCancel(ctx)
	var calls sync.WaitGroup
	defer c.close()
	defer calls.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	defer stop()
	c.idle, c.end = maxIdle, time.Now().Add(h.c.Stranger)
	if p.KeepAlive > 0 {
		c.idle = min(c.idle, time.Duration(p.KeepAlive)*1500*time.Millisecond)
	}
	err := c.write(mqtt.Connack{}.Append(nil))
	for err == nil {
		var raw mqtt.Packet
		if err = c.await(ctx); err == nil {
			raw, err = c.ReadPacket(maxPacket)
		}
		if err == nil {
			err = c.handle(ctx, &calls, raw)
		} else if errors.Is(err, os.ErrDeadlineExceeded) && !c.IsAuthenticated() && !time.Now().Before(c.end) {
			err = cradle.Errorf(cradle.Unauthorized, "nobody has registered within %v", h.c.Stranger)
		}
	}
	if err != io.EOF && err != errDisconnect && ctx.Err() == nil {
		h.log.Info("provisioning closed a connection", "remote", c.of.remote, "transport", c.Transport, "id", c.of.id, "reason", err.Error())
	}
}

// await sets how long the next packet may take. It is called before each is read, and by the request that makes the device
// known, whose reader waits already: whichever comes last sees that it is known, and that ctx has ended if it has.
func (c *conn) await(ctx context.Context) error {
	for {
		known := c.IsAuthenticated()
		deadline := time.Now().Add(c.idle)
		if !known && c.end.Before(deadline) {
			deadline = c.end
		}
		if err := c.SetReadDeadline(deadline); err != nil {
			return err
		}
		if known == c.IsAuthenticated() {
			break
		}
	}
	if ctx.Err() != nil {
		c.SetReadDeadline(past)
	}
	return ctx.Err()
}

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// errDisconnect says that the device took its leave.
var errDisconnect = errors.New("disconnected")

// read takes from CONNECT what the requests need.
func (c *conn) read(p *mqtt.Connect) error {
	c.of = call{chain: c.State.PeerCertificates, token: string(p.Password), id: p.ClientID, mqtt: true, remote: c.RemoteAddr().String()}
	if p.Username == nil {
		return cradle.Errorf(cradle.Invalid, "no MQTT user name was sent; it reads {idScope}/registrations/{registrationId}/api-version=%s", dps.FirstAPIVersion)
	}
	scope, id, version, err := dps.ParseUserName(*p.Username)
	if err != nil {
		return err
	}
	if !strings.EqualFold(id, p.ClientID) {
		return cradle.Errorf(cradle.Invalid, "MQTT user name is of registration id %.140q, client id is %.140q", id, p.ClientID).
			WithHint("use the registration id as client id")
	}
	c.of.scope, c.of.id, c.of.apiVersion, c.of.client = scope, id, version, dps.ClientVersion(*p.Username)
	return nil
}

// handle answers one packet. An error ends the connection.
func (c *conn) handle(ctx context.Context, calls *sync.WaitGroup, raw mqtt.Packet) error {
	switch raw.Type() {
	case mqtt.PUBLISH:
		p, err := mqtt.ParsePublish(raw)
		if err != nil {
			return err
		}
		return c.request(ctx, calls, p)
	case mqtt.PINGREQ:
		return c.write(mqtt.AppendEmpty(nil, mqtt.PINGRESP))
	case mqtt.SUBSCRIBE:
		p, err := mqtt.ParseSubscribe(raw)
		if err != nil {
			return err
		}
		ack := mqtt.Suback{ID: p.ID}
		c.mu.Lock()
		for _, s := range p.Subscriptions {
			q := mqtt.Refused
			if s.Filter == dps.ResponseFilter {
				q = min(s.QoS, mqtt.AtLeastOnce)
				c.hears, c.granted = true, q
			}
			ack.Granted = append(ack.Granted, q)
		}
		c.mu.Unlock()
		return c.write(ack.Append(nil))
	case mqtt.UNSUBSCRIBE:
		p, err := mqtt.ParseUnsubscribe(raw)
		if err != nil {
			return err
		}
		c.mu.Lock()
		for _, f := range p.Filters {
			if f == dps.ResponseFilter {
				c.hears = false
			}
		}
		c.mu.Unlock()
		return c.write(mqtt.AppendID(nil, mqtt.UNSUBACK, p.ID))
	case mqtt.PUBACK:
		_, err := mqtt.ParseID(raw)
		return err
	case mqtt.DISCONNECT:
		return errDisconnect
	}
	return cradle.Errorf(cradle.Invalid, "unexpected %v", raw.Type())
}

// request starts a request; nothing is done for a device that would not hear the answer.
func (c *conn) request(ctx context.Context, calls *sync.WaitGroup, p mqtt.Publish) error {
	if p.QoS == mqtt.ExactlyOnce {
		return cradle.Errorf(cradle.Invalid, "PUBLISH with QoS 2 is not served")
	}
	r, err := dps.ParseTopic(p.Topic)
	c.mu.Lock()
	hears := c.hears
	c.mu.Unlock()
	if !hears {
		return cradle.Errorf(cradle.Invalid, "a message before %s was subscribed to", dps.ResponseFilter)
	}
	if p.QoS == mqtt.AtLeastOnce {
		c.acknowledge(p.ID)
	}
	q := c.of
	q.operation, q.asked, q.body = register, r.Operation, bytes.TrimSpace(p.Payload)
	if r.Poll {
		q.operation = poll
	}
	if err == nil {
		err = c.bad
	}
	if err != nil {
		return c.refuse(ctx, r.RID, &q, err)
	}
	select {
	case c.full <- struct{}{}:
	default:
		return c.refuse(ctx, r.RID, &q, &cradle.Error{Kind: cradle.Busy, Detail: "this connection has too many requests under way", RetryAfter: time.Second})
	}
	calls.Go(func() {
		front.GrowStack()
		over := sync.OnceFunc(func() { <-c.full })
		defer over()
		rep, err := c.h.answer(ctx, &q)
		if q.known && !c.IsAuthenticated() {
			c.Authenticated()
			_ = c.await(ctx)
		}
		if ctx.Err() != nil {
			return // nobody listens any more
		}
		if err != nil {
			rep = c.refusal(ctx, &q, err)
		}
		if err := c.respond(r.RID, rep, over); err != nil {
			c.SetDeadline(past) // half a packet may be out; who reads finds out
		}
	})
	return nil
}

func (c *conn) refuse(ctx context.Context, rid string, q *call, err error) error {
	return c.respond(rid, c.refusal(ctx, q, err), func() {})
}

// refusal logs why.
func (c *conn) refusal(ctx context.Context, q *call, err error) *reply {
	tracking := newUUID()
	rep := c.h.refusal(tracking, err)
	c.h.logRefusal(ctx, rep.status, tracking, err, "operation", q.operation, "id", q.id, "remote", c.RemoteAddr().String(), "transport", c.Transport)
	return rep
}

// respond publishes an answer, always with JSON: SDKs parse the payload whatever the status. over is called when nothing
// but the writing is left: the device may send its next request as soon as it has read the answer.
func (c *conn) respond(rid string, rep *reply, over func()) error {
	payload := []byte("{}")
	if rep.body != nil {
		payload = encode(rep.body)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	over()
	if !c.hears {
		return nil
	}
	m := mqtt.Publish{QoS: c.granted, Topic: dps.ResponseTopic(rep.status, rid, rep.retryAfter), Payload: payload}
	if m.QoS > 0 {
		if c.id++; c.id == 0 {
			c.id = 1
		}
		m.ID = c.id
	}
	return c.send(m.Append(nil))
}

func (c *conn) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.send(b)
}

// acknowledge leaves a PUBACK to go out with the answer, or by itself when that takes longer than ackTime. They stay in
// the order of what they acknowledge (MQTT-4.6.0-2).
func (c *conn) acknowledge(id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed = mqtt.AppendID(c.owed, mqtt.PUBACK, id)
	if c.late == nil {
		c.late = time.AfterFunc(ackTime, c.flush)
	} else if len(c.owed) == ackSize {
		c.late.Reset(ackTime)
	}
}

// ackSize is a PUBACK's length.
const ackSize = 4

func (c *conn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.owed) > 0 && c.send(nil) != nil {
		c.SetDeadline(past) // who reads finds out
	}
}

// close ends what acknowledge began: no request is under way, and nobody reads.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late != nil {
		c.late.Stop()
	}
	c.owed = nil
}

// send needs mu.
func (c *conn) send(b []byte) error {
	if len(c.owed) > 0 {
		b, c.owed = append(c.owed, b...), c.owed[:0] // which share memory until b is written
		c.late.Stop()
	}
	if err := c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err := c.Write(b)
	if errors.Is(err, net.ErrClosed) {
		return io.EOF
	}
	return err
}
