package interop_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

// cloud plays identityd of Azure IoT Identity Service towards provisioning service and hub: the bytes it sends, one
// connection for each request, and what it accepts as an answer. Its pauses are left out, but for the one after 429.
type cloud struct {
	*azure
	scope string
	id    string            // registration id
	auth  []tls.Certificate // with X.509
	key   []byte            // with a symmetric key
	life  time.Duration     // of a token; 30 s in the original
	pause time.Duration     // before the first poll; 5 s in the original
	log   []string          // requests and the statuses they got
	last  string            // path of the last request
}

// device is what a registration resulted in.
type device struct {
	AssignedHub string
	DeviceID    string `json:"deviceId"`
}

// refusal is an answer that ends what was tried.
type refusal struct {
	status  int
	code    int
	message string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("status %d, code %d: %s", r.status, r.code, r.message)
}

// token is a SharedAccessSignature over a resource in lower case, whose slashes are not escaped.
func (c *cloud) token(resource, skn string) string {
	if c.key == nil {
		return ""
	}
	resource = strings.ToLower(resource)
	expiry := fmt.Sprint(time.Now().Add(c.life).Unix())
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(resource + "\n" + expiry))
	out := "SharedAccessSignature sr=" + resource + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))) + "&se=" + expiry
	if skn != "" {
		out += "&skn=" + skn
	}
	return out
}

// request sends one request. Content types are looked at as the original does it, with what it makes of an answer in dps
// and hub.
func (c *cloud) request(addr, method, path, token, ifMatch string, body any) (int, []byte, error) {
	c.t.Helper()
	var b, content bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", method, path)
	if body != nil {
		b.WriteString("content-type: application/json\r\n")
		text, err := json.Marshal(body)
		if err != nil {
			c.t.Fatal(err)
		}
		content.Write(text)
	}
	if ifMatch != "" {
		fmt.Fprintf(&b, "if-match: %s\r\n", ifMatch)
	}
	if token != "" {
		fmt.Fprintf(&b, "authorization: %s\r\n", token)
	}
	fmt.Fprintf(&b, "host: %s\r\n", addr)
	if body != nil {
		fmt.Fprintf(&b, "content-length: %d\r\n", content.Len())
	}
	b.WriteString("\r\n")
	b.Write(content.Bytes())
	resp, text, err := c.send(c.auth, addr, b.Bytes())
	if err != nil {
		return 0, nil, err
	}
	c.log = append(c.log, fmt.Sprintf("%s %d", method, resp.StatusCode))
	c.last = path
	if ct := resp.Header.Get("content-type"); resp.StatusCode != http.StatusNoContent && !strings.Contains(ct, "application/json") {
		return resp.StatusCode, nil, fmt.Errorf("content type %q of status %d", ct, resp.StatusCode)
	}
	return resp.StatusCode, text, nil
}

// dps is a request to the provisioning service: five attempts while it answers 429, any other status not in want is an
// error, whose body must have the members that the original reads.
func (c *cloud) dps(method, path, token string, body any, want ...int) ([]byte, error) {
	c.t.Helper()
	for attempt := 1; ; attempt++ {
		status, text, err := c.request("localhost:"+c.p.port, method, "/"+c.scope+"/registrations/"+path+"?api-version=2021-06-01", token, "", body)
		if err != nil {
			return nil, err
		}
		for _, w := range want {
			if status == w {
				return text, nil
			}
		}
		var e struct {
			Code    int    `json:"errorCode"`
			Message string `json:"message"`
		}
		if len(text) > 0 {
			if err := json.Unmarshal(text, &e); err != nil || e.Code == 0 || e.Message == "" {
				c.t.Fatalf("an error body that identityd cannot read: %d %s", status, text)
			}
		}
		if status != http.StatusTooManyRequests || attempt == 5 {
			return nil, &refusal{status, e.Code, e.Message}
		}
		time.Sleep(time.Duration(attempt) * time.Second) // a minute each in the original
	}
}

// register registers and polls until that has ended, all with one token.
func (c *cloud) register() (*device, error) {
	c.t.Helper()
	return c.registerWith(c.token(c.scope+"/registrations/"+c.id, "registration"))
}

