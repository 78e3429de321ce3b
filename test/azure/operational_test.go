package azure_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/test/world"
)

// Who may enrol devices without a TPM in the account.
const (
	user     = "line-7"
	password = "correct-horse-battery"
)

// operational enrols a device with a key in software and returns its operational certificate.
func (p *place) operational(t *testing.T, id string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.LabelURL(cradle.Operational)+"/simpleenroll", bytes.NewBufferString(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/pkcs10")
	r.SetBasicAuth(user, password)
	resp, err := p.HTTP(nil).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("simpleenroll of %s: %d %s %v", id, resp.StatusCode, body, err)
	}
	der, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(body), nil)))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := est.DecodeCerts(der)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0].Raw})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))}
}

// A device that the provider revokes is refused by the provisioning service and by the hub, and the reason is given.
func (s suite) TestRevoked(t *testing.T) {
	const id = "revoked-1"
	cert := s.operational(t, id)
	s.registers(t, s.device(id, "http", cert))
	s.must(t, nil, "device.connect", s.device(id, "mqtt", cert))
	s.MustCradle("device", "revoke", id, "--account", world.Account, "--reason", "keyCompromise")
	for _, transport := range []string{"mqtt", "ws"} {
		if e := s.refused(t, "device.connect", s.device(id, transport, cert)); e.Name != "UnauthorizedError" || !e.says("Not authorized") {
			t.Errorf("hub over %s: %v", transport, e)
		}
	}
	d := s.device(id, "http", cert)
	d["body"] = with{}
	if e := s.refused(t, "device.telemetry", d); e.Status != 401 || !e.says("is revoked") {
		t.Errorf("hub over HTTPS: %v", e)
	}
	for _, transport := range transports {
		if e := s.refused(t, "register", s.device(id, transport, cert)); e.Name != "UnauthorizedError" || transport == "http" && e.Status != 401 || !e.says("is revoked") {
			t.Errorf("provisioning over %s: %v", transport, e)
		}
	}
}
