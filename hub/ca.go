package hub

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/cradle-iot/cradle"
)

// TrustedCA is a CA whose certificates admit devices of type certificateAuthority to a hub.
type TrustedCA struct {
	Name  string
	DER   []byte
	Added time.Time
}

// Authorities keeps the trusted CAs; the contract is Store's.
type Authorities interface {
	// CAs lists a hub's in order of their names.
	CAs(ctx context.Context, hub Name) ([]TrustedCA, error)
	// AddCA stores one; Conflict when the name is taken.
	AddCA(ctx context.Context, hub Name, ca *TrustedCA) error
	// RemoveCA removes one; NotFound.
	RemoveCA(ctx context.Context, hub Name, name string) error
}

// Limits of trusted CAs.
const (
	maxCAs    = 100 // of one hub
	maxCAName = 64
)

// cachedCAs are believed for policyAge.
type cachedCAs struct {
	at   time.Time
	list []*x509.Certificate
}

// CAs lists a hub's trusted CAs.
func (h *Hub) CAs(ctx context.Context, hub Name) ([]TrustedCA, error) {
	cas, err := h.store.CAs(ctx, hub)
	return cas, h.storeError("listing CAs", err)
}

// AddCA makes a hub trust a CA: a certificate that may sign others, root or intermediate. Who adds it answers for it:
// unlike Azure the hub asks for no proof that he has the CA's key, since only policies with registry rights get here,
// and they can register any device as it is. Errors: Invalid, Conflict (the name is taken), TooLarge.
func (h *Hub) AddCA(ctx context.Context, hub Name, name string, der []byte) (*TrustedCA, error) {
	if err := cradle.CheckID("CA name", name); err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return nil, cradle.Errorf(cradle.Invalid, "CA certificate: %v", err)
	case !c.BasicConstraintsValid || !c.IsCA:
		return nil, cradle.Errorf(cradle.Invalid, "certificate of %.100q is not a CA's", c.Subject)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, cradle.Errorf(cradle.Invalid, "certificate of %.100q may not sign certificates", c.Subject)
	case h.Expired(c):
		return nil, cradle.Errorf(cradle.Invalid, "certificate of %.100q expired at %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	}
	have, err := h.CAs(ctx, hub)
	if err != nil {
		return nil, err
	}
	if len(have) >= maxCAs {
		return nil, cradle.Errorf(cradle.TooLarge, "hub %s trusts %d CAs, more are not allowed", hub, len(have))
	}
	ca := &TrustedCA{name, c.Raw, h.now()}
	if err := h.store.AddCA(ctx, hub, ca); err != nil {
		return nil, h.storeError("adding a CA", err)
	}
	h.forgetCAs(hub)
	h.log.Info("hub trusts a CA", "hub", hub, "name", name, "subject", c.Subject.String())
	return ca, nil
}

// Expired reports whether a certificate has ended by the hub's clock.
func (h *Hub) Expired(c *x509.Certificate) bool { return h.now().After(c.NotAfter) }

// RemoveCA ends the trust in a CA and the connections that rest on it: at once in this process, within policyAge
// no new ones in others.
func (h *Hub) RemoveCA(ctx context.Context, hub Name, name string) error {
	cas, err := h.CAs(ctx, hub)
	if err != nil {
		return err
	}
	if err := h.store.RemoveCA(ctx, hub, name); err != nil {
		return h.storeError("removing a CA", err)
	}
	h.forgetCAs(hub)
	for _, ca := range cas {
		if ca.Name != name {
			continue
		}
		h.sessions.dropAll(func(s *Session) string {
			if c := s.grant.ca; s.key.hub == hub && c != nil && string(c.Raw) == string(ca.DER) {
				return "the hub trusts the certificate's CA no more"
			}
			return ""
		})
	}
	h.log.Info("hub trusts a CA no more", "hub", hub, "name", name)
	return nil
}

func (h *Hub) forgetCAs(hub Name) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.cas, hub)
	h.casRead++
}

func (h *Hub) trustedCAs(ctx context.Context, hub Name) ([]*x509.Certificate, error) {
	h.mu.Lock()
	c, ok := h.cas[hub]
	reading := h.casRead
	h.mu.Unlock()
	if ok && h.now().Sub(c.at).Abs() < policyAge {
		return c.list, nil
	}
	cas, err := h.store.CAs(ctx, hub)
	if err != nil {
		return nil, h.storeError("listing CAs", err)
	}
	c = cachedCAs{at: h.now()}
	for _, ca := range cas {
		x, err := x509.ParseCertificate(ca.DER)
		if err != nil {
			h.log.Error("trusted CA in the store", "hub", hub, "name", ca.Name, "err", err)
			continue
		}
		c.list = append(c.list, x)
	}
	h.mu.Lock()
	if h.casRead == reading { // else they were changed after they were read here
		h.cas[hub] = c
	}
	h.mu.Unlock()
	return c.list, nil
}
