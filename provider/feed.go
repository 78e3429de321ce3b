package provider

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// feedSignal wakes readers of the feed that wait for news.
type feedSignal struct {
	mu sync.Mutex
	ch chan struct{}
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
	close(f.ch)
	f.ch = make(chan struct{})
}

// After answers a reader of the status feed (status.Source): at once when there is news, else after
// status.Heartbeat. News of another replica is found within the heartbeat too.
func (p *Provider) After(ctx context.Context, seq int64) (status.Envelope, error) {
	wake := p.feed.wait() // before the read, so that nothing falls between
	events, err := p.store.FeedAfter(ctx, seq, status.MaxEvents)
	if err != nil {
		return status.Envelope{}, err
	}
	if len(events) == 0 {
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

// leaf makes the entry of a log.
func (p *Provider) leaf(log string, kind ledger.Kind, body map[string]any) (ledger.Leaf, error) {
	return ledger.NewLeaf(log, kind, p.now(), body)
}

// LogKey returns the verifier key of a log's checkpoints (C2SP signed note).
func (p *Provider) LogKey(log string) (string, error) {
	return ledger.VerifierKey(p.logOrigin(log), p.logKey.Public().(ed25519.PublicKey))
}

func (p *Provider) logOrigin(log string) string { return p.origin + "/" + p.region + "/" + log }

// signCheckpoints signs the head of every log that has grown since its newest checkpoint. Where another
// replica was faster, its checkpoint stands.
func (p *Provider) signCheckpoints(ctx context.Context) error {
	heads, err := p.store.GrownHeads(ctx)
	if err != nil {
		return fmt.Errorf("reading log heads: %w", err)
	}
	for _, h := range heads {
		cp, err := ledger.SignCheckpoint(ledger.Checkpoint{Origin: p.logOrigin(h.Log), Size: h.Size, Root: h.Root, Previous: h.Signed}, p.logKey)
		if err != nil {
			return err
		}
		err = p.store.SaveCheckpoint(ctx, h.Log, h.Signed, h.Size, cp, p.now())
		if err != nil && cradle.KindOf(err) != cradle.Conflict {
			return fmt.Errorf("saving checkpoint of log %s: %w", h.Log, err)
		}
	}
	return nil
}

// Checkpoints returns the heads of all logs with their newest signed checkpoints.
func (p *Provider) Checkpoints(ctx context.Context) ([]Head, error) { return p.store.Heads(ctx) }

// Export writes a log for offline verification (package ledger).
func (p *Provider) Export(ctx context.Context, log string, w *ledger.Writer) error {
	if err := p.signCheckpoints(ctx); err != nil {
		return err
	}
	key, err := p.LogKey(log)
	if err != nil {
		return err
	}
	return p.store.Export(ctx, ledger.Header{Log: log, Origin: p.logOrigin(log), Key: key, Created: p.now()}, w)
}

func hexDigest(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
