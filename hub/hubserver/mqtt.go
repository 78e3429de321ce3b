package hubserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Limits of a connection.
const (
	maxPacket = hub.MaxBody + (64 << 10) // body of any packet after CONNECT: payload and topic
	maxIdle   = 1767 * time.Second       // Azure's cap of 1.5 times the keep alive
	writeTime = 15 * time.Second         // for one write
	maxBatch  = 64                       // messages that one connection appends at once
	batchSize = 256 << 10                // and bytes from which it takes no more
)

// conn is one device's or module's connection. One goroutine reads and answers; what others have for the device
// goes through outgoing.
type conn struct {
	*mqttserve.Conn
	s      *Server
	log    *slog.Logger
	sess   *hub.Session
	hub    hub.Name
	device cradle.DeviceID
	module iothub.ModuleID
	will   *hub.Message

	idle time.Duration // longest silence

	batch []hub.Message
	size  int      // of the batch's bodies
	acks  []uint16 // PUBACKs owed when the batch is durable

	creds credentials
	out   outgoing

	mu      sync.Mutex
	dropped string // why somebody else ended it
	broken  error  // why nothing can be written any more
}

// name is who is connected, for the log.
func (c *conn) name() string {
	if c.module != "" {
		return string(c.device) + "/" + string(c.module)
	}
	return string(c.device)
}

// errDisconnect says that the device took its leave.
var errDisconnect = errors.New("disconnected")

// ServeMQTT serves one device until it leaves, is dropped or ctx ends; it implements mqttserve.Handler. It
// returns nothing: how it ended is in the log.
func (s *Server) ServeMQTT(ctx context.Context, mc *mqttserve.Conn, p *mqtt.Connect) {
	c := &conn{Conn: mc, s: s, log: s.log.With("remote", mc.RemoteAddr().String())}
	ctx, cancel := context.WithCancel(ctx) // what the connection has under way ends with it
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.drop("the hub is stopping") })
	defer stop()
	defer c.endOutgoing()
	if !c.accepted(ctx, p) {
		return
	}
	defer c.sess.End()
	c.ended(ctx, c.serve(ctx))
}

// accepted and ended are apart from ServeMQTT, whose frame lies on the stack of every idle connection: with what they
// need there, a stack would have 16 KB instead of 8.
func (c *conn) accepted(ctx context.Context, p *mqtt.Connect) bool {
	if err := c.accept(ctx, p); err != nil {
		c.log.Warn("hub refused a connection", "hub", c.hub, "device", c.name(), "reason", reason(err))
		return false
	}
	c.Authenticated()
	c.log.Debug("device connected", "hub", c.hub, "device", c.name())
	return true
}

func (c *conn) ended(ctx context.Context, err error) {
	c.mu.Lock()
	dropped, broken := c.dropped, c.broken
	c.mu.Unlock()
	if broken != nil && err != errDisconnect {
		err = fmt.Errorf("device does not take what is sent to it: %v", broken)
	}
	switch {
	case err == errDisconnect:
		c.log.Debug("device disconnected", "hub", c.hub, "device", c.name())
		return
	case dropped != "":
		c.log.Info("hub dropped a device", "hub", c.hub, "device", c.name(), "reason", dropped)
	default:
		c.log.Info("hub closed a connection", "hub", c.hub, "device", c.name(), "reason", reason(err))
	}
	if c.will != nil && dropped == "" {
		if err := c.sess.Append(context.WithoutCancel(ctx), *c.will); err != nil {
			c.log.Warn("will message lost", "hub", c.hub, "device", c.name(), "reason", reason(err))
		}
	}
}

// reason is one line for the operator's log; private causes may stand in it.
func reason(err error) string {
	var e *cradle.Error
	switch {
	case errors.As(err, &e) && e.Err != nil && e.Kind == cradle.Busy:
		return e.Detail + ": " + e.Err.Error()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silent for too long"
	case err == io.EOF:
		return "closed by the device"
	}
	return err.Error()
}

// drop ends the connection from another goroutine. Close may wait for a peer that does not read, so
// it does not happen here.
func (c *conn) drop(reason string) {
	c.mu.Lock()
	c.dropped = reason
	c.mu.Unlock()
	c.SetDeadline(time.Unix(1, 0))
	go c.Conn.Close()
}

// accept answers CONNECT.
func (c *conn) accept(ctx context.Context, p *mqtt.Connect) error {
	code, err := c.admit(ctx, p)
	if err != nil {
		c.answer(mqtt.Connack{Code: code}.Append(nil))
		return err
	}
	idle := maxIdle
	if p.KeepAlive > 0 {
		idle = min(idle, time.Duration(p.KeepAlive)*1500*time.Millisecond)
	}
	c.idle = idle
	if err := c.answer(mqtt.Connack{SessionPresent: c.sess.Present()}.Append(nil)); err != nil {
		c.sess.End()
		return err
	}
	if err := c.listen(ctx, c.sess.Start()); err != nil {
		c.sess.End()
		return err
	}
	return nil
}

