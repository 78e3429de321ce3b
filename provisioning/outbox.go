package provisioning

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// outbox delivers what the store's outbox holds. A delivery that was just committed is offered to the
// workers directly, already leased, so the usual case costs no extra look into the store; the scan finds
// what is left: deliveries postponed, of a crashed process, or of another replica.
//
// Crash consequences: before the commit nothing happened; after it, and at any step of a delivery, the
// row is still there and its lease runs out; delivering twice is harmless because bringing the hub in
// line is idempotent.
type outbox struct {
	s      *Service
	owner  string
	term   time.Duration
	queues map[lane]chan *Delivery
	kick   chan struct{} // a scan is worth while

	mu     sync.Mutex
	flying map[flight]*Delivery // deliveries of this process, and what was offered meanwhile
	health map[string]*health
}

type flight struct {
	hub string
	id  RegistrationID
}

const (
	scanInterval = 500 * time.Millisecond
	scanBatch    = 256
	callTimeout  = 10 * time.Second // one delivery, all its calls
	retryMax     = 8 * time.Second  // between two probes of a hub that is down, and two tries of one delivery
)

func newOutbox(s *Service, owner string, term time.Duration) *outbox {
	if term <= 0 {
		term = 10 * time.Second
	}
	if owner == "" {
		var id [8]byte
		crand.Read(id[:])
		owner = hex.EncodeToString(id[:])
	}
	o := &outbox{
		s: s, owner: owner, term: max(term, time.Second),
		queues: map[lane]chan *Delivery{}, kick: make(chan struct{}, 1),
		flying: map[flight]*Delivery{}, health: map[string]*health{},
	}
	for _, l := range []lane{own, foreign, asking, issuing} {
		o.queues[l] = make(chan *Delivery, 4096)
	}
	return o
}

// lane is a set of workers: what is slow elsewhere must not hold up this installation's hubs.
type lane int

const (
	own lane = iota
	foreign
	asking
	issuing // deliveries to our own hubs for which a certificate is asked for first: EST may be slow, or hang
)

// workers are the deliveries that a lane has under way at once. Those to our own hubs share commits, there and here: the
// more, the cheaper each.
func (l lane) workers() int {
	switch l {
	case own:
		return 64
	case issuing:
		return 16
	}
	return 8
}

// laneOf says who delivers to a target; ok is false for a hub that is not linked.
func (o *outbox) laneOf(target string) (l lane, ok bool) {
	if target == decisions {
		return asking, o.s.webhook != nil
	}
	h := o.s.hub(target)
	switch {
	case h == nil:
		return 0, false
	case h.link.Kind == LinkBuiltin:
		return own, true
	}
	return foreign, true
}

// laneFor says who makes a delivery.
func (o *outbox) laneFor(d *Delivery) (l lane, ok bool) {
	l, ok = o.laneOf(d.Hub)
	if l == own && d.Registration.Issuance.waits() {
		l = issuing
	}
	return l, ok
}

func (o *outbox) lease() Lease {
	now := o.s.now()
	return Lease{Owner: o.owner, Now: now, Until: now.Add(o.term)}
}

// offer hands leased deliveries to the workers. One that finds no room waits for its lease to end.
func (o *outbox) offer(ds []Delivery) {
	for _, d := range ds {
		lane, ok := o.laneFor(&d)
		if !ok {
			continue // a hub that is not linked any more; the row waits for its return
		}
		o.mu.Lock()
		f := flight{d.Hub, d.Registration.ID}
		if _, ok := o.flying[f]; ok {
			o.flying[f] = &d
			o.mu.Unlock()
			continue
		}
		o.flying[f] = nil
		o.mu.Unlock()
		o.push(lane, &d)
	}
}

// push gives a delivery that is in flight to a lane; where there is no room it ends.
func (o *outbox) push(l lane, d *Delivery) {
	select {
	case o.queues[l] <- d:
	default:
		o.next(flight{d.Hub, d.Registration.ID}, d.Version)
	}
}

// next takes what was offered while the delivery of a version was under way; nil ends the flight.
func (o *outbox) next(f flight, version int64) *Delivery {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := o.flying[f]; d != nil && d.Version > version {
		o.flying[f] = nil
		return d
	}
	delete(o.flying, f)
	return nil
}

func (o *outbox) run(ctx context.Context) {
	var wg sync.WaitGroup
	for l, queue := range o.queues {
		for range l.workers() {
			wg.Go(func() {
				for {
					select {
					case <-ctx.Done():
						return
					case d := <-queue:
						o.fly(ctx, l, *d)
					}
				}
			})
		}
	}
	t := time.NewTicker(scanInterval)
	defer t.Stop()
	for {
		o.scan(ctx)
		select {
		case <-ctx.Done():
			wg.Wait()
			return
		case <-t.C:
		case <-o.kick:
		}
	}
}

