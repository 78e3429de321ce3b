package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// C2D is a message to a device.
type C2D struct {
	Sequence   int64 // grows; set by the store
	Device     cradle.DeviceID
	Properties iothub.Bag
	Ack        Ack // what the properties ask for; set by SendC2D
	Body       []byte
	Enqueued   time.Time
	Expires    time.Time
	Deliveries int    // how often it was handed to the device, this time included
	Lock       string // by which whoever received it settles it
}

// Taking says what Mailbox.Take takes.
type Taking struct {
	Owner string    // locks are "{owner} {sequence}"
	Max   int       // messages
	Until time.Time // when the locks end, unless they are the owner's
	// Void: locks of other connections hold no more, since the device has a new one.
	Void bool
}

// connOwner begins the names of owners that are MQTT connections.
const connOwner = "mqtt-"

// MayTake reports whether a message with a lock that ends at a time is free for this taking: nobody has it, the lock has
// ended, or an earlier connection of the device had it. What the owner itself has out it does not get again.
func (t *Taking) MayTake(lock string, until, now time.Time) bool {
	switch {
	case lock == "":
		return true
	case strings.HasPrefix(lock, t.Owner+" "):
		return false
	case t.Void && strings.HasPrefix(lock, connOwner):
		return true
	}
	return !now.Before(until)
}

// Mailbox keeps messages to devices; the contract is Store's. They end with their device. Whatever else ends one writes its
// feedback in the same transaction, where the sender wants it.
type Mailbox interface {
	// Enqueue stores a message behind the others and sets its Sequence. NotFound without the device; Forbidden when
	// limit messages wait that have not expired.
	Enqueue(ctx context.Context, hub Name, m *C2D, limit int) error
	// Waiting counts a device's messages that have not expired, locked ones too.
	Waiting(ctx context.Context, hub Name, device cradle.DeviceID, now time.Time) (int, error)
	// Take locks the oldest messages that are free and counts a delivery of each. Those that have expired, and free
	// ones that were delivered maxDeliveries times, are removed.
	Take(ctx context.Context, hub Name, device cradle.DeviceID, now time.Time, maxDeliveries int, t Taking) ([]C2D, error)
	// Settle removes the message with a lock, Completed or RejectedByDevice; NotFound when no message has it.
	Settle(ctx context.Context, hub Name, device cradle.DeviceID, lock string, o Outcome, now time.Time) error
	// Release frees it; NotFound.
	Release(ctx context.Context, hub Name, device cradle.DeviceID, lock string) error
	// Purge removes all messages of a device and returns how many.
	Purge(ctx context.Context, hub Name, device cradle.DeviceID, now time.Time) (int, error)
}

// MailFull reports whether a message was refused because too many wait for the device.
func MailFull(err error) bool { return errors.Is(err, errMailFull) }

// LockLost reports whether a message could not be settled because nobody, or somebody else, has it now.
func LockLost(err error) bool { return errors.Is(err, errNoSuchLock) }

// SendC2D puts a message into a device's queue, durably, and delivers it when the device listens. Expires may be
// zero: iothub.C2DLife. Modules have no queue. Errors: Invalid, TooLarge, NotFound, Forbidden (MailFull).
func (h *Hub) SendC2D(ctx context.Context, hub Name, m *C2D) error {
	now := h.now()
	if err := iothub.CheckDeviceID(m.Device); err != nil {
		return err
	}
	if len(m.Body) > iothub.MaxC2D {
		return cradle.Errorf(cradle.TooLarge, "message of %d bytes, at most %d", len(m.Body), iothub.MaxC2D)
	}
	if n := len(m.Properties.Encode()); n > maxBag {
		return cradle.Errorf(cradle.TooLarge, "properties of %d bytes, at most %d", n, maxBag)
	}
	if id, _ := m.Properties.Get(iothub.PropMessageID); len(id) > maxMessageID {
		return cradle.Errorf(cradle.Invalid, "message id of %d bytes, at most %d", len(id), maxMessageID)
	}
	var err error
	if m.Ack, err = ackOf(m.Properties); err != nil {
		return err
	}
	m.Enqueued = now
	switch life := m.Expires.Sub(now); {
	case m.Expires.IsZero():
		m.Expires = now.Add(iothub.C2DLife)
	case life <= 0:
		return cradle.Errorf(cradle.Invalid, "message expired at %s already", m.Expires.UTC().Format(time.RFC3339))
	case life > iothub.MaxC2DLife:
		return cradle.Errorf(cradle.Invalid, "message would live for %s, at most %s", life.Round(time.Second), iothub.MaxC2DLife)
	}
	err = h.store.Enqueue(ctx, hub, m, iothub.MaxPending)
	if cradle.KindOf(err) == cradle.Forbidden {
		return &cradle.Error{Kind: cradle.Forbidden, Detail: fmt.Sprintf("%d messages wait for the device, more are not allowed", iothub.MaxPending),
			Hint: "they end when the device takes them, or expire, or by DELETE /devices/{id}/commands", Err: errMailFull}
	}
	if err != nil {
		return h.storeError("enqueueing a message", err)
	}
	if s := h.sessions.get(key{hub: hub, device: m.Device}); s != nil {
		s.wake()
	}
	h.tell(word{About: aboutMail, Hub: hub, Device: m.Device})
	return nil
}

