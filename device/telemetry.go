package device

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// message is one numbered message that the hub has not acknowledged.
type message struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Body []byte    `json:"body"`
}

// spool numbers messages without gaps and keeps them until the hub has acknowledged them. A number is taken and the
// message stored in one write, before it is sent; what was acknowledged is written with the next one, so
// that after a crash a few messages are sent twice, never none. It is bounded: when it is full
// no number is given out, and what would have been said is not said.
type spool struct {
	mu      sync.Mutex
	rec     *record
	v       spoolState
	changed chan struct{} // closed and replaced when a message is added
}

type spoolState struct {
	Next     uint64    `json:"next"`
	Messages []message `json:"messages"` // in order, consecutive
}

const (
	maxSpool    = 512 // messages
	maxInFlight = 32
	ackTimeout  = 30 * time.Second
)

func openSpool(dir string, kill func(string) error) (*spool, error) {
	s := &spool{changed: make(chan struct{}), v: spoolState{Next: 1}}
	rec, _, err := openRecord(dir, "telemetry", &s.v)
	if err != nil {
		return nil, err
	}
	rec.kill = kill
	s.rec = rec
	return s, nil
}

// add numbers and stores a message; false when the spool is full.
func (s *spool) add(now time.Time, body func(seq uint64) []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.v.Messages) >= maxSpool {
		return false, nil
	}
	v := spoolState{Next: s.v.Next + 1, Messages: append(slices.Clone(s.v.Messages), message{s.v.Next, now, body(s.v.Next)})}
	if err := s.rec.save("message", v); err != nil {
		return false, err
	}
	s.v = v
	close(s.changed)
	s.changed = make(chan struct{})
	return true, nil
}

// head returns up to n messages after number last, and a channel that is closed when there are more.
func (s *spool) head(last uint64, n int) ([]message, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for i < len(s.v.Messages) && s.v.Messages[i].Seq <= last {
		i++
	}
	return slices.Clone(s.v.Messages[i:min(len(s.v.Messages), i+n)]), s.changed
}

// acknowledged forgets the messages up to a number.
func (s *spool) acknowledged(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for i < len(s.v.Messages) && s.v.Messages[i].Seq <= seq {
		i++
	}
	s.v.Messages = slices.Clone(s.v.Messages[i:])
}

// flush writes what was acknowledged since the last message, before a clean end.
func (s *spool) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.save("flush", s.v)
}

// makeTelemetry adds a message at once and then every interval, as soon as the device has a hub.
func (d *Device) makeTelemetry(ctx context.Context) error {
	for {
		j, changed := d.look()
		if j.Hub != "" {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
	started := time.Now()
	t := time.NewTicker(time.Duration(d.set.Telemetry.Interval))
	defer t.Stop()
	for full := false; ; {
		now := d.time.now()
		ok, err := d.spool.add(now, func(seq uint64) []byte {
			b, _ := json.Marshal(map[string]any{"device": d.set.Device, "seq": seq, "time": now.Format(time.RFC3339Nano),
				"uptime_s": int64(time.Since(started).Seconds())})
			return b
		})
		switch {
		case err != nil:
			if stop(err) {
				return err
			}
			d.rep.problem("telemetry", err, time.Duration(d.set.Telemetry.Interval)) // disk full: this one is not said
		case !ok && !full:
			d.log.Warn("the hub has not been reached for long; no more telemetry until it is", "waiting", maxSpool)
		}
		full = err == nil && !ok
		select {
		case <-ctx.Done():
			if err := d.spool.flush(); err != nil && !stop(err) {
				d.log.Warn("the last acknowledgements were not stored; some messages will be sent again", "err", err)
			}
			return nil
		case <-t.C:
		}
	}
}

// publish sends the spool over one connection, in order, until ctx or the connection ends.
func (d *Device) publish(ctx context.Context, h Hub) error {
	j, _ := d.look()
	var last uint64
	for {
		batch, more := d.spool.head(last, maxInFlight)
		if len(batch) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-more:
			}
			continue
		}
		acks := make([]<-chan error, len(batch))
		for i, m := range batch {
			bag := iothub.Bag{{Name: iothub.PropSequence, Value: strconv.FormatUint(m.Seq, 10)},
				{Name: iothub.PropContentType, Value: "application/json"}, {Name: iothub.PropContentEncoding, Value: "utf-8"}}
			var err error
			if acks[i], err = h.Send(iothub.TelemetryTopic(j.HubDevice, bag), mqtt.AtLeastOnce, m.Body); err != nil {
				return err
			}
		}
		timeout := time.NewTimer(ackTimeout)
		for i, m := range batch {
			select {
			case err := <-acks[i]:
				if err != nil {
					timeout.Stop()
					return err
				}
				d.spool.acknowledged(m.Seq)
				last = m.Seq
			case <-timeout.C:
				return errNoAck
			case <-ctx.Done():
				timeout.Stop()
				return nil
			}
		}
		timeout.Stop()
	}
}
