package mqtt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ConnackError says that the server refused the CONNECT.
type ConnackError struct{ Code Code }

func (e *ConnackError) Error() string {
	return fmt.Sprintf("mqtt: connection refused: %v (code %d)", e.Code, e.Code)
}

// ErrClosed is in the chain of what pending calls return when the connection has ended.
var ErrClosed = errors.New("mqtt: connection closed")

// ErrSubscription says that the server did not grant a topic filter.
var ErrSubscription = errors.New("mqtt: subscription refused")

// Options of a client. Zero values mean: no keep alive, no user name, messages up to 256 KiB.
type Options struct {
	ClientID  string
	Username  string
	Password  []byte
	KeepAlive time.Duration // whole seconds; also how soon a dead connection is noticed (1.5 times)
	Clean     bool
	Will      *Will
	MaxPacket int                                      // largest body accepted from the server
	OnMessage func(topic string, payload []byte) error // called by Run in order, before the PUBACK; an error ends Run
}

// Client is one connection to a server. Publish, Subscribe and Close may be called from any goroutine
// while Run is running; Run alone reads.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	opt  Options
	kept bool // the server has kept a session of before

	wmu  sync.Mutex // one packet is written at a time
	wbuf []byte

	mu      sync.Mutex
	id      uint16
	pending map[uint16]chan error
	closed  error // why; nil while open
	pinged  bool  // a PINGREQ is unanswered
}

// writeTimeout bounds one packet's write; a peer that does not read is as good as gone.
const writeTimeout = 30 * time.Second

// Dial sends CONNECT over conn and waits for the CONNACK, until ctx ends. A refusal is a *ConnackError.
// conn is closed on error and owned by the client otherwise.
func Dial(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	if o.MaxPacket == 0 {
		o.MaxPacket = 256 << 10
	}
	c := &Client{conn: conn, r: bufio.NewReaderSize(conn, 2048), opt: o, pending: map[uint16]chan error{}}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := c.connect()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return c, nil
}

func (c *Client) connect() error {
	p := &Connect{Protocol: "MQTT", Level: 4, Clean: c.opt.Clean, KeepAlive: uint16(c.opt.KeepAlive / time.Second),
		ClientID: c.opt.ClientID, Will: c.opt.Will, Password: c.opt.Password}
	if c.opt.Username != "" {
		p.Username = &c.opt.Username
	}
	if _, err := c.conn.Write(p.Append(nil)); err != nil {
		return fmt.Errorf("mqtt: sending CONNECT: %w", err)
	}
	raw, err := Read(c.r, 2)
	if err != nil {
		return fmt.Errorf("mqtt: waiting for CONNACK: %w", err)
	}
	if raw.Type() != CONNACK {
		return malformed("%v instead of CONNACK", raw.Type())
	}
	ack, err := ParseConnack(raw)
	if err != nil {
		return err
	}
	if ack.Code != Accepted {
		return &ConnackError{ack.Code}
	}
	c.kept = ack.SessionPresent
	return nil
}

// SessionPresent reports whether the server has kept a session of before (§3.2.2.2).
func (c *Client) SessionPresent() bool { return c.kept }

// Run reads and pings until the connection ends or ctx is done, then closes it, fails all pending
// calls and returns why. After Close it returns nil.
func (c *Client) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.end(ctx.Err()) })
	defer stop()
	if k := c.opt.KeepAlive; k > 0 {
		// Half of the interval: the server must see a packet within one, whatever the timer's lateness.
		done := make(chan struct{})
		defer close(done)
		go c.ping(k/2, done)
	}
	err := c.read()
	c.end(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == errByUser {
		return nil
	}
	return c.closed
}

func (c *Client) ping(every time.Duration, done chan struct{}) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		c.mu.Lock()
		dead := c.pinged
		c.pinged = true
		c.mu.Unlock()
		if dead {
			c.end(errors.New("mqtt: the server does not answer PINGREQ"))
			return
		}
		if err := c.write(func(b []byte) []byte { return AppendEmpty(b, PINGREQ) }); err != nil {
			c.end(err)
			return
		}
	}
}

func (c *Client) read() error {
	for {
		p, err := Read(c.r, c.opt.MaxPacket)
		if err != nil {
			return fmt.Errorf("mqtt: reading: %w", err)
		}
		if err := c.handle(p); err != nil {
			return err
		}
	}
}

