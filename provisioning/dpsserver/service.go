package dpsserver

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
)

// owner wraps an endpoint of the service API: the caller proves that it holds the service key.
func (h *Handler) owner(f endpoint) endpoint {
	return func(ctx context.Context, q *request) (*reply, error) {
		if len(q.seg) > 1 {
			q.id = q.seg[1]
		}
		header := q.Header.Get("Authorization")
		if header == "" {
			return nil, cradle.Errorf(cradle.Unauthorized, "the service API needs an Authorization header").
				WithHint("sign with the connection string that cradle service-key show prints")
		}
		t, err := sas.Parse(header)
		if err != nil {
			return nil, err
		}
		if t.KeyName != dps.Policy {
			return nil, cradle.Errorf(cradle.Unauthorized, "policy %.60q does not exist", t.KeyName).WithHint("use policy %s", dps.Policy)
		}
		if err := t.Verify(h.svc.Identity().ServiceKey, q.now); err != nil {
			return nil, err
		}
		// Tools sign for the host name of their connection string, with or without a port.
		host, _, splitErr := net.SplitHostPort(q.Host)
		if !t.Covers(q.Host) && (splitErr != nil || !t.Covers(host)) {
			return nil, cradle.Errorf(cradle.Unauthorized, "SAS token is for %.100q, the request went to %q", t.Resource, q.Host)
		}
		return f(ctx, q)
	}
}

func (h *Handler) putGroup(ctx context.Context, q *request) (*reply, error) {
	var b dps.EnrollmentGroup
	if err := q.decode(&b); err != nil {
		return nil, err
	}
	if b.EnrollmentGroupID != "" && !strings.EqualFold(b.EnrollmentGroupID, q.seg[1]) {
		return nil, cradle.Errorf(cradle.Invalid, "body is for enrolment group %.140q, the path for %.140q", b.EnrollmentGroupID, q.seg[1])
	}
	r, err := groupRequest(b)
	if err != nil {
		return nil, err
	}
	r.ID, r.IfMatch = q.seg[1], ifMatch(q)
	g, err := h.svc.PutGroup(ctx, r)
	if err != nil {
		return nil, err
	}
	h.log.Info("enrolment group stored", "group", g.ID, "enabled", g.Enabled, "ca", g.CAs())
	return h.group(g)
}

// groupRequest refuses what would otherwise be dropped without a word.
func groupRequest(b dps.EnrollmentGroup) (provisioning.GroupRequest, error) {
	var r provisioning.GroupRequest
	unsupported := func(what string) (provisioning.GroupRequest, error) {
		return r, cradle.Errorf(cradle.Invalid, "%s is not supported by this service", what)
	}
	x := b.Attestation.X509
	switch {
	case !strings.EqualFold(b.Attestation.Type, "x509"):
		return unsupported("attestation type " + strconv.Quote(b.Attestation.Type) + " (only x509)")
	case x != nil && given(x.CAReferences):
		return unsupported("attestation by caReferences (give signingCertificates)")
	case x == nil || x.SigningCertificates == nil || x.SigningCertificates.Primary == nil:
		return r, cradle.Errorf(cradle.Invalid, "attestation.x509.signingCertificates.primary is missing")
	}
	primary, err := x.SigningCertificates.Primary.Parse()
	if err != nil {
		return r, err
	}
	var secondary *x509.Certificate
	if s := x.SigningCertificates.Secondary; s != nil && s.Certificate != "" {
		if secondary, err = s.Parse(); err != nil {
			return r, err
		}
	}
	r.Attestation = provisioning.SignedBy(primary, secondary)
	switch strings.ToLower(b.ProvisioningStatus) {
	case "", "enabled":
		r.Enabled = true
	case "disabled":
	default:
		return r, cradle.Errorf(cradle.Invalid, "provisioningStatus %.40q: use enabled or disabled", b.ProvisioningStatus)
	}
	r.Allocation, r.Hubs = b.AllocationPolicy, b.IotHubs
	r.Reprovision = provisioning.Reprovision{UpdateHub: true, MigrateData: true}
	if p := b.ReprovisionPolicy; p != nil {
		r.Reprovision = provisioning.Reprovision{UpdateHub: p.UpdateHubAssignment, MigrateData: p.MigrateDeviceData}
	}
	if given(b.InitialTwin) {
		r.InitialTwin = b.InitialTwin
	}
	r.IoTEdge = b.Capabilities != nil && b.Capabilities.IotEdge
	r.CredentialPolicy = b.CredentialPolicyName
	if d := b.CustomAllocationDefinition; d != nil {
		r.Custom = &provisioning.CustomAllocation{WebhookURL: d.WebhookURL, APIVersion: d.APIVersion, CEL: d.CEL}
	}
	if b.IotHubHostName != "" && len(r.Hubs) == 0 {
		r.Hubs = []string{b.IotHubHostName}
	}
	return r, nil
}

// given reports whether an optional field holds something.
func given(raw json.RawMessage) bool {
	switch strings.Join(strings.Fields(string(raw)), "") {
	case "", "null", "{}":
		return false
	}
	return true
}

