package hub

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle/protocol/iothub"
)

// ID names an event for good: a reader who gets it twice knows it by that. The time in it tells it from another
// event under the same cursor after the store was restored from a backup.
func (e *Event) ID(hub Name) string {
	return fmt.Sprintf("%s-%d-%s", hub, e.Cursor, strconv.FormatInt(e.Enqueued.UnixMicro(), 36))
}

// Wire is the event as readers get it.
func (e *Event) Wire(hub Name) *iothub.Event {
	w := iothub.NewEvent(iothub.Cursor(strconv.FormatInt(int64(e.Cursor), 10)), e.Device, e.Enqueued, e.Properties, e.Body)
	w.ID = e.ID(hub)
	return w
}

// Stream keeps what is to be known of a hub's events beside themselves; the contract is Store's.
type Stream interface {
	// Stream says what is stored.
	Stream(ctx context.Context, hub Name) (*StreamState, error)
	// TrimEvents deletes up to limit of the oldest events, as long as they are to go.
	TrimEvents(ctx context.Context, hub Name, t Trim, limit int) (Trimmed, error)
	// Relays lists who passes a hub's events on, by name.
	Relays(ctx context.Context, hub Name) ([]Relay, error)
	// PutRelay stores how far a relay came and when it was at work; the cursor never goes back.
	PutRelay(ctx context.Context, hub Name, r Relay) error
	// Lease takes or keeps the right to do some work until a time; false when another holder has it.
	Lease(ctx context.Context, name, holder string, now, until time.Time) (bool, error)
}

// StreamState is what a hub has of events.
type StreamState struct {
	First  Cursor    // oldest event; 0 when there is none
	Last   Cursor    // newest event ever stored
	Oldest time.Time // when First was enqueued
	Bytes  int64     // of bodies and properties, and 64 for each event
}

// Trim says which events are to go: those enqueued before a time up to cursor Held, and whatever is more than Size.
type Trim struct {
	Before time.Time
	Held   Cursor // a relay has not passed on what is behind it
	Size   int64  // bytes, as StreamState counts them; 0: no bound
}

// Trimmed counts events that went.
type Trimmed struct {
	Events int
	Held   int // among them, behind Trim.Held
}

// Relay is one who passes a hub's events on to another system.
type Relay struct {
	Name   string
	Cursor Cursor    // passed on up to here
	Seen   time.Time // when it was last at work
}
