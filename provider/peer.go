package provider

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// authenticate finds the record of a TLS client certificate and refuses one that may not be used any
// more. Only certificates that this provider recorded are known here. The record alone is not believed:
// whoever can write to the store could plant one, so the certificate must also be signed by the issuing
// key that the record names, which must be one that signs such certificates.
func (p *Provider) authenticate(ctx context.Context, e Endpoint, peer *x509.Certificate) (*Credential, error) {
	if peer == nil {
		return nil, cradle.Errorf(cradle.Unauthorized, "no TLS client certificate").
			WithHint("authenticate with the certificate that %s asks for", e.Profile)
	}
	now, changes := p.now(), p.feed.changes.Load()
	c, err := p.store.Credential(ctx, ca.SerialString(peer.SerialNumber), ca.Digest(peer.Raw))
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, p.unknown(e, peer)
	}
	if err != nil {
		return nil, err
	}
	out, err := p.admit(ctx, e, peer, &c)
	if err == nil && c.rememberable() {
		p.remembered.put(c, now, changes)
	}
	return out, err
}

// admit is what authenticate does with the record.
func (p *Provider) admit(ctx context.Context, e Endpoint, peer *x509.Certificate, c *Credential) (*Credential, error) {
	if err := p.signed(ctx, peer, &c.Cert); err != nil {
		return nil, err
	}
	now := p.now()
	switch {
	case c.Cert.Account != e.Account:
		return nil, cradle.Errorf(cradle.Forbidden, "the client certificate belongs to another account than label %s", e.Label)
	case c.Device.State.Blocked():
		return nil, blockedError(&c.Device)
	case !c.Cert.Revoked.IsZero():
		return nil, cradle.Errorf(cradle.Forbidden, "the client certificate is revoked or on hold since %s", c.Cert.Revoked.Format(time.RFC3339)).
			WithHint("the account's operator knows why; cradle device show %s", c.Cert.Device)
	case now.Before(c.Cert.NotBefore):
		return nil, cradle.Errorf(cradle.Unauthorized, "the client certificate is not valid before %s", c.Cert.NotBefore.Format(time.RFC3339))
	case now.After(c.Cert.NotAfter):
		return nil, cradle.Errorf(cradle.Unauthorized, "the client certificate expired on %s", c.Cert.NotAfter.Format(time.RFC3339)).
			WithHint("enrol again with the LDevID or IDevID")
	}
	return c, nil
}

func blockedError(d *Device) error {
	e := cradle.Errorf(cradle.Forbidden, "device %s is %s", d.ID, d.State)
	if d.State == cradle.Suspended {
		return e.WithHint("the account's operator can release it")
	}
	return e.WithHint("this is final; the account's operator knows why")
}

// authorize says who may ask for what with which certificate (the table in DESIGN §2).
func (p *Provider) authorize(e Endpoint, op Operation, c *Credential) error {
	have := c.Cert.Profile
	refuse := func(want string) error {
		return cradle.Errorf(cradle.Forbidden, "a %s certificate does not authenticate %s at label %s", have, op, e.Label).
			WithHint("authenticate with %s", want)
	}
	kind, haveKind := p.kindOf(e.Account, e.Profile), p.kindOf(e.Account, have)
	if op == Reenroll {
		if have != e.Profile || kind == "" || kind.Birth() {
			return refuse("the certificate that is to be renewed (RFC 7030 §4.2.2)")
		}
		return nil
	}
	switch kind {
	case ca.KindIDevID, ca.KindIAK:
		if have != StationProfile {
			return refuse("the station's certificate of the order")
		}
		return nil
	case ca.KindLDevID:
		if have != cradle.IDevID && have != cradle.LDevID {
			return refuse("the device's IDevID")
		}
	default:
		// The LDevID at first and after expiry, else the IDevID (DESIGN §2); the certificate itself as some
		// clients renew by simpleenroll, or another of the device's, as one that is for EST alone.
		if haveKind == "" || haveKind == ca.KindIAK {
			return refuse("the device's LDevID")
		}
	}
	if have == cradle.IDevID && c.Device.State == cradle.Made {
		return cradle.Errorf(cradle.Forbidden, "device %s is not accepted yet: its lot is open or waits for acceptance", c.Device.ID).
			WithHint("cradle lot list; cradle lot accept ID")
	}
	return nil
}

// StationProfile marks the certificate of a line's station.
const StationProfile cradle.Profile = "station"

// issuerOf is the kind of CA that signed a certificate.
func (p *Provider) issuerOf(c *Certificate) AuthorityKind {
	switch {
	case c.Profile == StationProfile:
		return StationCA
	case c.Profile == RegistrarProfile, c.Registered():
		return RegistrationCA
	case !c.Proved():
		return UnprovedCA
	}
	return issuerKinds[p.kindOf(c.Account, c.Profile)]
}

// signed verifies that a recorded certificate was signed by its recorded issuer. Certificates that were
// verified are remembered, since the connection of a device asks several times; so are those that this process
// signed.
func (p *Provider) signed(ctx context.Context, peer *x509.Certificate, c *Certificate) error {
	a := p.dir.Load().byID[c.Authority]
	if a == nil { // made by another replica a moment ago
		if err := p.reload(ctx); err != nil {
			return err
		}
		a = p.dir.Load().byID[c.Authority]
	}
	fits := a != nil && a.Kind == p.issuerOf(c) && (a.Kind == StationCA || a.Account == c.Account)
	if fits && p.verified.has(c.Digest) {
		return nil
	}
	if !fits || !ca.Signs(a.issuer.Cert, peer) {
		p.log.Error("the record of a certificate is not backed by its issuer's signature; was the store tampered with?",
			"certificate", c.Digest, "authority", c.Authority, "profile", c.Profile, "account", c.Account)
		return cradle.Errorf(cradle.Unauthorized, "the client certificate (%s, serial %s) was not issued here", peer.Subject, c.Serial)
	}
	p.verified.add(c.Digest)
	return nil
}

// verifiedCerts remembers which certificates carry their issuer's signature, by digest. That never changes,
// so forgetting is only for the sake of memory.
type verifiedCerts struct {
	mu       sync.Mutex
	new, old map[string]struct{} // two generations
}

const verifiedGeneration = 16 << 10

func (v *verifiedCerts) has(digest string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.new[digest]
	if !ok {
		_, ok = v.old[digest]
	}
	return ok
}

func (v *verifiedCerts) add(digest string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.new == nil || len(v.new) >= verifiedGeneration {
		v.new, v.old = map[string]struct{}{}, v.new
	}
	v.new[digest] = struct{}{}
}
