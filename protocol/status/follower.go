package status

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// Source answers what comes after a number; it waits up to Heartbeat for news unless it is asked what is known now.
type Source interface {
	After(ctx context.Context, seq int64, now bool) (Envelope, error)
}

// HTTPSource reads GET {URL}?after=N&now=true, as the provider serves it under /status/v1/feed.
type HTTPSource struct {
	HTTP *http.Client
	URL  string
}

// After implements Source.
func (h HTTPSource) After(ctx context.Context, seq int64, now bool) (Envelope, error) {
	var e Envelope
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.URL+"?after="+strconv.FormatInt(seq, 10)+"&now="+strconv.FormatBool(now), nil)
	if err != nil {
		return e, err
	}
	resp, err := h.HTTP.Do(req)
	if err != nil {
		return e, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return e, fmt.Errorf("status feed: %s", resp.Status)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 2*MaxBody)).Decode(&e)
	return e, err
}

type device struct {
	account cradle.AccountID
	id      cradle.DeviceID
}

// Follower keeps the newest known standing of devices. Its methods are safe for concurrent use.
type Follower struct {
	source Source
	key    ed25519.PublicKey
	log    *slog.Logger
	now    func() time.Time
	change func(Event)

	mu      sync.RWMutex
	seq     int64
	fresh   time.Time // our clock when the newest statement came
	blocked map[device]Event
	certs   map[string]bool // SHA-256, hexadecimal
}

// NewFollower makes a follower that starts from the feed's beginning: the feed holds only changes by
// operators, so it is short. change (may be nil) is called for every event in order, from Run's goroutine.
func NewFollower(source Source, key ed25519.PublicKey, log *slog.Logger, change func(Event)) *Follower {
	return &Follower{source: source, key: key, log: log, now: time.Now, change: change, blocked: map[device]Event{}, certs: map[string]bool{}}
}

// Run follows until ctx ends. A source that fails is asked again every half second; what is known stays.
func (f *Follower) Run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		err := f.step(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil && !failing {
			f.log.Warn("status feed unreachable", "err", err)
		} else if err == nil && failing {
			f.log.Info("status feed is back")
		}
		failing = err != nil
		if failing {
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
	return nil
}

func (f *Follower) step(ctx context.Context) error {
	f.mu.RLock()
	after, first := f.seq, f.fresh.IsZero()
	f.mu.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, 10*Heartbeat)
	defer cancel()
	e, err := f.source.After(ctx, after, first)
	if err != nil {
		return err
	}
	s, err := Verify(e, f.key, after)
	if err != nil {
		return err
	}
	// A replay of an old statement would have the right number but an old time.
	if age := f.now().Sub(s.Time); age > StaleAfter || age < -StaleAfter {
		return cradle.Errorf(cradle.Unauthorized, "status statement was signed %v ago by this clock", age.Round(time.Second))
	}
	f.apply(s)
	return nil
}

func (f *Follower) apply(s *Statement) {
	f.mu.Lock()
	for _, ev := range s.Events {
		if ev.Certificate != "" && ev.Released {
			delete(f.certs, ev.Certificate)
		} else if ev.Certificate != "" {
			f.certs[ev.Certificate] = true
		} else if ev.State.Blocked() {
			f.blocked[device{ev.Account, ev.Device}] = ev
		} else {
			delete(f.blocked, device{ev.Account, ev.Device})
		}
		f.seq = ev.Seq
	}
	if f.seq == s.Newest { // all caught up
		f.fresh = f.now()
	}
	f.mu.Unlock()
	if f.change != nil {
		for _, ev := range s.Events {
			if ev.Device == "" { // about nothing: a number that was lost with a store
				continue
			}
			f.change(ev)
		}
	}
}

// Blocked reports whether the device may not work, and its state.
func (f *Follower) Blocked(account cradle.AccountID, id cradle.DeviceID) (cradle.DeviceState, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	ev, ok := f.blocked[device{account, id}]
	return ev.State, ok
}

// CertBlocked reports whether one certificate, by SHA-256 of its DER, may not be used.
func (f *Follower) CertBlocked(sum [32]byte) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.certs) > 0 && f.certs[hex.EncodeToString(sum[:])]
}

// Fresh reports whether the newest statement is young enough to admit new work.
func (f *Follower) Fresh(now time.Time) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return !f.fresh.IsZero() && now.Sub(f.fresh) < StaleAfter
}

// Seq returns the newest number applied.
func (f *Follower) Seq() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.seq
}

// Newest is when the newest statement came, by our clock; zero before the first.
func (f *Follower) Newest() time.Time {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.fresh
}
