package dpsserver

import (
	"context"
	"net"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// owner wraps an endpoint of the service API: the caller proves that it may, by a SAS token under the key of a policy
// or by a bearer token.
func (h *Handler) owner(want dps.Right, f endpoint) endpoint {
	return func(ctx context.Context, q *request) (*reply, error) {
		if len(q.seg) > 1 {
			q.id = q.seg[1]
		}
		if err := h.may(q, want); err != nil {
			return nil, err
		}
		return f(ctx, q)
	}
}

// may refuses a caller without the right.
func (h *Handler) may(q *request, want dps.Right) error {
	rights, who, err := h.rights(q)
	if err == nil && !dps.Allow(rights, want) {
		err = cradle.Errorf(cradle.Unauthorized, "%s has the rights %v, and this needs %s", who, rights, want).
			WithHint("use policy %s, or a token with that right", dps.Policy)
	}
	return err
}

// rights of the caller, and its name.
func (h *Handler) rights(q *request) ([]dps.Right, string, error) {
	header, owner := q.Header.Get("Authorization"), h.svc.Identity().ServiceKey
	if header == "" {
		return nil, "", cradle.Errorf(cradle.Unauthorized, "the service API needs an Authorization header").
			WithHint("sign with the connection string that cradle service-key show prints")
	}
	if dps.IsBearer(header) {
		b, err := dps.VerifyBearer(header, owner, q.now)
		if err != nil {
			return nil, "", err
		}
		return b.Rights, strings.TrimSpace("token " + b.Name), nil
	}
	t, err := sas.Parse(header)
	if err != nil {
		return nil, "", err
	}
	rights, err := dps.PolicyRights(t.KeyName)
	if err != nil {
		return nil, "", err
	}
	if err := t.Verify(dps.PolicyKey(owner, t.KeyName), q.now); err != nil {
		return nil, "", err
	}
	// Tools sign for the host name of their connection string, with or without a port.
	host, _, splitErr := net.SplitHostPort(q.Host)
	if !t.Covers(q.Host) && (splitErr != nil || !t.Covers(host)) {
		return nil, "", cradle.Errorf(cradle.Unauthorized, "SAS token is for %.100q, the request went to %q", t.Resource, q.Host)
	}
	return rights, "policy " + t.KeyName, nil
}
