package dpsserver_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

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
