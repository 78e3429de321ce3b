package hub

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Limits of telemetry.
const (
	MaxBody   = 256 << 10 // of one message, in bytes (Azure)
	MaxEvents = 1000      // that one read returns
	maxGroup  = 512       // events in one transaction
	groupSize = 2 << 20   // bytes of bodies from which a group takes no more
)

// Message is telemetry as a device sends it.
type Message struct {
	Properties iothub.Bag
	Body       []byte
}

// Append stores messages of the session's device, in order. They are durable when it returns nil; on
// any error each may or may not be stored (Busy: try again, on a new connection).
func (s *Session) Append(ctx context.Context, ms ...Message) error {
	if s.gone.Load() {
		return refuse("session was dropped")
	}
	return s.hub.append(ctx, s.intake, s.key, ms)
}

// Append stores messages of a device or module that has no session, as Session.Append does.
func (h *Hub) Append(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID, ms ...Message) error {
	return h.append(ctx, h.intake(hub), key{hub, device, module}, ms)
}

func (h *Hub) append(ctx context.Context, in *intake, k key, ms []Message) error {
	now := h.now().UTC().Truncate(time.Microsecond)
	events := make([]Event, len(ms))
	for i, m := range ms {
		if len(m.Body) > MaxBody {
			return cradle.Errorf(cradle.TooLarge, "message of %d bytes, at most %d", len(m.Body), MaxBody)
		}
		events[i] = Event{Device: k.device, Enqueued: now, Properties: sentBy(m.Properties, k.module), Body: m.Body}
	}
	if err := in.append(ctx, events); err != nil {
		return h.storeError("appending events", err)
	}
	return nil
}

// sentBy puts the module that sent a message into its properties, where no sender can put it, nor say that it is no telemetry.
func sentBy(b iothub.Bag, module iothub.ModuleID) iothub.Bag {
	b = slices.DeleteFunc(b, func(p iothub.Property) bool {
		return p.Name == iothub.PropModule || p.Name == iothub.PropSender || p.Name == iothub.PropSource
	})
	if module != "" {
		b = append(b, iothub.Property{Name: iothub.PropModule, Value: string(module)})
	}
	return b
}

// intake groups the events of one hub's connections into few transactions: while one is being
// committed the next gathers. There is no goroutine of its own; whoever opens a group commits it.
type intake struct {
	store Store
	hub   Name

	commit sync.Mutex // held while a group is committed

	mu   sync.Mutex
	open *group        // takes more events; nil when the next one must open a group
	news chan struct{} // closed and replaced when events were committed
}

type group struct {
	events []Event
	size   int
	done   chan struct{}
	err    error // set before done is closed
}

func (h *Hub) intake(name Name) *intake {
	h.mu.Lock()
	defer h.mu.Unlock()
	in := h.intakes[name]
	if in == nil {
		in = &intake{store: h.store, hub: name, news: make(chan struct{})}
		h.intakes[name] = in
	}
	return in
}

// commitTimeout bounds one transaction; a store that takes longer is as good as gone.
const commitTimeout = 30 * time.Second

func (in *intake) append(ctx context.Context, events []Event) error {
	in.mu.Lock()
	g, leader := in.open, false
	if g == nil {
		g, leader = &group{done: make(chan struct{})}, true
		in.open = g
	}
	g.events = append(g.events, events...)
	for i := range events {
		g.size += len(events[i].Body)
	}
	if len(g.events) >= maxGroup || g.size >= groupSize {
		in.open = nil
	}
	in.mu.Unlock()
	if !leader {
		select {
		case <-g.done:
			return g.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	in.commit.Lock() // waits for the group before
	in.mu.Lock()
	if in.open == g {
		in.open = nil
	}
	in.mu.Unlock()
	// Others wait for this group: it is committed even if the one who opened it hangs up.
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	g.err = in.store.AppendEvents(cctx, in.hub, g.events)
	cancel()
	in.commit.Unlock()
	close(g.done)
	if g.err == nil {
		in.noted(g.events)
	}
	return g.err
}

// noted tells who follows the stream that it has more.
func (in *intake) noted(es []Event) {
	if len(es) == 0 {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	close(in.news)
	in.news = make(chan struct{})
}

// Events reads up to limit (0: MaxEvents) events behind a cursor, oldest first.
func (h *Hub) Events(ctx context.Context, hub Name, after Cursor, limit int) ([]Event, error) {
	if limit <= 0 || limit > MaxEvents {
		limit = MaxEvents
	}
	es, err := h.store.Events(ctx, hub, after, limit)
	return es, h.storeError("reading events", err)
}

// Scan calls fn with the events behind a cursor, in order, up to those that were there when it began.
func (h *Hub) Scan(ctx context.Context, hub Name, after Cursor, fn func([]Event) error) error {
	start := h.now()
	for {
		es, err := h.Events(ctx, hub, after, MaxEvents)
		if err != nil {
			return err
		}
		if err := fn(es); err != nil || len(es) == 0 || es[len(es)-1].Enqueued.After(start) {
			return err
		}
		after = es[len(es)-1].Cursor
	}
}

// pollEvery is how late events are seen that another process took in.
const pollEvery = 500 * time.Millisecond

// Follow calls fn with the events behind a cursor, in order, as they come, until ctx ends or fn fails.
// fn is called with none about every pollEvery while there is nothing new.
func (h *Hub) Follow(ctx context.Context, hub Name, after Cursor, fn func([]Event) error) error {
	in := h.intake(hub)
	for {
		in.mu.Lock()
		news := in.news // taken before reading, so that nothing is missed
		in.mu.Unlock()
		es, err := h.Events(ctx, hub, after, MaxEvents)
		if err != nil {
			return err
		}
		if err := fn(es); err != nil {
			return err
		}
		if len(es) > 0 {
			after = es[len(es)-1].Cursor
			continue
		}
		t := time.NewTimer(pollEvery)
		select {
		case <-news:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		t.Stop()
	}
}
