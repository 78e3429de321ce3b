package iothub

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Authority is a CA whose certificates admit devices of type CertificateAuthority to a hub. Cradle's own: Azure manages
// them through its resource manager.
type Authority struct {
	Name     string    `json:"name"`
	Subject  string    `json:"subject"`
	SHA256   string    `json:"sha256"` // of the certificate, lower-case hex
	NotAfter time.Time `json:"not_after"`
	Added    time.Time `json:"added_at"`
	Expired  bool      `json:"expired,omitempty"` // by the hub's clock: it admits nobody any more
}

// NewAuthority is the body of a registration: the certificate, DER.
type NewAuthority struct {
	Certificate []byte `json:"certificate"` // base64
}

// AddAuthority makes the hub trust a CA; Conflict when the name is taken.
func (r *Registry) AddAuthority(ctx context.Context, name string, der []byte) (*Authority, error) {
	out := new(Authority)
	if _, err := r.do(ctx, http.MethodPut, "/certificates/"+url.PathEscape(name), nil, "", NewAuthority{der}, out); err != nil {
		return nil, fmt.Errorf("adding CA %s: %w", name, err)
	}
	return out, nil
}

// Authorities lists the CAs that the hub trusts, in order of their names.
func (r *Registry) Authorities(ctx context.Context) ([]Authority, error) {
	var out []Authority
	if _, err := r.do(ctx, http.MethodGet, "/certificates", nil, "", nil, &out); err != nil {
		return nil, fmt.Errorf("listing CAs: %w", err)
	}
	return out, nil
}

// RemoveAuthority ends the trust in a CA, and the connections that rest on it; NotFound.
func (r *Registry) RemoveAuthority(ctx context.Context, name string) error {
	if _, err := r.do(ctx, http.MethodDelete, "/certificates/"+url.PathEscape(name), nil, "", nil, nil); err != nil {
		return fmt.Errorf("removing CA %s: %w", name, err)
	}
	return nil
}