// maxBag bounds the encoded properties of a message, so that they fit a topic.
const maxBag = 32 << 10

const maxMessageID = 128 // bytes (Azure)

// ReceiveC2D gives a device's oldest free message and locks it for iothub.C2DLock; nil when there is none.
func (h *Hub) ReceiveC2D(ctx context.Context, hub Name, device cradle.DeviceID) (*C2D, error) {
	now := h.now()
	ms, err := h.store.Take(ctx, hub, device, now, iothub.MaxDeliveries, Taking{Owner: "http-" + rand.Text(), Max: 1, Until: now.Add(iothub.C2DLock)})
	if err != nil || len(ms) == 0 {
		return nil, h.storeError("taking a message", err)
	}
	return &ms[0], nil
}

// CompleteC2D removes a message that was received and taken.
func (h *Hub) CompleteC2D(ctx context.Context, hub Name, device cradle.DeviceID, lock string) error {
	return h.unlock(lock, func() error { return h.store.Settle(ctx, hub, device, lock, Completed, h.now()) })
}

// RejectC2D removes a message that was received and is not wanted.
func (h *Hub) RejectC2D(ctx context.Context, hub Name, device cradle.DeviceID, lock string) error {
	return h.unlock(lock, func() error { return h.store.Settle(ctx, hub, device, lock, RejectedByDevice, h.now()) })
}

// AbandonC2D gives a message that was received back into the queue.
func (h *Hub) AbandonC2D(ctx context.Context, hub Name, device cradle.DeviceID, lock string) error {
	err := h.unlock(lock, func() error { return h.store.Release(ctx, hub, device, lock) })
	if s := h.sessions.get(key{hub: hub, device: device}); s != nil && err == nil {
		s.wake()
	}
	return err
}

// unlock ends what a lock holds; fn says NotFound when nothing has it.
func (h *Hub) unlock(lock string, fn func() error) error {
	none := &cradle.Error{Kind: cradle.Conflict, Detail: "nothing has this lock: it ended, or what it held did", Err: errNoSuchLock}
	if len(lock) > maxLock || strings.ContainsFunc(lock, func(r rune) bool { return r < ' ' || r > '~' }) {
		return none
	}
	err := fn()
	if cradle.KindOf(err) == cradle.NotFound {
		return none
	}
	return h.storeError("ending a lock", err)
}

const maxLock = 64 // bytes; ours are shorter

// PurgeC2D removes all messages that wait for a device; NotFound without the device.
func (h *Hub) PurgeC2D(ctx context.Context, hub Name, device cradle.DeviceID) (int, error) {
	if _, err := h.owner(ctx, hub, device, ""); err != nil {
		return 0, err
	}
	n, err := h.store.Purge(ctx, hub, device, h.now())
	return n, h.storeError("purging messages", err)
}

// WaitingC2D counts the messages that wait for a device.
func (h *Hub) WaitingC2D(ctx context.Context, hub Name, device cradle.DeviceID) (int, error) {
	n, err := h.store.Waiting(ctx, hub, device, h.now())
	return n, h.storeError("counting messages", err)
}

// window is how many messages a connection has unacknowledged.
const window = 8

