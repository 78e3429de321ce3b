package dpsserver

import (
	"context"
	"net/http"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

func (h *Handler) putEnrollment(ctx context.Context, q *request) (*reply, error) {
	var b dps.Enrollment
	if err := q.decode(&b); err != nil {
		return nil, err
	}
	if err := named(&b.RegistrationID, "registration id", q); err != nil {
		return nil, err
	}
	e, err := h.storeEnrollment(ctx, b, ifMatch(q))
	if err != nil {
		return nil, err
	}
	return h.enrollment(ctx, e)
}

// enrollmentRequest reads an individual enrolment as the service API has it; present as for attestationOf.
func enrollmentRequest(b dps.Enrollment, present *provisioning.Attestation) (provisioning.EnrollmentRequest, error) {
	r := provisioning.EnrollmentRequest{ID: b.RegistrationID, Device: b.DeviceID, Account: cradle.AccountID(b.Account)}
	if given(b.OptionalDeviceInformation) {
		r.Info = b.OptionalDeviceInformation
	}
	var err error
	if r.Attestation, err = attestationOf(b.Attestation, present); err != nil {
		return r, err
	}
	r.Terms, err = termsOf(b.Terms)
	return r, err
}

// storeEnrollment creates an enrolment, or replaces the one that ifMatch names.
func (h *Handler) storeEnrollment(ctx context.Context, b dps.Enrollment, ifMatch string) (provisioning.Enrollment, error) {
	var present *provisioning.Attestation
	if id, err := provisioning.ParseRegistrationID(b.RegistrationID); err == nil && ifMatch != "" {
		if e, err := h.svc.Enrollment(ctx, id); err == nil {
			present = &e.Attestation
		}
	}
	r, err := enrollmentRequest(b, present)
	if err != nil {
		return provisioning.Enrollment{}, err
	}
	r.IfMatch = ifMatch
	e, err := h.svc.PutEnrollment(ctx, r)
	if err == nil {
		h.log.Info("individual enrolment stored", "id", e.ID, "attestation", e.Kind, "enabled", e.Enabled)
	}
	return e, err
}

func (h *Handler) getEnrollment(ctx context.Context, q *request) (*reply, error) {
	e, err := h.findEnrollment(ctx, q.seg[1])
	if err != nil {
		return nil, err
	}
	return h.enrollment(ctx, e)
}

func (h *Handler) findEnrollment(ctx context.Context, name string) (provisioning.Enrollment, error) {
	id, err := provisioning.ParseRegistrationID(name)
	if err != nil {
		return provisioning.Enrollment{}, err
	}
	return h.svc.Enrollment(ctx, id)
}

func (h *Handler) deleteEnrollment(ctx context.Context, q *request) (*reply, error) {
	if err := h.dropEnrollment(ctx, q.seg[1], ifMatch(q)); err != nil {
		return nil, err
	}
	return &reply{status: http.StatusNoContent}, nil
}

func (h *Handler) dropEnrollment(ctx context.Context, name, ifMatch string) error {
	id, err := provisioning.ParseRegistrationID(name)
	if err != nil {
		return err
	}
	if err = h.svc.DeleteEnrollment(ctx, id, ifMatch); err == nil {
		h.log.Info("individual enrolment deleted", "id", id)
	}
	return err
}

func (h *Handler) enrollmentKeys(ctx context.Context, q *request) (*reply, error) {
	e, err := h.findEnrollment(ctx, q.seg[1])
	if err != nil {
		return nil, err
	}
	return h.mechanism(e.Attestation, "id", string(e.ID))
}

// enrollment shows one with the state of its registration.
func (h *Handler) enrollment(ctx context.Context, e provisioning.Enrollment) (*reply, error) {
	b, err := h.wireEnrollment(e)
	if err != nil {
		return nil, err
	}
	r, err := h.svc.Registration(ctx, e.ID)
	if err == nil && r.Group == "" {
		b.RegistrationState = h.shown(r)
	} else if err != nil && cradle.KindOf(err) != cradle.NotFound {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: b, header: http.Header{"ETag": {b.ETag}}}, nil
}

func (h *Handler) wireEnrollment(e provisioning.Enrollment) (dps.Enrollment, error) {
	b := dps.Enrollment{RegistrationID: string(e.ID), DeviceID: string(e.Device), OptionalDeviceInformation: e.Info, Account: string(e.Account),
		Terms: h.wireTerms(e.Terms, e.ETag, e.Created, e.Updated)}
	var err error
	b.Attestation, err = wireAttestation(e.Attestation, false)
	return b, err
}

func (h *Handler) queryEnrollments(ctx context.Context, q *request) (*reply, error) {
	after, limit, err := page(q)
	if err != nil {
		return nil, err
	}
	es, err := h.svc.EnrollmentPage(ctx, provisioning.RegistrationID(after), limit+1)
	if err != nil {
		return nil, err
	}
	more := len(es) > limit
	if more {
		es = es[:limit]
	}
	out := []dps.Enrollment{}
	last := ""
	for _, e := range es {
		b, err := h.wireEnrollment(e)
		if err != nil {
			return nil, err
		}
		out, last = append(out, b), string(e.ID)
	}
	return pageReply(out, "Enrollment", last, more), nil
}

func (h *Handler) bulkEnrollments(ctx context.Context, q *request) (*reply, error) {
	return bulk(q, func(b *dps.Bulk) int { return len(b.Enrollments) }, func(b *dps.Bulk, i int, delete bool, match etagRule) dps.BulkError {
		e := b.Enrollments[i]
		etag, err := match(e.ETag)
		if err == nil && delete {
			err = h.dropEnrollment(ctx, e.RegistrationID, etag)
		} else if err == nil {
			_, err = h.storeEnrollment(ctx, e, etag)
		}
		out := bulkError(err)
		out.RegistrationID = e.RegistrationID
		return out
	})
}
