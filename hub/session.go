package hub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
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
	s := &Session{hub: h, key: key{hub, id, module}, since: h.now(), sink: sink, kept: !clean}
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
		return s, nil
	}
	return nil, errRestless
}

var (
	errRestless = cradle.Errorf(cradle.Busy, "the registry entry of the device keeps changing")
	errMoved    = errors.New("the registry entry moved meanwhile")
)

// Authenticate judges a login that begins no session, as Connect does.
func (h *Hub) Authenticate(ctx context.Context, hub Name, id cradle.DeviceID, module iothub.ModuleID, login *Login) error {
	for range connectRetries {
		var g grant
		if _, _, err := h.prove(ctx, key{hub, id, module}, login, &g); !errors.Is(err, errMoved) {
			return err
		}
	}
	return errRestless
}

// prove admits who logs in, and promotes the certificate where it is the registry's second. The version is that of the sessions'
// table before the registry was read, or after it was changed; errMoved means that it has to be read again.
func (h *Hub) prove(ctx context.Context, k key, login *Login, g *grant) (owner, uint64, error) {
	version := h.sessions.version(k)
	d, m, err := h.admit(ctx, k, login, g)
	if err != nil || g.slot != 2 {
		return owner{d, m}, version, err
	}
	err = h.promote(ctx, k.hub, d, m)
	switch kind := cradle.KindOf(err); {
	case kind == cradle.Conflict || kind == cradle.NotFound:
		return owner{}, 0, errMoved
	case err != nil:
		return owner{}, 0, h.storeError("promoting a certificate", err)
	}
	promoted := uint64(0) // ends the session of the certificate before
	if m != nil {
		promoted = h.sessions.moduleChanged(k, m)
	} else {
		promoted = h.sessions.changed(k, d)
	}
	if promoted != version+1 {
		return owner{}, 0, errMoved // somebody wrote the registry after the promotion and was here before us
	}
	return owner{d, m}, promoted, nil
}

// admit reads the registry and judges; the module is nil when the device itself logs in.
func (h *Hub) admit(ctx context.Context, k key, login *Login, g *grant) (*Device, *Module, error) {
	var shown grant
	if len(login.Chain) > 0 && login.Token == "" {
		leaf := login.Chain[0]
		shown = grant{account: accountOf(leaf), name: cradle.DeviceID(leaf.Subject.CommonName), sum: sha256.Sum256(leaf.Raw)}
	}
	// First, so that who is revoked learns nothing about the registry.
	if err := h.blockedLogin(&shown, k.device); err != nil {
		return nil, nil, err
	}
	d, err := h.store.Device(ctx, k.hub, k.device)
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, nil, refuse("device is not registered in hub %s", k.hub)
	} else if err != nil {
		return nil, nil, h.storeError("reading a device", err)
	}
	if d.Disabled {
		return nil, nil, refuse("device is disabled: %s", d.Reason)
	}
	who, m := d.identity(), (*Module)(nil)
	if k.module != "" {
		m, err = h.store.Module(ctx, k.hub, k.device, k.module)
		if cradle.KindOf(err) == cradle.NotFound {
			return nil, nil, refuse("device has no module %.128q in hub %s", k.module, k.hub)
		} else if err != nil {
			return nil, nil, h.storeError("reading a module", err)
		}
		who = m.identity()
	}
	var cas []*x509.Certificate
	if who.auth.Type == iothub.CertificateAuthority {
		if cas, err = h.trustedCAs(ctx, k.hub); err != nil {
			return nil, nil, err
		}
	}
	byPolicy, err := h.byPolicy(ctx, k, who, login, g)
	if err == nil && !byPolicy {
		*g, err = judge(who, login, []string{string(k.hub)}, cas, h.now())
	}
	if err != nil {
		return nil, nil, err
	}
	// Again, with what was proved: a token may have come beside a certificate.
	return d, m, h.blockedLogin(g, k.device)
}

// byPolicy admits who connects in a device's name with a token of a policy that may (DeviceConnect), as gateways do. It is for
// identities with keys only: a certificate cannot be stood in for. False when the token names no policy.
func (h *Hub) byPolicy(ctx context.Context, k key, who identity, login *Login, g *grant) (bool, error) {
	if who.auth.Type != iothub.SAS || login.Token == "" {
		return false, nil
	}
	t, err := sas.Parse(login.Token)
	if err != nil || t.KeyName == "" {
		return false, nil // judge says what is wrong
	}
	*g = grant{by: "SAS token", ends: t.Expiry, policy: t.KeyName}
	path := "/devices/" + string(who.id)
	if who.module != "" {
		path += "/modules/" + string(who.module)
	}
	hosts := []string{string(k.hub)}
	if login.Host != "" {
		hosts = append(hosts, login.Host, withoutPort(login.Host))
	}
	return true, h.Authorize(ctx, k.hub, login.Token, DeviceConnect, hosts, path)
}

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

// promote makes the secondary thumbprint the primary (DESIGN §4.7).
func (h *Hub) promote(ctx context.Context, hub Name, d *Device, m *Module) error {
	var err error
	if m != nil {
		was := m.ETag
		m.Primary, m.Secondary = m.Secondary, ""
		m.ETag, m.Updated = rand.Text(), h.now()
		err = h.store.UpdateModule(ctx, hub, m, was)
	} else {
		was := d.ETag
		d.Primary, d.Secondary = d.Secondary, ""
		d.ETag, d.Updated = rand.Text(), h.now()
		err = h.store.UpdateDevice(ctx, hub, d, was)
	}
	if err != nil {
		return err
	}
	h.log.Info("certificate promoted", "hub", hub, "device", d.ID)
	return nil
}

// blockedLogin asks the status feed by the identity's name and by the certificate's, where that is another (the registry may name
// any certificate by its thumbprint).
func (h *Hub) blockedLogin(g *grant, id cradle.DeviceID) error {
	if g.name != "" && g.name != id {
		if err := h.blocked(g.account, g.name, g.sum); err != nil {
			return err
		}
	}
	return h.blocked(g.account, id, g.sum)
}

func (h *Hub) blocked(account cradle.AccountID, id cradle.DeviceID, sum [32]byte) error {
	if h.status == nil {
		return nil
	}
	if !h.status.Fresh(h.now()) {
		return cradle.Errorf(cradle.Busy, "the status feed is stale: nobody is admitted").
			WithHint("is the provider running, and reachable from the hub?")
	}
	if state, yes := h.status.Blocked(account, id); yes {
		return refuse("device is %s", state)
	}
	if h.status.CertBlocked(sum) {
		return refuse("certificate is revoked")
	}
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

func refuse(format string, args ...any) *cradle.Error {
	return cradle.Errorf(cradle.Unauthorized, format, args...)
}