func (c *Client) handle(p Packet) error {
	switch p.Type() {
	case PINGRESP:
		c.mu.Lock()
		c.pinged = false
		c.mu.Unlock()
	case PUBACK, UNSUBACK:
		id, err := ParseID(p)
		if err != nil {
			return err
		}
		c.settle(id, nil)
	case SUBACK:
		a, err := ParseSuback(p)
		if err != nil {
			return err
		}
		if len(a.Granted) == 1 && a.Granted[0] != Refused {
			c.settle(a.ID, nil)
		} else {
			c.settle(a.ID, ErrSubscription)
		}
	case PUBLISH:
		m, err := ParsePublish(p)
		if err != nil {
			return err
		}
		if m.QoS == ExactlyOnce {
			return malformed("PUBLISH with QoS 2, which was not subscribed")
		}
		if c.opt.OnMessage != nil {
			if err := c.opt.OnMessage(m.Topic, m.Payload); err != nil {
				return err
			}
		}
		if m.QoS == AtLeastOnce {
			return c.write(func(b []byte) []byte { return AppendID(b, PUBACK, m.ID) })
		}
	default:
		return malformed("unexpected %v from the server", p.Type())
	}
	return nil
}

// Publish sends a message. With QoS 1 it returns after the PUBACK; on any error the message may or may
// not have arrived, and is to be sent again on the next connection.
func (c *Client) Publish(ctx context.Context, topic string, qos QoS, payload []byte) error {
	done, err := c.Send(topic, qos, payload)
	if err != nil {
		return err
	}
	return c.wait(ctx, done)
}

// Send sends a message without waiting: with QoS 1 the channel yields nil at the PUBACK, or why there
// will be none. Messages arrive in the order of the calls.
func (c *Client) Send(topic string, qos QoS, payload []byte) (<-chan error, error) {
	m := Publish{QoS: qos, Topic: topic, Payload: payload}
	if qos == AtMostOnce {
		done := make(chan error, 1)
		done <- nil
		return done, c.write(m.Append)
	}
	return c.ask(func(id uint16) func([]byte) []byte { m.ID = id; return m.Append })
}

// Subscribe asks for a topic filter and waits for the answer; ErrSubscription when it is refused.
func (c *Client) Subscribe(ctx context.Context, filter string, qos QoS) error {
	done, err := c.ask(func(id uint16) func([]byte) []byte {
		return (&Subscribe{ID: id, Subscriptions: []Subscription{{filter, qos}}}).Append
	})
	if err != nil {
		return err
	}
	return c.wait(ctx, done)
}

// Close sends DISCONNECT and closes the connection.
func (c *Client) Close() error {
	err := c.write(func(b []byte) []byte { return AppendEmpty(b, DISCONNECT) })
	c.end(errByUser)
	return err
}

var errByUser = errors.New("closed here")

func (c *Client) wait(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask takes a free packet identifier, writes the packet made for it and registers who waits.
func (c *Client) ask(packet func(id uint16) func([]byte) []byte) (<-chan error, error) {
	done := make(chan error, 1)
	c.wmu.Lock() // before the identifier, so that packets leave in the order of the calls
	defer c.wmu.Unlock()
	c.mu.Lock()
	if c.closed != nil {
		defer c.mu.Unlock()
		return nil, fmt.Errorf("%w: %v", ErrClosed, c.closed)
	}
	if len(c.pending) >= 1<<15 {
		c.mu.Unlock()
		return nil, errors.New("mqtt: too many messages in flight")
	}
	for {
		c.id++
		if _, used := c.pending[c.id]; c.id != 0 && !used {
			break
		}
	}
	id := c.id
	c.pending[id] = done
	c.mu.Unlock()
	if err := c.writeLocked(packet(id)); err != nil {
		return nil, err
	}
	return done, nil
}

func (c *Client) write(appendTo func([]byte) []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.writeLocked(appendTo)
}

func (c *Client) writeLocked(appendTo func([]byte) []byte) error {
	c.wbuf = appendTo(c.wbuf[:0])
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := c.conn.Write(c.wbuf)
	if cap(c.wbuf) > 4096 {
		c.wbuf = nil // an idle client keeps no large buffer
	}
	if err != nil {
		err = fmt.Errorf("%w: %v", ErrClosed, err)
		c.end(err) // half a packet may be out: the stream is lost
	}
	return err
}

func (c *Client) settle(id uint16, err error) {
	c.mu.Lock()
	done := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if done != nil {
		done <- err
	}
}

// end closes the connection once and fails what is pending.
func (c *Client) end(why error) {
	c.mu.Lock()
	if c.closed != nil {
		c.mu.Unlock()
		return
	}
	c.closed = why
	pending := c.pending
	c.pending = map[uint16]chan error{}
	c.mu.Unlock()
	c.conn.Close()
	for _, done := range pending {
		done <- fmt.Errorf("%w: %v", ErrClosed, why)
	}
}
