package hub

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Sink is the connection of a session, as the hub uses it. Its methods may be called from any goroutine and
// must not block; those that hand something over return false when the connection cannot take more.
type Sink interface {
	// Drop ends the connection. It is called at most once, and not by Session.End.
	Drop(reason string)
	// Method hands over a call; the answer comes by Session.Respond with the same rid.
	Method(rid, name string, payload []byte) bool
	// Desired hands over a change of the desired properties: a merge patch with $version.
	Desired(version int64, patch []byte) bool
	// Message hands over a message to the device. With id 0 it is at most once, else at least once, and
	// Session.Acknowledge tells of its arrival; again says that it may have been handed over before.
	Message(id uint16, again bool, properties iothub.Bag, body []byte) bool
}

// Subscriptions are what a device wants to hear, as bits.
type Subscriptions uint32

// The subscriptions. Their values are stored.
const (
	HearMessages       Subscriptions = 1 << iota // cloud to device, at least once
	HearMessagesAtMost                           // the same, at most once
	HearMethods
	HearTwin    // answers to twin requests
	HearDesired // changes of the desired properties
	HearCredentials
)

// Session is one connected device or module.
type Session struct {
	hub        *Hub
	intake     *intake
	key        key
	generation string
	grant      grant
	since      time.Time
	sink       Sink
	kept       bool // MQTT's clean = 0
	present    bool
	gone       atomic.Bool // dropped; takes nothing more

	id   uint64      // names it to other processes
	told atomic.Bool // the others were told of it before what they say now; see Hub.heard

	// Under the key's lock: up to which version the device knows its desired properties, 0 for not known; the first that
	// it was told of; and whether it has read them.
	desired, firstDesired int64
	readTwin              bool

	mu    sync.Mutex
	ready bool // the connection takes what Sink hands over
	hears Subscriptions
	calls map[string]chan methodAnswer // method calls that wait for the device; nil when there are none
	mail  mail
}

// Device returns who is connected.
func (s *Session) Device() cradle.DeviceID { return s.key.device }

// Module returns which module is connected; empty is the device itself.
func (s *Session) Module() iothub.ModuleID { return s.key.module }

// Left is the time until the certificate or token ends, and with it the session: whoever holds the connection
// closes it then.
func (s *Session) Left() time.Duration { return s.grant.ends.Sub(s.hub.now()) }

// Expired is the reason to close it with then.
func (s *Session) Expired() error {
	return cradle.Errorf(cradle.Unauthorized, "%s has expired", s.grant.by)
}

// Present reports whether subscriptions of an earlier connection are kept (MQTT §3.2.2.2).
func (s *Session) Present() bool { return s.present }

// connectRetries bounds how often a connect starts over because the registry moved under it.
const connectRetries = 10

// Connect admits a device, or with a module a module of it, to a hub, or says why not: Unauthorized (it may not, or
// could not prove itself), Busy (the status feed is stale, or the store does not answer). An older session of the same
// identity is dropped. clean discards what earlier connections subscribed to; else that is taken up, and kept in
// turn. The sink is handed nothing before Start. A refusal changes nothing.
func (h *Hub) Connect(ctx context.Context, hub Name, id cradle.DeviceID, module iothub.ModuleID, login *Login, clean bool, sink Sink) (*Session, error) {
	s := &Session{hub: h, id: h.talk.ids.Add(1), key: key{hub, id, module}, since: h.now(), sink: sink, kept: !clean}
	s.intake = h.intake(hub)
	for range connectRetries {
		who, version, err := h.prove(ctx, s.key, login, &s.grant)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.generation = who.generation()
		if s.grant.name != "" && s.grant.name != id {
			h.otherNames.Store(true) // before the feed is asked: who changes it looks for such sessions afterwards
		}
		ok, err := h.sessions.enter(s, version, func() error { return h.blockedLogin(&s.grant, id) })
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if err := s.resume(ctx); err != nil {
			s.End()
			return nil, err
		}
		h.connection(s.key, true)
		h.sessionBegan(ctx, s)
		return s, nil
	}
	return nil, errRestless
}

