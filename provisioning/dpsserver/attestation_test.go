package dpsserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// send makes one request without a certificate and returns status and body.
func (s *server) send(method, path, authorization string, body any, header ...string) (int, []byte, http.Header) {
	s.t.Helper()
	var b []byte
	switch v := body.(type) {
	case nil:
	case string:
		b = []byte(v)
	default:
		var err error
		if b, err = json.Marshal(v); err != nil {
			s.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.http.URL+path, bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, out, resp.Header
}

// owner signs for the service API.
func (s *server) owner() string { return s.policy(dps.Policy) }

func (s *server) policy(name string) string {
	host := strings.TrimPrefix(s.http.URL, "https://")
	return sas.Sign(host, name, dps.PolicyKey(s.svc.Identity().ServiceKey, name), time.Now().Add(time.Hour))
}

// must asks the service API and decodes the answer into out (nil: none).
func (s *server) must(want int, method, path string, body, out any, header ...string) http.Header {
	s.t.Helper()
	status, b, h := s.send(method, path, s.owner(), body, header...)
	if status != want {
		s.t.Fatalf("%s %s: %d %s", method, path, status, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			s.t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
	return h
}

// arrive registers with a token, polls with it, and returns the state.
func (s *server) arrive(id, token string, tpm *dps.TPM) *dps.RegistrationState {
	s.t.Helper()
	base := "/" + s.svc.Identity().IDScope + "/registrations/" + id
	status, b, _ := s.send("PUT", base+"/register"+v, token, dps.DeviceRegistration{RegistrationID: id, TPM: tpm})
	var op dps.OperationStatus
	if json.Unmarshal(b, &op) != nil || status != 202 {
		s.t.Fatalf("register: %d %s", status, b)
	}
	for range 100 {
		status, b, _ = s.send("GET", base+"/operations/"+op.OperationID+v, token, "{}")
		if err := json.Unmarshal(b, &op); err != nil || status >= 300 {
			s.t.Fatalf("poll: %d %s", status, b)
		}
		if op.Status != dps.Assigning {
			return op.RegistrationState
		}
	}
	s.t.Fatal("still assigning")
	return nil
}

func (s *server) resource(id string) string {
	return s.svc.Identity().IDScope + "/registrations/" + id
}

func keysOf(d *iothub.Device) [2]string {
	return [2]string{d.Authentication.SymmetricKey.PrimaryKey, d.Authentication.SymmetricKey.SecondaryKey}
}

// Individual and derived symmetric keys, as the SDKs use them: sr unencoded, too.
func TestSymmetricKeys(t *testing.T) {
	s := newServer(t, nil)
	var e dps.Enrollment
	s.must(200, "PUT", "/enrollments/Sym-1"+v, `{"registrationId":"Sym-1","deviceId":"Lamp.7","attestation":{"type":"symmetricKey"}}`, &e)
	if e.RegistrationID != "sym-1" || e.DeviceID != "Lamp.7" || e.Attestation.SymmetricKey != nil || e.ETag == "" || e.ProvisioningStatus != "enabled" {
		t.Errorf("enrolment %+v", e)
	}
	var m dps.Attestation
	s.must(200, "POST", "/enrollments/sym-1/attestationmechanism"+v, nil, &m)
	if m.SymmetricKey == nil || len(m.SymmetricKey.PrimaryKey) != 44 || m.SymmetricKey.PrimaryKey == m.SymmetricKey.SecondaryKey {
		t.Fatalf("mechanism %+v", m)
	}
	primary, _ := base64.StdEncoding.DecodeString(m.SymmetricKey.PrimaryKey)
	token := sas.Sign(s.resource("sym-1"), "registration", primary, time.Now().Add(time.Hour))
	state := s.arrive("sym-1", token, nil)
	if state.DeviceID != "Lamp.7" || state.SymmetricKey == nil || state.X509 != nil || state.AssignedHub == "" {
		t.Errorf("state %+v", state)
	}
	if d := s.hub.Device("Lamp.7"); d.Authentication.Type != iothub.SAS || keysOf(d) != [2]string{m.SymmetricKey.PrimaryKey, m.SymmetricKey.SecondaryKey} {
		t.Errorf("entry %+v", d)
	}
	// The enrolment's key is rolled: the old one is refused, and the next registration brings the hub in line.
	next := sas.NewKey()
	s.must(200, "GET", "/enrollments/sym-1"+v, nil, &e)
	if e.RegistrationState == nil || e.RegistrationState.Status != dps.Assigned {
		t.Errorf("state beside the enrolment: %+v", e.RegistrationState)
	}
	e.Attestation.SymmetricKey = &dps.SymmetricKey{PrimaryKey: base64.StdEncoding.EncodeToString(next)}
	s.must(200, "PUT", "/enrollments/sym-1"+v, e, &e, "If-Match", e.ETag)
	if status, b, _ := s.send("PUT", "/"+s.resource("sym-1")+"/register"+v, token, nil); status != 401 || !strings.Contains(string(b), "matches neither key") {
		t.Errorf("old key: %d %s", status, b)
	}
	s.arrive("sym-1", sas.Sign(s.resource("sym-1"), "registration", next, time.Now().Add(time.Hour)), nil)
	if d := s.hub.Device("Lamp.7"); keysOf(d) != [2]string{base64.StdEncoding.EncodeToString(next), m.SymmetricKey.SecondaryKey} {
		t.Errorf("entry after the roll: %v", keysOf(d))
	}

	s.must(200, "PUT", "/enrollmentGroups/keyed"+v, `{"attestation":{"type":"symmetricKey"}}`, nil)
	s.must(200, "POST", "/enrollmentgroups/keyed/attestationmechanism"+v, nil, &m)
	group, _ := base64.StdEncoding.DecodeString(m.SymmetricKey.PrimaryKey)
	key := dps.DeviceKey(group, "Member-1")
	state = s.arrive("Member-1", sas.Sign(s.resource("Member-1"), "registration", key, time.Now().Add(time.Hour)), nil)
	if state.SymmetricKey.EnrollmentGroupID != "keyed" || state.RegistrationID != "member-1" {
		t.Errorf("state of a member %+v", state)
	}
	if d := s.hub.Device("member-1"); keysOf(d)[0] != base64.StdEncoding.EncodeToString(key) {
		t.Errorf("entry of a member: %+v", d)
	}
	// One member is taken out.
	s.must(200, "PUT", "/enrollments/member-1"+v, `{"attestation":{"type":"symmetricKey"},"provisioningStatus":"disabled"}`, nil)
	if status, b, _ := s.send("PUT", "/"+s.resource("member-1")+"/register"+v, sas.Sign(s.resource("member-1"), "registration", key, time.Now().Add(time.Hour)), nil); status != 401 || !strings.Contains(string(b), "individual enrolment") {
		t.Errorf("member that has a disabled enrolment of its own: %d %s", status, b)
	}
}

// A token may run out between register and poll.
func TestPollWithExpiredToken(t *testing.T) {
	s := newServer(t, nil)
	key := sas.NewKey()
	s.must(200, "PUT", "/enrollments/slow-1"+v, dps.Enrollment{RegistrationID: "slow-1", Attestation: dps.Attestation{Type: "symmetricKey",
		SymmetricKey: &dps.SymmetricKey{PrimaryKey: base64.StdEncoding.EncodeToString(key)}}}, nil)
	c := provisioning.Credentials{RegistrationID: "slow-1", Token: sas.Sign(s.resource("slow-1"), "registration", key, time.Now().Add(time.Second))}
	caller, err := s.svc.Authenticate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.svc.Register(t.Context(), caller, provisioning.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // until it has expired
		_, err = s.svc.Authenticate(t.Context(), c)
	}
	if !strings.Contains(err.Error(), "expired") {
		t.Errorf("registering again: %v", err)
	}
	c.Operation = r.Operation
	if _, err := s.svc.Authenticate(t.Context(), c); err != nil {
		t.Errorf("poll: %v", err)
	}
}

func newTPM(t *testing.T) *provisioningtest.TPM {
	t.Helper()
	testenv.Require(t, "swtpm")
	tpm, err := swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tpm.Kill)
	return provisioningtest.OpenTPM(t, tpm.Socket(), nil, nil)
}

func wire(x *provisioningtest.TPM) *dps.TPM {
	return &dps.TPM{EndorsementKey: base64.StdEncoding.EncodeToString(x.EK), StorageRootKey: base64.StdEncoding.EncodeToString(x.SRK)}
}

// challenge makes the first call.
func (s *server) challenge(id string, tpm *dps.TPM) []byte {
	s.t.Helper()
	status, b, _ := s.send("PUT", "/"+s.resource(id)+"/register"+v, "", dps.DeviceRegistration{RegistrationID: id, TPM: tpm})
	var c dps.Challenge
	if status != 401 || json.Unmarshal(b, &c) != nil || c.Message != "Authorization required" || c.KeyName != "registration" || len(c.AuthenticationKey) == 0 {
		s.t.Fatalf("first call: %d %s", status, b)
	}
	return c.AuthenticationKey
}

// A TPM of a real simulator: challenge, registration, and the hub's key taken in.
func TestTPM(t *testing.T) {
	x := newTPM(t)
	s := newServer(t, nil)
	var e dps.Enrollment
	s.must(200, "PUT", "/enrollments/tpm-1"+v, dps.Enrollment{RegistrationID: "tpm-1", Attestation: dps.Attestation{Type: "tpm", TPM: &dps.TPM{EndorsementKey: wire(x).EndorsementKey}}}, &e)
	if err := x.Activate(s.challenge("tpm-1", wire(x))); err != nil {
		t.Fatal(err)
	}
	token := x.Token(s.resource("tpm-1"), "registration", time.Now().Add(time.Hour))
	state := s.arrive("tpm-1", token, wire(x))
	if state.Status != dps.Assigned || state.TPM == nil || state.X509 != nil {
		t.Fatalf("state %+v", state)
	}
	hubKey := func(state *dps.RegistrationState) string {
		if err := x.Activate(state.TPM.AuthenticationKey); err != nil {
			t.Fatal(err)
		}
		tok, err := sas.Parse(x.Token("hub-1/devices/tpm-1", "", time.Now().Add(time.Hour)))
		if err != nil {
			t.Fatal(err)
		}
		d := s.hub.Device("tpm-1")
		key, _ := base64.StdEncoding.DecodeString(keysOf(d)[0])
		if err := tok.Verify(key, time.Now()); err != nil || d.Authentication.Type != iothub.SAS {
			t.Errorf("the TPM does not sign with the hub's key: %v", err)
		}
		return keysOf(d)[0]
	}
	first := hubKey(state)
	if got := s.arrive("tpm-1", token, wire(x)); got.Status != dps.Assigned {
		t.Errorf("the same request again, as after a lost answer: %+v", got)
	}
	// Operators do not see what is the device's own.
	var shown dps.RegistrationState
	s.must(200, "GET", "/registrations/tpm-1"+v, nil, &shown)
	if shown.TPM != nil {
		t.Error("the registration shows its authentication key")
	}
	// It registers again: with a new challenge, and keeps its key.
	if err := x.Activate(s.challenge("tpm-1", wire(x))); err != nil {
		t.Fatal(err)
	}
	if second := hubKey(s.arrive("tpm-1", x.Token(s.resource("tpm-1"), "registration", time.Now().Add(time.Hour)), wire(x))); second != first {
		t.Error("the device lost its key at the hub")
	}
	if status, b, _ := s.send("PUT", "/"+s.resource("tpm-1")+"/register"+v, token, dps.DeviceRegistration{TPM: wire(x)}); status != 401 || !strings.Contains(string(b), "replayed") && !strings.Contains(string(b), "not signed with a key") {
		t.Errorf("the first token again: %d %s", status, b)
	}
	if status, b, _ := s.send("PUT", "/"+s.resource("tpm-2")+"/register"+v, "", dps.DeviceRegistration{TPM: wire(x)}); status != 401 || !strings.Contains(string(b), "not enrolled") {
		t.Errorf("a TPM that nobody enrolled under this name: %d %s", status, b)
	}
}

// roster is a credential provider's list of units.
type roster struct {
	mu sync.Mutex
	m  map[[32]byte]provisioning.Unit
}

func (r *roster) UnitByEK(_ context.Context, ek [32]byte) (provisioning.Unit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, ok := r.m[ek]
	if !ok {
		return u, cradle.Errorf(cradle.NotFound, "no unit")
	}
	return u, nil
}

func (r *roster) set(ek [32]byte, u provisioning.Unit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m[ek] = u
}

// A group of an order's units: a unit waits until its lot is accepted, and goes on by its next poll.
func TestUnitsOfAnOrder(t *testing.T) {
	x := newTPM(t)
	p, err := tpmblob.Parse("EK", x.EK)
	if err != nil {
		t.Fatal(err)
	}
	units := &roster{m: map[[32]byte]provisioning.Unit{}}
	s := newServerWith(t, func(c *provisioning.Config) { c.Units = units }, func(c *dpsserver.Config) { c.Hold = -1 })
	var g dps.EnrollmentGroup
	s.must(200, "PUT", "/enrollmentGroups/order-7"+v, `{"attestation":{"type":"tpm","tpmUnits":{"account":"acme","order":"o-7"}}}`, &g)
	if u := g.Attestation.TPMUnits; u == nil || u.Order != "o-7" || g.Attestation.Type != "tpm" {
		t.Errorf("group %+v", g)
	}
	if status, b, _ := s.send("PUT", "/enrollmentGroups/all"+v, s.owner(), `{"attestation":{"type":"tpm","tpmUnits":{"account":"acme"}}}`); status != 400 || !strings.Contains(string(b), "names an order, or lots") {
		t.Errorf("a group of every unit: %d %s", status, b)
	}
	if status, b, _ := s.send("PUT", "/"+s.resource("unit-1")+"/register"+v, "", dps.DeviceRegistration{TPM: wire(x)}); status != 401 || !strings.Contains(string(b), "no TPM group names") {
		t.Errorf("a TPM that is no unit: %d %s", status, b)
	}
	u := provisioning.Unit{Device: "unit-1", Account: "acme", Order: "o-7", State: cradle.Made}
	units.set(p.Digest(), u)
	if err := x.Activate(s.challenge("unit-1", wire(x))); err != nil {
		t.Fatal(err)
	}
	token := x.Token(s.resource("unit-1"), "registration", time.Now().Add(time.Hour))
	status, b, h := s.send("PUT", "/"+s.resource("unit-1")+"/register"+v, token, dps.DeviceRegistration{TPM: wire(x)})
	var op dps.OperationStatus
	if status != 202 || json.Unmarshal(b, &op) != nil || op.OperationID == "" || h.Get("Retry-After") == "0" {
		t.Fatalf("a unit whose lot is open: %d %s, Retry-After %q", status, b, h.Get("Retry-After"))
	}
	poll := func() (int, dps.OperationStatus) {
		status, b, _ := s.send("GET", "/"+s.resource("unit-1")+"/operations/"+op.OperationID+v, token, "{}")
		var o dps.OperationStatus
		if err := json.Unmarshal(b, &o); err != nil {
			t.Fatal(err)
		}
		return status, o
	}
	if status, o := poll(); status != 202 || o.Status != dps.Assigning {
		t.Errorf("poll while it waits: %d %+v", status, o)
	}
	if s.hub.Device("unit-1") != nil {
		t.Error("the hub was told of a unit that waits")
	}
	u.Lot, u.State = "l-1", cradle.Accepted
	units.set(p.Digest(), u)
	for range 200 {
		if status, o := poll(); o.Status != dps.Assigning {
			if status != 200 || o.Status != dps.Assigned || o.RegistrationState.TPM == nil {
				t.Errorf("poll after acceptance: %d %+v", status, o)
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d := s.hub.Device("unit-1"); d == nil || d.Authentication.Type != iothub.SAS {
		t.Errorf("entry %+v", d)
	}
	// One unit is taken out by an enrolment of its own; that is the reason that its TPM hears.
	s.must(200, "PUT", "/enrollments/unit-1"+v, `{"attestation":{"type":"symmetricKey"},"provisioningStatus":"disabled"}`, nil)
	if status, b, _ := s.send("GET", "/"+s.resource("unit-1")+"/operations/"+op.OperationID+v, token, "{}"); status != 401 || !strings.Contains(string(b), "is disabled") {
		t.Errorf("poll of a barred unit: %d %s", status, b)
	}
	if err := x.Activate(s.challenge("unit-1", wire(x))); err != nil {
		t.Fatal(err)
	}
	again := x.Token(s.resource("unit-1"), "registration", time.Now().Add(time.Hour))
	if status, b, _ := s.send("PUT", "/"+s.resource("unit-1")+"/register"+v, again, dps.DeviceRegistration{TPM: wire(x)}); status != 401 || !strings.Contains(string(b), "is disabled") {
		t.Errorf("registration of a barred unit: %d %s", status, b)
	}
	s.must(204, "DELETE", "/enrollments/unit-1"+v, nil, nil)
	u.State = cradle.Revoked
	units.set(p.Digest(), u)
	if status, _ := poll(); status != 401 {
		t.Errorf("poll of a revoked unit: %d", status)
	}
}

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

var keyedGroup = dps.EnrollmentGroup{Attestation: dps.Attestation{Type: "symmetricKey"}}

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
