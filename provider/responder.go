package provider

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// An OCSP responder's certificate is short-lived, since its own standing is not asked for (RFC 6960 §4.2.2.2.1).
const responderLife = 14 * 24 * time.Hour

// StatusIssuer is an authority as the status service knows it.
type StatusIssuer struct {
	ID   string
	Cert *x509.Certificate
}

// StatusIssuers lists the authorities whose certificates' standing can be asked for.
func (p *Provider) StatusIssuers() []StatusIssuer {
	d := p.dir.Load()
	out := make([]StatusIssuer, 0, len(d.byID))
	for id, a := range d.byID {
		out = append(out, StatusIssuer{id, a.issuer.Cert})
	}
	return out
}

// CertStatus returns the standing of a certificate with that serial number that one of the issuers signed; they are
// authorities of one name and key. NotFound: none of them ever did.
func (p *Provider) CertStatus(ctx context.Context, issuers []string, serial cradle.CertSerial) (CertStatus, error) {
	if err := p.openAll(); err != nil { // a good answer may be an old one
		return CertStatus{}, err
	}
	s, err := p.store.CertStatus(ctx, serial)
	if cradle.KindOf(err) == cradle.NotFound {
		if s.Authority = p.dir.Load().caSerials()[serial]; s.Authority != "" {
			err = nil
		}
	}
	if err != nil {
		return CertStatus{}, err
	}
	for _, id := range issuers {
		if id == s.Authority {
			return s, nil
		}
	}
	return CertStatus{}, cradle.Errorf(cradle.NotFound, "no such certificate of this issuer")
}

// caSerials finds the issuer of a CA certificate.
func (d *directory) caSerials() map[cradle.CertSerial]string {
	d.serialsOnce.Do(func() {
		d.serials = map[cradle.CertSerial]string{}
		add := func(child *x509.Certificate, parent []byte) {
			d.serials[ca.SerialString(child.SerialNumber)] = ca.Digest(parent)
		}
		for _, a := range d.byID {
			if len(a.Chain) > 0 {
				add(a.issuer.Cert, a.Chain[0])
			}
			if len(a.Cross) > 1 {
				if c, err := x509.ParseCertificate(a.Cross[0]); err == nil {
					add(c, a.Cross[1])
				}
			}
		}
	})
	return d.serials
}

// responders holds the opened responders by authority.
type responders struct {
	mu sync.Mutex
	m  map[string]responder
}

type responder struct {
	key   *OCSPKey // nil: there was none
	asked time.Time
}

// responderAsk is how often a responder that is due, or that could not be had, is asked for again.
const responderAsk = 2 * time.Second

// OCSPKey signs OCSP answers of one authority.
type OCSPKey struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

func (k *OCSPKey) fresh(now time.Time) bool {
	return now.Before(k.Cert.NotBefore.Add(k.Cert.NotAfter.Sub(k.Cert.NotBefore) / 2))
}

// OCSPKey returns the responder of an authority. It is made at the first question and again when half of its life is over; all replicas
// share it. A responder that cannot be renewed, since the issuing key is away, is used to its end.
func (p *Provider) OCSPKey(ctx context.Context, authority string) (*OCSPKey, error) {
	p.responders.mu.Lock()
	defer p.responders.mu.Unlock()
	now := p.now()
	r, ok := p.responders.m[authority]
	recent := now.Sub(r.asked).Abs() < responderAsk
	switch {
	case ok && r.key != nil && (r.key.fresh(now) || recent && now.Before(r.key.Cert.NotAfter)):
		return r.key, nil
	case ok && r.key == nil && recent:
		return nil, errNoResponder
	}
	k, err := p.openResponder(ctx, authority, now)
	if err != nil && !errors.Is(err, errNoResponder) {
		return nil, err
	}
	if p.responders.m == nil {
		p.responders.m = map[string]responder{}
	}
	p.responders.m[authority] = responder{k, now}
	return k, err
}

var errNoResponder = cradle.Errorf(cradle.Busy, "there is no OCSP responder of this authority yet").WithHint("try again in a moment; a CA whose key is kept elsewhere has none here")

func (p *Provider) openResponder(ctx context.Context, authority string, now time.Time) (*OCSPKey, error) {
	a := p.dir.Load().byID[authority]
	if a == nil {
		return nil, cradle.Errorf(cradle.NotFound, "no authority %s", authority)
	}
	for range 3 {
		stored, err := p.store.Responder(ctx, authority)
		var k *OCSPKey
		switch {
		case err == nil:
			if k, err = p.unsealResponder(stored); err != nil {
				return nil, err
			}
			if k.fresh(now) {
				return k, nil
			}
		case cradle.KindOf(err) != cradle.NotFound:
			return nil, err
		}
		if a.issuer.Key == nil {
			if err := p.store.WantResponder(ctx, authority); err != nil {
				return nil, err
			}
			if k != nil && now.Before(k.Cert.NotAfter) {
				return k, nil
			}
			return nil, errNoResponder
		}
		fresh, err := p.newResponder(ctx, a, stored.Cert, now)
		if cradle.KindOf(err) == cradle.Conflict {
			continue // another replica was first
		}
		return fresh, err
	}
	return nil, cradle.Errorf(cradle.Busy, "the OCSP responder is being renewed").WithHint("try again")
}

func (p *Provider) unsealResponder(r Responder) (*OCSPKey, error) {
	cert, err := x509.ParseCertificate(r.Cert)
	if err != nil {
		return nil, err
	}
	key, err := p.vault.Key("ocsp/"+r.Authority, r.SealedKey)
	return &OCSPKey{cert, key}, err
}

func (p *Provider) newResponder(ctx context.Context, a *authority, previous []byte, now time.Time) (*OCSPKey, error) {
	key, sealed, err := p.vault.NewKey("ocsp/" + a.ID)
	if err != nil {
		return nil, err
	}
	notBefore, notAfter := now.Add(-ca.Backdate), now.Add(responderLife)
	if end := a.issuer.Cert.NotAfter; notAfter.After(end) {
		notAfter = end
	}
	cert, err := ca.Responder(a.issuer, key.Public(), notBefore, notAfter)
	if err != nil {
		return nil, err
	}
	log := string(a.Account)
	if log == "" {
		log = InstallationLog
	}
	leaf, err := p.leaf(log, ledger.KindResponder, map[string]any{"authority": a.ID, "responder": ca.Digest(cert.Raw), "not_after": cert.NotAfter})
	if err != nil {
		return nil, err
	}
	if err := p.store.SaveResponder(ctx, Responder{a.ID, cert.Raw, sealed}, previous, leaf); err != nil {
		return nil, err
	}
	return &OCSPKey{cert, key}, nil
}
