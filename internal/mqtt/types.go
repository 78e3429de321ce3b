package mqtt

import (
	"encoding/binary"
	"strings"
)

// QoS is a quality of service (§4.3).
type QoS byte

// The qualities.
const (
	AtMostOnce  QoS = 0
	AtLeastOnce QoS = 1
	ExactlyOnce QoS = 2
)

// Code is a CONNACK return code (§3.2.2.3).
type Code byte

// The return codes.
const (
	Accepted          Code = 0
	BadProtocol       Code = 1
	BadIdentifier     Code = 2
	ServerUnavailable Code = 3
	BadUserOrPassword Code = 4
	NotAuthorized     Code = 5
)

var codeTexts = [...]string{"accepted", "unacceptable protocol version", "identifier rejected",
	"server unavailable", "bad user name or password", "not authorized"}

func (c Code) String() string {
	if int(c) < len(codeTexts) {
		return codeTexts[c]
	}
	return "reserved code"
}

// Connect is the CONNECT packet (§3.1).
type Connect struct {
	Protocol  string // "MQTT" for 3.1.1
	Level     byte   // 4 for 3.1.1
	Clean     bool
	KeepAlive uint16 // seconds; 0 turns it off
	ClientID  string
	Will      *Will
	Username  *string
	Password  []byte // nil means absent
}

// Will is what the server publishes when the connection ends without DISCONNECT.
type Will struct {
	Topic   string
	Message []byte
	QoS     QoS
	Retain  bool
}

// Known reports whether the protocol name and level are those of MQTT 3.1.1.
func (p *Connect) Known() bool { return p.Protocol == "MQTT" && p.Level == 4 }

// ParseConnect decodes a CONNECT. For a protocol that is not Known it reads no further than the level,
// so that the server can answer BadProtocol.
func ParseConnect(p Packet) (*Connect, error) {
	c := cursor{b: p.Body}
	out := &Connect{Protocol: c.string("protocol name"), Level: c.byte("protocol level")}
	if c.err != nil || !out.Known() {
		return out, c.err
	}
	flags := c.byte("connect flags")
	out.Clean = flags&2 != 0
	out.KeepAlive = c.uint16("keep alive")
	out.ClientID = c.string("client id")
	will, qos := flags&4 != 0, flags>>3&3
	switch {
	case flags&1 != 0:
		c.fail("reserved connect flag is set")
	case qos == 3 || !will && flags&0x38 != 0:
		c.fail("will flags %08b", flags)
	case flags&0x40 != 0 && flags&0x80 == 0:
		c.fail("password without user name")
	}
	if will {
		out.Will = &Will{Topic: c.string("will topic"), Message: c.bytes("will message"), QoS: QoS(qos), Retain: flags&0x20 != 0}
		checkTopic(&c, out.Will.Topic)
	}
	if flags&0x80 != 0 {
		u := c.string("user name")
		out.Username = &u
	}
	if flags&0x40 != 0 {
		if out.Password = c.bytes("password"); out.Password == nil {
			out.Password = []byte{}
		}
	}
	return out, c.end("CONNECT")
}

// Append encodes.
func (p *Connect) Append(dst []byte) []byte {
	b := appendString(nil, p.Protocol)
	b = append(b, p.Level)
	if !p.Known() {
		return append(appendHeader(dst, byte(CONNECT)<<4, len(b)), b...)
	}
	var flags byte
	if p.Clean {
		flags |= 2
	}
	if w := p.Will; w != nil {
		flags |= 4 | byte(w.QoS)<<3
		if w.Retain {
			flags |= 0x20
		}
	}
	if p.Username != nil {
		flags |= 0x80
	}
	if p.Password != nil {
		flags |= 0x40
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint16(b, p.KeepAlive)
	b = appendString(b, p.ClientID)
	if w := p.Will; w != nil {
		b = appendString(appendString(b, w.Topic), w.Message)
	}
	if p.Username != nil {
		b = appendString(b, *p.Username)
	}
	if p.Password != nil {
		b = appendString(b, p.Password)
	}
	return append(appendHeader(dst, byte(CONNECT)<<4, len(b)), b...)
}

// Connack is the CONNACK packet (§3.2).
type Connack struct {
	SessionPresent bool
	Code           Code
}

// ParseConnack decodes.
func ParseConnack(p Packet) (Connack, error) {
	c := cursor{b: p.Body}
	flags, code := c.byte("acknowledge flags"), Code(c.byte("return code"))
	if flags > 1 || code != Accepted && flags != 0 {
		c.fail("CONNACK with flags %08b and code %d", flags, code)
	}
	return Connack{flags&1 != 0, code}, c.end("CONNACK")
}

// Append encodes.
func (p Connack) Append(dst []byte) []byte {
	var f byte
	if p.SessionPresent {
		f = 1
	}
	return append(dst, byte(CONNACK)<<4, 2, f, byte(p.Code))
}

// Publish is the PUBLISH packet (§3.3).
type Publish struct {
	Dup     bool
	QoS     QoS
	Retain  bool
	Topic   string
	ID      uint16 // packet identifier; 0 with QoS 0
	Payload []byte
}

// ParsePublish decodes; Payload aliases the packet.
func ParsePublish(p Packet) (Publish, error) {
	c := cursor{b: p.Body}
	out := Publish{Dup: p.Header&8 != 0, QoS: QoS(p.Header >> 1 & 3), Retain: p.Header&1 != 0, Topic: c.string("topic")}
	checkTopic(&c, out.Topic)
	if out.QoS > 0 {
		out.ID = checkID(&c)
	} else if out.Dup {
		c.fail("PUBLISH with QoS 0 and DUP") // §3.3.1.1
	}
	out.Payload = c.b
	return out, c.err
}

// Append encodes; the topic may have at most 65535 bytes and the whole MaxRemaining.
func (p *Publish) Append(dst []byte) []byte {
	h := byte(PUBLISH)<<4 | byte(p.QoS)<<1
	if p.Dup {
		h |= 8
	}
	if p.Retain {
		h |= 1
	}
	n := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	dst = appendString(appendHeader(dst, h, n), p.Topic)
	if p.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, p.ID)
	}
	return append(dst, p.Payload...)
}

