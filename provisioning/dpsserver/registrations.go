package dpsserver

import (
	"context"
	"net/http"
	"strings"

	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

func (h *Handler) getRegistration(ctx context.Context, q *request) (*reply, error) {
	id, err := provisioning.ParseRegistrationID(q.seg[1])
	if err != nil {
		return nil, err
	}
	r, err := h.svc.Registration(ctx, id)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: h.shown(r), header: http.Header{"ETag": {quote(r.ETag())}}}, nil
}

// shown is what operators see of a registration: its state without what is the device's own.
func (h *Handler) shown(r provisioning.Registration) *dps.RegistrationState {
	s := h.state(r)
	s.TPM = nil
	return s
}

func (h *Handler) deleteRegistration(ctx context.Context, q *request) (*reply, error) {
	id, err := provisioning.ParseRegistrationID(q.seg[1])
	if err != nil {
		return nil, err
	}
	if err := h.svc.DeleteRegistration(ctx, id, ifMatch(q)); err != nil {
		return nil, err
	}
	h.log.Info("registration deleted", "id", id)
	return &reply{status: http.StatusNoContent}, nil
}

func (h *Handler) queryRegistrations(ctx context.Context, q *request) (*reply, error) {
	after, limit, err := page(q)
	if err != nil {
		return nil, err
	}
	if _, err := h.svc.Group(ctx, q.seg[1]); err != nil {
		return nil, err
	}
	rs, err := h.svc.Registrations(ctx, strings.ToLower(q.seg[1]), provisioning.RegistrationID(after), limit+1)
	if err != nil {
		return nil, err
	}
	more := len(rs) > limit
	if more {
		rs = rs[:limit]
	}
	out := []*dps.RegistrationState{}
	last := ""
	for _, r := range rs {
		out, last = append(out, h.shown(r)), string(r.ID)
	}
	return pageReply(out, "DeviceRegistration", last, more), nil
}
