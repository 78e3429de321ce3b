package provisioning

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// Webhook asks an operator's service for a device's hub; *dps.Webhook is one, with its kinds of errors.
type Webhook interface {
	Ask(ctx context.Context, url string, key []byte, q *dps.AllocationRequest) (*dps.AllocationResponse, error)
}

// decisions is the outbox's name for "ask the webhook": no hub is called so (linkName). A registration that waits for a
// webhook is a delivery like every other: durable, leased by one replica, repeated until it has worked.
const decisions = "!webhook"

// WebhookKey is what our calls of a webhook are signed with. It comes from the installation's own key and the URL, so
// a receiver can neither guess another's nor call the service API with it.
func (s *Service) WebhookKey(url string) []byte {
	m := hmac.New(sha256.New, s.identity.ServiceKey)
	m.Write([]byte("cradle webhook v1\x00" + url))
	return m.Sum(nil)
}

// asksWebhook reports whether a webhook decides.
func (t *Terms) asksWebhook() bool {
	return t.Allocation == Custom && t.Custom != nil && t.Custom.WebhookURL != ""
}

// decide makes one try to have a webhook's answer and to assign the device by it. The webhook is called outside of any
// transaction; its answer is held to the enrolment as it is when it is used.
func (o *outbox) decide(ctx context.Context, d Delivery) *Delivery {
	s := o.s
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	settle := func() *Delivery {
		_, again, err := s.store.Settle(ctx, d, o.lease(), func(r Registration) (Registration, []string) { return r, nil })
		if err != nil && ctx.Err() == nil {
			s.log.Warn("decision is not settled; it is made again", "registration", d.Registration.ID, "err", err)
		}
		return again
	}
	postpone := func(err error) *Delivery {
		due := s.now().Add(max(backoff(d.Attempts), min(cradle.RetryAfter(err), time.Minute)))
		o.postpone(ctx, d, due, err.Error())
		return nil
	}
	var cur Registration
	var by Enrolled
	_, _, err := s.store.Change(call, d.Registration.ID, d.Registration.Group, func(r *Registration, e Enrolled) (Outcome, error) {
		if by = e; r != nil {
			cur = *r
		}
		return Outcome{}, nil
	}, Lease{})
	t := by.Terms()
	switch {
	case cradle.KindOf(err) == cradle.NotFound || err == nil && (!cur.Asks || cur.Blocked != "" || cur.Status != Assigning):
		return settle() // deleted, blocked, or decided in the last run
	case err != nil:
		return postpone(err)
	case cur.Operation != d.Registration.Operation:
		return settle() // a newer call has renewed the row
	}
	var got *dps.AllocationResponse
	if t != nil && t.asksWebhook() {
		circuit := "webhook " + dps.WithoutQuery(t.Custom.WebhookURL)
		if o.closed(circuit) {
			err = cradle.Errorf(cradle.Busy, "%s does not answer", circuit)
		} else {
			got, err = s.webhook.Ask(call, t.Custom.WebhookURL, s.WebhookKey(t.Custom.WebhookURL), s.allocationRequest(by, cur))
			switch {
			case ctx.Err() != nil:
				return nil // stopping; the lease ends by itself
			case cradle.KindOf(err) == cradle.Busy:
				o.ill(circuit, err)
			default:
				o.well(circuit)
			}
		}
	}
	v := &verdict{asked: t, got: got, err: err, operation: cur.Operation, hubs: s.table.Load(), now: s.time()}
	r, ds, err := s.store.Change(ctx, cur.ID, cur.Group, v.step, o.lease())
	if cradle.KindOf(err) == cradle.NotFound {
		return settle()
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("custom allocation fails; the device waits", "registration", cur.ID, "enrolment", by.Name(), "err", err)
		}
		return postpone(err)
	}
	again := settle()
	if o.offer(ds); r.Status == Failed {
		s.waiters.wake(r.ID, &r)
	}
	return again
}

// verdict is the step that uses what a webhook said.
type verdict struct {
	asked     *Terms // under which it was asked; nil: nothing is enrolled any more
	got       *dps.AllocationResponse
	err       error
	operation string
	hubs      *hubTable
	now       time.Time
}

