package hub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Session is one connected device.
type Session struct {
	hub      *Hub
	intake   *intake
	key      key
	account  cradle.AccountID
	cred     credential
	sum      [32]byte // SHA-256 of the certificate
	notAfter time.Time
	since    time.Time
	drop     func(reason string)
	gone     atomic.Bool // dropped; takes nothing more
}

// Device returns who is connected.
func (s *Session) Device() cradle.DeviceID { return s.key.device }

// Left is the time until the certificate ends, and with it the session: whoever holds the connection
// closes it then.
func (s *Session) Left() time.Duration { return s.notAfter.Sub(s.hub.now()) }

// connectRetries bounds how often a connect starts over because the registry moved under it.
const connectRetries = 10

// Connect admits a device to a hub, or says why not: Unauthorized (the device or its certificate may not),
// Busy (the status feed is stale, or the store does not answer). An older session of the same device is
// dropped. drop is called at most once, from any goroutine, and must not block; it is not called by End.
// A refusal changes nothing.
func (h *Hub) Connect(ctx context.Context, hub Name, id cradle.DeviceID, cert *x509.Certificate, drop func(reason string)) (*Session, error) {
	now := h.now()
	if cert == nil {
		return nil, refuse("no client certificate").WithHint("the device connects with its operational certificate")
	}
	if cert.Subject.CommonName != string(id) {
		return nil, refuse("certificate is for %.100q, not for device %.100q", cert.Subject.CommonName, id)
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, refuse("certificate is valid from %s to %s, now is %s",
			cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	s := &Session{hub: h, key: key{hub: hub, device: id}, cred: credentialOf(cert), sum: sha256.Sum256(cert.Raw), notAfter: cert.NotAfter, since: now, drop: drop}
	if o := cert.Subject.Organization; len(o) == 1 {
		s.account = cradle.AccountID(o[0])
	}
	blocked := func() error { return h.blocked(s.account, id, s.sum) }
	if err := blocked(); err != nil {
		return nil, err
	}
	s.intake = h.intake(hub)
	for range connectRetries {
		version := h.sessions.version(s.key)
		d, err := h.store.Device(ctx, hub, id)
		if cradle.KindOf(err) == cradle.NotFound {
			return nil, refuse("device is not registered in hub %s", hub)
		} else if err != nil {
			return nil, h.storeError("reading a device", err)
		}
		if d.Disabled {
			return nil, refuse("device is disabled: %s", d.Reason)
		}
		switch d.slot(s.cred) {
		case 0:
			return nil, refuse("certificate %.16s… is not the device's", s.cred.sha256).
				WithHint("the registry knows %.16s… and %.16s…", d.Primary, d.Secondary)
		case 2:
			err := h.promote(ctx, hub, d)
			if cradle.KindOf(err) == cradle.Conflict || cradle.KindOf(err) == cradle.NotFound {
				continue
			} else if err != nil {
				return nil, h.storeError("promoting a certificate", err)
			}
			version = h.sessions.changed(s.key, d) // ends the session of the certificate before
		}
		ok, err := h.sessions.enter(s, version, blocked)
		if err != nil {
			return nil, err
		}
		if ok {
			return s, nil
		}
	}
	return nil, cradle.Errorf(cradle.Busy, "the registry entry of the device keeps changing")
}

// promote makes the secondary thumbprint the primary (DESIGN §4.7).
func (h *Hub) promote(ctx context.Context, hub Name, d *Device) error {
	was := d.ETag
	d.Primary, d.Secondary = d.Secondary, ""
	d.ETag, d.Updated = rand.Text(), h.now()
	if err := h.store.UpdateDevice(ctx, hub, d, was); err != nil {
		return err
	}
	h.log.Info("certificate promoted", "hub", hub, "device", d.ID, "thumbprint", d.Primary)
	return nil
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
	if state, yes := h.status.Blocked(account, id); yes {
		h.sessions.dropDevice(account, id, "device is "+string(state), func(*Session) bool { return true })
		return
	}
	h.sessions.dropDevice(account, id, "certificate is revoked", func(s *Session) bool { return h.status.CertBlocked(s.sum) })
}

// Connected counts this process's sessions.
func (h *Hub) Connected() int { return h.sessions.len() }

// End takes the session out; nothing happens when it was dropped before.
func (s *Session) End() { s.hub.sessions.leave(s) }

func (s *Session) end(reason string) {
	if !s.gone.Swap(true) {
		s.drop(reason)
	}
}

func refuse(format string, args ...any) *cradle.Error {
	return cradle.Errorf(cradle.Unauthorized, format, args...)
}

// key names who is connected.
type key struct {
	hub    Name
	device cradle.DeviceID
	module iothub.ModuleID // empty: the device itself
}

// shards of the session table: by device, so that dropDevice finds one device's sessions of all hubs in one.
const shards = 64

type table struct {
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu       sync.Mutex
	version  uint64 // counts registry changes of this shard's devices
	sessions map[key]*Session
}

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].sessions = map[key]*Session{}
	}
}

