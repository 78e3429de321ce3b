package provisioning

import (
	"context"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// OnBlock takes news of the status feed: a device was blocked (suspended, revoked, retired) or released.
// It returns at once; Run writes it down and has the hub told. What is written is the feed's standing
// at that moment, not the event's: a feed read again from its beginning, as after a restart, walks
// through states long past. That replay is also what catches up with events missed while this process
// was down.
func (s *Service) OnBlock(account cradle.AccountID, device cradle.DeviceID, _ cradle.DeviceState) {
	s.news.add(account, device)
}

// look has a registration's standing written down: by the word of each account whose word counts.
func (s *Service) look(r Registration) {
	s.news.add(r.Account, r.Name())
	if a := r.Issuance.Account; a != "" && a != r.Account {
		s.news.add(a, r.Name())
	}
}

// blocked asks the feed.
func (s *Service) blocked(r Registration) (cradle.DeviceState, bool) {
	if s.feed == nil {
		return "", false
	}
	state, ok := s.feed.Blocked(r.Account, r.Name())
	if !ok && r.Issuance.Account != "" {
		state, ok = s.feed.Blocked(r.Issuance.Account, r.Name())
	}
	return state, ok
}

type feedKey struct {
	account cradle.AccountID
	device  cradle.DeviceID
}

// blockQueue is the set of devices whose standing is to be compared with the feed's.
type blockQueue struct {
	mu   sync.Mutex
	set  map[feedKey]bool
	kick chan struct{}
}

// keep puts a device back, for the next round.
func (q *blockQueue) keep(k feedKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.set == nil {
		q.set = map[feedKey]bool{}
	}
	q.set[k] = true
}

// add puts a device in and starts a round.
func (q *blockQueue) add(account cradle.AccountID, device cradle.DeviceID) {
	q.keep(feedKey{account, device})
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case q.signal() <- struct{}{}:
	default:
	}
}

// signal makes the channel on first use; the lock is held.
func (q *blockQueue) signal() chan struct{} {
	if q.kick == nil {
		q.kick = make(chan struct{}, 1)
	}
	return q.kick
}

func (q *blockQueue) take() (map[feedKey]bool, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	set := q.set
	q.set = nil
	return set, q.signal()
}

// followFeed carries the feed's word to the store, and once after the start, when the feed has caught
// up, looks again at every registration that is written down as blocked.
func (s *Service) followFeed(ctx context.Context) {
	if s.feed == nil {
		return
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	reconciled := false
	for ctx.Err() == nil {
		set, kick := s.news.take()
		for k := range set {
			if err := s.follow(ctx, k); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("status of device is not written down yet", "account", k.account, "device", k.device, "err", err)
				}
				s.news.keep(k)
			}
		}
		if !reconciled && s.feed.Fresh(s.now()) {
			if err := s.reconcile(ctx); err != nil {
				s.log.Warn("blocked registrations are not compared with the status feed yet", "err", err)
			} else {
				reconciled = true
			}
		}
		select {
		case <-ctx.Done():
		case <-kick:
		case <-t.C:
		}
	}
}

// follow writes one device's standing down.
func (s *Service) follow(ctx context.Context, k feedKey) error {
	id, err := ParseRegistrationID(string(k.device))
	if err != nil {
		return nil // no registration can have that name
	}
	state, blocked := s.feed.Blocked(k.account, k.device)
	if !blocked {
		if !s.feed.Fresh(s.now()) {
			// The feed may be in the middle of its history: only one that has caught up releases.
			if s.mayRelease(ctx, id, k.account) {
				s.news.keep(k)
			}
			return nil
		}
		state = cradle.Active
	}
	now := s.time()
	r, ds, err := s.store.Change(ctx, id, "", func(cur *Registration, by Enrolled) (Outcome, error) {
		if cur == nil || !cur.of(k.account) {
			return Outcome{}, nil
		}
		if other, blocked := s.blocked(*cur); blocked { // perhaps by another account's word
			return block(other, now)(cur, by)
		}
		return block(state, now)(cur, by)
	}, s.outbox.lease())
	if cradle.KindOf(err) == cradle.NotFound {
		return nil
	}
	if err == nil && len(ds) > 0 {
		s.log.Info("registration follows the device's status", "registration", r.ID, "account", k.account, "state", state)
		s.outbox.offer(ds)
	}
	return err
}

// mayRelease reports whether a release could change anything; in doubt it does.
func (s *Service) mayRelease(ctx context.Context, id RegistrationID, account cradle.AccountID) bool {
	r, err := s.store.Registration(ctx, id)
	if cradle.KindOf(err) == cradle.NotFound {
		return false
	}
	return err != nil || r.of(account) && r.Blocked == cradle.Suspended
}

// of reports whether an account's word on the device counts for its registration.
func (r *Registration) of(account cradle.AccountID) bool {
	return r.Account == account || account != "" && r.Issuance.Account == account
}

// reconcile compares the registrations that are written down as blocked with the feed.
func (s *Service) reconcile(ctx context.Context) error {
	var after RegistrationID
	for {
		rs, err := s.store.BlockedRegistrations(ctx, after, 500)
		if err != nil {
			return err
		}
		for _, r := range rs {
			if state, ok := s.blocked(r); !ok && r.Blocked == cradle.Suspended || ok && state != r.Blocked {
				s.look(r)
			}
			after = r.ID
		}
		if len(rs) < 500 {
			return nil
		}
	}
}
