package dpsserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// server is the whole service behind a real TLS listener.
type server struct {
	t    *testing.T
	svc  *provisioning.Service
	hub  *provisioningtest.Hub
	feed *provisioningtest.Feed
	ca   *provisioningtest.CA
	http *httptest.Server
	log  *bytes.Buffer // refusals; read only while no request is under way
}

func newServer(t *testing.T, change func(*dpsserver.Config)) *server {
	t.Helper()
	return newServerWith(t, nil, change)
}

// newServerWith is newServer with another domain.
func newServerWith(t *testing.T, domain func(*provisioning.Config), change func(*dpsserver.Config)) *server {
	t.Helper()
	s := &server{t: t, hub: provisioningtest.NewHub(t), feed: provisioningtest.NewFeed(), ca: provisioningtest.NewCA(t, "acme", "acme operational"), log: new(bytes.Buffer)}
	store, err := provisioningdb.Open(t.Context(), t.TempDir()+"/p.db")
	if err != nil {
		t.Fatal(err)
	}
	pc := provisioning.Config{Store: store, Feed: s.feed, Hubs: []provisioning.Hub{{Name: "hub-1", Host: "localhost:8443", Registry: s.hub}}}
	if domain != nil {
		domain(&pc)
	}
	s.svc, err = provisioning.New(t.Context(), pc)
	if err != nil {
		t.Fatal(err)
	}
	c := dpsserver.Config{Service: s.svc, Log: slog.New(slog.NewJSONHandler(s.log, nil))}
	if change != nil {
		change(&c)
	}
	s.http = httptest.NewUnstartedServer(dpsserver.New(c))
	s.http.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.http.StartTLS()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.svc.Run(ctx)
	}()
	t.Cleanup(func() {
		s.http.Close()
		cancel()
		<-done
		store.Close()
	})
	return s
}

