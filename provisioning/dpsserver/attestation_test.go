package dpsserver_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
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
	// A token that was seen on its way is good for this registration alone, as long as it lives.
	for _, resource := range []string{s.resource("sym-2"), "0ne99999999/registrations/sym-1", strings.TrimSuffix(s.resource("sym-1"), "/sym-1")} {
		replayed := sas.Sign(resource, "registration", primary, time.Now().Add(time.Hour))
		if status, b, _ := s.send("PUT", "/"+s.resource("sym-1")+"/register"+v, replayed, nil); status != 401 || !strings.Contains(string(b), "SAS token is for") {
			t.Errorf("a token for %s: %d %s", resource, status, b)
		}
	}
	yesterdays := sas.Sign(s.resource("sym-1"), "registration", primary, time.Now().Add(-time.Hour))
	if status, b, _ := s.send("PUT", "/"+s.resource("sym-1")+"/register"+v, yesterdays, nil); status != 401 || !strings.Contains(string(b), "expired") {
		t.Errorf("yesterday's token: %d %s", status, b)
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
	c := provisioning.Credentials{RegistrationID: "slow-1", Token: sas.Sign(s.resource("slow-1"), "registration", key, time.Now().Add(3*time.Second))} // in whole seconds
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

var keyedGroup = dps.EnrollmentGroup{Attestation: dps.Attestation{Type: "symmetricKey"}}
