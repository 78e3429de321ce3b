package dpsserver

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// operation is what a device asks for.
type operation string

// The operations of the device API.
const (
	register operation = "register"
	poll     operation = "poll"
	lookup   operation = "lookup"
)

// call is one request of the device API, whichever transport brought it.
type call struct {
	operation  operation
	scope, id  string
	asked      string              // operation id of a poll
	chain      []*x509.Certificate // as the TLS client sent it, leaf first; its key was proved
	token      string              // the SAS token as sent; empty: none
	apiVersion string
	client     string // what the device's software calls itself, "name/version"
	prefer     string // header Prefer
	force      bool   // forceRegistration of the SDKs
	body       []byte // JSON; empty stands for {}; that of a poll, which some SDKs send, is ignored
	mqtt       bool   // else HTTP
	remote     string // the client's address

	known bool // set by answer: the caller is who it says it is
}

// answer decides a call. Every transport's requests come through here, and its errors go through refusal.
func (h *Handler) answer(ctx context.Context, q *call) (*reply, error) {
	if h.c.Admit != nil {
		var cert []byte
		if len(q.chain) > 0 {
			cert = q.chain[0].Raw
		}
		if err := h.c.Admit(q.remote, cert, q.id); err != nil {
			return nil, err
		}
	}
	if err := checkAPIVersion(q.apiVersion); err != nil {
		return nil, err
	}
	if !strings.EqualFold(q.scope, h.svc.Identity().IDScope) {
		return nil, cradle.Errorf(cradle.NotFound, "id scope %.40q is not served here", q.scope).
			WithHint("compare the device's id scope with the one that cradle status shows")
	}
	ask, tpm, err := checkBody(q)
	if err != nil {
		return nil, err
	}
	c, err := h.svc.Authenticate(ctx, provisioning.Credentials{RegistrationID: q.id, Chain: q.chain, Token: q.token, TPM: tpm, Operation: q.asked})
	if err != nil {
		return nil, err
	}
	q.known = true
	switch q.operation {
	case register:
		return h.register(ctx, q, c, *ask)
	case poll:
		return h.poll(ctx, q, c)
	default:
		return h.lookup(ctx, c)
	}
}

// checkBody looks at the body of a registration or a lookup.
func checkBody(q *call) (*provisioning.Ask, *provisioning.TPMKeys, error) {
	ask := &provisioning.Ask{Force: q.force}
	if q.operation == poll {
		return ask, nil, nil
	}
	var b dps.DeviceRegistration
	if err := decode(q.body, &b); err != nil {
		return nil, nil, err
	}
	if b.RegistrationID != "" && !strings.EqualFold(b.RegistrationID, q.id) {
		return nil, nil, cradle.Errorf(cradle.Invalid, "body is for registration id %.140q, the request for %.140q", b.RegistrationID, q.id)
	}
	if b.CSR != "" && q.operation == lookup {
		return nil, nil, cradle.Errorf(cradle.Invalid, "csr has no place in a status lookup").WithHint("send it when you register")
	}
	if b.CSR != "" {
		var err error
		if ask.CSR, err = base64.StdEncoding.DecodeString(b.CSR); err != nil {
			return nil, nil, cradle.Errorf(cradle.Invalid, "csr is not base64").WithHint("send the DER of the request in base64, without PEM armour and line breaks")
		}
	}
	var tpm *provisioning.TPMKeys
	if b.TPM != nil && *b.TPM != (dps.TPM{}) {
		if q.mqtt {
			return nil, nil, cradle.Errorf(cradle.Invalid, "TPM attestation is not served over MQTT").WithHint("register over HTTPS")
		}
		k, err := tpmKeys(b.TPM)
		if err != nil {
			return nil, nil, err
		}
		tpm = &k
	}
	ask.Payload = b.Payload
	return ask, tpm, nil
}