func (c *cloud) registerWith(token string) (*device, error) {
	c.t.Helper()
	text, err := c.dps("PUT", c.id+"/register", token, map[string]any{"registrationId": c.id}, http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	var op struct{ OperationID string }
	if err := json.Unmarshal(text, &op); err != nil || op.OperationID == "" {
		return nil, fmt.Errorf("no operation in %s", text)
	}
	time.Sleep(c.pause)
	for range 200 {
		text, err := c.dps("GET", c.id+"/operations/"+op.OperationID, token, nil, http.StatusOK, http.StatusAccepted)
		if err != nil {
			return nil, err
		}
		var r struct {
			Status            string
			RegistrationState struct {
				device
				RegistrationID string
				ErrorCode      int
				ErrorMessage   string
			}
		}
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, err
		}
		switch s := r.RegistrationState; {
		case r.Status == "assigning" && s.RegistrationID != "":
			time.Sleep(c.pause)
		case r.Status == "assigned" && s.AssignedHub != "" && s.DeviceID != "":
			return &s.device, nil
		case r.Status == "failed":
			return nil, &refusal{http.StatusOK, s.ErrorCode, s.ErrorMessage}
		default:
			return nil, fmt.Errorf("identityd cannot read %s", text)
		}
	}
	return nil, fmt.Errorf("assigning for ever")
}

// module is a module identity as identityd reads and writes it.
type module struct {
	ModuleID       string          `json:"moduleId"`
	ManagedBy      string          `json:"managedBy,omitempty"`
	DeviceID       string          `json:"deviceId"`
	GenerationID   string          `json:"generationId,omitempty"`
	Authentication *authentication `json:"authentication,omitempty"`
}

type authentication struct {
	SymmetricKey *symmetricKey `json:"symmetricKey,omitempty"`
	Type         string        `json:"type,omitempty"` // none, sas or x509: others it cannot read
}

type symmetricKey struct {
	PrimaryKey   []byte `json:"primaryKey,omitempty"`
	SecondaryKey []byte `json:"secondaryKey,omitempty"`
}

// hub is a request to the hub: 200 with JSON, or 204 for DELETE, and else an error with Message.
func (c *cloud) hub(d *device, method, path, ifMatch string, body, out any) error {
	c.t.Helper()
	status, text, err := c.request(d.AssignedHub, method, "/devices/"+d.DeviceID+"/modules"+path+"?api-version=2017-11-08-preview",
		c.token(d.AssignedHub+"/devices/"+d.DeviceID, ""), ifMatch, body)
	switch {
	case err != nil:
		return err
	case method == "DELETE" && status == http.StatusNoContent:
		return nil
	case method != "DELETE" && status == http.StatusOK:
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("identityd cannot read %s: %w", text, err)
		}
		return nil
	}
	var e struct{ Message string }
	if err := json.Unmarshal(text, &e); err != nil || e.Message == "" {
		c.t.Fatalf("an error body that identityd cannot read: %d %s", status, text)
	}
	return &refusal{status: status, message: e.Message}
}

// modules are the device's module identities; to list them is how identityd ends every provisioning.
func (c *cloud) modules(d *device) ([]module, error) {
	c.t.Helper()
	var ms []module
	err := c.hub(d, "GET", "", "", nil, &ms)
	for _, m := range ms {
		if a := m.Authentication; a != nil && a.Type != "none" && a.Type != "sas" && a.Type != "x509" {
			c.t.Errorf("identityd cannot read authentication type %q", a.Type)
		}
	}
	return ms, err
}

