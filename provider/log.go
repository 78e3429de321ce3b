package provider

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// leaf makes the entry of a log. Whatever would have to be recorded in a closed log ends here.
func (p *Provider) leaf(log string, kind ledger.Kind, body map[string]any) (ledger.Leaf, error) {
	if err := p.openLog(log); err != nil {
		return ledger.Leaf{}, err
	}
	return ledger.NewLeaf(log, kind, p.now(), body)
}

// LogKey returns the verifier key of a log's checkpoints (C2SP signed note).
func (p *Provider) LogKey(log string) (string, error) {
	return ledger.VerifierKey(p.logOrigin(log), p.logKey.Public().(ed25519.PublicKey))
}

func (p *Provider) logOrigin(log string) string { return p.origin + "/" + p.region + "/" + log }

// sameName refuses to go on with logs under another name: checkpoints that auditors and witnesses keep are of the old one, and
// what was signed before would verify no longer.
func (p *Provider) sameName(ctx context.Context) error {
	heads, err := p.store.Heads(ctx)
	if err != nil {
		return fmt.Errorf("reading log heads: %w", err)
	}
	for _, h := range heads {
		if h.Checkpoint == nil {
			continue
		}
		was, err := ledger.OriginOf(h.Checkpoint)
		if err != nil {
			continue // the audit names it
		}
		if was != p.logOrigin(h.Log) {
			host, region, _ := strings.Cut(strings.TrimSuffix(was, "/"+h.Log), "/")
			return cradle.Errorf(cradle.Invalid, "the store's logs are those of %s in region %s; this process would sign them as %s in region %s", host, region, p.origin, p.region).
				WithHint("start it as before, with --host %s --region %s: the name of an installation never changes", host, region)
		}
	}
	return nil
}

// signCheckpoints signs the head of every log that has grown since its newest checkpoint. Where another
// replica was faster, its checkpoint stands.
func (p *Provider) signCheckpoints(ctx context.Context) error {
	heads, err := p.store.GrownHeads(ctx)
	if err != nil {
		return fmt.Errorf("reading log heads: %w", err)
	}
	for _, h := range heads {
		if p.openLog(h.Log) != nil {
			continue
		}
		cp, err := ledger.SignCheckpoint(ledger.Checkpoint{Origin: p.logOrigin(h.Log), Size: h.Size, Root: h.Root, Previous: h.Signed}, p.logKey)
		if err != nil {
			return err
		}
		err = p.store.SaveCheckpoint(ctx, h.Log, h.Signed, h.Size, cp, p.now())
		if err != nil && cradle.KindOf(err) != cradle.Conflict {
			return fmt.Errorf("saving checkpoint of log %s: %w", h.Log, err)
		}
	}
	now := p.now()
	p.signedAt.Store(&now)
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

// Row is the device as an export holds it.
func (d *Device) Row() *ledger.DeviceRow {
	return &ledger.DeviceRow{ID: string(d.ID), Account: string(d.Account), OEM: string(d.OEM), Order: string(d.Order), Lot: string(d.Lot), Serial: d.Serial,
		Tier: string(d.Tier), Maker: string(d.Maker), EK: d.EKDigest, Origin: d.Origin, EKCert: d.EKCert, IAK: d.IAK, Anchor: d.Anchor, Created: d.Created,
		State: string(d.State), Epoch: d.Epoch, Reason: d.Reason, IDevIDCert: d.IDevIDCert, IAKCert: d.IAKCert}
}