// scan leases what is due, hub by hub.
func (o *outbox) scan(ctx context.Context) {
	targets := o.s.hubNames()
	if o.s.webhook != nil {
		targets = append(targets, decisions)
	}
	for _, hub := range targets {
		lane, ok := o.laneOf(hub)
		if !ok {
			continue
		}
		limit := min(scanBatch, cap(o.queues[lane])-len(o.queues[lane]))
		o.mu.Lock()
		if h := o.of(hub); h.failures > 0 {
			limit = min(limit, 1) // a probe
			if o.s.now().Before(h.until) {
				limit = 0
			}
		}
		o.mu.Unlock()
		if limit == 0 {
			continue
		}
		ds, err := o.s.store.Due(ctx, hub, o.lease(), limit)
		if err != nil {
			if ctx.Err() == nil {
				o.s.log.Warn("outbox is not read", "hub", hub, "err", err)
			}
			continue
		}
		o.offer(ds)
		if len(ds) == scanBatch {
			o.wake()
		}
	}
}

func (o *outbox) wake() {
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

// fly carries one delivery to its end: settled, postponed, left to its lease, or with another lane, when it changed into one that
// waits for a certificate.
func (o *outbox) fly(ctx context.Context, by lane, d Delivery) {
	f := flight{d.Hub, d.Registration.ID}
	for {
		if l, ok := o.laneFor(&d); ok && l == issuing && by != issuing {
			o.push(l, &d)
			return
		}
		if again := o.deliver(ctx, d); again != nil {
			d = *again
			continue
		}
		newer := o.next(f, d.Version)
		if newer == nil {
			return
		}
		d = *newer
	}
}

// deliver makes one try; it returns the delivery to be made next when the registration has changed meanwhile.
func (o *outbox) deliver(ctx context.Context, d Delivery) *Delivery {
	if d.Hub == decisions {
		return o.decide(ctx, d)
	}
	s, hub := o.s, o.s.hub(d.Hub)
	if hub == nil { // unlinked on another replica since the row was read
		o.postpone(ctx, d, s.now().Add(retryMax), "hub is not linked")
		return nil
	}
	if o.closed(d.Hub) {
		// The hub is known to be down: no use in waiting for it with every worker.
		o.postpone(ctx, d, s.now(), "hub is not reachable")
		return nil
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r := d.Registration
	var done Settled = func(r Registration) (Registration, []string) { return r, nil }
	var err error
	switch {
	case r.Hub != d.Hub && r.From == d.Hub && r.Blocked == "":
		// The device still moves: its data are taken from here, and delivered has the entry removed.
	case r.Hub != d.Hub && r.From != d.Hub:
		err = removeFrom(call, hub.Registry, r.DeviceID())
	default:
		// The feed may have blocked the device after it was admitted.
		state, blocked := s.blocked(r)
		if blocked && r.Blocked == "" {
			r.Blocked = state
			s.look(r) // which also writes it down
		} else if r.Hub == d.Hub {
			done = delivered(s.time(), nil)
		}
		if r.Hub == d.Hub && r.Blocked == "" && r.Issuance.waits() {
			issued, ierr := s.issue(call, &r)
			if ctx.Err() != nil {
				return nil // as below
			}
			if ierr != nil {
				return o.unissued(ctx, d, ierr)
			}
			r.Issuance, done = issued, issuedThen(issued, done)
		}
		if err = bringInLine(call, hub.Registry, r.entry()); err == nil && r.Blocked == "" {
			err = s.furnish(call, hub, r)
		}
	}
	if ctx.Err() != nil {
		return nil // stopping; the lease ends by itself
	}
	switch kind := cradle.KindOf(err); {
	case err == nil:
		o.well(d.Hub)
	case kind == cradle.Invalid || kind == cradle.TooLarge || errors.Is(err, errSuperseded):
		o.well(d.Hub)
		s.log.Warn("registration failed", "registration", r.ID, "hub", d.Hub, "err", err)
		if r.Hub == d.Hub {
			done = delivered(s.time(), err)
		}
	case kind == cradle.Conflict:
		// Others change the entry all the time; that says nothing about the hub.
		o.postpone(ctx, d, s.now().Add(backoff(d.Attempts)), err.Error())
		return nil
	default:
		o.ill(d.Hub, err)
		o.postpone(ctx, d, s.now().Add(backoff(d.Attempts)), err.Error())
		return nil
	}
	further := 0
	settled, again, err := s.store.Settle(ctx, d, o.lease(), func(r Registration) (Registration, []string) {
		next, deliver := done(r)
		further = len(deliver)
		return next, deliver
	})
	if further > 0 {
		o.wake()
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("delivery is not settled; it is made again", "registration", r.ID, "hub", d.Hub, "err", err)
	}
	if settled != nil && settled.Version == d.Registration.Version {
		settled = nil // unchanged, and so not read again: it may be older than what is stored
	}
	s.waiters.wake(r.ID, settled)
	return again
}

func (o *outbox) postpone(ctx context.Context, d Delivery, due time.Time, reason string) {
	if err := o.s.store.Postpone(ctx, d, o.owner, due, reason); err != nil && ctx.Err() == nil {
		o.s.log.Warn("delivery is not postponed; it waits for its lease to end", "registration", d.Registration.ID, "hub", d.Hub, "err", err)
	}
	o.s.waiters.wake(d.Registration.ID, nil)
}

// underWay finds the hub, in good health, that this process is telling of a registration.
func (o *outbox) underWay(id RegistrationID) (hub string, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.flying[flight{decisions, id}]; ok {
		return "", true
	}
	for _, h := range o.s.table.Load().order {
		if _, ok := o.flying[flight{h.Name, id}]; ok && o.of(h.Name).failures == 0 {
			return h.Name, true
		}
	}
	return "", false
}
