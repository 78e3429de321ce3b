package mqtt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// Type is a control packet type (§2.2.1).
type Type byte

// The control packet types.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
)

var typeNames = [...]string{"0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "15"}

func (t Type) String() string { return typeNames[t&15] }

// MaxRemaining is the largest remaining length that the encoding can express (§2.2.3).
const MaxRemaining = 268_435_455

// ErrMalformed is in the chain of every error about a packet's bytes; the connection must be closed.
var ErrMalformed = errors.New("malformed packet")

// ErrTooLarge is in the chain when a packet is larger than the reader allows.
var ErrTooLarge = errors.New("packet too large")

func malformed(format string, args ...any) error {
	return fmt.Errorf("mqtt: %w: "+format, append([]any{ErrMalformed}, args...)...)
}

// Packet is one packet as read: the first byte of the fixed header and what follows the remaining length.
type Packet struct {
	Header byte
	Body   []byte
}

// Type of the packet.
func (p Packet) Type() Type { return Type(p.Header >> 4) }

func (p Packet) flags() byte { return p.Header & 15 }

// chunk is allocated at first for a large body, so that a peer which only announces one costs little.
const chunk = 16 << 10

// Read reads one packet of at most limit body bytes. It returns io.EOF only between packets; within one
// it is io.ErrUnexpectedEOF. The body is newly allocated and belongs to the caller.
func Read(r *bufio.Reader, limit int) (Packet, error) {
	h, err := r.ReadByte()
	if err != nil {
		return Packet{}, err
	}
	p := Packet{Header: h}
	if t := p.Type(); t == 0 || t == 15 {
		return p, malformed("packet type %d is reserved", t)
	}
	n, err := readLength(r)
	if err != nil {
		return p, err
	}
	if err := p.checkHeader(n); err != nil {
		return p, err
	}
	if n > limit {
		return p, fmt.Errorf("mqtt: %w: %v of %d bytes, at most %d", ErrTooLarge, p.Type(), n, limit)
	}
	for have := 0; have < n; {
		more := min(n-have, max(chunk, have))
		body := make([]byte, have+more)
		copy(body, p.Body)
		if _, err := io.ReadFull(r, body[have:]); err != nil {
			return p, unexpected(err)
		}
		p.Body, have = body, have+more
	}
	return p, nil
}

func readLength(r *bufio.Reader) (int, error) {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, unexpected(err)
		}
		n |= int(b&127) << shift
		if b < 128 {
			return n, nil
		}
	}
	return 0, malformed("remaining length has more than 4 bytes")
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Buffered reports whether r already holds a whole packet, so that Read will not wait.
func Buffered(r *bufio.Reader) bool {
	b, _ := r.Peek(r.Buffered())
	for i, n := 1, 0; i < len(b) && i <= 4; i++ {
		n |= int(b[i]&127) << (7 * (i - 1))
		if b[i] < 128 {
			return len(b)-i-1 >= n
		}
	}
	return false
}

// checkHeader checks what can be known before the body is read: type, flags (§2.2.2), fixed lengths.
func (p Packet) checkHeader(n int) error {
	t, want := p.Type(), byte(0)
	switch t {
	case PUBLISH:
		if p.Header>>1&3 == 3 {
			return malformed("PUBLISH with QoS 3")
		}
		return nil
	case PUBREL, SUBSCRIBE, UNSUBSCRIBE:
		want = 2
	}
	if p.flags() != want {
		return malformed("%v with flags %04b", t, p.flags())
	}
	switch t {
	case PINGREQ, PINGRESP, DISCONNECT:
		if n != 0 {
			return malformed("%v with %d bytes", t, n)
		}
	case CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK:
		if n != 2 {
			return malformed("%v with %d bytes", t, n)
		}
	}
	return nil
}

// appendHeader appends the fixed header for a body of n bytes.
func appendHeader(dst []byte, header byte, n int) []byte {
	dst = append(dst, header)
	for n >= 128 {
		dst = append(dst, byte(n)|128)
		n >>= 7
	}
	return append(dst, byte(n))
}

func appendString[S string | []byte](dst []byte, s S) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// cursor walks a body; the first error sticks.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) bytes(what string) []byte {
	n := int(c.uint16(what))
	if c.err == nil && len(c.b) < n {
		c.err = malformed("%s is cut short", what)
	}
	if c.err != nil {
		return nil
	}
	s := c.b[:n:n]
	c.b = c.b[n:]
	return s
}

// string reads a UTF-8 string (§1.5.3): well-formed and without U+0000.
func (c *cursor) string(what string) string {
	s := c.bytes(what)
	if c.err != nil {
		return ""
	}
	if !utf8.Valid(s) {
		c.err = malformed("%s is not UTF-8", what)
	}
	for _, b := range s {
		if b == 0 {
			c.err = malformed("%s contains U+0000", what)
			break
		}
	}
	return string(s)
}

func (c *cursor) uint16(what string) uint16 {
	if c.err == nil && len(c.b) < 2 {
		c.err = malformed("%s is cut short", what)
	}
	if c.err != nil {
		return 0
	}
	v := binary.BigEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v
}

func (c *cursor) byte(what string) byte {
	if c.err == nil && len(c.b) < 1 {
		c.err = malformed("%s is cut short", what)
	}
	if c.err != nil {
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = malformed(format, args...)
	}
}

func (c *cursor) end(what string) error {
	if c.err == nil && len(c.b) > 0 {
		c.fail("%s has %d bytes too many", what, len(c.b))
	}
	return c.err
}
