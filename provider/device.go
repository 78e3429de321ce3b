package provider

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Device returns one device of an account.
func (p *Provider) Device(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) (Device, error) {
	if err := cradle.CheckID("device", string(id)); err != nil {
		return Device{}, err
	}
	return p.store.Device(ctx, account, id)
}

// DeviceList returns an account's devices by id.
func (p *Provider) DeviceList(ctx context.Context, account cradle.AccountID, f DeviceFilter) ([]Device, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
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
		if e.Certificate != "" {
			what = "quarantined"
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

// StateChange is what an operator may do to a device.
type StateChange string

// The changes.
const (
	Suspend StateChange = "suspend" // may be released
	Release StateChange = "release" // only from suspended (RFC 5280 §5.3.1: only certificateHold is released)
	Revoke  StateChange = "revoke"  // final
	Retire  StateChange = "retire"  // final; the device goes out of service
)

// ChangeState moves a device. From then on nothing is issued to it, and the status feed carries the
// change to the provisioning service and the hubs.
func (p *Provider) ChangeState(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, c StateChange, reason string) (FeedEvent, error) {
	all := []cradle.DeviceState{cradle.Made, cradle.Accepted, cradle.Active}
	var from []cradle.DeviceState
	var to cradle.DeviceState
	switch c {
	case Suspend:
		from, to = []cradle.DeviceState{cradle.Accepted, cradle.Active}, cradle.Suspended
	case Release:
		from, to = []cradle.DeviceState{cradle.Suspended}, cradle.Active
	case Revoke:
		from, to = append(all, cradle.Suspended), cradle.Revoked
	case Retire:
		from, to = append(all, cradle.Suspended), cradle.Retired
	default:
		return FeedEvent{}, cradle.Errorf(cradle.Invalid, "no such change %q", c)
	}
	if len(reason) > 200 {
		return FeedEvent{}, cradle.Errorf(cradle.Invalid, "the reason has %d bytes; at most 200", len(reason))
	}
	if _, err := p.Device(ctx, account, id); err != nil {
		return FeedEvent{}, err
	}
	if c == Release { // to where it was: without an LDevID it was not active yet
		certs, err := p.store.Certificates(ctx, account, id)
		if err != nil {
			return FeedEvent{}, err
		}
		if !slices.ContainsFunc(certs, func(c Certificate) bool { return c.Profile == cradle.LDevID }) {
			to = cradle.Accepted
		}
	}
	leaf, err := p.leafBy(ctx, string(account), ledger.KindRevocation, map[string]any{"account": account, "device": id, "state": to, "reason": reason})
	if err != nil {
		return FeedEvent{}, err
	}
	ev, err := p.store.SetState(ctx, account, id, from, to, reason, p.now(), leaf)
	if err != nil {
		return FeedEvent{}, err
	}
	p.feed.notify()
	p.log.Info("device state changed", "account", account, "device", id, "state", to, "reason", reason, "feed", ev.Seq)
	return ev, nil
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
