package dpsserver

import (
	"context"
	"net/http"

	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

func (h *Handler) putGroup(ctx context.Context, q *request) (*reply, error) {
	var b dps.EnrollmentGroup
	if err := q.decode(&b); err != nil {
		return nil, err
	}
	if err := named(&b.EnrollmentGroupID, "enrolment group", q); err != nil {
		return nil, err
	}
	g, err := h.storeGroup(ctx, b, ifMatch(q))
	if err != nil {
		return nil, err
	}
	return h.group(g)
}

// storeGroup creates a group, or replaces the one that ifMatch names.
func (h *Handler) storeGroup(ctx context.Context, b dps.EnrollmentGroup, ifMatch string) (provisioning.Group, error) {
	r := provisioning.GroupRequest{ID: b.EnrollmentGroupID, IfMatch: ifMatch}
	var present *provisioning.Attestation
	if ifMatch != "" {
		if g, err := h.svc.Group(ctx, r.ID); err == nil {
			present = &g.Attestation
		}
	}
	var err error
	if r.Attestation, err = attestationOf(b.Attestation, present); err != nil {
		return provisioning.Group{}, err
	}
	if r.Terms, err = termsOf(b.Terms); err != nil {
		return provisioning.Group{}, err
	}
	g, err := h.svc.PutGroup(ctx, r)
	if err == nil {
		h.log.Info("enrolment group stored", "group", g.ID, "attestation", g.Kind, "enabled", g.Enabled, "ca", g.CAs())
	}
	return g, err
}

func (h *Handler) getGroup(ctx context.Context, q *request) (*reply, error) {
	g, err := h.svc.Group(ctx, q.seg[1])
	if err != nil {
		return nil, err
	}
	return h.group(g)
}

func (h *Handler) deleteGroup(ctx context.Context, q *request) (*reply, error) {
	if err := h.dropGroup(ctx, q.seg[1], ifMatch(q)); err != nil {
		return nil, err
	}
	return &reply{status: http.StatusNoContent}, nil
}

func (h *Handler) dropGroup(ctx context.Context, id, ifMatch string) error {
	err := h.svc.DeleteGroup(ctx, id, ifMatch)
	if err == nil {
		h.log.Info("enrolment group deleted", "group", id)
	}
	return err
}

// groupKeys answers attestationmechanism.
func (h *Handler) groupKeys(ctx context.Context, q *request) (*reply, error) {
	g, err := h.svc.Group(ctx, q.seg[1])
	if err != nil {
		return nil, err
	}
	return h.mechanism(g.Attestation, "group", g.ID)
}

func (h *Handler) group(g provisioning.Group) (*reply, error) {
	b, err := h.wireGroup(g)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: b, header: http.Header{"ETag": {b.ETag}}}, nil
}

func (h *Handler) wireGroup(g provisioning.Group) (dps.EnrollmentGroup, error) {
	b := dps.EnrollmentGroup{EnrollmentGroupID: g.ID, Terms: h.wireTerms(g.Terms, g.ETag, g.Created, g.Updated)}
	var err error
	b.Attestation, err = wireAttestation(g.Attestation, false)
	return b, err
}

func (h *Handler) queryGroups(ctx context.Context, q *request) (*reply, error) {
	after, limit, err := page(q)
	if err != nil {
		return nil, err
	}
	gs, err := h.svc.Groups(ctx)
	if err != nil {
		return nil, err
	}
	out := []dps.EnrollmentGroup{}
	last, more := "", false
	for _, g := range gs {
		if g.ID <= after {
			continue
		}
		if more = len(out) == limit; more {
			break
		}
		b, err := h.wireGroup(g)
		if err != nil {
			return nil, err
		}
		out, last = append(out, b), g.ID
	}
	return pageReply(out, "EnrollmentGroup", last, more), nil
}

func (h *Handler) bulkGroups(ctx context.Context, q *request) (*reply, error) {
	return bulk(q, func(b *dps.Bulk) int { return len(b.EnrollmentGroups) }, func(b *dps.Bulk, i int, delete bool, match etagRule) dps.BulkError {
		g := b.EnrollmentGroups[i]
		etag, err := match(g.ETag)
		if err == nil && delete {
			err = h.dropGroup(ctx, g.EnrollmentGroupID, etag)
		} else if err == nil {
			_, err = h.storeGroup(ctx, g, etag)
		}
		e := bulkError(err)
		e.EnrollmentGroupID = g.EnrollmentGroupID
		return e
	})
}
