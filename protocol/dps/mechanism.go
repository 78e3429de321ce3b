package dps

import (
	"context"
	"net/http"
	"net/url"
)

// AttestationMechanism reads how an individual enrolment's device proves itself, its keys included.
func (s *Service) AttestationMechanism(ctx context.Context, id string) (*Attestation, error) {
	out := new(Attestation)
	return out, s.do(ctx, http.MethodPost, "/enrollments/"+url.PathEscape(id)+"/attestationmechanism", "", nil, out)
}
