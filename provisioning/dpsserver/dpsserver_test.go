package dpsserver_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

const v = "?api-version=2019-03-31"

func TestAgentClient(t *testing.T) {
	s := newServer(t, nil)
	s.enrol()
	c := &dps.Client{HTTP: s.client(s.ca.Leaf("gw-0001", nil)), Endpoint: s.http.URL, IDScope: s.svc.Identity().IDScope}
	a, err := c.Register(t.Context(), "gw-0001")
	if err != nil || a.Hub != "localhost:8443" || a.DeviceID != "gw-0001" {
		t.Fatalf("%+v %v", a, err)
	}
	// Refused, with the reason where a person finds it.
	_, err = c.Register(t.Context(), "gw-0002")
	if cradle.KindOf(err) != cradle.Unauthorized || !strings.Contains(err.Error(), "gw-0001") {
		t.Errorf("another name: %v", err)
	}
	s.feed.SetStale(true)
	_, err = c.Register(t.Context(), "gw-0001")
	if cradle.KindOf(err) != cradle.Busy || dps.RetryAfter(err) != 5*time.Second {
		t.Errorf("stale feed: %v, retry after %v", err, dps.RetryAfter(err))
	}
}

// What Azure IoT Identity Service sends and reads (aziot-cloud-client-async): PUT must be 202; polls carry
// no body; registrationState.registrationId is mandatory in each.
func TestIdentityServiceReplay(t *testing.T) {
	s := newServer(t, func(c *dpsserver.Config) { c.Hold = -1 })
	s.enrol()
	s.hub.Fail(provisioningtest.ErrDown)
	c := s.client(s.ca.Leaf("gw-0001", nil))
	const v = "?api-version=2021-06-01"
	resp, b := s.call(c, "PUT", s.path("gw-0001")+"/register"+v, `{"registrationId":"gw-0001"}`, "Content-Type", "application/json")
	var op dps.OperationStatus
	if resp.StatusCode != 202 || json.Unmarshal(b, &op) != nil || op.OperationID == "" || op.Status != "assigning" {
		t.Fatalf("PUT: %d %s", resp.StatusCode, b)
	}
	if ct := resp.Header.Get("Content-Type"); !strings.Contains(ct, "application/json") {
		t.Errorf("content type %q", ct)
	}
	poll := func() (int, dps.OperationStatus, http.Header) {
		resp, b := s.call(c, "GET", s.path("gw-0001")+"/operations/"+op.OperationID+v, "")
		var o dps.OperationStatus
		if err := json.Unmarshal(b, &o); err != nil || o.RegistrationState == nil || o.RegistrationState.RegistrationID != "gw-0001" || o.OperationID != op.OperationID {
			t.Fatalf("GET: %d %s", resp.StatusCode, b)
		}
		return resp.StatusCode, o, resp.Header
	}
	if code, o, h := poll(); code != 202 || o.Status != "assigning" || h.Get("Retry-After") == "" || h.Get("Retry-After") == "0" {
		t.Errorf("while the hub is down: %d %+v %v", code, o, h)
	}
	s.hub.Fail(nil)
	var code int
	var o dps.OperationStatus
	testenv.Eventually(t, "assigned", func() bool { code, o, _ = poll(); return o.Status != "assigning" })
	st := o.RegistrationState
	if code != 200 || o.Status != "assigned" || st.AssignedHub != "localhost:8443" || st.DeviceID != "gw-0001" || st.Substatus != "initialAssignment" || st.ETag == "" {
		t.Errorf("decided: %d %+v", code, st)
	}
}

// The Node SDK over HTTPS: a body on the poll, upper case names, the status lookup, and the pause of the
// first answer that our held polls allow.
func TestNodeReplay(t *testing.T) {
	s := newServer(t, nil)
	s.enrol()
	c := s.client(s.ca.Leaf("Dev-1", nil))
	resp, b := s.call(c, "PUT", s.path("DEV-1")+"/register"+v+"&forceRegistration=true", `{"registrationId":"DEV-1","payload":{"a":1}}`, "Content-Type", "application/json; charset=utf-8")
	var op dps.OperationStatus
	if resp.StatusCode != 202 || json.Unmarshal(b, &op) != nil || resp.Header.Get("Retry-After") != "0" || resp.Header.Get("x-ms-request-id") == "" {
		t.Fatalf("PUT: %d %v %s", resp.StatusCode, resp.Header, b)
	}
	resp, b = s.call(c, "GET", s.path("DEV-1")+"/operations/"+op.OperationID+v, "{}")
	if err := json.Unmarshal(b, &op); resp.StatusCode != 200 || err != nil || op.Status != "assigned" {
		t.Errorf("GET: %d %s", resp.StatusCode, b)
	}
	resp, b = s.call(c, "POST", s.path("dev-1")+v, `{"registrationId":"dev-1"}`)
	var st dps.RegistrationState
	if err := json.Unmarshal(b, &st); resp.StatusCode != 200 || err != nil || st.Status != "assigned" || st.RegistrationID != "dev-1" || st.X509.EnrollmentGroupID != "acme-devices" {
		t.Errorf("POST: %d %s", resp.StatusCode, b)
	}
}