// lives goes through what identityd does with the hub once it is provisioned: its modules, which sign with keys that it
// derives from a module's generation.
func (c *cloud) lives(d *device) {
	c.t.Helper()
	if ms, err := c.modules(d); err != nil || len(ms) != 0 {
		c.t.Fatalf("modules at first: %+v %v", ms, err)
	}
	var m module
	if err := c.hub(d, "PUT", "/sensor", "", module{ModuleID: "sensor", DeviceID: d.DeviceID}, &m); err != nil || m.ModuleID != "sensor" || m.GenerationID == "" {
		c.t.Fatalf("module made: %+v %v", m, err)
	}
	derive := func(which string) []byte {
		mac := hmac.New(sha256.New, []byte("identityd's master key"))
		mac.Write([]byte(m.ModuleID + ":" + m.GenerationID + ":" + which))
		return mac.Sum(nil)
	}
	keys := &symmetricKey{derive("primary"), derive("secondary")}
	generation := m.GenerationID
	if err := c.hub(d, "PUT", "/sensor", "*", module{ModuleID: "sensor", DeviceID: d.DeviceID, Authentication: &authentication{keys, "sas"}}, &m); err != nil ||
		m.GenerationID != generation || m.Authentication == nil || !bytes.Equal(m.Authentication.SymmetricKey.PrimaryKey, keys.PrimaryKey) {
		c.t.Fatalf("module's keys set: %+v %v", m, err)
	}
	if ms, err := c.modules(d); err != nil || len(ms) != 1 || ms[0].ModuleID != "sensor" {
		c.t.Fatalf("modules then: %+v %v", ms, err)
	}
	if err := c.hub(d, "GET", "/sensor", "", nil, &m); err != nil || m.GenerationID != generation {
		c.t.Fatalf("module read: %+v %v", m, err)
	}
	if err := c.hub(d, "DELETE", "/sensor", "*", nil, nil); err != nil {
		c.t.Fatalf("module deleted: %v", err)
	}
	if ms, err := c.modules(d); err != nil || len(ms) != 0 {
		c.t.Fatalf("modules at last: %+v %v", ms, err)
	}
}

// refused checks a refusal of provisioning service or hub.
func (c *cloud) refused(what string, err error, status int, text string) {
	c.t.Helper()
	r, ok := err.(*refusal)
	if !ok || r.status != status || !strings.Contains(r.message, text) || r.code != 0 && r.code/1000 != status {
		c.t.Errorf("%s: %v, want status %d … %q", what, err, status, text)
	}
}

// edge is an installation in which gateways with Azure IoT Identity Service live.
type edge struct {
	*place
	scope string
}

func openEdge(t *testing.T, serve ...string) *edge {
	t.Helper()
	p := open(t, serve...)
	st := world.Decode[admin.Status](t, p.MustCradle("status"))
	p.MustCradle("attestation", "register", "--account", world.Account, "--unproved")
	return &edge{p, st.IDScope}
}

// gateway is one of them, as registration id.
func (e *edge) gateway(t *testing.T, id string) *cloud {
	return &cloud{azure: &azure{t: t, p: e.place, roots: e.Anchors()}, scope: e.scope, id: id, life: 30 * time.Second}
}

// certified is one with a device-id from EST.
func (e *edge) certified(t *testing.T, id string) *cloud {
	t.Helper()
	c := e.gateway(t, id)
	c.basic = user + ":" + password
	i, err := c.deviceID(nil, id)
	c.auth = c.good("device-id of "+id, i, err, id).pair(false)
	return c
}

