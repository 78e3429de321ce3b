package mqttserve

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/cradle-iot/cradle/internal/mqtt"
)

// Transports of a Conn.
const (
	TCP       = "tcp"
	WebSocket = "websocket"
)

// Conn is one client's connection. One goroutine reads; Write, deadlines and Close are net.Conn's.
type Conn struct {
	net.Conn
	State     tls.ConnectionState // after the handshake; a resumed one carries the certificate of the first
	Transport string

	r     *bufio.Reader // nil while nothing is buffered
	first [1]byte
	have  int // bytes of first that r has yet to read

	known atomic.Bool
	leave func()
}

// Authenticated says that the client is known: it does not count as waiting any more.
func (c *Conn) Authenticated() {
	if !c.known.Swap(true) {
		c.leave()
	}
}

// IsAuthenticated reports whether Authenticated was called.
func (c *Conn) IsAuthenticated() bool { return c.known.Load() }

// bufferSize is what one connection reads ahead. Telemetry that comes together is stored together.
const bufferSize = 4 << 10

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}

// ReadPacket reads a packet of at most limit body bytes; see mqtt.Read. Until its first byte has come it
// holds no buffer. After an error nothing more can be read.
func (c *Conn) ReadPacket(limit int) (mqtt.Packet, error) {
	if c.r == nil {
		if _, err := io.ReadFull(c.Conn, c.first[:]); err != nil {
			return mqtt.Packet{}, err
		}
		c.have = 1
		c.r = readers.Get().(*bufio.Reader)
		c.r.Reset((*source)(c))
	}
	p, err := mqtt.Read(c.r, limit)
	if err != nil || c.r.Buffered() == 0 {
		c.r.Reset(nil)
		readers.Put(c.r)
		c.r = nil
	}
	return p, err
}

// Buffered reports whether a whole packet is at hand, so that ReadPacket will not wait. It may leave a read deadline
// that has passed: the caller sets its own before it reads.
func (c *Conn) Buffered() bool {
	if c.r != nil && mqtt.Buffered(c.r) {
		return true
	}
	c.takeIn()
	return c.r != nil && mqtt.Buffered(c.r)
}

// takeIn buffers what TLS has already taken from the socket, record after record, of which one Read gives only one. With
// a deadline that has passed nothing is waited for, and TLS connections go on after it; WebSockets do not.
func (c *Conn) takeIn() {
	if c.Transport != TCP || c.SetReadDeadline(past) != nil {
		return
	}
	if c.r == nil {
		if n, _ := c.Conn.Read(c.first[:]); n == 0 {
			return
		}
		c.have = 1
		c.r = readers.Get().(*bufio.Reader)
		c.r.Reset((*source)(c))
	}
	c.r.Peek(bufferSize) // an error that lasts comes again at the next read
}

// source reads the byte that was read ahead, then the connection.
type source Conn

func (s *source) Read(p []byte) (int, error) {
	if s.have > 0 && len(p) > 0 {
		s.have = 0
		p[0] = s.first[0]
		return 1, nil
	}
	return s.Conn.Read(p)
}
