package hub

import (
	"context"
	"crypto/rand"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Outcome is what became of a message to a device. The values are Azure's status codes; they are stored.
type Outcome int

// The outcomes.
const (
	Completed         Outcome = iota // the device took it
	Expired                          // nobody took it in time
	DeliveredTooOften                // handed over iothub.MaxDeliveries times, and never acknowledged
	RejectedByDevice                 // over HTTPS; MQTT has no word for it
	ThrownAway                       // by DELETE /devices/{id}/commands
)

// String is Azure's description.
func (o Outcome) String() string {
	switch o {
	case Completed:
		return "Success"
	case Expired:
		return "Expired"
	case DeliveredTooOften:
		return "DeliveryCountExceeded"
	case RejectedByDevice:
		return "Rejected"
	case ThrownAway:
		return "Purged"
	}
	return "outcome " + strconv.Itoa(int(o))
}

// Ack says of which outcomes a message's sender wants to hear, as bits; stored.
type Ack int

// What iothub-ack asks for: positive is the first, negative the second, full both, none neither.
const (
	AckSuccess Ack = 1 << iota
	AckFailure
)

// Wants reports whether the sender is to hear of an outcome.
func (a Ack) Wants(o Outcome) bool {
	if o == Completed {
		return a&AckSuccess != 0
	}
	return a&AckFailure != 0
}

// ackOf reads iothub-ack of a message's properties; Invalid.
func ackOf(b iothub.Bag) (Ack, error) {
	switch v, _ := b.Get(iothub.PropAck); v {
	case "", "none":
		return 0, nil
	case "positive":
		return AckSuccess, nil
	case "negative":
		return AckFailure, nil
	case "full":
		return AckSuccess | AckFailure, nil
	default:
		return 0, cradle.Errorf(cradle.Invalid, "%s %.40q is none of none, positive, negative, full", iothub.PropAck, v)
	}
}

// Feedback tells a sender what became of a message.
type Feedback struct {
	Message    string // the message's id, as its sender gave it; may be empty
	Device     cradle.DeviceID
	Generation string // of the device
	Outcome    Outcome
	At         time.Time // when it happened; of an expired message when it ended
}

// How feedback is kept. It ends with its device, as Azure's does.
const (
	FeedbackLife  = 48 * time.Hour // Azure's longest
	FeedbackLock  = time.Minute    // for who received it
	FeedbackBatch = 100            // records in one answer
	MaxFeedback   = 500            // records of one device; the oldest go
)

// Feedbacks keeps feedback until the back end has taken it; the contract is Store's. The mailbox puts it in, in the transactions
// that end messages.
type Feedbacks interface {
	// TakeFeedback locks the oldest FeedbackBatch records of a hub that are free, until a time, and returns them; messages
	// that have expired are among them. Records older than FeedbackLife are gone.
	TakeFeedback(ctx context.Context, hub Name, now time.Time, lock string, until time.Time) ([]Feedback, error)
	// SettleFeedback removes the records with a lock; NotFound when there are none.
	SettleFeedback(ctx context.Context, hub Name, lock string) error
	// ReleaseFeedback frees them; NotFound.
	ReleaseFeedback(ctx context.Context, hub Name, lock string) error
}

// ReceiveFeedback gives the oldest feedback that nobody has, and its lock, which ends after FeedbackLock: then it comes again.
// None when there is none.
func (h *Hub) ReceiveFeedback(ctx context.Context, hub Name) ([]Feedback, string, error) {
	now, lock := h.now(), rand.Text()
	fs, err := h.store.TakeFeedback(ctx, hub, now, lock, now.Add(FeedbackLock))
	return fs, lock, h.storeError("taking feedback", err)
}

// CompleteFeedback removes feedback that was received.
func (h *Hub) CompleteFeedback(ctx context.Context, hub Name, lock string) error {
	return h.unlock(lock, func() error { return h.store.SettleFeedback(ctx, hub, lock) })
}

// AbandonFeedback lets it come again at once.
func (h *Hub) AbandonFeedback(ctx context.Context, hub Name, lock string) error {
	return h.unlock(lock, func() error { return h.store.ReleaseFeedback(ctx, hub, lock) })
}
