package dpsserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// caIssuer answers each CSR with a certificate of its CA.
type caIssuer struct{ *provisioningtest.CA }

func (i caIssuer) IssueByCSR(_ context.Context, _ cradle.AccountID, _ string, id cradle.DeviceID, csr []byte) ([][]byte, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	return [][]byte{i.LeafFor(string(id), req.PublicKey.(*ecdsa.PublicKey)).Raw, i.Cert.Raw}, nil
}

// TestCSROnTheWire: csr in the registration, issuedCertificateChain in the poll and nowhere else (2025-07-01-preview).
func TestCSROnTheWire(t *testing.T) {
	var h *dpsserver.Handler
	s := newServerWith(t, func(c *provisioning.Config) {
		c.Issuer = caIssuer{provisioningtest.NewCA(t, "acme", "acme registration")}
	}, func(c *dpsserver.Config) { h = dpsserver.New(*c) })
	g := s.group("acme-devices", s.ca)
	g.CredentialPolicyName = "operational"
	if _, err := s.service().PutGroup(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	const v = "?api-version=2025-07-01-preview"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev-1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	c := s.client(s.ca.Leaf("dev-1", nil))
	body := `{"registrationId":"dev-1","csr":"` + base64.StdEncoding.EncodeToString(csr) + `"}`
	resp, b := s.call(c, "PUT", s.path("dev-1")+"/register"+v, body)
	var op dps.OperationStatus
	if err := json.Unmarshal(b, &op); err != nil || resp.StatusCode != 202 {
		t.Fatalf("register: %s %s, %v", resp.Status, b, err)
	}
	for resp.StatusCode == 202 {
		resp, b = s.call(c, "GET", s.path("dev-1")+"/operations/"+op.OperationID+v, "")
	}
	var raw struct {
		RegistrationState struct {
			Status string
			Chain  []string `json:"issuedCertificateChain"`
		}
	}
	if err := json.Unmarshal(b, &raw); err != nil || len(raw.RegistrationState.Chain) != 2 {
		t.Fatalf("poll: %s %s, %v", resp.Status, b, err)
	}
	der, err := base64.StdEncoding.DecodeString(raw.RegistrationState.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err := x509.ParseCertificate(der); err != nil || leaf.Subject.CommonName != "dev-1" || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("issued %v, %v", leaf, err)
	}
	// A status lookup neither takes a CSR nor shows the chain.
	if resp, b := s.call(c, "POST", s.path("dev-1")+v, body); resp.StatusCode != 400 {
		t.Errorf("csr in a lookup: %s %s", resp.Status, b)
	}
	raw.RegistrationState.Chain = nil
	var state map[string]any
	resp, b = s.call(c, "POST", s.path("dev-1")+v, "{}")
	if err := json.Unmarshal(b, &state); err != nil || resp.StatusCode != 200 || state["issuedCertificateChain"] != nil {
		t.Errorf("lookup: %s %s, %v", resp.Status, b, err)
	}
	for name, csr := range map[string]string{"armour": "-----BEGIN CERTIFICATE REQUEST-----", "another's name": base64.StdEncoding.EncodeToString(csr)} {
		id := "dev-2"
		c := s.client(s.ca.Leaf(id, nil))
		if resp, b := s.call(c, "PUT", s.path(id)+"/register"+v, `{"registrationId":"dev-2","csr":"`+csr+`"}`); resp.StatusCode != 400 {
			t.Errorf("%s: %s %s", name, resp.Status, b)
		}
	}
	// The same over MQTT.
	user := dps.UserName(s.svc.Identity().IDScope, "dev-1", "2025-07-01-preview")
	d := s.dial(mqttPort(t, s, h), mqtt.Options{ClientID: "dev-1", Username: user, KeepAlive: time.Minute}, s.ca.Leaf("dev-1", nil))
	d.subscribe()
	status, _, b := d.ask(put+"1", body)
	if err := json.Unmarshal(b, &op); err != nil || status != "202" {
		t.Fatalf("register over MQTT: %s %s", status, b)
	}
	for status == "202" {
		status, _, b = d.ask(get("2", op.OperationID), " ")
	}
	if err := json.Unmarshal(b, &raw); err != nil || status != "200" || len(raw.RegistrationState.Chain) != 2 {
		t.Errorf("poll over MQTT: %s %s", status, b)
	}
	if status, _, b = d.ask(put+"3", `{"registrationId":"dev-1","csr":"!"}`); status != "400" {
		t.Errorf("no base64 over MQTT: %s %s", status, b)
	}
}

// TestCSROfATPM: a TPM gets its key for the hub as ever, and beside it a certificate, by which the hub knows the device.
func TestCSROfATPM(t *testing.T) {
	x := newTPM(t)
	s := newServerWith(t, func(c *provisioning.Config) {
		c.Issuer = caIssuer{provisioningtest.NewCA(t, "acme", "acme registration")}
	}, nil)
	var e dps.Enrollment
	s.must(200, "PUT", "/enrollments/tpm-1"+v, dps.Enrollment{RegistrationID: "tpm-1", Terms: dps.Terms{CredentialPolicyName: "acme-operational"},
		Attestation: dps.Attestation{Type: "tpm", TPM: &dps.TPM{EndorsementKey: wire(x).EndorsementKey}}}, &e)
	if e.CredentialPolicyName != "acme-operational" {
		t.Errorf("enrolment %+v", e)
	}
	if err := x.Activate(s.challenge("tpm-1", wire(x))); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "tpm-1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	token := x.Token(s.resource("tpm-1"), "registration", time.Now().Add(time.Hour))
	var op dps.OperationStatus
	status, b, _ := s.send("PUT", "/"+s.resource("tpm-1")+"/register"+v, token, dps.DeviceRegistration{RegistrationID: "tpm-1", TPM: wire(x), CSR: base64.StdEncoding.EncodeToString(csr)})
	if err := json.Unmarshal(b, &op); err != nil || status != 202 {
		t.Fatalf("register: %d %s", status, b)
	}
	for status == 202 {
		status, b, _ = s.send("GET", "/"+s.resource("tpm-1")+"/operations/"+op.OperationID+v, token, nil)
	}
	if err := json.Unmarshal(b, &op); err != nil || status != 200 || op.RegistrationState.TPM == nil || len(op.RegistrationState.IssuedCertificateChain) != 2 {
		t.Fatalf("poll: %d %s", status, b)
	}
	if err := x.Activate(op.RegistrationState.TPM.AuthenticationKey); err != nil {
		t.Error(err)
	}
	if d := s.hub.Device("tpm-1"); d.Authentication.Type != iothub.SelfSigned || !strings.EqualFold(d.Authentication.X509Thumbprint.PrimaryThumbprint, fmt.Sprintf("%x", sha256.Sum256(op.RegistrationState.IssuedCertificateChain[0]))) {
		t.Errorf("the hub's entry: %+v", d)
	}
}
