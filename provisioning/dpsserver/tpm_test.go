package dpsserver_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
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
	var o dps.OperationStatus
	testenv.Eventually(t, "assigned", func() bool { status, o = poll(); return o.Status != dps.Assigning })
	if status != 200 || o.Status != dps.Assigned || o.RegistrationState.TPM == nil {
		t.Errorf("poll after acceptance: %d %+v", status, o)
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
