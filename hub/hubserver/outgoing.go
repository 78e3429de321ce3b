package hubserver

import (
	"sync"
	"time"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// maxBacklog bounds what waits to be written to one device, in bytes: a full window of messages and some calls.
const maxBacklog = 1 << 20

// outgoing is what others than the connection's reader have for the device. They leave packets in a queue and go
// on; a goroutine writes them, and there is none while the queue is empty.
type outgoing struct {
	mu      sync.Mutex
	queue   [][]byte
	size    int // bytes in queue and in the writer's hands
	writing bool
	closed  bool

	wire sync.Mutex // held while a packet is written, with the deadline that goes with it
}

// push queues one packet; false when too much waits, or the connection has ended.
func (c *conn) push(packet []byte) bool {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.size+len(packet) > maxBacklog {
		return false
	}
	o.queue = append(o.queue, packet)
	o.size += len(packet)
	if !o.writing {
		o.writing = true
		go c.drain()
	}
	return true
}

// drain writes the queue until it is empty.
func (c *conn) drain() {
	o := &c.out
	for {
		o.mu.Lock()
		queue := o.queue
		o.queue = nil
		if len(queue) == 0 || o.closed {
			o.writing = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		for _, packet := range queue {
			if err := c.answer(packet); err != nil {
				c.endOutgoing()
				c.breakOff(err)
				return
			}
			o.mu.Lock()
			o.size -= len(packet)
			o.mu.Unlock()
		}
	}
}

// breakOff ends the connection for the reader, who says how it ended: this is no drop by the hub, and the will is published.
func (c *conn) breakOff(err error) {
	c.mu.Lock()
	c.broken = err
	c.mu.Unlock()
	c.SetDeadline(time.Unix(1, 0))
	go c.Conn.Close()
}

// endOutgoing refuses what comes from now on.
func (c *conn) endOutgoing() {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.closed, c.out.queue = true, nil
}

// answer writes a packet; the reader waits for it, so that a device that does not read is not read either.
func (c *conn) answer(b []byte) error {
	c.out.wire.Lock()
	defer c.out.wire.Unlock()
	c.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := c.Write(b)
	return err
}

// Drop implements hub.Sink.
func (c *conn) Drop(reason string) { c.drop(reason) }

// Method implements hub.Sink.
func (c *conn) Method(rid, name string, payload []byte) bool {
	return c.publish(mqtt.Publish{Topic: iothub.MethodTopic(name, rid), Payload: payload})
}

// Desired implements hub.Sink.
func (c *conn) Desired(version int64, patch []byte) bool {
	return c.publish(mqtt.Publish{Topic: iothub.DesiredTopic(version), Payload: patch})
}

// Message implements hub.Sink.
func (c *conn) Message(id uint16, again bool, properties iothub.Bag, body []byte) bool {
	p := mqtt.Publish{Topic: iothub.DeviceboundTopic(c.device) + properties.Encode(), Payload: body}
	if id != 0 {
		p.QoS, p.ID, p.Dup = mqtt.AtLeastOnce, id, again
	}
	return c.publish(p)
}

func (c *conn) publish(p mqtt.Publish) bool { return c.push(p.Append(nil)) }
