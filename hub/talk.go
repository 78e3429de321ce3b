package hub

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Talk is how the processes over one store tell each other what their sessions should know. None of it is kept: who does not
// hear it is as if the other process had said nothing.
type Talk interface {
	// Listen calls heard with what is told, this process's own words too, in one order for all; others with whether there is
	// another listener; lost when words may have been missed; until ctx ends. One goroutine calls them.
	Listen(ctx context.Context, heard func(word string), others func(any bool), lost func()) error
	// Tell tells words of at most MaxWord bytes.
	Tell(ctx context.Context, words ...string) error
}

// MaxWord bounds one word, in bytes.
const MaxWord = 7500

// word is what one process tells the others.
type word struct {
	From    string          `json:"from"`
	About   string          `json:"about"` // one of the constants
	Hub     Name            `json:"hub"`
	Device  cradle.DeviceID `json:"device"`
	Module  iothub.ModuleID `json:"module,omitempty"`
	Session uint64          `json:"session,omitempty"` // of aboutSession
	Version int64           `json:"version,omitempty"` // of aboutDesired
	Patch   json.RawMessage `json:"patch,omitempty"`   // likewise; none: it is too large

	done chan struct{} // closed when it is told, or will not be; nil: nobody waits for that
}

const (
	aboutMail    = "mail"    // a message to the device waits
	aboutEntry   = "entry"   // its entry, or the module's, was changed or removed
	aboutSession = "session" // it has connected: earlier sessions of it end
	aboutDesired = "desired" // its desired properties were changed
)

// talk is what this process has to tell; a goroutine tells it, and there is none while there is nothing.
type talk struct {
	self   string
	ids    atomic.Uint64 // of sessions
	others atomic.Bool   // else nothing is told

	mu      sync.Mutex
	queue   []word
	telling bool
}

// Listen lets sessions of this process know what other processes over the store do, until ctx ends: messages that wait, entries
// that changed, newer connections of the same device, desired properties. Methods are not among it.
func (h *Hub) Listen(ctx context.Context) error {
	return h.store.Listen(ctx, func(s string) { h.heard(ctx, s) }, h.talk.others.Store, func() { h.missed(ctx) })
}

// Alone reports whether no other process over the store listens, as far as this one knows.
func (h *Hub) Alone() bool { return !h.talk.others.Load() }

// close lets who waits for the word go on.
func (w *word) close() {
	if w.done != nil {
		close(w.done)
	}
}

// tell tells a word to the other processes, if there are any, soon.
func (h *Hub) tell(w word) {
	t := &h.talk
	if !t.others.Load() {
		h.untold(w)
		return
	}
	w.From = t.self
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) >= maxNews {
		h.untold(w)
		return
	}
	t.queue = append(t.queue, w)
	if !t.telling {
		t.telling = true
		go h.tellAll()
	}
}

// tellAll tells words until there are no more, in their order.
func (h *Hub) tellAll() {
	t := &h.talk
	for {
		t.mu.Lock()
		batch := t.queue
		t.queue = nil
		if len(batch) == 0 {
			t.telling = false
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
		words := make([]string, 0, len(batch))
		for _, w := range batch {
			b, err := json.Marshal(w)
			if len(b) > MaxWord {
				w.Patch = nil
				b, err = json.Marshal(w)
			}
			if err != nil {
				panic("internal error: " + err.Error())
			}
			words = append(words, string(b))
		}
		ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
		if err := h.store.Tell(ctx, words...); err != nil {
			h.log.Warn("the other replicas of the hub were not told", "words", len(words), "err", err)
			for _, w := range batch {
				h.untold(w)
			}
		} else {
			for _, w := range batch {
				w.close()
			}
		}
		cancel()
	}
}

// untold takes back what was not told: a session of which nobody heard is older than what others say.
func (h *Hub) untold(w word) {
	if w.About != aboutSession {
		return
	}
	if s := h.sessions.get(key{w.Hub, w.Device, w.Module}); s != nil && s.id == w.Session {
		s.told.Store(true)
	}
	w.close()
}

// heard takes a word.
func (h *Hub) heard(ctx context.Context, text string) {
	var w word
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		h.log.Warn("a replica of the hub says what is no word", "err", err)
		return
	}
	k := key{w.Hub, w.Device, w.Module}
	s := h.sessions.get(k)
	if w.From == h.talk.self {
		if w.About == aboutSession && s != nil && s.id == w.Session {
			s.told.Store(true)
		}
		return
	}
	switch w.About {
	case aboutEntry:
		h.entryChanged(ctx, k)
	case aboutMail:
		if s != nil {
			s.wake()
		}
	case aboutSession:
		// Words have one order: where ours about our session comes later, the other's ends by it.
		if s != nil && s.told.Load() {
			h.sessions.remove(s)
			s.end("a newer connection of the device, at another replica, took its place")
		}
	case aboutDesired:
		if s != nil && s.Hears(HearDesired) {
			unlock := h.locks.lock(k)
			defer unlock()
			h.desiredElsewhere(s, &w)
		}
	}
}