func (v *verdict) step(cur *Registration, by Enrolled) (Outcome, error) {
	if cur == nil || !cur.Asks || cur.Operation != v.operation || cur.Blocked != "" {
		return Outcome{}, nil
	}
	t := by.Terms()
	switch {
	case t == nil:
		return v.fail(cur, cradle.Errorf(cradle.Forbidden, "the enrolment of this device was deleted"))
	case !t.Enabled:
		return v.fail(cur, cradle.Errorf(cradle.Forbidden, "%s is disabled", by.Name()))
	case v.asked == nil || !sameTerms(*v.asked, *t):
		return v.fail(cur, cradle.Errorf(cradle.Conflict, "%s changed while its allocation rule was asked", by.Name()).WithHint("register again"))
	case cradle.KindOf(v.err) == cradle.Forbidden && v.err != nil:
		return v.fail(cur, v.err)
	}
	terms := *t
	d := allocate.Device{ID: string(cur.ID), Hub: cur.Hub}
	hub, err := "", v.err
	if err == nil {
		hub, err = v.use(cur, &terms, d)
	}
	if err != nil && terms.Custom.Fallback == FallbackHashed {
		rule := t.rule()
		rule.Policy = Hashed
		terms = *t
		hub, err = allocate.Decide(rule, v.hubs.alloc, d, nil)
	}
	if err != nil {
		return Outcome{}, err
	}
	next := *cur
	deliver := next.move(hub, &terms, v.hubs.alloc)
	next.Asks = false
	next.touch(v.now)
	return Outcome{Registration: &next, Deliver: deliver}, nil
}

// use holds the answer to what is linked and allowed, and takes its initial twin and payload over.
func (v *verdict) use(cur *Registration, t *Terms, d allocate.Device) (string, error) {
	name := v.got.IotHubHostName
	if h := v.hubs.find(name); h != nil {
		name = h.Name
	}
	hub, err := allocate.Decide(t.rule(), v.hubs.alloc, d, []string{name})
	if err != nil {
		return "", err
	}
	if len(v.got.InitialTwin) > 0 {
		if t.InitialTwin, err = checkInitialTwin(v.got.InitialTwin); err != nil {
			return "", err
		}
	}
	cur.Answer = string(v.got.Payload)
	return hub, nil
}

// fail ends the registration: the device is told why, and may register again.
func (v *verdict) fail(cur *Registration, err error) (Outcome, error) {
	next := *cur
	next.Asks = false
	next, _ = delivered(v.now, err)(next)
	return Outcome{Registration: &next}, nil
}

// allocationRequest is what a webhook gets to know; neither keys nor certificates are in it.
func (s *Service) allocationRequest(by Enrolled, r Registration) *dps.AllocationRequest {
	t := by.Terms()
	e := &dps.AllocationEnrollment{
		Attestation: dps.Attestation{Type: r.Kind.Type()}, Capabilities: &dps.Capabilities{IotEdge: t.IoTEdge}, InitialTwin: t.InitialTwin,
		ProvisioningStatus: "enabled", AllocationPolicy: t.Allocation,
		ReprovisionPolicy:          &dps.ReprovisionRule{UpdateHubAssignment: t.Reprovision.UpdateHub, MigrateDeviceData: t.Reprovision.MigrateData},
		CustomAllocationDefinition: &dps.CustomAllocation{WebhookURL: dps.WithoutQuery(t.Custom.WebhookURL), APIVersion: t.Custom.APIVersion},
	}
	for _, name := range t.Hubs {
		e.IotHubs = append(e.IotHubs, s.HubHost(name))
	}
	q := &dps.AllocationRequest{DeviceRuntimeContext: dps.RuntimeContext{RegistrationID: string(r.ID)}, LinkedHubs: []string{}}
	if by.Individual != nil {
		e.RegistrationID, e.ETag = string(by.Individual.ID), by.Individual.ETag
		q.IndividualEnrollment = e
	} else {
		e.EnrollmentGroupID, e.ETag = by.Group.ID, by.Group.ETag
		q.EnrollmentGroup = e
	}
	c := &q.DeviceRuntimeContext
	if r.Hub != "" {
		c.CurrentIotHubHostName, c.CurrentDeviceID = s.HubHost(r.Hub), string(r.DeviceID())
	}
	switch e.Attestation.Type {
	case "x509":
		c.X509 = &dps.RuntimeX509{ClientCertificates: dps.X509Certificates{Primary: &dps.X509Certificate{Info: &dps.X509Info{
			SubjectName: "CN=" + string(r.ID), SHA256Thumbprint: r.Thumbprint.String(), NotBeforeUTC: dps.Time{Time: r.NotBefore}}}}}
	case "symmetricKey":
		c.SymmetricKey = &struct{}{}
	default:
		c.TPM = &struct{}{}
	}
	if json.Valid([]byte(r.Payload)) {
		c.Payload = json.RawMessage(r.Payload)
	}
	if r.Facts != "" {
		_ = json.Unmarshal([]byte(r.Facts), &c.Attested) // what is no string is left out
	}
	for _, h := range allocate.Candidates(t.rule(), s.table.Load().alloc, allocate.Device{ID: string(r.ID), Hub: r.Hub}) {
		q.LinkedHubs = append(q.LinkedHubs, s.HubHost(h.Name))
	}
	slices.Sort(q.LinkedHubs)
	return q
}