// Every refusal has Azure's shape, says what failed, is logged once with its reason, and changes nothing.
func TestRefusals(t *testing.T) {
	s := newServer(t, nil)
	s.enrol()
	good := s.ca.Leaf("dev-1", nil)
	foreign := provisioningtest.NewCA(t, "acme", "foreign")
	namesake := provisioningtest.NewCA(t, "acme", "acme operational") // same name, another key
	disabled := provisioningtest.NewCA(t, "acme", "disabled CA")
	g := s.group("disabled-group", disabled)
	g.ProvisioningStatus = "disabled"
	if _, err := s.service().PutGroup(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	gone := provisioningtest.NewCA(t, "acme", "gone CA")
	if _, err := s.service().PutGroup(t.Context(), s.group("gone", gone)); err != nil {
		t.Fatal(err)
	}
	if err := s.service().DeleteGroup(t.Context(), "gone", ""); err != nil {
		t.Fatal(err)
	}
	taken := provisioningtest.NewCA(t, "beta", "beta CA")
	if _, err := s.service().PutGroup(t.Context(), s.group("beta", taken)); err != nil {
		t.Fatal(err)
	}
	if _, err := (&dps.Client{HTTP: s.client(taken.Leaf("beta-1", nil)), Endpoint: s.http.URL, IDScope: s.svc.Identity().IDScope}).Register(t.Context(), "beta-1"); err != nil {
		t.Fatal(err)
	}
	s.feed.Set("acme", "suspended-1", cradle.Suspended)
	s.feed.Set("acme", "revoked-1", cradle.Revoked)
	s.feed.Set("acme", "retired-1", cradle.Retired)
	superseded := s.ca.Leaf("dev-1", nil)
	s.feed.BlockCert(sha256.Sum256(superseded.Leaf.Raw))

	leaf := func(change func(*x509.Certificate)) []tls.Certificate {
		return []tls.Certificate{s.ca.Leaf("dev-1", change)}
	}
	reg := s.path("dev-1") + "/register" + v
	for _, c := range []struct {
		name   string
		certs  []tls.Certificate
		method string
		path   string
		body   string
		status int
		text   string
	}{
		{"no certificate", nil, "PUT", reg, "{}", 401, "certificate"},
		{"CA not registered", []tls.Certificate{foreign.Leaf("dev-1", nil)}, "PUT", reg, "{}", 401, "signing certificate not registered"},
		{"CA of the same name", []tls.Certificate{namesake.Leaf("dev-1", nil)}, "PUT", reg, "{}", 401, "did not sign it"},
		{"group deleted", []tls.Certificate{gone.Leaf("dev-1", nil)}, "PUT", reg, "{}", 401, "signing certificate not registered"},
		{"group disabled", []tls.Certificate{disabled.Leaf("dev-1", nil)}, "PUT", reg, "{}", 401, `"disabled-group" is disabled`},
		{"expired", leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), "PUT", reg, "{}", 401, "expired"},
		{"not yet valid", leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "PUT", reg, "{}", 401, "not valid before"},
		{"server certificate", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "PUT", reg, "{}", 401, "clientAuth"},
		{"a CA's certificate", leaf(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "PUT", reg, "{}", 401, "CA certificate"},
		{"two common names", leaf(func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "dev-2"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "dev-1"}}
		}), "PUT", reg, "{}", 401, "common names"},
		{"CN differs", []tls.Certificate{s.ca.Leaf("dev-2", nil)}, "PUT", reg, "{}", 401, `certificate is for "dev-2"`},
		{"suspended", []tls.Certificate{s.ca.Leaf("suspended-1", nil)}, "PUT", s.path("suspended-1") + "/register" + v, "{}", 401, "is suspended"},
		{"revoked", []tls.Certificate{s.ca.Leaf("revoked-1", nil)}, "PUT", s.path("revoked-1") + "/register" + v, "{}", 401, "is revoked"},
		{"retired", []tls.Certificate{s.ca.Leaf("retired-1", nil)}, "PUT", s.path("retired-1") + "/register" + v, "{}", 401, "is retired"},
		{"certificate revoked", []tls.Certificate{superseded}, "PUT", reg, "{}", 401, "superseded"},
		{"name of another account's device", []tls.Certificate{s.ca.Leaf("beta-1", nil)}, "PUT", s.path("beta-1") + "/register" + v, "{}", 409, "another owner"},
		{"other id scope", []tls.Certificate{good}, "PUT", "/0ne99999999/registrations/dev-1/register" + v, "{}", 404, "id scope"},
		{"api-version missing", []tls.Certificate{good}, "PUT", s.path("dev-1") + "/register", "{}", 400, "api-version"},
		{"api-version too old", []tls.Certificate{good}, "PUT", s.path("dev-1") + "/register?api-version=2018-11-01", "{}", 400, "api-version"},
		{"api-version nonsense", []tls.Certificate{good}, "PUT", s.path("dev-1") + "/register?api-version=latest", "{}", 400, "api-version"},
		{"not JSON", []tls.Certificate{good}, "PUT", reg, "{", 400, "JSON"},
		{"JSON of another shape", []tls.Certificate{good}, "PUT", reg, "[]", 400, "JSON"},
		{"id in body differs", []tls.Certificate{good}, "PUT", reg, `{"registrationId":"dev-2"}`, 400, "body is for"},
		{"TPM", []tls.Certificate{good}, "PUT", reg, `{"tpm":{"endorsementKey":"AA=="}}`, 401, "endorsement key"},
		{"body too large", []tls.Certificate{good}, "PUT", reg, `{"payload":"` + strings.Repeat("x", dps.MaxBody) + `"}`, 413, "larger"},
		{"bad id", []tls.Certificate{good}, "PUT", s.path("dev%201") + "/register" + v, "{}", 400, "registration id"},
		{"wrong method", []tls.Certificate{good}, "POST", reg, "{}", 405, "allowed: PUT"},
		{"unknown path", []tls.Certificate{good}, "GET", s.path("dev-1") + "/other" + v, "", 404, "no such resource"},
		{"unknown operation", []tls.Certificate{good}, "GET", s.path("dev-1") + "/operations/5.1.2" + v, "", 404, "dev-1"},
		{"poll without certificate", nil, "GET", s.path("beta-1") + "/operations/5.1.2" + v, "", 401, "certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.log.Reset()
			resp, b := s.call(s.client(c.certs...), c.method, c.path, c.body)
			var e dps.Error
			if err := json.Unmarshal(b, &e); err != nil {
				t.Fatalf("%d %q: %v", resp.StatusCode, b, err)
			}
			if resp.StatusCode != c.status || e.ErrorCode/1000 != c.status || !strings.Contains(e.Message, c.text) {
				t.Errorf("got %d %s, want %d … %q", resp.StatusCode, b, c.status, c.text)
			}
			if e.TrackingID == "" || e.TimestampUTC.IsZero() || resp.Header.Get("x-ms-error-code") == "" {
				t.Errorf("shape: %s %v", b, resp.Header)
			}
			if n := strings.Count(s.log.String(), `"msg":"request refused"`); n != 1 || !strings.Contains(s.log.String(), e.TrackingID) {
				t.Errorf("%d log lines: %s", n, s.log)
			}
			if s.hub.Device("dev-1") != nil {
				t.Error("the hub has heard of it")
			}
			if _, err := s.svc.Registration(t.Context(), "dev-1"); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("registration: %v", err)
			}
		})
	}
	s.feed.SetStale(true)
	if resp, b := s.call(s.client(good), "PUT", reg, "{}"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("stale feed: %d %s", resp.StatusCode, b)
	}
}

// A device that is revoked between register and poll is refused at the poll.
func TestRevokedWhilePolling(t *testing.T) {
	s := newServer(t, nil)
	s.enrol()
	c := s.client(s.ca.Leaf("dev-1", nil))
	_, b := s.call(c, "PUT", s.path("dev-1")+"/register"+v, "{}")
	var op dps.OperationStatus
	if err := json.Unmarshal(b, &op); err != nil {
		t.Fatal(err)
	}
	s.feed.Set("acme", "dev-1", cradle.Revoked)
	s.svc.OnBlock("acme", "dev-1", cradle.Revoked)
	if resp, b := s.call(c, "GET", s.path("dev-1")+"/operations/"+op.OperationID+v, "{}"); resp.StatusCode != 401 || !strings.Contains(string(b), "revoked") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}
