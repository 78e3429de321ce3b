package provisioning

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// Register starts (or joins) an operation that assigns the caller to a hub. When the registration and the order to tell
// the hub are durable, it waits up to ask.Hold for what becomes of it, as Operation does; without one it returns at once. A
// stale status feed is cradle.Busy: nobody is admitted who may have been revoked.
func (s *Service) Register(ctx context.Context, c *Caller, ask Ask) (Registration, error) {
	now := s.now()
	if s.feed != nil && !s.feed.Fresh(now) {
		return Registration{}, cradle.Errorf(cradle.Busy, "this service has not heard of revocations for too long to admit devices").
			WithHint("try again; if it lasts, the operator must look at the credential provider's status feed")
	}
	var news *waiter
	if ask.Hold > 0 { // before the delivery can end
		news = s.waiters.on(c.ID)
	}
	r, ds, err := s.change(ctx, c, s.admission(ask), (*admission).register)
	s.outbox.offer(ds)
	if err != nil || ask.Hold <= 0 {
		s.waiters.off(c.ID, news)
		return r, err
	}
	return s.await(ctx, c, r.Operation, ask.Hold, news, &r)
}

// The bounds of change.
const (
	reconsiderations = 4 // how often a device is authenticated anew because its enrolment changed under our hands
	askTries         = 3 // how often a rule is asked again because the enrolment or the device's hub changed meanwhile
)

func (s *Service) admission(ask Ask) admission {
	return admission{operation: newOperation(), ask: ask, now: s.time(), hubs: s.table.Load().alloc, issues: s.issuer != nil}
}

// change applies a step that rests on what admitted a caller. When that has changed, who it is is decided anew.
func (s *Service) change(ctx context.Context, c *Caller, a admission, step func(*admission, *Registration, Enrolled) (Outcome, error)) (Registration, []Delivery, error) {
	asked := 0
	for range reconsiderations + askTries {
		a.by = c
		r, ds, err := s.store.Change(ctx, c.ID, c.Group, func(cur *Registration, by Enrolled) (Outcome, error) { return step(&a, cur, by) }, s.outbox.lease())
		var u *unanswered
		switch {
		case errors.As(err, &u) && asked < askTries:
			// A rule is asked outside of the transaction, which is then begun anew with its answer.
			a.answer = s.ask(ctx, u)
			asked++
		case !errors.Is(err, errReconsider):
			return r, ds, err
		default:
			if err := s.reloadGroups(ctx, c.roll); err != nil {
				return Registration{}, nil, err
			}
			if c, err = s.authenticate(ctx, c.ID, c.shown, s.groups.now()); err != nil {
				return Registration{}, nil, err
			}
		}
	}
	return Registration{}, nil, cradle.Errorf(cradle.Busy, "the enrolment of device %q keeps changing", c.ID)
}

// approved lets a registration go on that waited for an approval which has been given meanwhile; else it is returned
// as it is.
func (s *Service) approved(ctx context.Context, c *Caller, r Registration) (Registration, error) {
	if !r.Waits() || c.Waits != "" {
		return r, nil
	}
	r, ds, err := s.change(ctx, c, s.admission(Ask{Payload: []byte(r.Payload)}), (*admission).approve)
	s.outbox.offer(ds)
	return r, err
}

// Operation answers a poll. While the registration is assigning and its hub has not failed, it waits up to hold
// for a decision, so that a device needs one poll and not several. The store is not asked for what this process is
// about to write there.
func (s *Service) Operation(ctx context.Context, c *Caller, operation string, hold time.Duration) (Registration, error) {
	news := s.waiters.on(c.ID)
	if hub, ok := s.outbox.underWay(c.ID); ok && hold > 0 {
		return s.await(ctx, c, operation, hold, news, &Registration{ID: c.ID, Status: Assigning, Operation: operation, Hub: hub, Move: Move{Asks: hub == ""}})
	}
	return s.await(ctx, c, operation, hold, news, nil)
}

// recheck is how often a wait looks into the store: another replica may deliver, and then only the store tells.
const recheck = 250 * time.Millisecond

// await waits for a decision. It ends news, which began before the registration was as it is known (nil: look).
func (s *Service) await(ctx context.Context, c *Caller, operation string, hold time.Duration, news *waiter, known *Registration) (Registration, error) {
	end := time.Now().Add(hold)
	for {
		var r Registration
		var err error
		if known != nil {
			r, known = *known, nil
		} else {
			r, err = s.Registration(ctx, c.ID)
		}
		if err == nil && (operation == "" || operation != r.Operation && operation != r.PrevOperation) {
			err = cradle.Errorf(cradle.NotFound, "operation %.80q is not one of registration %q", operation, c.ID).
				WithHint("register again")
		}
		if err == nil && r.Blocked != "" {
			err = refuseBlocked(r.ID, r.Blocked)
		}
		if err == nil {
			r, err = s.approved(ctx, c, r)
		}
		left := time.Until(end)
		if err != nil || r.Status != Assigning || left <= 0 || c.Waits != "" || s.outbox.troubled(r.Hub) {
			s.waiters.off(c.ID, news)
			return r, err
		}
		t := time.NewTimer(min(left, recheck))
		select {
		case <-news.c:
			if known = news.settled; known != nil && known.Operation != operation {
				known = nil // settled before this operation began
			}
		case <-t.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		t.Stop()
		s.waiters.off(c.ID, news)
		if err != nil {
			return r, err
		}
		news = s.waiters.on(c.ID)
	}
}

// Troubled reports whether the registration waits for a hub that does not answer, or for an approval.
func (s *Service) Troubled(r Registration) bool {
	return r.Status == Assigning && (r.Waits() || s.outbox.troubled(r.Hub))
}

// Registration returns one registration.
func (s *Service) Registration(ctx context.Context, id RegistrationID) (Registration, error) {
	return s.store.Registration(ctx, id)
}

// Registrations returns up to limit of a group's registrations in order of id, after the given id.
func (s *Service) Registrations(ctx context.Context, group string, after RegistrationID, limit int) ([]Registration, error) {
	return s.store.Registrations(ctx, group, after, limit)
}

// DeleteRegistration forgets a registration; ifMatch empty or "*" means any version. The hub's entry
// stays, and the device may register again: to bar it, block it or disable its group.
func (s *Service) DeleteRegistration(ctx context.Context, id RegistrationID, ifMatch string) error {
	return s.store.DeleteRegistration(ctx, id, func(r Registration) error {
		if ifMatch == "" {
			return nil
		}
		return checkETag(ifMatch, r.ETag())
	})
}

// waiters wakes polls of this process when a registration was decided.
type waiters struct {
	mu sync.Mutex
	m  map[RegistrationID]*waiter
}

type waiter struct {
	c       chan struct{}
	n       int
	settled *Registration // valid after c is closed; nil: look
}

// on must be followed by off with what it returned.
func (w *waiters) on(id RegistrationID) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[RegistrationID]*waiter{}
	}
	x := w.m[id]
	if x == nil {
		x = &waiter{c: make(chan struct{})}
		w.m[id] = x
	}
	x.n++
	return x
}

func (w *waiters) off(id RegistrationID, x *waiter) {
	if x == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.n--; x.n == 0 && w.m[id] == x {
		delete(w.m, id)
	}
}

func (w *waiters) wake(id RegistrationID, settled *Registration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.m[id]; x != nil {
		x.settled = settled
		close(x.c)
		delete(w.m, id)
	}
}