// checkTopic: a topic name has at least one character and no wildcard (§3.3.2.1, §4.7.3).
func checkTopic(c *cursor, topic string) {
	if topic == "" || strings.ContainsAny(topic, "+#") {
		c.fail("topic name %.100q is empty or has a wildcard", topic)
	}
}

func checkID(c *cursor) uint16 {
	id := c.uint16("packet identifier")
	if id == 0 {
		c.fail("packet identifier is 0") // §2.3.1
	}
	return id
}

// ParseID decodes the packets that hold a packet identifier only: PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK.
func ParseID(p Packet) (uint16, error) {
	c := cursor{b: p.Body}
	id := checkID(&c)
	return id, c.end("packet")
}

// AppendID encodes such a packet.
func AppendID(dst []byte, t Type, id uint16) []byte {
	h := byte(t) << 4
	if t == PUBREL {
		h |= 2
	}
	return append(dst, h, 2, byte(id>>8), byte(id))
}

// AppendEmpty encodes PINGREQ, PINGRESP and DISCONNECT.
func AppendEmpty(dst []byte, t Type) []byte { return append(dst, byte(t)<<4, 0) }

// Subscription is one wish of a SUBSCRIBE.
type Subscription struct {
	Filter string
	QoS    QoS
}

// Subscribe is the SUBSCRIBE packet (§3.8).
type Subscribe struct {
	ID            uint16
	Subscriptions []Subscription // at least one
}

// ParseSubscribe decodes.
func ParseSubscribe(p Packet) (*Subscribe, error) {
	c := cursor{b: p.Body}
	out := &Subscribe{ID: checkID(&c)}
	for c.err == nil && (len(c.b) > 0 || len(out.Subscriptions) == 0) {
		s := Subscription{c.string("topic filter"), QoS(c.byte("requested QoS"))}
		checkFilter(&c, s.Filter)
		if s.QoS > ExactlyOnce {
			c.fail("requested QoS %d", s.QoS)
		}
		out.Subscriptions = append(out.Subscriptions, s)
	}
	return out, c.end("SUBSCRIBE")
}

// Append encodes.
func (p *Subscribe) Append(dst []byte) []byte {
	n := 2
	for _, s := range p.Subscriptions {
		n += 3 + len(s.Filter)
	}
	dst = binary.BigEndian.AppendUint16(appendHeader(dst, byte(SUBSCRIBE)<<4|2, n), p.ID)
	for _, s := range p.Subscriptions {
		dst = append(appendString(dst, s.Filter), byte(s.QoS))
	}
	return dst
}

// Refused is the SUBACK code for a filter that is not granted.
const Refused QoS = 0x80

// Suback is the SUBACK packet (§3.9).
type Suback struct {
	ID      uint16
	Granted []QoS // in the order of the SUBSCRIBE; Refused for a filter not granted
}

// ParseSuback decodes.
func ParseSuback(p Packet) (*Suback, error) {
	c := cursor{b: p.Body}
	out := &Suback{ID: checkID(&c)}
	for _, b := range c.b {
		if b > 2 && QoS(b) != Refused {
			c.fail("SUBACK code %d", b)
		}
		out.Granted = append(out.Granted, QoS(b))
	}
	return out, c.err
}

// Append encodes.
func (p *Suback) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(appendHeader(dst, byte(SUBACK)<<4, 2+len(p.Granted)), p.ID)
	for _, q := range p.Granted {
		dst = append(dst, byte(q))
	}
	return dst
}

// Unsubscribe is the UNSUBSCRIBE packet (§3.10).
type Unsubscribe struct {
	ID      uint16
	Filters []string // at least one
}

// ParseUnsubscribe decodes.
func ParseUnsubscribe(p Packet) (*Unsubscribe, error) {
	c := cursor{b: p.Body}
	out := &Unsubscribe{ID: checkID(&c)}
	for c.err == nil && (len(c.b) > 0 || len(out.Filters) == 0) {
		f := c.string("topic filter")
		checkFilter(&c, f)
		out.Filters = append(out.Filters, f)
	}
	return out, c.end("UNSUBSCRIBE")
}

// Append encodes.
func (p *Unsubscribe) Append(dst []byte) []byte {
	n := 2
	for _, f := range p.Filters {
		n += 2 + len(f)
	}
	dst = binary.BigEndian.AppendUint16(appendHeader(dst, byte(UNSUBSCRIBE)<<4|2, n), p.ID)
	for _, f := range p.Filters {
		dst = appendString(dst, f)
	}
	return dst
}

// checkFilter: '#' stands last and alone in its level, '+' alone in its level (§4.7.1).
func checkFilter(c *cursor, f string) {
	if c.err != nil {
		return
	}
	if f == "" {
		c.fail("topic filter is empty")
		return
	}
	for rest, more := f, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if strings.Contains(level, "#") && (level != "#" || more) || strings.Contains(level, "+") && level != "+" {
			c.fail("topic filter %.100q has a wildcard in the wrong place", f)
		}
	}
}