var (
	errRestless = cradle.Errorf(cradle.Busy, "the registry entry of the device keeps changing")
	errMoved    = errors.New("the registry entry moved meanwhile")
)

// resume takes up or discards what is kept of earlier connections. The session is in the table already, and the one
// before it was told to go; it may still be writing, but not after this.
func (s *Session) resume(ctx context.Context) error {
	unlock := s.hub.locks.lock(s.key)
	defer unlock()
	kept, there, err := s.hub.store.KeptSession(ctx, s.key.hub, s.key.device, s.key.module)
	if err == nil && there && !s.kept {
		err = s.hub.store.ForgetSession(ctx, s.key.hub, s.key.device, s.key.module)
	}
	if err != nil {
		return s.hub.storeError("reading a kept session", err)
	}
	if s.kept {
		s.hears, s.present = kept, there
	}
	return nil
}

// Start says that the connection has told the device of its session, and takes what the sink is handed from now on.
// It returns what was subscribed to before; that takes effect by Listen, as new subscriptions do.
func (s *Session) Start() Subscriptions {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	return s.hears
}

// Listen lets subscriptions that were added take effect.
func (s *Session) Listen(news Subscriptions) {
	if news&HearMethods != 0 {
		s.hub.sessions.came(s.key)
	}
	if news&(HearMessages|HearMessagesAtMost) != 0 {
		s.wake()
	}
}

// Hears reports whether the device has subscribed, and the connection is ready.
func (s *Session) Hears(what Subscriptions) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready && s.hears&what != 0
}

// Subscribe adds and removes subscriptions. With a kept session they are durable when it returns nil. What is new
// takes effect by Listen, when the device has been told.
func (s *Session) Subscribe(ctx context.Context, add, remove Subscriptions) error {
	unlock := s.hub.locks.lock(s.key)
	defer unlock()
	s.mu.Lock()
	hears := s.hears&^remove | add
	same := hears == s.hears
	s.mu.Unlock()
	if same && (s.present || !s.kept) {
		return nil
	}
	if s.gone.Load() { // the next session has what was kept already
		return refuse("session was dropped")
	}
	if s.kept {
		if err := s.hub.store.KeepSession(ctx, s.key.hub, s.key.device, s.key.module, s.generation, hears); err != nil {
			return s.hub.storeError("keeping a session", err)
		}
		s.present = true
	}
	s.mu.Lock()
	s.hears = hears
	s.mu.Unlock()
	return nil
}

// StatusChanged is to be called after the status feed changed its word on a device or a certificate of it: its
// connections are dropped, in every hub, if the device, or the certificate they were made with, is blocked now.
func (h *Hub) StatusChanged(account cradle.AccountID, id cradle.DeviceID) {
	if h.status == nil {
		return
	}
	reason, which := "certificate is revoked", func(s *Session) bool { return h.status.CertBlocked(s.grant.sum) }
	if state, yes := h.status.Blocked(account, id); yes {
		reason, which = "device is "+string(state), func(*Session) bool { return true }
	}
	h.sessions.dropDevice(account, id, reason, which)
	if !h.otherNames.Load() {
		return
	}
	h.sessions.dropAll(func(s *Session) string {
		if s.grant.account == account && s.grant.name == id && which(s) {
			return reason
		}
		return ""
	})
}

// Connected counts this process's sessions.
func (h *Hub) Connected() int { return h.sessions.len() }

// End takes the session out; nothing happens to the connection.
func (s *Session) End() {
	s.hub.sessions.leave(s)
	s.gone.Store(true)
	s.close()
}

func (s *Session) end(reason string) {
	if !s.gone.Swap(true) {
		s.sink.Drop(reason)
		s.close()
	}
}

// close fails who waits for the device.
func (s *Session) close() {
	s.mu.Lock()
	calls := s.calls
	s.calls, s.ready = nil, false
	s.mu.Unlock()
	for _, c := range calls {
		close(c)
	}
}
