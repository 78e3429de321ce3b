package hub

import (
	"context"
	"math"
	"time"

	"github.com/cradle-iot/cradle"
)

// Retention bounds what is kept of each hub's events. The zero value keeps everything.
type Retention struct {
	Age  time.Duration // events older than this go, unless a relay has not passed them on; 0: no bound
	Size int64         // bytes as StreamState counts them; the oldest go, passed on or not; 0: no bound
}

// How often Keep looks.
const (
	trimMost  = time.Minute
	trimLeast = time.Second
)

// relayGone is how long a relay may have been silent and still holds events that are too old.
const relayGone = 24 * time.Hour

// Keep trims the events of all hubs from time to time, until ctx ends. Of several processes with one store, which
// have different replica names, one does it at a time. Devices wait for one small piece at most.
func (h *Hub) Keep(ctx context.Context, r Retention, replica string) error {
	if r == (Retention{}) {
		<-ctx.Done()
		return nil
	}
	every := trimMost
	if r.Age > 0 {
		every = min(max(r.Age/20, trimLeast), trimMost)
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		h.trimAll(ctx, r, replica, every)
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// trimAll trims each hub that this process has the lease of. What does not work today may work the next time.
func (h *Hub) trimAll(ctx context.Context, r Retention, replica string, every time.Duration) {
	names, err := h.store.Hubs(ctx)
	if err != nil {
		h.storeError("listing hubs", err)
		return
	}
	for _, name := range names {
		now := h.now()
		mine, err := h.store.Lease(ctx, "trim/"+string(name), replica, now, now.Add(every+leaseSlack))
		if err == nil && mine {
			_, err = h.Trim(ctx, name, r)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("events were not trimmed", "hub", name, "err", err)
		}
	}
}

// leaseSlack is for a holder that is late.
const leaseSlack = 30 * time.Second

// Trim deletes the events of a hub that need not be kept, in small pieces, and returns how many.
func (h *Hub) Trim(ctx context.Context, hub Name, r Retention) (Trimmed, error) {
	relays, err := h.store.Relays(ctx, hub)
	if err != nil {
		return Trimmed{}, h.storeError("reading relays", err)
	}
	now := h.now()
	t := Trim{Size: r.Size, Held: math.MaxInt64}
	if r.Age > 0 {
		t.Before = now.Add(-r.Age)
	}
	for _, relay := range relays {
		if now.Sub(relay.Seen) < max(r.Age, relayGone) {
			t.Held = min(t.Held, relay.Cursor)
		}
	}
	var total Trimmed
	for {
		got, err := h.store.TrimEvents(ctx, hub, t, maxGroup)
		total.Events += got.Events
		total.Held += got.Held
		if err != nil || got.Events < maxGroup {
			h.trimmed(hub, total)
			return total, h.storeError("trimming events", err)
		}
	}
}

// trimmed counts and logs.
func (h *Hub) trimmed(hub Name, t Trimmed) {
	h.mu.Lock()
	sum := h.trims[hub]
	sum.Events += t.Events
	sum.Held += t.Held
	h.trims[hub] = sum
	h.mu.Unlock()
	if t.Events > 0 {
		h.log.Debug("events trimmed", "hub", hub, "events", t.Events)
	}
	if t.Held > 0 {
		h.log.Error("events were lost to a relay: they took up too much and were deleted before it had passed them on", "hub", hub, "events", t.Held,
			"hint", "is the system that it passes them to reachable? keep more with --events-size")
	}
}

// Trimmed counts the events of a hub that this process has deleted since it started.
func (h *Hub) Trimmed(hub Name) Trimmed {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trims[hub]
}

// StreamState says what is stored of a hub's events, and how far its relays are behind.
func (h *Hub) StreamState(ctx context.Context, hub Name) (*StreamState, []Relay, error) {
	st, err := h.store.Stream(ctx, hub)
	if err != nil {
		return nil, nil, h.storeError("reading the state of events", err)
	}
	relays, err := h.store.Relays(ctx, hub)
	return st, relays, h.storeError("reading relays", err)
}

// Lease takes or keeps for a while the right to do some work that one of several processes does; false when another has it.
func (h *Hub) Lease(ctx context.Context, name, replica string, ttl time.Duration) (bool, error) {
	now := h.now()
	mine, err := h.store.Lease(ctx, name, replica, now, now.Add(ttl))
	return mine, h.storeError("taking a lease", err)
}

// Relayed returns how far a relay came; 0 when it is new.
func (h *Hub) Relayed(ctx context.Context, hub Name, relay string) (Cursor, error) {
	relays, err := h.store.Relays(ctx, hub)
	if err != nil {
		return 0, h.storeError("reading relays", err)
	}
	for _, r := range relays {
		if r.Name == relay {
			return r.Cursor, nil
		}
	}
	return 0, nil
}

// SetRelayed stores that a relay has passed on everything up to a cursor and is at work.
func (h *Hub) SetRelayed(ctx context.Context, hub Name, relay string, c Cursor) error {
	if err := cradle.CheckID("relay", relay); err != nil {
		return err
	}
	return h.storeError("storing a relay's place", h.store.PutRelay(ctx, hub, Relay{Name: relay, Cursor: c, Seen: h.now()}))
}
