package dps

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Service is a client of the service API, made from a connection string with policy
// provisioningserviceowner.
type Service struct {
	HTTP *http.Client // nil: http.DefaultClient
	Conn *sas.ConnectionString
	Now  func() time.Time // nil: the real clock
}

// Group reads an enrolment group; cradle.NotFound when there is none.
func (s *Service) Group(ctx context.Context, id string) (*EnrollmentGroup, error) {
	g := new(EnrollmentGroup)
	return g, s.do(ctx, http.MethodGet, "/enrollmentGroups/"+url.PathEscape(id), "", nil, g)
}

// PutGroup creates a group, or replaces the one whose ETag g carries. It returns what is stored.
func (s *Service) PutGroup(ctx context.Context, g EnrollmentGroup) (*EnrollmentGroup, error) {
	out := new(EnrollmentGroup)
	return out, s.do(ctx, http.MethodPut, "/enrollmentGroups/"+url.PathEscape(g.EnrollmentGroupID), g.ETag, g, out)
}

// EnsureGroup makes a group hold exactly these signing certificates (secondary may be nil). A group that
// does already is left alone; one that exists keeps its other settings, a disabled one stays disabled.
func (s *Service) EnsureGroup(ctx context.Context, id string, primary, secondary *x509.Certificate) (*EnrollmentGroup, error) {
	present, err := s.Group(ctx, id)
	switch {
	case cradle.KindOf(err) == cradle.NotFound:
		present = &EnrollmentGroup{EnrollmentGroupID: id, Terms: Terms{ProvisioningStatus: "enabled"}}
	case err != nil:
		return nil, err
	default:
		if x := present.Attestation.X509; x != nil && x.SigningCertificates != nil &&
			x.SigningCertificates.Primary.describes(primary) && x.SigningCertificates.Secondary.describes(secondary) {
			return present, nil
		}
	}
	certs := &X509Certificates{Primary: &X509Certificate{Certificate: PEM(primary)}}
	if secondary != nil {
		certs.Secondary = &X509Certificate{Certificate: PEM(secondary)}
	}
	present.Attestation = Attestation{Type: "x509", X509: &X509Attestation{SigningCertificates: certs}}
	return s.PutGroup(ctx, *present)
}

// describes reports whether a slot, as the service shows it, holds c; an empty slot holds nil.
func (x *X509Certificate) describes(c *x509.Certificate) bool {
	if x == nil || x.Info == nil || c == nil {
		return (x == nil || x.Info == nil) && c == nil
	}
	return strings.EqualFold(x.Info.SHA256Thumbprint, Info(c).SHA256Thumbprint)
}

// DeleteGroup deletes a group; an empty etag deletes any version.
func (s *Service) DeleteGroup(ctx context.Context, id, etag string) error {
	return s.do(ctx, http.MethodDelete, "/enrollmentGroups/"+url.PathEscape(id), etag, nil, nil)
}

// Registration reads one registration; cradle.NotFound when there is none.
func (s *Service) Registration(ctx context.Context, id string) (*RegistrationState, error) {
	r := new(RegistrationState)
	return r, s.do(ctx, http.MethodGet, "/registrations/"+url.PathEscape(id), "", nil, r)
}

func (s *Service) do(ctx context.Context, method, path, etag string, body, out any) error {
	h := http.Header{}
	if etag != "" {
		h.Set("If-Match", etag)
	}
	_, err := s.call(ctx, method, path, h, body, out)
	return err
}
