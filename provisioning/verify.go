package provisioning

import (
	"context"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
)

// Authenticate decides whether whoever shows the credentials is the device it says it is. Possession of the
// certificate's key must have been proved (TLS does). An individual enrolment decides alone, also when it is
// disabled; without one a group must admit the device. Refusals are cradle.Unauthorized and say which check failed
// and what mends it; the first call of a TPM ends in a *TPMChallenge.
//
// It is asked anew for every request; only the check of a certificate's signature is remembered.
func (s *Service) Authenticate(ctx context.Context, cr Credentials) (*Caller, error) {
	id, err := ParseRegistrationID(cr.RegistrationID)
	if err != nil {
		return nil, err
	}
	return s.authenticate(ctx, id, cr, s.groups.now())
}

// authenticate decides by a roll; who is unknown in it gets a second chance when the store has a newer one.
func (s *Service) authenticate(ctx context.Context, id RegistrationID, cr Credentials, r *roll) (*Caller, error) {
	c, err := s.judge(ctx, id, cr, r)
	var challenge *TPMChallenge
	if cradle.KindOf(err) == cradle.Unauthorized && !errors.As(err, &challenge) {
		read, readErr := s.recheckGroups(ctx)
		if readErr != nil {
			return nil, readErr
		}
		if read {
			c, err = s.judge(ctx, id, cr, s.groups.now())
		}
	}
	if err != nil {
		return nil, err
	}
	return c, s.notBlocked(c)
}

// judge collects what the decision rests on.
func (s *Service) judge(ctx context.Context, id RegistrationID, cr Credentials, r *roll) (*Caller, error) {
	p := pending{now: s.now(), scope: s.identity.IDScope, id: id, shown: cr, roll: r, secret: s.identity.ServiceKey}
	if r.individuals {
		e, err := s.store.Enrollment(ctx, id)
		if err == nil {
			p.individual = &e
		} else if cradle.KindOf(err) != cradle.NotFound {
			return nil, err
		}
	}
	if cr.TPM != nil || cr.Token != "" && cr.Operation != "" {
		present, err := s.store.Registration(ctx, id)
		if err == nil {
			p.present = &present
		} else if cradle.KindOf(err) != cradle.NotFound {
			return nil, err
		}
	}
	var err error
	if (p.individual == nil || !p.individual.Enabled) && len(r.units) > 0 {
		if p.unit, err = s.unitOf(ctx, &p); err != nil {
			return nil, err
		}
	}
	return p.decide()
}

// unitOf asks the credential provider for the unit whose TPM is shown, or registered; nil when there is none.
func (s *Service) unitOf(ctx context.Context, p *pending) (*Unit, error) {
	var digest Thumbprint
	switch {
	case p.shown.TPM != nil:
		ek, err := tpmblob.Parse("endorsement key", p.shown.TPM.Endorsement)
		if err != nil {
			return nil, nil // decide says what is wrong with it
		}
		digest = ek.Digest()
	case p.present != nil && p.present.Kind == TPMUnits:
		digest = p.present.Thumbprint
	default:
		return nil, nil
	}
	u, err := s.units.UnitByEK(ctx, digest)
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, nil
	}
	return &u, err
}

func (s *Service) notBlocked(c *Caller) error {
	if s.feed == nil {
		return nil
	}
	if state, ok := s.feed.Blocked(c.Account, cradle.DeviceID(c.ID)); ok {
		return refuseBlocked(c.ID, state)
	}
	if c.Thumbprint != (Thumbprint{}) && s.feed.CertBlocked(c.Thumbprint) {
		return cradle.Errorf(cradle.Unauthorized, "certificate %s is revoked or was superseded", c.Thumbprint).
			WithHint("use the device's newest certificate, or enrol again")
	}
	return nil
}
