package provider

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// What can be distrusted.
const (
	DistrustedEK     = "ek"     // one endorsement key
	DistrustedIssuer = "issuer" // a key that signed EK certificates, or their issuers
)

// Distrusted is a key that is not believed any more. It outlasts imports: an anchor that is imported again, or another
// certificate of the same key, stays distrusted until an operator trusts the key again.
type Distrusted struct {
	Digest string // SHA-256 of the SPKI, hexadecimal
	Kind   string
	Reason string
	At     time.Time
}

// Distrusts keeps them.
type Distrusts interface {
	// Distrust adds keys; those that are there stay as they are. From then on no birth by them succeeds (BeginIssue looks).
	Distrust(ctx context.Context, keys []Distrusted, leaf ledger.Leaf) error
	// Trust takes keys out and returns how many were in.
	Trust(ctx context.Context, digests []string, leaf ledger.Leaf) (int64, error)
	Distrusts(ctx context.Context) ([]Distrusted, error)
	// DeviceByEK finds the device of an endorsement key (NotFound).
	DeviceByEK(ctx context.Context, digest string) (Device, error)
	// CountMakers counts devices by TPM maker, in all accounts.
	CountMakers(ctx context.Context) (map[cradle.MakerID]int64, error)
}

// Distrusting says whom to distrust: one of its fields is set.
type Distrusting struct {
	Maker       cradle.MakerID
	Certificate string // SHA-256 of an issuer's certificate, or of its public key
	EK          string // SHA-256 of the EK's SPKI
}

// Concern is what a distrust hits.
type Concern struct {
	Keys     []string                   // digests that are (or would be) distrusted
	Accounts map[cradle.AccountID]int64 // devices of each
	Devices  []AccountDevice            // the first of them, at most maxConcerned
	Jobs     []Job                      // what revokes them; none if nothing was to be done yet
}

// AccountDevice names a device.
type AccountDevice struct {
	Account cradle.AccountID
	Device  cradle.DeviceID
}

const maxConcerned = 1000

// Distrust finds out which devices rest on a TPM maker, an issuer or an endorsement key, and, once confirmed, believes it no
// more and revokes them in every account. If the process dies between the two the keys are distrusted and the devices are
// not revoked yet: doing it again finds them.
func (p *Provider) Distrust(ctx context.Context, w Distrusting, reason string, confirmed bool) (*Concern, error) {
	if len(reason) > maxReason {
		return nil, cradle.Errorf(cradle.Invalid, "the reason has %d bytes; at most %d", len(reason), maxReason)
	}
	kind, set, c, err := p.concern(ctx, w)
	if err != nil {
		return nil, err
	}
	if !confirmed {
		return c, p.countConcern(ctx, w, set, c)
	}
	now := p.now()
	keys, rows := make([]Distrusted, len(c.Keys)), make([]ledger.SettingRow, len(c.Keys))
	for i, k := range c.Keys {
		keys[i] = Distrusted{Digest: k, Kind: kind, Reason: reason, At: now}
		rows[i] = keys[i].Setting()
	}
	leaf, err := p.operatorLeaf(ctx, InstallationLog, "tpm-maker distrust", map[string]any{"maker": w.Maker, "certificate": w.Certificate, "ek": w.EK, "keys": c.Keys, "reason": reason, "settings": settings(rows...)})
	if err != nil {
		return nil, err
	}
	if err := p.store.Distrust(ctx, keys, leaf); err != nil {
		return nil, err
	}
	if err := p.reload(ctx); err != nil {
		return nil, err
	}
	if err := p.store.Barrier(ctx, ""); err != nil { // births under way are counted too
		return nil, err
	}
	if err := p.countConcern(ctx, w, set, c); err != nil {
		return nil, err
	}
	text := cradle.PrivilegeWithdrawn.String() + ": " + reason
	for _, account := range sortedAccounts(c.Accounts) {
		if kind == DistrustedEK {
			d := c.Devices[0]
			if _, err := p.ChangeState(ctx, d.Account, d.Device, Revoke, text[:min(len(text), maxReason)]); err != nil && cradle.KindOf(err) != cradle.Conflict {
				return nil, err
			}
			continue
		}
		j, err := p.startJob(ctx, account, set, Revoke, text[:min(len(text), maxReason)])
		if err != nil {
			return nil, err
		}
		c.Jobs = append(c.Jobs, j)
	}
	return c, nil
}

