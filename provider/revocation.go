package provider

import (
	"context"
	"math/big"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// StateChange is what an operator may do to a device or to one certificate.
type StateChange string

// The changes. RFC 5280 §5.3.1: only what is on hold can be released.
const (
	Suspend StateChange = "suspend" // certificateHold; may be released
	Release StateChange = "release" // only from suspended
	Revoke  StateChange = "revoke"  // final
	Retire  StateChange = "retire"  // final; the device goes out of service
)

// Whereabouts is what a release needs to know of a device: where it was before the hold.
type Whereabouts struct {
	LDevID      bool // it has one: it was active
	LotAccepted bool
	Credential  bool // it came by a password or another CA's certificate: no lot has to be accepted
}

// Apply says what the change makes of a device in state s.
func (c StateChange) Apply(s cradle.DeviceState, w Whereabouts) (cradle.DeviceState, error) {
	var to cradle.DeviceState
	refuse := func(what string) (cradle.DeviceState, error) {
		return "", cradle.Errorf(cradle.Conflict, "it is %s; it cannot be %s", s, what)
	}
	switch c {
	case Suspend:
		if s.Blocked() {
			return refuse("suspended")
		}
		to = cradle.Suspended
	case Release:
		switch {
		case s != cradle.Suspended:
			return refuse("released")
		case w.LDevID, w.Credential:
			to = cradle.Active
		case w.LotAccepted:
			to = cradle.Accepted
		default:
			to = cradle.Made
		}
	case Revoke:
		if s == cradle.Revoked || s == cradle.Retired {
			return refuse("revoked")
		}
		to = cradle.Revoked
	case Retire:
		if s == cradle.Revoked || s == cradle.Retired {
			return refuse("retired")
		}
		to = cradle.Retired
	default:
		return "", cradle.Errorf(cradle.Invalid, "no such change %q", c)
	}
	return to, nil
}

// CertStanding is what is on record of one certificate.
type CertStanding struct {
	Revoked  bool // for good
	Hold     bool
	ByDevice bool // the hold ends with its device's
}

// ApplyCert says what the change makes of one certificate; suspended tells whether its device is.
func (c StateChange) ApplyCert(s CertStanding, suspended bool) (CertStanding, error) {
	refuse := func(format string, args ...any) (CertStanding, error) {
		return s, cradle.Errorf(cradle.Conflict, "the certificate "+format, args...)
	}
	switch {
	case s.Revoked:
		return refuse("is revoked, which is final")
	case c == Revoke:
		return CertStanding{Revoked: true}, nil
	case c == Suspend && s.Hold && !s.ByDevice:
		return refuse("is on hold already")
	case c == Suspend:
		return CertStanding{Hold: true}, nil
	case c == Release && s.ByDevice:
		e := cradle.Errorf(cradle.Conflict, "the certificate is on hold with its device")
		return s, e.WithHint("release the device")
	case c == Release && !s.Hold:
		return refuse("is not on hold")
	case c == Release && suspended:
		return CertStanding{Hold: true, ByDevice: true}, nil
	case c == Release:
		return CertStanding{}, nil
	}
	return s, cradle.Errorf(cradle.Invalid, "a certificate is revoked, held or released, not %q", c)
}

// maxReason bounds what an operator writes.
const maxReason = 200

// reasonOf finds the CRLReason of a change. The text is the operator's own; one that is, or begins with, a name
// of RFC 5280 ("keyCompromise: found in a bin") says it.
func reasonOf(c StateChange, text string) (cradle.Reason, error) {
	if len(text) > maxReason {
		return 0, cradle.Errorf(cradle.Invalid, "the reason has %d bytes; at most %d", len(text), maxReason)
	}
	name, _, _ := strings.Cut(text, ":")
	code, err := cradle.ParseReason(strings.TrimSpace(name))
	named := err == nil
	switch {
	case c == Suspend && named && code != cradle.CertificateHold:
		return 0, cradle.Errorf(cradle.Invalid, "a hold has the reason certificateHold, not %s", code).WithHint("revoke it, or leave the reason out")
	case c == Suspend || c == Release:
		return cradle.CertificateHold, nil
	case named && code == cradle.CertificateHold:
		return 0, cradle.Errorf(cradle.Invalid, "certificateHold is not final").WithHint("suspend it")
	case named && (code == cradle.CACompromise || code == cradle.AACompromise):
		return 0, cradle.Errorf(cradle.Invalid, "%s is not a reason for a device's certificate (RFC 5280 §5.3.1)", code).
			WithHint("use keyCompromise or privilegeWithdrawn")
	case named:
		return code, nil
	case c == Retire:
		return cradle.CessationOfOperation, nil
	}
	return cradle.Unspecified, nil
}

// Standing is a change as the store carries it out.
type Standing struct {
	Change StateChange
	Code   cradle.Reason
	Reason string // the operator's text
	At     time.Time
}

// StandingLeaf makes the log entry of what a change did to a device, or to one certificate of it (then c is not nil; the
// device is zero for a station's). It is called inside of the transaction, perhaps more than once.
type StandingLeaf func(d *Device, to cradle.DeviceState, c *Certificate) (ledger.Leaf, error)

// Revocations keeps who may not work any more, and why.
type Revocations interface {
	// SetState moves a device as Standing.Change.Apply says (else its Conflict), moves its epoch, appends a feed event
	// and the leaf, and brings the standing of its unexpired certificates and the wish for new CRLs along.
	SetState(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, s Standing, leaf StandingLeaf) (FeedEvent, error)
	// ChangeCertificate moves one certificate as ApplyCert says, with a feed event for it alone, and moves the epoch of
	// its device, so that what it authenticated a moment ago ends void. NotFound; Conflict when it has expired.
	ChangeCertificate(ctx context.Context, account cradle.AccountID, serial cradle.CertSerial, s Standing, leaf StandingLeaf) (Certificate, FeedEvent, error)
}

// ChangeState moves a device. From then on nothing is issued to it, and the status feed carries the
// change to the provisioning service and the hubs.
func (p *Provider) ChangeState(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, c StateChange, reason string) (FeedEvent, error) {
	code, err := reasonOf(c, reason)
	if err != nil {
		return FeedEvent{}, err
	}
	if _, err := p.Device(ctx, account, id); err != nil {
		return FeedEvent{}, err
	}
	ev, err := p.store.SetState(ctx, account, id, Standing{c, code, reason, p.now()}, p.standingLeaf(ctx, account, code, reason, ""))
	if err != nil {
		return FeedEvent{}, err
	}
	p.feed.notify()
	p.log.Info("device state changed", "account", account, "device", id, "state", ev.State, "reason", reason, "code", code, "feed", ev.Seq)
	return ev, nil
}

// ChangeCertificate revokes, holds or releases one certificate, by its serial number.
func (p *Provider) ChangeCertificate(ctx context.Context, account cradle.AccountID, serial cradle.CertSerial, c StateChange, reason string) (Certificate, FeedEvent, error) {
	code, err := reasonOf(c, reason)
	if err != nil {
		return Certificate{}, FeedEvent{}, err
	}
	if _, err := p.account(ctx, account); err != nil {
		return Certificate{}, FeedEvent{}, err
	}
	// As people have it from other tools: upper case, with colons, with zeros before it.
	if n, ok := new(big.Int).SetString(strings.ReplaceAll(string(serial), ":", ""), 16); ok {
		serial = ca.SerialString(n)
	}
	cert, ev, err := p.store.ChangeCertificate(ctx, account, serial, Standing{c, code, reason, p.now()}, p.standingLeaf(ctx, account, code, reason, ""))
	if err != nil {
		return Certificate{}, FeedEvent{}, err
	}
	p.feed.notify()
	p.log.Info("certificate's standing changed", "account", account, "serial", serial, "device", cert.Device, "change", c, "reason", reason, "code", code, "feed", ev.Seq)
	return cert, ev, nil
}

// standingLeaf makes leaves of kind revocation. job names the set that it belongs to, or is empty.
func (p *Provider) standingLeaf(ctx context.Context, account cradle.AccountID, code cradle.Reason, reason, job string) StandingLeaf {
	return func(d *Device, to cradle.DeviceState, c *Certificate) (ledger.Leaf, error) {
		body := map[string]any{"account": account, "device": d.ID, "state": to, "reason": reason}
		if to.Blocked() {
			body["code"] = code.String()
		}
		if c != nil {
			body["certificate"], body["serial"], body["profile"] = c.Digest, c.Serial, c.Profile
		}
		if job != "" {
			body["job"] = job
		}
		return p.leafBy(ctx, string(account), ledger.KindRevocation, body)
	}
}