// client presents certs, or nothing.
func (s *server) client(certs ...tls.Certificate) *http.Client {
	tr := s.http.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.Certificates = certs
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (s *server) service() *dps.Service {
	return &dps.Service{HTTP: s.client(), Conn: &sas.ConnectionString{
		HostName: strings.TrimPrefix(s.http.URL, "https://"), KeyName: dps.Policy, Key: s.svc.Identity().ServiceKey,
	}}
}

func (s *server) group(id string, ca *provisioningtest.CA) dps.EnrollmentGroup {
	return dps.EnrollmentGroup{EnrollmentGroupID: id, Terms: dps.Terms{ProvisioningStatus: "enabled"}, Attestation: dps.Attestation{
		Type: "x509", X509: &dps.X509Attestation{SigningCertificates: &dps.X509Certificates{Primary: &dps.X509Certificate{Certificate: dps.PEM(ca.Cert)}}},
	}}
}

func (s *server) enrol() *dps.EnrollmentGroup {
	s.t.Helper()
	g, err := s.service().PutGroup(s.t.Context(), s.group("acme-devices", s.ca))
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

func (s *server) path(id string) string {
	return "/" + s.svc.Identity().IDScope + "/registrations/" + id
}

// call makes one request and returns the answer with its body read.
func (s *server) call(c *http.Client, method, path, body string, header ...string) (*http.Response, []byte) {
	s.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.http.URL+path, rd)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, b
}

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
	for range 1000 {
		code, o, _ := poll()
		if o.Status == "assigning" {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		st := o.RegistrationState
		if code != 200 || o.Status != "assigned" || st.AssignedHub != "localhost:8443" || st.DeviceID != "gw-0001" || st.Substatus != "initialAssignment" || st.ETag == "" {
			t.Errorf("decided: %d %+v", code, st)
		}
		return
	}
	t.Error("never assigned")
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

func TestServiceAPI(t *testing.T) {
	s := newServer(t, nil)
	svc, ctx := s.service(), t.Context()
	if _, err := svc.Group(ctx, "acme-devices"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("before: %v", err)
	}
	g := s.enrol()
	info := g.Attestation.X509.SigningCertificates.Primary
	if info.Certificate != "" || info.Info == nil || info.Info.SubjectName != s.ca.Cert.Subject.String() || len(info.Info.SHA256Thumbprint) != 64 || g.ETag == "" {
		t.Errorf("answer %+v", g)
	}
	if again := s.enrol(); again.ETag != g.ETag {
		t.Errorf("the same again made another version: %q, %q", again.ETag, g.ETag)
	}
	next := provisioningtest.NewCA(t, "acme", "acme operational 2")
	change := s.group("acme-devices", s.ca)
	change.Attestation.X509.SigningCertificates.Secondary = &dps.X509Certificate{Certificate: base64.StdEncoding.EncodeToString(next.Cert.Raw)}
	if _, err := svc.PutGroup(ctx, change); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("replacing without etag: %v", err)
	}
	change.ETag = `"stale"`
	if _, err := svc.PutGroup(ctx, change); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), "412") {
		t.Errorf("stale etag: %v", err)
	}
	change.ETag = g.ETag
	g2, err := svc.PutGroup(ctx, change)
	if err != nil || g2.Attestation.X509.SigningCertificates.Secondary == nil || !g2.CreatedDateTimeUTC.Equal(g.CreatedDateTimeUTC.Time) {
		t.Fatalf("replacing: %+v %v", g2, err)
	}
	if _, err := svc.PutGroup(ctx, s.group("other", next)); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), "acme-devices") {
		t.Errorf("certificate of another group: %v", err)
	}
	// Devices of both slots arrive.
	for name, ca := range map[string]*provisioningtest.CA{"dev-1": s.ca, "dev-2": next} {
		c := &dps.Client{HTTP: s.client(ca.Leaf(name, nil)), Endpoint: s.http.URL, IDScope: s.svc.Identity().IDScope}
		if _, err := c.Register(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := svc.Registration(ctx, "DEV-2")
	if err != nil || r.Status != dps.Assigned || r.AssignedHub != "localhost:8443" {
		t.Errorf("registration: %+v %v", r, err)
	}

	// Paging, as azure-iot-provisioning-service does it.
	token := func() string { return svc.Conn.Token(time.Now(), time.Hour) }
	resp, b := s.call(s.client(), "POST", "/registrations/acme-devices/query"+v, `{"query":"*"}`, "Authorization", token(), "x-ms-max-item-count", "1")
	var page []dps.RegistrationState
	if err := json.Unmarshal(b, &page); err != nil || len(page) != 1 || page[0].RegistrationID != "dev-1" || resp.Header.Get("x-ms-continuation") == "" {
		t.Fatalf("first page: %v %s", resp.Header, b)
	}
	resp, b = s.call(s.client(), "POST", "/registrations/acme-devices/query"+v, `{"query":"*"}`, "Authorization", token(), "x-ms-max-item-count", "1", "x-ms-continuation", resp.Header.Get("x-ms-continuation"))
	if err := json.Unmarshal(b, &page); err != nil || len(page) != 1 || page[0].RegistrationID != "dev-2" {
		t.Errorf("second page: %s", b)
	}
	if _, more := resp.Header["X-Ms-Continuation"]; more {
		t.Error("the last page has a continuation")
	}
	resp, b = s.call(s.client(), "POST", "/enrollmentGroups/query"+v, `{"query":"*"}`, "Authorization", token())
	var groups []dps.EnrollmentGroup
	if err := json.Unmarshal(b, &groups); err != nil || len(groups) != 1 || groups[0].EnrollmentGroupID != "acme-devices" || resp.Header.Get("x-ms-item-type") == "" {
		t.Errorf("groups: %v %s", resp.Header, b)
	}
	if resp, b := s.call(s.client(), "DELETE", "/registrations/dev-1"+v, "", "Authorization", token(), "If-Match", r.ETag+"x"); resp.StatusCode != 412 {
		t.Errorf("DELETE with another's etag: %d %s", resp.StatusCode, b)
	}
	if resp, b := s.call(s.client(), "DELETE", "/registrations/dev-1"+v, "", "Authorization", token()); resp.StatusCode != 204 || len(b) != 0 {
		t.Errorf("DELETE: %d %s", resp.StatusCode, b)
	}
	if err := svc.DeleteGroup(ctx, "acme-devices", g.ETag); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("deleting an older version: %v", err)
	}
	if err := svc.DeleteGroup(ctx, "acme-devices", g2.ETag); err != nil {
		t.Errorf("deleting: %v", err)
	}
}