func (h *Handler) getGroup(ctx context.Context, q *request) (*reply, error) {
	g, err := h.svc.Group(ctx, q.seg[1])
	if err != nil {
		return nil, err
	}
	return h.group(g)
}

func (h *Handler) deleteGroup(ctx context.Context, q *request) (*reply, error) {
	if err := h.svc.DeleteGroup(ctx, q.seg[1], ifMatch(q)); err != nil {
		return nil, err
	}
	h.log.Info("enrolment group deleted", "group", q.seg[1])
	return &reply{status: http.StatusNoContent}, nil
}

func (h *Handler) group(g provisioning.Group) (*reply, error) {
	b, err := h.wireGroup(g)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: b, header: http.Header{"ETag": {b.ETag}}}, nil
}

// wireGroup shows certificates by their description only.
func (h *Handler) wireGroup(g provisioning.Group) (dps.EnrollmentGroup, error) {
	b := dps.EnrollmentGroup{
		EnrollmentGroupID:      g.ID,
		ETag:                   quote(g.ETag),
		ProvisioningStatus:     "disabled",
		AllocationPolicy:       g.Allocation,
		ReprovisionPolicy:      &dps.ReprovisionRule{UpdateHubAssignment: g.Reprovision.UpdateHub, MigrateDeviceData: g.Reprovision.MigrateData},
		Capabilities:           &dps.Capabilities{IotEdge: g.IoTEdge},
		InitialTwin:            g.InitialTwin,
		CredentialPolicyName:   g.CredentialPolicy,
		CreatedDateTimeUTC:     dps.Time{Time: g.Created},
		LastUpdatedDateTimeUTC: dps.Time{Time: g.Updated},
	}
	if g.Enabled {
		b.ProvisioningStatus = "enabled"
	}
	if c := g.Custom; c != nil {
		b.CustomAllocationDefinition = &dps.CustomAllocation{WebhookURL: c.WebhookURL, APIVersion: c.APIVersion, CEL: c.CEL}
	}
	for _, name := range g.Hubs {
		b.IotHubs = append(b.IotHubs, h.svc.HubHost(name))
	}
	certs := new(dps.X509Certificates)
	for _, slot := range []struct {
		der []byte
		to  **dps.X509Certificate
	}{{g.Primary, &certs.Primary}, {g.Secondary, &certs.Secondary}} {
		if len(slot.der) == 0 {
			continue
		}
		c, err := x509.ParseCertificate(slot.der)
		if err != nil {
			return b, err
		}
		*slot.to = &dps.X509Certificate{Info: dps.Info(c)}
	}
	b.Attestation = dps.Attestation{Type: "x509", X509: &dps.X509Attestation{SigningCertificates: certs}}
	return b, nil
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

func (h *Handler) getRegistration(ctx context.Context, q *request) (*reply, error) {
	id, err := provisioning.ParseRegistrationID(q.seg[1])
	if err != nil {
		return nil, err
	}
	r, err := h.svc.Registration(ctx, id)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: h.state(r), header: http.Header{"ETag": {quote(r.ETag())}}}, nil
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
		out, last = append(out, h.state(r)), string(r.ID)
	}
	return pageReply(out, "DeviceRegistration", last, more), nil
}

const (
	defaultPage = 100
	maxPage     = 1000
)

// page reads the paging headers, and the query, of which only "everything" is understood.
func page(q *request) (after string, limit int, err error) {
	var b dps.Query
	if err := q.decode(&b); err != nil {
		return "", 0, err
	}
	switch text := strings.ToLower(strings.TrimSpace(b.Query)); {
	case text == "", text == "*", strings.HasPrefix(text, "select * from ") && !strings.Contains(text, " where "):
	default:
		return "", 0, cradle.Errorf(cradle.Invalid, "query %.100q is not supported", b.Query).WithHint(`use "*"`)
	}
	limit = defaultPage
	if s := q.Header.Get("x-ms-max-item-count"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 {
			return "", 0, cradle.Errorf(cradle.Invalid, "x-ms-max-item-count %.20q is not a positive number", s)
		}
	}
	token, err := base64.RawURLEncoding.DecodeString(q.Header.Get("x-ms-continuation"))
	if err != nil {
		return "", 0, cradle.Errorf(cradle.Invalid, "x-ms-continuation is not one that was given out here")
	}
	return string(token), min(limit, maxPage), nil
}

// pageReply leaves x-ms-continuation out on the last page: an empty one would count as more.
func pageReply(items any, kind, last string, more bool) *reply {
	h := http.Header{"X-Ms-Item-Type": {kind}}
	if more {
		h.Set("x-ms-continuation", base64.RawURLEncoding.EncodeToString([]byte(last)))
	}
	return &reply{status: http.StatusOK, body: items, header: h}
}

// ifMatch is the bare etag of the If-Match header; clients send it with or without quotes.
func ifMatch(q *request) string {
	return strings.Trim(strings.TrimPrefix(strings.TrimSpace(q.Header.Get("If-Match")), "W/"), `"`)
}

func quote(etag string) string { return `"` + etag + `"` }
