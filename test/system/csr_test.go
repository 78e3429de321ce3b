package system_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/test/world"
)

// newFactory is a vendor's CA, which knows nothing of us: the bootstrap certificates of devices that send CSRs.
func newFactory(t *testing.T) *testca.Pair {
	t.Helper()
	tmpl := testca.CA("Contoso bootstrap")
	tmpl.Subject.Organization = []string{"Contoso"}
	return testca.New(t, tmpl, nil)
}

// bootstrapped is a device of that vendor's.
func bootstrapped(t *testing.T, by *testca.Pair, name string) *tls.Certificate {
	t.Helper()
	c := testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, by).TLS()
	return &c
}

func csrOf(t *testing.T, name string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key := testca.Key(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// csrWorld registers with CSRs.
type csrWorld struct {
	*world.World
	t     *testing.T
	scope string
	conn  *sas.ConnectionString
}

// register registers to the end; a refusal is the state that it ended in, or the text of the answer.
func (w *csrWorld) register(client *http.Client, id string, csr []byte) (*dps.RegistrationState, string) {
	w.t.Helper()
	body := map[string]string{"registrationId": id}
	if csr != nil {
		body["csr"] = base64.StdEncoding.EncodeToString(csr)
	}
	b, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	base, version := w.URL()+"/"+w.scope+"/registrations/"+id, "?api-version=2025-07-01-preview"
	method, url := http.MethodPut, base+"/register"+version
	for range 100 {
		req, err := http.NewRequestWithContext(w.t.Context(), method, url, strings.NewReader(string(b)))
		if err != nil {
			w.t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			w.t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		var op dps.OperationStatus
		if resp.StatusCode >= 300 || json.Unmarshal(answer, &op) != nil {
			return nil, string(answer)
		}
		if op.Status == dps.Failed {
			return nil, op.RegistrationState.ErrorMessage
		}
		if op.Status == dps.Assigned {
			return op.RegistrationState, ""
		}
		method, url, b = http.MethodGet, base+"/operations/"+op.OperationID+version, nil
	}
	w.t.Fatal("still assigning")
	return nil, ""
}

func (w *csrWorld) policy(ca *x509.Certificate, name string) {
	w.t.Helper()
	if err := w.tryPolicy(ca, name); err != nil {
		w.t.Fatal(err)
	}
}

func (w *csrWorld) tryPolicy(ca *x509.Certificate, name string) error {
	s := &dps.Service{HTTP: w.HTTP(nil), Conn: w.conn}
	etag := "*"
	if _, err := s.Group(w.t.Context(), "contoso"); cradle.KindOf(err) == cradle.NotFound {
		etag = ""
	}
	_, err := s.PutGroup(w.t.Context(), dps.EnrollmentGroup{EnrollmentGroupID: "contoso", Terms: dps.Terms{ETag: etag, CredentialPolicyName: name}, Attestation: dps.Attestation{
		Type: "x509", X509: &dps.X509Attestation{SigningCertificates: &dps.X509Certificates{Primary: &dps.X509Certificate{Certificate: dps.PEM(ca)}}}}})
	return err
}

// session connects to the hub with a certificate; answers gets what the hub publishes.
func (w *csrWorld) session(id string, chain [][]byte, key crypto.Signer, answers chan mqtt.Publish) (*mqtt.Client, error) {
	w.t.Helper()
	conn, err := (&tls.Dialer{Config: w.TLS(&tls.Certificate{Certificate: chain, PrivateKey: key})}).DialContext(w.t.Context(), "tcp", w.Addr)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := mqtt.Dial(w.t.Context(), conn, mqtt.Options{ClientID: id, Username: iothub.UserName("localhost", cradle.DeviceID(id)), Clean: true, KeepAlive: time.Minute,
		OnMessage: func(topic string, payload []byte) error {
			answers <- mqtt.Publish{Topic: topic, Payload: append([]byte{}, payload...)}
			return nil
		}})
	if err != nil {
		return nil, err
	}
	go c.Run(context.Background())
	w.t.Cleanup(func() { c.Close() })
	return c, nil
}

func (w *csrWorld) mustConnect(id string, chain [][]byte, key crypto.Signer, answers chan mqtt.Publish) *mqtt.Client {
	w.t.Helper()
	c, err := w.session(id, chain, key, answers)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// renew asks for a certificate over the hub's MQTT; it returns the status and what came.
func (w *csrWorld) renew(c *mqtt.Client, answers chan mqtt.Publish, id, request string, csr []byte) (status string, chain [][]byte, text string) {
	w.t.Helper()
	if err := c.Subscribe(w.t.Context(), iothub.CredentialFilter, mqtt.AtLeastOnce); err != nil {
		w.t.Fatal(err)
	}
	body, err := json.Marshal(iothub.CredentialRequest{ID: cradle.DeviceID(id), CSR: csr})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Publish(w.t.Context(), iothub.CredentialTopic(request), mqtt.AtLeastOnce, body); err != nil {
		w.t.Fatal(err)
	}
	for {
		select {
		case p := <-answers:
			if status = strings.Split(p.Topic, "/")[3]; status == "202" {
				continue
			}
			var issued iothub.CredentialIssued
			if status == "200" && json.Unmarshal(p.Payload, &issued) != nil {
				w.t.Fatalf("%s", p.Payload)
			}
			return status, issued.Certificates, string(p.Payload)
		case <-time.After(testenv.Patience):
			w.t.Fatal("no answer to a request for a certificate")
		}
	}
}

// opensslVerify verifies a chain of DER certificates, the leaf first, with openssl against one of the account's roots.
func (w *csrWorld) opensslVerify(root string, chain [][]byte) world.Result {
	w.t.Helper()
	var above strings.Builder
	for _, der := range chain[1:] {
		above.WriteString(admin.PEM(der))
	}
	leaf, middle := w.Write("leaf.pem", admin.PEM(chain[0])), w.Write("above.pem", above.String())
	return w.Tool(nil, "openssl", "verify", "-CAfile", filepath.Join(w.Data, "accounts", world.Account, root), "-untrusted", middle, "-purpose", "sslclient", leaf)
}

// TestCSR is the life of a device that gets its certificates by CSR: from its registration with a bootstrap certificate of
// somebody else's CA, over the renewal at the hub, to its revocation; with real programs, and openssl as judge.
func TestCSR(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	testenv.Require(t, "openssl")
	w := &csrWorld{World: world.New(t, world.Options{}), t: t}
	w.MustCradle("account", "create", world.Account)
	st := world.Decode[admin.Status](t, w.MustCradle("status"))
	w.scope = st.IDScope
	key := world.Decode[admin.ServiceKey](t, w.MustCradle("service-key", "show", "--service", "dps"))
	var err error
	if w.conn, err = sas.ParseConnectionString(key.ConnectionString); err != nil {
		t.Fatal(err)
	}
	f := newFactory(t)
	w.policy(f.Cert, "acme-operational")
	const id = "lamp-1"
	boot := bootstrapped(t, f, id)
	client := w.HTTP(boot)
	privA, csrA := csrOf(t, "LAMP-1")

	// Not before the account's operator has said so.
	if _, text := w.register(client, id, csrA); !strings.Contains(text, "no registration authority") || !strings.Contains(text, "cradle account ra") {
		t.Errorf("without an authority: %s", text)
	}
	made := world.Decode[admin.RegistrarSet](t, w.MustCradle("account", "ra", world.Account, "--profile", "operational", "--own"))
	if made.Made == nil || made.Made.Name != "provisioning" {
		t.Fatalf("%+v", made)
	}
	verbs{t, w.World}.files(filepath.Join(w.Data, "ra"), 0o600, "acme-operational.pem")

	r, text := w.register(client, id, csrA)
	if r == nil || len(r.IssuedCertificateChain) != 3 {
		t.Fatalf("registered: %+v, %s", r, text)
	}
	chain := r.IssuedCertificateChain
	if v := w.opensslVerify("evaluation-root.pem", chain); v.Code != 0 {
		t.Errorf("openssl: %s%s", v.Stdout, v.Stderr)
	}
	if v := w.opensslVerify("production-root.pem", chain); v.Code == 0 {
		t.Error("openssl verifies it by the root of production")
	}
	w.Write("leaf.pem", admin.PEM(chain[0]))
	shown := w.Tool(nil, "openssl", "x509", "-in", w.Path("leaf.pem"), "-noout", "-text").Stdout
	for _, want := range []string{"CN = lamp-1", "CN = acme evaluation registration CA", cradle.PolicyKeyNotProved.String(), cradle.TierPolicy(cradle.SoftwareKey).String()} {
		if !strings.Contains(strings.ReplaceAll(shown, "CN=", "CN = "), want) {
			t.Errorf("openssl x509 shows no %q:\n%s", want, shown)
		}
	}
	if strings.Contains(shown, cradle.PolicyKeyProved.String()) {
		t.Error("it says that its key was proved")
	}
	// The same CSR again is answered with the same certificate; after a kill too.
	w.Server().Kill()
	w.Start()
	if again, text := w.register(w.HTTP(boot), id, csrA); again == nil || string(again.IssuedCertificateChain[0]) != string(chain[0]) {
		t.Errorf("again: %+v %s", again, text)
	}
	client = w.HTTP(boot)

	// At the hub it connects with it, not with what it came with, and renews.
	answers := make(chan mqtt.Publish, 16)
	if _, err := w.session(id, boot.Certificate, boot.PrivateKey.(crypto.Signer), answers); err == nil {
		t.Error("the bootstrap certificate connects to the hub")
	}
	c := w.mustConnect(id, chain[:1], privA, answers)
	privB, csrB := csrOf(t, id)
	status, renewed, text := w.renew(c, answers, id, "renewal-1", csrB)
	if status != "200" || len(renewed) != 3 {
		t.Fatalf("renewal: %s %s", status, text)
	}
	if v := w.opensslVerify("evaluation-root.pem", renewed); v.Code != 0 {
		t.Errorf("openssl: %s%s", v.Stdout, v.Stderr)
	}
	c2 := w.mustConnect(id, renewed[:1], privB, answers) // promotes it
	if _, err := w.session(id, chain[:1], privA, answers); err == nil {
		t.Error("the certificate before still connects")
	}
	// Nobody gets another's, and the device goes nowhere else by it.
	_, other := csrOf(t, "lamp-2")
	if status, _, text := w.renew(c2, answers, id, "renewal-2", other); status != "400" || !strings.Contains(text, "400040") {
		t.Errorf("a CSR for another: %s %s", status, text)
	}
	leaf, err := x509.ParseCertificate(renewed[0])
	if err != nil {
		t.Fatal(err)
	}
	_, csrC := csrOf(t, id)
	if _, err := w.EST(cradle.Operational, &tls.Certificate{Certificate: renewed[:1], PrivateKey: privB, Leaf: leaf}).SimpleReenroll(t.Context(), reenrolOf(t, leaf)); cradle.KindOf(err) != cradle.Forbidden {
		t.Errorf("the device renews by itself: %v", err)
	}
	for policy, part := range map[string]string{"acme-nothing": "has no profile", "other-operational": "there is no account"} {
		if err := w.tryPolicy(f.Cert, policy); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), part) {
			t.Errorf("policy %s: %v", policy, err)
		}
	}
	for policy, part := range map[string]string{"acme-ldevid": "no registration authority"} {
		w.policy(f.Cert, policy)
		if _, text := w.register(client, id, csrC); !strings.Contains(text, part) {
			t.Errorf("policy %s: %s", policy, text)
		}
	}
	w.policy(f.Cert, "")
	if r, text := w.register(client, id, csrC); r == nil || len(r.IssuedCertificateChain) != 0 {
		t.Errorf("without a policy: %+v %s", r, text)
	}
	w.policy(f.Cert, "acme-operational")

	// A device that proves itself by a key of a group gets one too.
	w.keyed()

	// The provider's word ends it everywhere.
	w.MustCradle("device", "revoke", id, "--account", world.Account, "--reason", "stolen")
	if _, text := w.register(client, id, csrC); !strings.Contains(text, "revoked") {
		t.Errorf("a revoked device registers: %s", text)
	}
	if _, err := w.session(id, renewed[:1], privB, answers); err == nil {
		t.Error("a revoked device connects")
	}
	w.Wait("the end of a revoked device's session", time.Minute, func() (bool, string) {
		return c2.Publish(t.Context(), iothub.TelemetryTopic(id, nil), mqtt.AtLeastOnce, []byte("x")) != nil, "it goes on"
	})
	// And the operator's, the authority.
	w.MustCradle("account", "ra", world.Account, "--profile", "operational", "--end", "--reason", "test")
	lamp2 := w.HTTP(bootstrapped(t, f, "lamp-2"))
	if _, text := w.register(lamp2, "lamp-2", other); !strings.Contains(text, "revoked") {
		t.Errorf("by an authority that was ended: %s", text)
	}
	w.Audit()
}

// withToken authenticates requests by a SAS token.
type withToken struct {
	next  http.RoundTripper
	token string
}

func (a withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", a.token)
	return a.next.RoundTrip(r)
}

// keyed is a device of a group by symmetric keys, from its registration to the hub.
func (w *csrWorld) keyed() {
	w.t.Helper()
	group, id := sas.NewKey(), "lamp-key"
	s := &dps.Service{HTTP: w.HTTP(nil), Conn: w.conn}
	if _, err := s.PutGroup(w.t.Context(), dps.EnrollmentGroup{EnrollmentGroupID: "keys", Terms: dps.Terms{CredentialPolicyName: "acme-operational"}, Attestation: dps.Attestation{
		Type: "symmetricKey", SymmetricKey: &dps.SymmetricKey{PrimaryKey: base64.StdEncoding.EncodeToString(group), SecondaryKey: base64.StdEncoding.EncodeToString(sas.NewKey())}}}); err != nil {
		w.t.Fatal(err)
	}
	client := w.HTTP(nil)
	client.Transport = withToken{client.Transport, sas.Sign(w.scope+"/registrations/"+id, "registration", dps.DeviceKey(group, id), time.Now().Add(time.Hour))}
	key, csr := csrOf(w.t, id)
	r, text := w.register(client, id, csr)
	if r == nil || len(r.IssuedCertificateChain) != 3 {
		w.t.Fatalf("by a key: %+v %s", r, text)
	}
	if v := w.opensslVerify("evaluation-root.pem", r.IssuedCertificateChain); v.Code != 0 {
		w.t.Errorf("openssl: %s%s", v.Stdout, v.Stderr)
	}
	answers := make(chan mqtt.Publish, 16)
	c := w.mustConnect(id, r.IssuedCertificateChain[:1], key, answers)
	_, next := csrOf(w.t, id)
	if status, _, text := w.renew(c, answers, id, "by-key", next); status != "200" {
		w.t.Errorf("renewal: %s %s", status, text)
	}
}

// reenrolOf is a CSR with a certificate's names.
func reenrolOf(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: c.RawSubject}, testca.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// registrars are the verbs about registration authorities.
func (v verbs) registrars() {
	v.Helper()
	set := v.one("cradle account ra acme --profile operational --name gateway --names gw-* --out @/ra", "made", "ended")
	made := set["made"].(map[string]any)
	if made["name"] != "gateway" || made["names"] != "gw-*" || made["tier"] != "software-key" {
		v.Errorf("made %v", made)
	}
	v.files(filepath.Join(v.w.Dir, "ra"), 0o600, "ra-key.pem")
	v.files(filepath.Join(v.w.Dir, "ra"), 0, "ra.pem")
	text, err := os.ReadFile(filepath.Join(v.w.Dir, "ra", "ra.pem"))
	if b, _ := pem.Decode(text); err != nil || b == nil || b.Type != "CERTIFICATE" {
		v.Errorf("ra.pem: %v", err)
	}
	v.one("cradle account ra acme --profile operational --name gateway --out @/ra --replace", "made", "ended")
	if rows := v.ok("cradle account ra acme", "name", "profile", "serial", "not_after"); len(rows) != 2 {
		v.Errorf("listed %v", rows)
	}
	v.bad(1, "cannot ask", "cradle account ra acme --profile ldevid --out @/ra2")
	v.bad(1, "line alone", "cradle account ra acme --profile idevid --out @/ra2")
	v.bad(2, "needs one of", "cradle account ra acme --profile operational")
	v.one("cradle account ra acme --profile operational --name gateway --end --reason gone", "ended")
	v.bad(1, "no registration authority", "cradle account ra acme --profile operational --name nothing --end")
}