// register answers 200 when the registration is decided while a device waits that can read it; else 202.
func (h *Handler) register(ctx context.Context, q *call, c *provisioning.Caller, ask provisioning.Ask) (*reply, error) {
	if ask.Hold = min(q.waits(), h.c.Wait); ask.Hold > 0 {
		select {
		case h.waiting <- struct{}{}:
			defer func() { <-h.waiting }()
		default:
			ask.Hold = 0
		}
	}
	r, err := h.svc.Register(ctx, c, ask)
	if err != nil {
		return nil, err
	}
	h.log.Debug("device registers", "id", r.ID, "group", r.Group, "hub", r.Hub, "operation", r.Operation)
	if ask.Hold > 0 && (r.Status == provisioning.Assigned || r.Status == provisioning.Failed) {
		return &reply{status: http.StatusOK, body: h.outcome(r, r.Operation)}, nil
	}
	return &reply{
		status:     http.StatusAccepted,
		body:       dps.OperationStatus{OperationID: r.Operation, Status: dps.Assigning},
		retryAfter: strconv.Itoa(h.pause(r)),
		operation:  "/" + h.svc.Identity().IDScope + "/registrations/" + string(r.ID) + "/operations/" + r.Operation,
	}, nil
}

// maxWaiting bounds the register calls that wait for their outcome at once; the others are told to poll.
const maxWaiting = 512

// knowOutcome is the software that is known to take the outcome for an answer to register. Most is not: IoT Identity
// Service, and Microsoft's next SDK for .NET over MQTT, call whatever is not "assigning" an error there.
const knowOutcome = "azure-iot-provisioning-device/" // the SDK for Node.js, on every transport

// waits is how long the device waits for the outcome of its register call; zero: it must be given an operation.
func (q *call) waits() time.Duration {
	if strings.HasPrefix(q.client, knowOutcome) {
		return time.Hour // as long as the service likes
	}
	for p := range strings.SplitSeq(q.prefer, ",") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(p), "wait="); ok {
			n, _ := strconv.ParseUint(v, 10, 8)
			return time.Duration(n) * time.Second
		}
	}
	return 0
}

func (h *Handler) pause(r provisioning.Registration) int {
	if h.svc.Troubled(r) {
		return h.c.RetryBusy
	}
	return h.c.RetryAfter
}

func (h *Handler) poll(ctx context.Context, q *call, c *provisioning.Caller) (*reply, error) {
	r, err := h.svc.Operation(ctx, c, q.asked, h.c.Hold)
	if err != nil {
		return nil, err
	}
	out := h.outcome(r, q.asked)
	if r.Status == provisioning.Assigning {
		pause := max(h.pause(r), 1) // it was held already
		return &reply{status: http.StatusAccepted, body: out, retryAfter: strconv.Itoa(pause)}, nil
	}
	return &reply{status: http.StatusOK, body: out}, nil
}

// outcome is what becomes of an operation.
func (h *Handler) outcome(r provisioning.Registration, operation string) dps.OperationStatus {
	out := dps.OperationStatus{OperationID: operation, Status: dps.Status(r.Status), RegistrationState: h.state(r)}
	for _, c := range r.IssuedChain() {
		out.RegistrationState.IssuedCertificateChain = append(out.RegistrationState.IssuedCertificateChain, c.Raw)
	}
	return out
}

// lookup answers with the registration's state, without registering.
func (h *Handler) lookup(ctx context.Context, c *provisioning.Caller) (*reply, error) {
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
	}
	switch r.Kind {
	case provisioning.SymmetricKey:
		s.SymmetricKey = &dps.X509State{EnrollmentGroupID: r.Group}
	case provisioning.TPM, provisioning.TPMUnits:
		if r.Status == provisioning.Assigned {
			s.TPM = &dps.TPMState{AuthenticationKey: []byte(r.Keys.TPM)}
		}
	default:
		s.X509 = &dps.X509State{EnrollmentGroupID: r.Group}
	}
	if r.Status == provisioning.Assigned {
		s.AssignedHub, s.DeviceID, s.Substatus = h.svc.HubHost(r.Hub), string(r.DeviceID()), r.Substatus
		if json.Valid([]byte(r.Answer)) { // of the custom allocation's webhook
			s.Payload = json.RawMessage(r.Answer)
		}
	}
	return s
}