// mail is how a session's messages go out; of Session.mu.
type mail struct {
	owner   string            // names the connection in locks; empty until the first taking
	pumping bool              // a goroutine is at it
	woken   bool              // there may be something to take
	more    bool              // the last taking filled the window
	flight  map[uint16]string // locks of messages that were handed over and not acknowledged
}

// wake says that messages may wait. There is no goroutine while none do.
func (s *Session) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mail.woken = true
	if s.mail.pumping || !s.listens() {
		return
	}
	s.mail.pumping = true
	go s.pump()
}

// listens reports whether messages may be handed over; the caller has s.mu.
func (s *Session) listens() bool {
	return s.ready && s.hears&(HearMessages|HearMessagesAtMost) != 0 && !s.gone.Load()
}

// pump takes messages and hands them over while there are some and the window is open.
func (s *Session) pump() {
	for {
		s.mu.Lock()
		free := window - len(s.mail.flight)
		if !s.mail.woken || free <= 0 || !s.listens() {
			s.mail.more = s.mail.more || s.mail.woken
			s.mail.woken, s.mail.pumping = false, false
			s.mu.Unlock()
			return
		}
		s.mail.woken, s.mail.more = false, false
		if s.mail.owner == "" {
			s.mail.owner = connOwner + rand.Text()
		}
		owner, atMost := s.mail.owner, s.hears&HearMessagesAtMost != 0
		s.mu.Unlock()
		if err := s.deliver(owner, free, atMost); err != nil {
			s.hub.log.Warn("delivering messages", "hub", s.key.hub, "device", s.key.device, "err", err)
			s.mu.Lock()
			s.mail.pumping = false
			s.mu.Unlock()
			s.hub.sessions.leave(s)
			s.end("messages could not be delivered")
			return
		}
	}
}

func (s *Session) deliver(owner string, max int, atMost bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	h, now := s.hub, s.hub.now()
	// A reading, cheaper than a taking.
	if n, err := h.store.Waiting(ctx, s.key.hub, s.key.device, now); err != nil || n == 0 {
		return err
	}
	ms, err := h.store.Take(ctx, s.key.hub, s.key.device, now, iothub.MaxDeliveries, Taking{Owner: owner, Max: max, Until: now.Add(iothub.C2DLock), Void: true})
	if err != nil {
		return err
	}
	for i := range ms {
		m := &ms[i]
		id := packetID(m.Sequence)
		s.mu.Lock()
		if atMost {
			id = 0
		} else {
			for s.mail.flight[id] != "" { // two messages may fall on one id
				id = packetID(int64(id))
			}
			if s.mail.flight == nil {
				s.mail.flight = map[uint16]string{}
			}
			s.mail.flight[id] = m.Lock
		}
		s.mail.more = len(ms) == max
		s.mail.woken = s.mail.woken || s.mail.more
		s.mu.Unlock()
		if atMost { // settled before it is sent, or it would be at least once
			if err := h.store.Settle(ctx, s.key.hub, s.key.device, m.Lock, Completed, now); err != nil && cradle.KindOf(err) != cradle.NotFound {
				return err
			}
		}
		if !s.sink.Message(id, m.Deliveries > 1, m.Properties, m.Body) {
			return errors.New("device does not take what is sent to it")
		}
	}
	return nil
}

// packetID is a message's MQTT packet identifier: the same whenever it is sent again (MQTT §4.4).
func packetID(sequence int64) uint16 { return uint16(sequence%65535) + 1 }

// Acknowledge takes the device's PUBACK: the message is done with. An identifier that is not out is ignored.
func (s *Session) Acknowledge(ctx context.Context, id uint16) error {
	s.mu.Lock()
	lock, out := s.mail.flight[id]
	delete(s.mail.flight, id)
	if len(s.mail.flight) == 0 {
		s.mail.flight = nil
	}
	more := s.mail.more
	s.mu.Unlock()
	if !out {
		return nil
	}
	err := s.hub.store.Settle(ctx, s.key.hub, s.key.device, lock, Completed, s.hub.now())
	if err != nil && cradle.KindOf(err) != cradle.NotFound { // purged, or expired meanwhile
		return s.hub.storeError("settling a message", err)
	}
	if more {
		s.wake()
	}
	return nil
}