// concern resolves what is to be distrusted.
func (p *Provider) concern(ctx context.Context, w Distrusting) (kind string, set Selector, c *Concern, err error) {
	c = &Concern{Accounts: map[cradle.AccountID]int64{}}
	given := 0
	for _, s := range []string{string(w.Maker), w.Certificate, w.EK} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return "", set, nil, cradle.Errorf(cradle.Invalid, "name one of: a TPM maker, an issuer's certificate, an endorsement key")
	case w.Maker != "":
		set = Selector{ByMaker, string(w.Maker)}
		if err := p.checkSet(ctx, "", &set); err != nil {
			return "", set, nil, err
		}
		for _, a := range p.dir.Load().makers {
			if a.Maker != w.Maker {
				continue
			}
			cert, err := attest.ParseAnchor(a.Cert)
			if err != nil {
				return "", set, nil, err
			}
			c.Keys = append(c.Keys, hexDigest(cert.RawSubjectPublicKeyInfo))
		}
		return DistrustedIssuer, set, c, nil
	case w.Certificate != "":
		set = Selector{ByEKIssuer, w.Certificate}
		if err := p.checkSet(ctx, "", &set); err != nil {
			return "", set, nil, err
		}
		c.Keys = set.Keys()[:1] // what it signed follows from it
		return DistrustedIssuer, set, c, nil
	}
	digest := strings.ToLower(strings.ReplaceAll(w.EK, ":", ""))
	if len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "" {
		return "", set, nil, cradle.Errorf(cradle.Invalid, "EK digest %.70q: write the SHA-256 of its public key in hexadecimal, as cradle device show does", w.EK)
	}
	c.Keys = []string{digest}
	return DistrustedEK, set, c, nil
}

// countConcern finds the devices.
func (p *Provider) countConcern(ctx context.Context, w Distrusting, set Selector, c *Concern) (err error) {
	if w.EK != "" {
		d, err := p.store.DeviceByEK(ctx, c.Keys[0])
		if cradle.KindOf(err) == cradle.NotFound {
			return nil // a key that was never seen may be distrusted in advance
		}
		if err == nil {
			c.Accounts[d.Account], c.Devices = 1, []AccountDevice{{d.Account, d.ID}}
		}
		return err
	}
	if c.Accounts, err = p.store.CountSet(ctx, "", set); err != nil {
		return err
	}
	for _, a := range sortedAccounts(c.Accounts) {
		if len(c.Devices) >= maxConcerned {
			return nil
		}
		ids, err := p.store.SetDevices(ctx, a, set, "", maxConcerned-len(c.Devices))
		if err != nil {
			return err
		}
		for _, id := range ids {
			c.Devices = append(c.Devices, AccountDevice{a, id})
		}
	}
	return nil
}

func sortedAccounts(m map[cradle.AccountID]int64) []cradle.AccountID {
	out := make([]cradle.AccountID, 0, len(m))
	for a := range m {
		out = append(out, a)
	}
	slices.Sort(out)
	return out
}

// Trust takes a distrust back, for births from now on. Devices that were revoked stay so.
func (p *Provider) Trust(ctx context.Context, w Distrusting, reason string) ([]string, error) {
	_, _, c, err := p.concern(ctx, w)
	if err != nil {
		return nil, err
	}
	rows := make([]ledger.SettingRow, len(c.Keys))
	for i, k := range c.Keys {
		rows[i] = gone(distrustSetting(k))
	}
	leaf, err := p.operatorLeaf(ctx, InstallationLog, "tpm-maker trust", map[string]any{"maker": w.Maker, "certificate": w.Certificate, "ek": w.EK, "keys": c.Keys, "reason": reason, "settings": settings(rows...)})
	if err != nil {
		return nil, err
	}
	n, err := p.store.Trust(ctx, c.Keys, leaf)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, cradle.Errorf(cradle.Conflict, "it is not distrusted").WithHint("cradle tpm-maker list; what an issuer signed is distrusted with it: name that issuer")
	}
	return c.Keys, p.reload(ctx)
}

// Maker is a TPM maker with what was imported of it.
type Maker struct {
	ID      cradle.MakerID
	Anchors []Anchor // Distrusted also through an issuer of theirs
	Devices int64    // that rest on it
}

// Makers lists the TPM makers, and the keys that are distrusted.
func (p *Provider) Makers(ctx context.Context) ([]Maker, []Distrusted, error) {
	if err := p.reload(ctx); err != nil {
		return nil, nil, err
	}
	devices, err := p.store.CountMakers(ctx)
	if err != nil {
		return nil, nil, err
	}
	d := p.dir.Load()
	var out []Maker
	for _, a := range d.makers {
		i := slices.IndexFunc(out, func(m Maker) bool { return m.ID == a.Maker })
		if i < 0 {
			i, out = len(out), append(out, Maker{ID: a.Maker, Devices: devices[a.Maker]})
		}
		a.Distrusted = d.anchors.Distrusts(attest.EKFacts{Anchor: a.Fingerprint})
		out[i].Anchors = append(out[i].Anchors, a)
	}
	slices.SortFunc(out, func(a, b Maker) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, d.distrusts, nil
}
