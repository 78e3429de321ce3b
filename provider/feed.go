package provider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle/protocol/status"
)

// feedSignal wakes readers of the feed that wait for news.
type feedSignal struct {
	mu      sync.Mutex
	ch      chan struct{}
	changes atomic.Uint64 // how often notify was called
}

func (f *feedSignal) init() { f.ch = make(chan struct{}) }

func (f *feedSignal) wait() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ch
}

func (f *feedSignal) notify() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes.Add(1)
	close(f.ch)
	f.ch = make(chan struct{})
}

// After answers a reader of the status feed (status.Source): at once when there is news or it asks for what is known now, else
// after status.Heartbeat. News of another replica is found within the heartbeat too.
func (p *Provider) After(ctx context.Context, seq int64, now bool) (status.Envelope, error) {
	if err := p.openAll(); err != nil {
		return status.Envelope{}, err
	}
	wake := p.feed.wait() // before the read, so that nothing falls between
	events, err := p.store.FeedAfter(ctx, seq, status.MaxEvents)
	if err != nil {
		return status.Envelope{}, err
	}
	if len(events) == 0 && !now {
		t := time.NewTimer(status.Heartbeat)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return status.Envelope{}, ctx.Err()
		case <-wake:
		case <-t.C:
		}
		if events, err = p.store.FeedAfter(ctx, seq, status.MaxEvents); err != nil {
			return status.Envelope{}, err
		}
	}
	s := status.Statement{Time: p.now(), After: seq, Newest: seq, Events: make([]status.Event, 0, len(events))}
	for _, e := range events {
		s.Newest = e.Seq
		s.Events = append(s.Events, status.Event{Seq: e.Seq, Account: e.Account, Device: e.Device, State: e.State,
			Epoch: e.Epoch, Reason: e.Reason, At: e.At, Certificate: e.Certificate, Released: e.Released})
	}
	if len(events) == status.MaxEvents {
		s.Newest++ // there may be more: the reader asks again before it calls itself fresh
	}
	return status.Sign(s, p.feedKey)
}

func hexDigest(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