// TestIdentityServiceFirstBoot: bootstrap certificate, est-id, device-id, registration and the hub; then the renewal of
// device-id, which registers again with the new certificate.
func TestIdentityServiceFirstBoot(t *testing.T) {
	testenv.Long(t)
	e := openEdge(t)
	const id = "gw-0001"
	foreign := testca.New(t, foreignCA("Gateway maker CA"), nil)
	boot := issue(t, foreign, "gateway serial 4711")
	manifest := e.Write("manifest", fmt.Sprintf("sha256:%x %s\n", sha256.Sum256(boot.leaf.Raw), id))
	e.MustCradle("account", "trust-ca", world.Account, "--profile", profile, e.Write("foreign-ca.pem", foreign.PEM()), "--manifest", manifest)
	c := e.gateway(t, id)
	estID, err := c.estID(boot.pair(false), id)
	estID = c.good("est-id", estID, err, id)
	deviceID, err := c.deviceID(estID.pair(false), id)
	deviceID = c.good("device-id", deviceID, err, id)
	c.auth = deviceID.pair(false)
	d, err := c.register()
	if err != nil || d.DeviceID != id || d.AssignedHub == "" {
		t.Fatalf("registration: %+v %v", d, err)
	}
	if first := strings.Join(c.log[:2], ", "); first != "PUT 202, GET 200" {
		t.Errorf("requests: %v", c.log)
	}
	c.lives(d)

	for n := range 3 { // renewals: a new key, the same name, and the registration anew before the old one is given up
		old := deviceID
		next, err := c.deviceID(estID.pair(false), id)
		deviceID = c.good(fmt.Sprintf("device-id renewed %d", n), next, err, id)
		c.auth = deviceID.pair(false)
		again, err := c.register()
		if err != nil || *again != *d {
			t.Fatalf("registration %d: %+v %v", n, again, err)
		}
		if _, err := c.modules(d); err != nil {
			t.Fatalf("hub after renewal %d: %v", n, err)
		}
		if bytes.Equal(deviceID.leaf.RawSubjectPublicKeyInfo, old.leaf.RawSubjectPublicKeyInfo) {
			t.Error("the certificate is still for the key before")
		}
	}
}

// TestIdentityServiceRefused: each call's refusals, with bodies that identityd can read and a reason.
func TestIdentityServiceRefused(t *testing.T) {
	testenv.Long(t)
	e := openEdge(t)
	good := e.certified(t, "gw-0010")
	d, err := good.register()
	if err != nil {
		t.Fatal(err)
	}
	other := e.certified(t, "gw-0011")
	if _, err := other.register(); err != nil {
		t.Fatal(err)
	}

	bare := e.gateway(t, "gw-0010")
	_, err = bare.register()
	bare.refused("no certificate", err, 401, "certificate")
	_, err = bare.modules(d)
	bare.refused("hub, no certificate", err, 401, "")

	stranger := e.gateway(t, "gw-0010")
	stranger.auth = issue(t, testca.New(t, foreignCA("nobody's CA"), nil), "gw-0010").pair(false)
	_, err = stranger.register()
	stranger.refused("unknown CA", err, 401, "signing certificate not registered")
	_, err = stranger.modules(d)
	stranger.refused("hub, unknown CA", err, 401, "")

	thief := *other
	thief.id = "gw-0010"
	_, err = thief.register()
	thief.refused("another's name", err, 401, `certificate is for "gw-0011"`)
	_, err = thief.modules(d)
	thief.refused("hub, another's modules", err, 401, "")
	var m module
	thief.refused("hub, a module for another", thief.hub(d, "PUT", "/m", "", module{ModuleID: "m", DeviceID: d.DeviceID}, &m), 401, "")
	good.refused("hub, the module of another in the body", good.hub(d, "PUT", "/m", "", module{ModuleID: "m", DeviceID: "gw-0011"}, &m), 400, "")
	good.refused("hub, a module that is not there", good.hub(d, "GET", "/none", "", nil, &m), 404, "ModuleNotFound")

	lost := *good
	lost.scope = "0ne99999999"
	_, err = lost.register()
	lost.refused("another id scope", err, 404, "id scope")

	e.MustCradle("device", "revoke", "gw-0010", "--account", world.Account, "--reason", "keyCompromise")
	_, err = good.register()
	good.refused("revoked", err, 401, "is revoked")
	_, err = good.modules(d)
	good.refused("hub, revoked", err, 401, "")
	if ms, err := other.modules(&device{d.AssignedHub, "gw-0011"}); err != nil || len(ms) != 0 {
		t.Errorf("the other gateway's modules: %+v %v", ms, err)
	}
}

// TestIdentityServiceThrottled: 429 makes identityd wait and come again, where every other refusal ends it.
func TestIdentityServiceThrottled(t *testing.T) {
	testenv.Long(t)
	e := openEdge(t, "--limit", "registration=2:3")
	c := e.certified(t, "gw-0020")
	for range 3 {
		if _, err := c.register(); err != nil {
			t.Fatal(err)
		}
	}
	if log := strings.Join(c.log, ", "); !strings.Contains(log, "429") {
		t.Errorf("never throttled: %s", log)
	}
}
