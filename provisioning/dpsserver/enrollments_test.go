package dpsserver_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
)

func TestEnrollments(t *testing.T) {
	s := newServer(t, nil)
	cert, next := s.ca.Leaf("x-1", nil), s.ca.Leaf("x-1", nil)
	pem := func(c *x509.Certificate) *dps.X509Certificate { return &dps.X509Certificate{Certificate: dps.PEM(c)} }
	e := dps.Enrollment{RegistrationID: "X-1", OptionalDeviceInformation: json.RawMessage(`{ "model" : 5 }`), Account: "acme",
		Attestation: dps.Attestation{Type: "x509", X509: &dps.X509Attestation{ClientCertificates: &dps.X509Certificates{Primary: pem(cert.Leaf)}}},
		Terms: dps.Terms{InitialTwin: json.RawMessage(`{"tags":{"a":1},"properties":{"desired":{}}}`), AllocationPolicy: "geolatency", IotHubs: []string{"hub-1"},
			ReprovisionPolicy: &dps.ReprovisionRule{UpdateHubAssignment: true}, Capabilities: &dps.Capabilities{IotEdge: true}, CredentialPolicyName: "p", Region: "eu", HubWeights: map[string]int{"hub-1": 3}}}
	var got dps.Enrollment
	h := s.must(200, "PUT", "/enrollments/X-1"+v, e, &got)
	info := got.Attestation.X509.ClientCertificates.Primary
	if info.Certificate != "" || info.Info.SHA256Thumbprint != fmt.Sprintf("%X", sha256.Sum256(cert.Leaf.Raw)) || h.Get("ETag") != got.ETag {
		t.Errorf("shown: %+v", info)
	}
	if string(got.OptionalDeviceInformation) != `{"model":5}` || string(got.InitialTwin) != string(e.InitialTwin) || got.AllocationPolicy != "geoLatency" || !got.Capabilities.IotEdge ||
		got.ReprovisionPolicy.MigrateDeviceData || got.CredentialPolicyName != "p" || got.Region != "eu" || got.HubWeights["hub-1"] != 3 || got.Account != "acme" {
		t.Errorf("terms: %+v", got)
	}
	s.must(200, "PUT", "/enrollments/x-1"+v, e, nil)                                          // the same again: a lost answer
	s.must(409, "PUT", "/enrollments/x-1"+v, dps.Enrollment{Attestation: e.Attestation}, nil) // another one
	// What was read is written back, with a successor in the other slot; the first certificate stays.
	stale := got.ETag
	got.Attestation.X509.ClientCertificates.Secondary = pem(next.Leaf)
	s.must(200, "PUT", "/enrollments/x-1"+v, got, &got, "If-Match", stale)
	if c := got.Attestation.X509.ClientCertificates; c.Primary.Info.SHA256Thumbprint != info.Info.SHA256Thumbprint || c.Secondary == nil {
		t.Errorf("after the update: %+v", c)
	}
	s.must(412, "PUT", "/enrollments/x-1"+v, got, nil, "If-Match", stale)
	s.must(412, "DELETE", "/enrollments/x-1"+v, nil, nil, "If-Match", stale)
	for _, c := range []struct {
		name string
		leaf x509.Certificate
	}{{"primary", *cert.Leaf}, {"secondary", *next.Leaf}} {
		if _, err := s.svc.Authenticate(t.Context(), provisioning.Credentials{RegistrationID: "x-1", Chain: []*x509.Certificate{&c.leaf}}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	var m dps.Attestation
	s.must(200, "POST", "/enrollments/x-1/attestationmechanism"+v, nil, &m)
	if m.X509.ClientCertificates.Primary.Certificate == "" {
		t.Error("the mechanism shows no certificate")
	}
	s.must(204, "DELETE", "/enrollments/x-1"+v, nil, nil, "If-Match", got.ETag)
	s.must(404, "GET", "/enrollments/x-1"+v, nil, nil)
	s.must(404, "DELETE", "/enrollments/x-1"+v, nil, nil)
	s.must(412, "PUT", "/enrollments/x-1"+v, e, nil, "If-Match", got.ETag)
	s.must(404, "PUT", "/enrollments/x-1"+v, e, nil, "If-Match", "*")
	s.must(412, "PUT", "/enrollmentGroups/x-1"+v, keyedGroup, nil, "If-Match", `"x"`)
	s.must(404, "PUT", "/enrollmentGroups/x-1"+v, keyedGroup, nil, "If-Match", "*")
	s.must(404, "GET", "/enrollmentGroups/x-1"+v, nil, nil)
}

func TestQueryAndBulk(t *testing.T) {
	s := newServer(t, nil)
	bulk := func(mode string, etag string, ids ...string) dps.BulkResult {
		t.Helper()
		b := dps.Bulk{Mode: mode}
		for _, id := range ids {
			b.Enrollments = append(b.Enrollments, dps.Enrollment{RegistrationID: id, Attestation: dps.Attestation{Type: "symmetricKey"}, Terms: dps.Terms{ETag: etag}})
		}
		var out dps.BulkResult
		s.must(200, "POST", "/enrollments/"+v, b, &out)
		return out
	}
	ids := []string{"b-0", "b-1", "b-2", "b-3", "b-4", "b-5", "b-6"}
	if r := bulk("create", "", ids...); !r.IsSuccessful || len(r.Errors) != 0 {
		t.Errorf("create: %+v", r)
	}
	if r := bulk("create", "", "b-1", "b-7", "b 8"); r.IsSuccessful || len(r.Errors) != 1 || r.Errors[0].RegistrationID != "b 8" || r.Errors[0].ErrorCode != 400000 {
		t.Errorf("create again: %+v", r) // keys that are not given mean those that are there: the same again
	}
	if r := bulk("update", "", "b-1", "b-2"); !r.IsSuccessful {
		t.Errorf("update: %+v", r)
	}
	if r := bulk("updateIfMatchETag", `"x"`, "b-1"); r.IsSuccessful || r.Errors[0].ErrorCode != 412001 {
		t.Errorf("stale etag: %+v", r)
	}
	for mode, c := range map[string]struct {
		etag string
		code int
	}{"update": {"", 404001}, "updateIfMatchETag": {`"x"`, 412001}, "UpdateIfMatchETag": {"", 400000}} {
		if r := bulk(mode, c.etag, "b-9"); r.IsSuccessful || r.Errors[0].ErrorCode != c.code {
			t.Errorf("%s of what does not exist: %+v, want %d", mode, r, c.code)
		}
	}
	s.must(404, "GET", "/enrollments/b-9"+v, nil, nil)
	if r := bulk("delete", "", "b-6", "b-9"); r.IsSuccessful || len(r.Errors) != 1 || r.Errors[0].ErrorCode != 404001 {
		t.Errorf("delete: %+v", r)
	}
	s.must(400, "POST", "/enrollments/"+v, dps.Bulk{Mode: "create", Enrollments: make([]dps.Enrollment, 11)}, nil)
	s.must(400, "POST", "/enrollments/"+v, `{"mode":"create","enrollments":[]}`, nil)
	s.must(400, "POST", "/enrollments/"+v, `{"mode":"upsert","enrollments":[{}]}`, nil)
	var groups dps.BulkResult
	s.must(200, "POST", "/enrollmentGroups"+v, dps.Bulk{Mode: "create", EnrollmentGroups: []dps.EnrollmentGroup{{EnrollmentGroupID: "g-1", Attestation: dps.Attestation{Type: "symmetricKey"}}, {EnrollmentGroupID: "g-2"}}}, &groups)
	if groups.IsSuccessful || len(groups.Errors) != 1 || groups.Errors[0].EnrollmentGroupID != "g-2" {
		t.Errorf("groups: %+v", groups)
	}

	var seen []string
	next, pages := "", 0
	for {
		var page []dps.Enrollment
		h := s.must(200, "POST", "/enrollments/query"+v, `{"query":"*"}`, &page, "x-ms-max-item-count", "3", "x-ms-continuation", next)
		if h.Get("x-ms-item-type") != "Enrollment" {
			t.Errorf("item type %q", h.Get("x-ms-item-type"))
		}
		for _, e := range page {
			seen = append(seen, e.RegistrationID)
			if e.Attestation.SymmetricKey != nil {
				t.Error("a query shows keys")
			}
		}
		pages++
		if _, more := h["X-Ms-Continuation"]; !more {
			break
		}
		next = h.Get("x-ms-continuation")
	}
	if fmt.Sprint(seen) != "[b-0 b-1 b-2 b-3 b-4 b-5 b-7]" || pages != 3 {
		t.Errorf("%d pages of %v", pages, seen)
	}
}

// Policies and bearer tokens reach as far as their rights.
func TestRights(t *testing.T) {
	s := newServer(t, nil)
	now := time.Now()
	bearer := func(expiry time.Duration, rights ...dps.Right) string {
		made := now
		if expiry < 0 {
			made = now.Add(2 * expiry)
		}
		tok, err := dps.Bearer{Name: "ci", Rights: rights, Expiry: now.Add(expiry)}.Mint(s.svc.Identity().ServiceKey, made)
		if err != nil {
			t.Fatal(err)
		}
		return "Bearer " + tok
	}
	foreign, err := dps.Bearer{Rights: []dps.Right{dps.ServiceConfig}, Expiry: now.Add(time.Hour)}.Mint(sas.NewKey(), now)
	if err != nil {
		t.Fatal(err)
	}
	nameless, err := dps.Bearer{Rights: []dps.Right{dps.EnrollmentRead}, Expiry: now.Add(time.Hour)}.Mint(s.svc.Identity().ServiceKey, now)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(s.http.URL, "https://")
	put := []string{"PUT", "/enrollments/r-1" + v, `{"attestation":{"type":"symmetricKey"}}`}
	get := []string{"GET", "/enrollments/r-1" + v, ""}
	keys := []string{"POST", "/enrollments/r-1/attestationmechanism" + v, ""}
	query := []string{"POST", "/enrollments/query" + v, `{"query":"*"}`}
	registration := []string{"GET", "/registrations/r-1" + v, ""}
	drop := []string{"DELETE", "/registrations/r-1" + v, ""}
	for _, c := range []struct {
		name, auth string
		req        []string
		want       int
		text       string
	}{
		{"owner", s.owner(), put, 200, ""},
		{"bearer for everything", bearer(time.Hour, dps.ServiceConfig), put, 200, ""},
		{"writer writes", s.policy("enrollmentWrite"), put, 200, ""},
		{"writer reads", s.policy("enrollmentWrite"), get, 200, ""},
		{"reader reads", s.policy("enrollmentRead"), get, 200, ""},
		{"reader, name in lower case", s.policy("enrollmentread"), query, 200, ""},
		{"reader writes", s.policy("enrollmentRead"), put, 401, "needs enrollmentWrite"},
		{"reader asks for keys", s.policy("enrollmentRead"), keys, 401, "needs enrollmentWrite"},
		{"reader reads registrations", s.policy("enrollmentRead"), registration, 401, "needs registrationStatusRead"},
		{"registrations", s.policy("registrationStatusRead"), registration, 404, ""},
		{"registrations, deleting", s.policy("registrationStatusRead"), drop, 401, "needs registrationStatusWrite"},
		{"reader with the owner's name", sas.Sign(host, dps.Policy, dps.PolicyKey(s.svc.Identity().ServiceKey, "enrollmentRead"), now.Add(time.Hour)), get, 401, "does not match"},
		{"no such policy", s.policy("iothubowner"), get, 401, "does not exist"},
		{"bearer reads", bearer(time.Hour, dps.EnrollmentRead, dps.RegistrationStatusRead), query, 200, ""},
		{"bearer writes", bearer(time.Hour, dps.EnrollmentRead), put, 401, "token ci has the rights [enrollmentRead]"},
		{"bearer without a name", "Bearer " + nameless, put, 401, "\"token has the rights [enrollmentRead]"},
		{"bearer expired", bearer(-time.Minute, dps.ServiceConfig), get, 401, "expired"},
		{"bearer of another installation", "Bearer " + foreign, get, 401, "not made with this service's key"},
		{"bearer changed", strings.Replace(bearer(time.Hour, dps.EnrollmentRead), "v1.e", "v1.f", 1), get, 401, "not made with"},
		{"bearer of Azure", "Bearer eyJ0eXAi.eyJhdWQi.c2ln", get, 401, "not one of this service"},
		{"device's token", sas.Sign(s.resource("r-1"), "registration", sas.NewKey(), now.Add(time.Hour)), get, 401, "does not exist"},
	} {
		status, b, _ := s.send(c.req[0], c.req[1], c.auth, c.req[2])
		if status != c.want || !strings.Contains(string(b), c.text) {
			t.Errorf("%s: %d %s, want %d %q", c.name, status, b, c.want, c.text)
		}
	}
}