func (c *conn) admit(ctx context.Context, p *mqtt.Connect) (mqtt.Code, error) {
	var err error
	if c.device, c.module, err = iothub.ParseClientID(p.ClientID); err != nil {
		return mqtt.BadIdentifier, err
	}
	if p.Username == nil {
		return mqtt.BadUserOrPassword, cradle.Errorf(cradle.Invalid, "no user name; it reads {hub}/{deviceId}/?api-version=…")
	}
	host, user, _, err := iothub.ParseUserName(*p.Username)
	if err != nil {
		return mqtt.BadUserOrPassword, err
	}
	if string(user) != p.ClientID {
		return mqtt.BadUserOrPassword, cradle.Errorf(cradle.Invalid, "user name is of device %.100q, client id is %q", user, p.ClientID)
	}
	if w := p.Will; w != nil {
		m, err := c.message(w.Topic, w.Message)
		if err != nil {
			return mqtt.NotAuthorized, err
		}
		m.Properties = append(m.Properties, iothub.Property{Name: "iothub-MessageType", Value: "Will"})
		c.will = &m
	}
	if c.hub, err = c.s.hub.Resolve(ctx, host, c.s.def); err == nil {
		login := &hub.Login{Chain: c.State.PeerCertificates, Token: string(p.Password), Host: host}
		c.sess, err = c.s.hub.Connect(ctx, c.hub, c.device, c.module, login, p.Clean, c)
	}
	switch cradle.KindOf(err) {
	case cradle.Unauthorized, cradle.Forbidden, cradle.NotFound:
		return mqtt.NotAuthorized, err
	case cradle.Invalid:
		return mqtt.BadUserOrPassword, err
	}
	return mqtt.ServerUnavailable, err
}

// serve reads packets until the connection ends. Telemetry gathers while whole packets are at hand, so
// that a device that sends many gets them stored in few transactions; their order is kept.
func (c *conn) serve(ctx context.Context) error {
	for {
		if len(c.batch) > 0 && (len(c.batch) >= maxBatch || c.size >= batchSize || !c.Buffered()) {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
		now := time.Now()
		deadline := now.Add(c.idle)
		left := c.sess.Left()
		if left < c.idle {
			deadline = now.Add(left)
		}
		c.SetReadDeadline(deadline)
		if c.isDropped() { // drop's own deadline may just have been overwritten
			return net.ErrClosed
		}
		p, err := c.ReadPacket(maxPacket)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && c.sess.Left() <= 0 {
				return c.sess.Expired()
			}
			return err
		}
		if c.sess.Left() <= 0 { // a device that is never silent
			return c.sess.Expired()
		}
		if err := c.handle(ctx, p); err != nil {
			return err
		}
	}
}

func (c *conn) isDropped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped != "" || c.broken != nil
}

func (c *conn) handle(ctx context.Context, raw mqtt.Packet) error {
	if raw.Type() == mqtt.PUBLISH {
		return c.published(ctx, raw)
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	switch raw.Type() {
	case mqtt.PINGREQ:
		return c.answer(mqtt.AppendEmpty(nil, mqtt.PINGRESP))
	case mqtt.SUBSCRIBE:
		return c.subscribe(ctx, raw)
	case mqtt.UNSUBSCRIBE:
		return c.unsubscribe(ctx, raw)
	case mqtt.PUBACK:
		id, err := mqtt.ParseID(raw)
		if err != nil {
			return err
		}
		return c.sess.Acknowledge(ctx, id)
	case mqtt.DISCONNECT:
		return errDisconnect
	}
	return cradle.Errorf(cradle.Invalid, "unexpected %v", raw.Type())
}

func (c *conn) published(ctx context.Context, raw mqtt.Packet) error {
	p, err := mqtt.ParsePublish(raw)
	if err != nil {
		return err
	}
	if p.QoS == mqtt.ExactlyOnce {
		return cradle.Errorf(cradle.Invalid, "PUBLISH with QoS 2 is not served")
	}
	if iothub.IsRequest(p.Topic) {
		if err := c.flush(ctx); err != nil {
			return err
		}
		if err := c.request(ctx, p.Topic, p.Payload); err != nil || p.QoS == mqtt.AtMostOnce {
			return err
		}
		return c.answer(mqtt.AppendID(nil, mqtt.PUBACK, p.ID))
	}
	m, err := c.message(p.Topic, p.Payload)
	if err != nil {
		return err
	}
	c.batch = append(c.batch, m)
	c.size += len(m.Body)
	if p.QoS == mqtt.AtLeastOnce {
		c.acks = append(c.acks, p.ID)
	}
	return nil
}

// flush makes the batch durable, then acknowledges it.
func (c *conn) flush(ctx context.Context) error {
	if len(c.batch) == 0 {
		return nil
	}
	if err := c.sess.Append(ctx, c.batch...); err != nil {
		return err // no PUBACK: the device sends it again
	}
	var acks []byte
	for _, id := range c.acks {
		acks = mqtt.AppendID(acks, mqtt.PUBACK, id)
	}
	// An idle connection keeps no buffers.
	c.batch, c.acks, c.size = nil, nil, 0
	if len(acks) == 0 {
		return nil
	}
	return c.answer(acks)
}
