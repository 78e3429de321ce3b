package dpsserver

import (
	"context"
	"crypto/x509"
	"net/http"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// device wraps an endpoint of the device API: the scope must be ours and the caller who it says it is.
func (h *Handler) device(f func(context.Context, *request, *provisioning.Caller) (*reply, error)) endpoint {
	return func(ctx context.Context, q *request) (*reply, error) {
		if !strings.EqualFold(q.seg[0], h.svc.Identity().IDScope) {
			return nil, cradle.Errorf(cradle.NotFound, "id scope %.40q is not served here", q.seg[0]).
				WithHint("compare the device's id scope with the one that cradle status shows")
		}
		if err := checkBody(q); err != nil {
			return nil, err
		}
		var leaf *x509.Certificate
		if q.TLS != nil && len(q.TLS.PeerCertificates) > 0 {
			leaf = q.TLS.PeerCertificates[0]
		}
		if leaf == nil && q.Header.Get("Authorization") != "" {
			return nil, cradle.Errorf(cradle.Unauthorized, "this service does not accept SAS tokens of devices").
				WithHint("connect with the device's operational certificate")
		}
		c, err := h.svc.Authenticate(ctx, q.seg[2], leaf)
		if err != nil {
			return nil, err
		}
		return f(ctx, q, c)
	}
}

// checkBody looks at the body of PUT and POST; the body of a GET, which some SDKs send, is ignored.
func checkBody(q *request) error {
	var b dps.DeviceRegistration
	if err := q.decode(&b); err != nil {
		return err
	}
	if b.RegistrationID != "" && !strings.EqualFold(b.RegistrationID, q.seg[2]) {
		return cradle.Errorf(cradle.Invalid, "body is for registration id %.140q, the path for %.140q", b.RegistrationID, q.seg[2])
	}
	if b.CSR != "" {
		return cradle.Errorf(cradle.Invalid, "this service issues no certificates").WithHint("enrol with EST and leave csr out")
	}
	if len(b.TPM) > 0 && string(b.TPM) != "null" {
		return cradle.Errorf(cradle.Invalid, "TPM attestation is not supported here").WithHint("register with an X.509 certificate")
	}
	return nil
}

// register always answers 202: clients of the IoT Identity Service take a 200 here for an error.
func (h *Handler) register(ctx context.Context, q *request, c *provisioning.Caller) (*reply, error) {
	r, err := h.svc.Register(ctx, c)
	if err != nil {
		return nil, err
	}
	h.log.Debug("device registers", "id", r.ID, "group", r.Group, "hub", r.Hub, "operation", r.Operation)
	return &reply{
		status: http.StatusAccepted,
		body:   dps.OperationStatus{OperationID: r.Operation, Status: dps.Assigning},
		header: http.Header{
			"Retry-After": {strconv.Itoa(h.pause(r))},
			"Location": {"https://" + q.Host + "/" + h.svc.Identity().IDScope + "/registrations/" + string(r.ID) + "/operations/" + r.Operation +
				"?api-version=" + q.URL.Query().Get("api-version")},
		},
	}, nil
}

func (h *Handler) pause(r provisioning.Registration) int {
	if h.svc.Troubled(r) {
		return h.c.RetryBusy
	}
	return h.c.RetryAfter
}

func (h *Handler) poll(ctx context.Context, q *request, c *provisioning.Caller) (*reply, error) {
	r, err := h.svc.Operation(ctx, c, q.seg[4], h.c.Hold)
	if err != nil {
		return nil, err
	}
	out := dps.OperationStatus{OperationID: q.seg[4], Status: dps.Status(r.Status), RegistrationState: h.state(r)}
	if r.Status == provisioning.Assigning {
		pause := max(h.pause(r), 1) // it was held already
		return &reply{status: http.StatusAccepted, body: out, header: http.Header{"Retry-After": {strconv.Itoa(pause)}}}, nil
	}
	return &reply{status: http.StatusOK, body: out}, nil
}

// lookup answers with the registration's state, without registering.
func (h *Handler) lookup(ctx context.Context, q *request, c *provisioning.Caller) (*reply, error) {
	r, err := h.svc.Registration(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: h.state(r)}, nil
}

// state is a registration as the wire has it.
func (h *Handler) state(r provisioning.Registration) *dps.RegistrationState {
	s := &dps.RegistrationState{
		RegistrationID:         string(r.ID),
		CreatedDateTimeUTC:     dps.Time{Time: r.Created},
		LastUpdatedDateTimeUTC: dps.Time{Time: r.Updated},
		Status:                 dps.Status(r.Status),
		ErrorCode:              r.ErrorCode,
		ErrorMessage:           r.ErrorMessage,
		ETag:                   quote(r.ETag()),
		X509:                   &dps.X509State{EnrollmentGroupID: r.Group},
	}
	if r.Status == provisioning.Assigned {
		s.AssignedHub, s.DeviceID, s.Substatus = h.svc.HubHost(r.Hub), string(r.DeviceID()), r.Substatus
	}
	return s
}
