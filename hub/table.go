package hub

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// key names who is connected.
type key struct {
	hub    Name
	device cradle.DeviceID
	module iothub.ModuleID // empty: the device itself
}

// shards of the session table: by device, so that dropDevice finds one device's sessions of all hubs in one.
const shards = 64

type table struct {
	gone   func(*Session) // called when a session went out and no newer one took its place
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	mu       sync.Mutex
	version  uint64 // counts registry changes of this shard's devices
	sessions map[key]*Session
	modules  int              // of the sessions
	waiting  map[key]*arrival // who waits for a device that takes method calls
}

// arrival is closed when a device has come.
type arrival struct {
	ch    chan struct{}
	users int
}

func (t *table) init(gone func(*Session)) {
	t.gone = gone
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].sessions, t.shards[i].waiting = map[key]*Session{}, map[key]*arrival{}
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

func (sh *shard) put(s *Session) (old *Session) {
	old = sh.sessions[s.key]
	sh.sessions[s.key] = s
	if old == nil && s.key.module != "" {
		sh.modules++
	}
	return old
}

func (sh *shard) remove(k key) {
	delete(sh.sessions, k)
	if k.module != "" {
		sh.modules--
	}
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
	old := sh.put(s)
	sh.mu.Unlock()
	if old != nil {
		old.end("a newer connection of the device took its place")
	}
	return true, nil
}

// drop takes out the sessions for which why has a reason, and ends them.
func (t *table) drop(sh *shard, ks []key, why func(*Session) string) {
	type ended struct {
		s      *Session
		reason string
	}
	var out []ended
	for _, k := range ks {
		if s := sh.sessions[k]; s != nil {
			if reason := why(s); reason != "" {
				out = append(out, ended{s, reason})
				sh.remove(k)
			}
		}
	}
	sh.mu.Unlock()
	for _, e := range out {
		e.s.end(e.reason)
		t.gone(e.s)
	}
}

// bump makes connects of the device that are under way start over; it reports whether it, or a module of it, has sessions.
func (t *table) bump(k key) bool {
	sh := t.shard(k.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.version++
	if sh.sessions[k] != nil {
		return true
	}
	for other := range sh.sessions {
		if sh.modules > 0 && k.module == "" && other.hub == k.hub && other.device == k.device {
			return true
		}
	}
	return false
}

// all returns the sessions that there are.
func (t *table) all() []*Session {
	var out []*Session
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		out = slices.AppendSeq(out, maps.Values(sh.sessions))
		sh.mu.Unlock()
	}
	return out
}

// changed notes that the device's entry is d now (nil: deleted), drops sessions of it and of its modules that d
// does not admit, and returns the new version.
func (t *table) changed(k key, d *Device) uint64 {
	sh := t.shard(k.device)
	sh.mu.Lock()
	sh.version++
	version := sh.version
	ks := []key{k}
	if sh.modules > 0 && (d == nil || d.Disabled) {
		for other := range sh.sessions {
			if other.hub == k.hub && other.device == k.device && other.module != "" {
				ks = append(ks, other)
			}
		}
	}
	t.drop(sh, ks, func(s *Session) string {
		switch {
		case d == nil:
			return "device was removed from the registry"
		case d.Disabled:
			return "device was disabled: " + d.Reason
		}
		return s.grant.lost(d.identity())
	})
	return version
}

// moduleChanged is changed for a module's entry (nil: deleted).
func (t *table) moduleChanged(k key, m *Module) uint64 {
	sh := t.shard(k.device)
	sh.mu.Lock()
	sh.version++
	version := sh.version
	t.drop(sh, []key{k}, func(s *Session) string {
		if m == nil {
			return "module was removed from the registry"
		}
		return s.grant.lost(m.identity())
	})
	return version
}

// dropAll drops, in every hub, the sessions for which why has a reason; connects that are under way start over.
func (t *table) dropAll(why func(*Session) string) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		sh.version++
		ks := make([]key, 0, len(sh.sessions))
		for k := range sh.sessions {
			ks = append(ks, k)
		}
		t.drop(sh, ks, why)
	}
}

func (t *table) dropDevice(account cradle.AccountID, id cradle.DeviceID, reason string, which func(*Session) bool) {
	sh := t.shard(id)
	sh.mu.Lock()
	var ks []key
	for k, s := range sh.sessions {
		if k.device == id && s.grant.account == account && which(s) {
			ks = append(ks, k)
		}
	}
	t.drop(sh, ks, func(*Session) string { return reason })
}

func (t *table) get(k key) *Session {
	sh := t.shard(k.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.sessions[k]
}

func (t *table) leave(s *Session) {
	if t.remove(s) {
		t.gone(s)
	}
}

// remove is leave where a newer session is elsewhere; it reports whether s was there.
func (t *table) remove(s *Session) bool {
	sh := t.shard(s.key.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	there := sh.sessions[s.key] == s
	if there {
		sh.remove(s.key)
	}
	return there
}

// await returns a channel that is closed when came is called for k; release it.
func (t *table) await(k key) (come <-chan struct{}, release func()) {
	sh := t.shard(k.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	a := sh.waiting[k]
	if a == nil {
		a = &arrival{ch: make(chan struct{})}
		sh.waiting[k] = a
	}
	a.users++
	return a.ch, func() {
		sh.mu.Lock()
		defer sh.mu.Unlock()
		if a.users--; a.users == 0 && sh.waiting[k] == a {
			delete(sh.waiting, k)
		}
	}
}

// came says that k takes method calls now.
func (t *table) came(k key) {
	sh := t.shard(k.device)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if a := sh.waiting[k]; a != nil {
		close(a.ch)
		delete(sh.waiting, k)
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