// What cradle attestation register does: run twice, roll the CA, keep an operator's settings.
func TestEnsureGroup(t *testing.T) {
	s := newServer(t, nil)
	svc, ctx := s.service(), t.Context()
	a, err := svc.EnsureGroup(ctx, "acme", s.ca.Cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := svc.EnsureGroup(ctx, "acme", s.ca.Cert, nil); err != nil || b.ETag != a.ETag {
		t.Errorf("again: %v, etag %v then %v", err, a.ETag, b.ETag)
	}
	off := s.group("acme", s.ca)
	off.ProvisioningStatus, off.ETag, off.IotHubs = "disabled", a.ETag, []string{"hub-1"}
	if _, err := svc.PutGroup(ctx, off); err != nil {
		t.Fatal(err)
	}
	next := provisioningtest.NewCA(t, "acme", "acme operational 2")
	c, err := svc.EnsureGroup(ctx, "acme", next.Cert, s.ca.Cert)
	if err != nil || c.ProvisioningStatus != "disabled" || len(c.IotHubs) != 1 {
		t.Fatalf("rolled: %+v %v", c, err)
	}
	if d, err := svc.EnsureGroup(ctx, "acme", next.Cert, nil); err != nil || d.ETag == c.ETag || d.Attestation.X509.SigningCertificates.Secondary != nil {
		t.Errorf("old one dropped: %+v %v", d, err)
	}
}

func TestServiceAPIRefusals(t *testing.T) {
	s := newServer(t, nil)
	key, host := s.svc.Identity().ServiceKey, strings.TrimPrefix(s.http.URL, "https://")
	sign := func(resource, policy string, key []byte, life time.Duration) string {
		return sas.Sign(resource, policy, key, time.Now().Add(life))
	}
	good := sign(host, dps.Policy, key, time.Hour)
	leaf := s.ca.Leaf("dev-1", nil)
	body := func(change func(*dps.EnrollmentGroup)) string {
		g := s.group("g", s.ca)
		change(&g)
		b, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	same := body(func(*dps.EnrollmentGroup) {})
	for _, c := range []struct {
		name, auth, method, path, body string
		status                         int
		text                           string
	}{
		{"no token", "", "PUT", "/enrollmentGroups/g" + v, same, 401, "Authorization"},
		{"bearer", "Bearer x", "PUT", "/enrollmentGroups/g" + v, same, 401, "bearer token is not one of this service"},
		{"other key", sign(host, dps.Policy, []byte("x"), time.Hour), "PUT", "/enrollmentGroups/g" + v, same, 401, "signature"},
		{"other policy", sign(host, "iothubowner", key, time.Hour), "PUT", "/enrollmentGroups/g" + v, same, 401, "policy"},
		{"expired", sign(host, dps.Policy, key, -time.Second), "PUT", "/enrollmentGroups/g" + v, same, 401, "expired"},
		{"other host", sign("other.example", dps.Policy, key, time.Hour), "PUT", "/enrollmentGroups/g" + v, same, 401, "other.example"},
		{"no api-version", good, "PUT", "/enrollmentGroups/g", same, 400, "api-version"},
		{"not JSON", good, "PUT", "/enrollmentGroups/g" + v, "nonsense", 400, "JSON"},
		{"no certificate", good, "PUT", "/enrollmentGroups/g" + v, `{"attestation":{"type":"x509"}}`, 400, "primary is missing"},
		{"symmetric key", good, "PUT", "/enrollmentGroups/g" + v, `{"attestation":{"type":"symmetricKey","symmetricKey":{"primaryKey":"AAAA"}}}`, 400, "16 to 64"},
		{"other id in body", good, "PUT", "/enrollmentGroups/h" + v, same, 400, "body is for"},
		{"bad id", good, "PUT", "/enrollmentGroups/g%20g" + v, "{}", 400, ""},
		{"leaf instead of CA", good, "PUT", "/enrollmentGroups/g" + v, body(func(g *dps.EnrollmentGroup) {
			g.Attestation.X509.SigningCertificates.Primary.Certificate = dps.PEM(leaf.Leaf)
		}), 400, "not a CA certificate"},
		{"certificate nonsense", good, "PUT", "/enrollmentGroups/g" + v, body(func(g *dps.EnrollmentGroup) {
			g.Attestation.X509.SigningCertificates.Primary.Certificate = "AAAA"
		}), 400, "does not parse"},
		{"initial twin", good, "PUT", "/enrollmentGroups/g" + v, body(func(g *dps.EnrollmentGroup) { g.InitialTwin = json.RawMessage(`{"tags":1}`) }), 400, "initialTwin"},
		{"CA reference", good, "PUT", "/enrollmentGroups/g" + v, body(func(g *dps.EnrollmentGroup) {
			g.Attestation.X509.CAReferences = json.RawMessage(`{"primary":"x"}`)
		}), 400, "caReferences"},
		{"unknown allocation", good, "PUT", "/enrollmentGroups/g" + v, body(func(g *dps.EnrollmentGroup) { g.AllocationPolicy = "nearest" }), 400, "not supported"},
		{"unknown hub", good, "PUT", "/enrollmentGroups/g" + v, body(func(g *dps.EnrollmentGroup) { g.IotHubs = []string{"nowhere"} }), 400, "nowhere"},
		{"unknown group", good, "GET", "/enrollmentGroups/nope" + v, "", 404, "nope"},
		{"unknown registration", good, "GET", "/registrations/nope" + v, "", 404, "nope"},
		{"registrations of unknown group", good, "POST", "/registrations/nope/query" + v, `{"query":"*"}`, 404, "nope"},
		{"query", good, "POST", "/enrollmentGroups/query" + v, `{"query":"SELECT * FROM enrollmentGroups WHERE x = 1"}`, 400, "not supported"},
		{"a member of another type", good, "PUT", "/enrollmentGroups/g" + v, `{"iotHubs":"hub-1"}`, 400, `"iotHubs" is a string, not an array`},
		{"method", good, "PATCH", "/enrollmentGroups/g" + v, "", 405, "allowed"},
		{"update of what is not there", good, "PUT", "/enrollmentGroups/g" + v + "&x=1", same, 412, "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := []string{"Authorization", c.auth}
			if c.status == 412 {
				h = append(h, "If-Match", `"x"`)
			}
			resp, b := s.call(s.client(), c.method, c.path, c.body, h...)
			var e dps.Error
			if err := json.Unmarshal(b, &e); err != nil || resp.StatusCode != c.status || !strings.Contains(e.Message, c.text) {
				t.Errorf("got %d %s, want %d … %q", resp.StatusCode, b, c.status, c.text)
			}
			if gs, err := s.svc.Groups(t.Context()); err != nil || len(gs) != 0 {
				t.Errorf("groups %v %v", gs, err)
			}
		})
	}
}

func TestOwns(t *testing.T) {
	for path, want := range map[string]bool{
		"/0ne00000001/registrations/a/register": true, "/enrollmentGroups/a": true, "/enrollmentgroups/query": true, "/registrations/a": true,
		"/enrollments/": true, "/devices/a": false, "/.well-known/est/cacerts": false, "/admin/v1/registrations": false, "/": false,
	} {
		if got := dpsserver.Owns(path); got != want {
			t.Errorf("Owns(%q) = %v", path, got)
		}
	}
}