func (t *table) shard(id cradle.DeviceID) *shard {
	return &t.shards[maphash.String(t.seed, string(id))%shards]
}

func (t *table) version(k key) uint64 {
	sh := t.shard(k.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.version
}

// enter puts s in the place of an older session, unless the registry changed since version was read
// (false: start over) or the feed blocks the device. Whoever changes the registry or the feed does so
// first and looks into the table afterwards; so either he finds s here, or s finds the change.
func (t *table) enter(s *Session, version uint64, blocked func() error) (bool, error) {
	sh := t.shard(s.key.device)
	sh.mu.Lock()
	if sh.version != version {
		sh.mu.Unlock()
		return false, nil
	}
	if err := blocked(); err != nil {
		sh.mu.Unlock()
		return false, err
	}
	old := sh.sessions[s.key]
	sh.sessions[s.key] = s
	sh.mu.Unlock()
	if old != nil {
		old.end("a newer connection of the device took its place")
	}
	return true, nil
}

// changed notes that the entry is d now (nil: deleted), drops a session that d does not admit, and
// returns the new version.
func (t *table) changed(k key, d *Device) uint64 {
	sh := t.shard(k.device)
	sh.mu.Lock()
	sh.version++
	version := sh.version
	s, reason := sh.sessions[k], ""
	switch {
	case s == nil:
	case d == nil:
		reason = "device was removed from the registry"
	case d.Disabled:
		reason = "device was disabled: " + d.Reason
	case d.slot(s.cred) == 0:
		reason = "certificate was replaced in the registry"
	}
	if reason != "" {
		delete(sh.sessions, k)
	}
	sh.mu.Unlock()
	if reason != "" {
		s.end(reason)
	}
	return version
}

// moduleChanged notes that a module's entry was written, and drops its session if there is a reason to.
func (t *table) moduleChanged(k key, reason string) {
	sh := t.shard(k.device)
	sh.mu.Lock()
	sh.version++
	s := sh.sessions[k]
	if reason != "" {
		delete(sh.sessions, k)
	}
	sh.mu.Unlock()
	if s != nil && reason != "" {
		s.end(reason)
	}
}

func (t *table) dropDevice(account cradle.AccountID, id cradle.DeviceID, reason string, which func(*Session) bool) {
	sh := t.shard(id)
	var out []*Session
	sh.mu.Lock()
	for k, s := range sh.sessions {
		if k.device == id && s.account == account && which(s) {
			out = append(out, s)
			delete(sh.sessions, k)
		}
	}
	sh.mu.Unlock()
	for _, s := range out {
		s.end(reason)
	}
}

func (t *table) get(k key) *Session {
	sh := t.shard(k.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.sessions[k]
}

func (t *table) leave(s *Session) {
	sh := t.shard(s.key.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.sessions[s.key] == s {
		delete(sh.sessions, s.key)
	}
}

func (t *table) len() int {
	n := 0
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		n += len(sh.sessions)
		sh.mu.Unlock()
	}
	return n
}
