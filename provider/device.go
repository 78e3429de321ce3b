package provider

import (
	"context"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// Device returns one device of an account.
func (p *Provider) Device(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) (Device, error) {
	if err := cradle.CheckID("device", string(id)); err != nil {
		return Device{}, err
	}
	return p.store.Device(ctx, account, id)
}

// DeviceList returns an account's devices by id. Who asks for an order, a lot or a state that does not exist is told so.
func (p *Provider) DeviceList(ctx context.Context, account cradle.AccountID, f DeviceFilter) ([]Device, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	states := []cradle.DeviceState{"", cradle.Made, cradle.Accepted, cradle.Active, cradle.Suspended, cradle.Revoked, cradle.Retired}
	if !slices.Contains(states, f.State) {
		return nil, cradle.Errorf(cradle.Invalid, "%.40q is no state of a device", f.State).WithHint("use one of %v", states[1:])
	}
	if f.Order != "" {
		if err := p.CheckOrder(ctx, account, f.Order); err != nil {
			return nil, err
		}
	}
	if f.Lot != "" {
		if err := p.CheckLot(ctx, account, f.Order, f.Lot); err != nil {
			return nil, err
		}
	}
	return p.store.DeviceList(ctx, account, f)
}

// Certificates returns what was issued to a device, oldest first.
func (p *Provider) Certificates(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) ([]Certificate, error) {
	return p.store.Certificates(ctx, account, id)
}

// Happening is one moment of a device's life.
type Happening struct {
	At     time.Time
	What   string // made, lot closed, lot accepted, issued, or the new state
	Detail string
}

// History tells a device's life from its records, oldest first.
func (p *Provider) History(ctx context.Context, d Device) ([]Happening, error) {
	out := []Happening{{d.Created, "made", "order " + string(d.Order) + ", serial " + d.Serial}}
	if d.Origin != "" {
		out[0] = Happening{d.Created, "came", d.Origin}
	}
	if d.Lot != "" {
		l, err := p.store.Lot(ctx, d.Lot)
		if err != nil {
			return nil, err
		}
		out = append(out, Happening{l.Closed, "lot closed", string(l.ID)})
		if !l.Accepted.IsZero() {
			out = append(out, Happening{l.Accepted, "lot accepted", string(l.ID)})
		}
	}
	certs, err := p.store.Certificates(ctx, d.Account, d.ID)
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		out = append(out, Happening{c.Issued, "issued", string(c.Profile) + " " + string(c.Serial)})
	}
	events, err := p.store.FeedOf(ctx, d.Account, d.ID)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		what := string(e.State)
		switch {
		case e.Reason == QuarantineReason:
			what = "quarantined"
		case e.Released:
			what = "certificate released"
		case e.Certificate != "":
			what = "certificate blocked"
		}
		out = append(out, Happening{e.At, what, e.Reason})
	}
	slices.SortStableFunc(out, func(a, b Happening) int { return a.At.Compare(b.At) })
	return out, nil
}

// Chain returns the issuer of a certificate and what lies above it, up to the account's root.
func (p *Provider) Chain(c Certificate) [][]byte {
	a := p.dir.Load().byID[c.Authority]
	if a == nil {
		return nil
	}
	return append([][]byte{a.Cert}, a.Chain...)
}

// limiter bounds how many refusals a second become leaves of the log, so that a flood of bad requests
// cannot grow it without end; all of them are in the server's own log.
type limiter struct {
	mu     sync.Mutex
	second int64
	count  int
}

// refusalsPerSecond is the bound; a refusal over it is counted by nobody but the server's log.
const refusalsPerSecond = 20

func (l *limiter) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := now.Unix(); s != l.second {
		l.second, l.count = s, 0
	}
	l.count++
	return l.count <= refusalsPerSecond
}

// DeviceByEK finds the device whose TPM has the endorsement key with this SHA-256 of its SubjectPublicKeyInfo, in
// whichever account; NotFound when there is none.
func (p *Provider) DeviceByEK(ctx context.Context, ek [32]byte) (Device, error) {
	return p.store.DeviceByEK(ctx, hex.EncodeToString(ek[:]))
}