// sessionBegan tells the others of a session, so that theirs end. It returns when that is said: a device which connects again
// after its answer, at another replica, is heard of later, and its newer connection stays.
func (h *Hub) sessionBegan(ctx context.Context, s *Session) {
	w := word{About: aboutSession, Hub: s.key.hub, Device: s.key.device, Module: s.key.module, Session: s.id, done: make(chan struct{})}
	h.tell(w)
	select {
	case <-w.done:
	case <-ctx.Done():
	}
}

// entryWritten tells them of a write of an entry.
func (h *Hub) entryWritten(k key) {
	h.tell(word{About: aboutEntry, Hub: k.hub, Device: k.device, Module: k.module})
}

// entryChanged looks again at the sessions of a device, or of a module, by what the store has of it now. A connect that is under
// way starts over.
func (h *Hub) entryChanged(ctx context.Context, k key) {
	if !h.sessions.bump(k) {
		return
	}
	o, err := h.owner(ctx, k.hub, k.device, k.module)
	switch gone := cradle.KindOf(err) == cradle.NotFound; {
	case err != nil && !gone:
		h.log.Warn("a device's entry was changed at another replica and could not be read", "hub", k.hub, "device", k.device, "err", err)
	case k.module == "":
		h.sessions.changed(k, o.device)
	default:
		h.sessions.moduleChanged(k, o.module)
	}
}

// desiredElsewhere hands a change on to the device if it is the next one that it has to hear of. Where one is missing the
// connection ends: a device asks for its twin when it comes again. The caller holds the key's lock.
func (h *Hub) desiredElsewhere(s *Session, w *word) {
	switch next := s.desired == 0 || w.Version == s.desired+1; {
	case w.Version <= s.desired && (s.readTwin || w.Version >= s.firstDesired):
		return
	case next && len(w.Patch) > 0 && s.sink.Desired(w.Version, w.Patch):
		s.heardDesired(w.Version)
		return
	}
	h.sessions.leave(s)
	s.end("its desired properties were changed at another replica")
}

// heardDesired notes up to which version the device knows its desired properties.
func (s *Session) heardDesired(version int64) {
	if s.firstDesired == 0 {
		s.firstDesired = version
	}
	s.desired = version
}

// missed makes good what this process may not have heard.
func (h *Hub) missed(ctx context.Context) {
	h.log.Warn("the hub's other replicas could not be heard for a while: every session is looked at again")
	for _, s := range h.sessions.all() {
		if ctx.Err() != nil {
			return
		}
		h.entryChanged(ctx, s.key)
		s.wake()
		if s.Hears(HearDesired) {
			unlock := h.locks.lock(s.key)
			t, err := h.readTwin(ctx, s.key.hub, s.key.device, s.key.module)
			if err == nil && s.desired != 0 && t.Desired.Version > s.desired {
				err = errors.New("missed a change")
			}
			unlock()
			if err != nil {
				h.sessions.leave(s)
				s.end("its desired properties may have been changed at another replica")
			}
		}
	}
}
