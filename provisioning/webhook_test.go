package provisioning_test

import (
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/allocate"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// hook is an operator's webhook that checks who calls.
type hook struct {
	*httptest.Server
	key    []byte
	answer atomic.Pointer[func(http.ResponseWriter, *dps.AllocationRequest)]
	mu     sync.Mutex
	asked  []dps.AllocationRequest
}

func newHook(t *testing.T) *hook {
	h := &hook{}
	h.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if err := dps.VerifyWebhook(h.key, r.Header.Get(dps.SignatureHeader), b, time.Now()); err != nil {
			t.Error(err)
		}
		var q dps.AllocationRequest
		if err := json.Unmarshal(b, &q); err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		h.asked = append(h.asked, q)
		h.mu.Unlock()
		(*h.answer.Load())(w, &q)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) says(f func(http.ResponseWriter, *dps.AllocationRequest)) { h.answer.Store(&f) }

func (h *hook) calls() []dps.AllocationRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]dps.AllocationRequest(nil), h.asked...)
}

func say(s string) func(http.ResponseWriter, *dps.AllocationRequest) {
	return func(w http.ResponseWriter, _ *dps.AllocationRequest) { io.WriteString(w, s) }
}

// hooked is a replica that calls webhooks, with two hubs.
func (w *world) hooked(h *hook, timeout time.Duration) (func(*provisioning.Config), *provisioningtest.Hub) {
	change, second := w.twoHubs()
	return func(c *provisioning.Config) {
		change(c)
		c.Webhook = &dps.Webhook{Transport: h.Client().Transport, Timeout: timeout}
	}, second
}

func custom(h *hook, fallback string) provisioning.Terms {
	return provisioning.Terms{Allocation: "CUSTOM", Reprovision: migrate,
		Custom: &provisioning.CustomAllocation{WebhookURL: h.URL + "/api?code=secret", APIVersion: "2021-10-01", Fallback: fallback}}
}

func TestWebhookAllocates(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w, h := newWorld(t, url), newHook(t)
		change, second := w.hooked(h, time.Minute)
		r := w.start(true, change)
		h.key = r.WebhookKey(h.URL + "/api?code=secret")
		terms := custom(h, "")
		terms.InitialTwin = json.RawMessage(twin)
		w.group(r, "g", w.ca, terms)
		h.says(say(`{"iotHubHostName":"h2:8443","initialTwin":{"tags":{"from":"webhook"}},"payload":{"hello":1}}`))
		leaf := w.ca.Leaf("dev-1", nil)
		c, err := r.Authenticate(t.Context(), shown("dev-1", leaf.Leaf))
		if err != nil {
			t.Fatal(err)
		}
		reg, err := r.Register(t.Context(), c, provisioning.Ask{Payload: json.RawMessage(`{"model":"x"}`)})
		if err != nil || reg.Status != provisioning.Assigning {
			t.Fatalf("%+v %v", reg, err)
		}
		if got := r.await(c, reg.Operation); got.Hub != "hub-2" || got.Status != provisioning.Assigned || got.Answer != `{"hello":1}` || got.Substatus != provisioning.InitialAssignment {
			t.Fatalf("%+v", got)
		}
		if got := second.TwinOf("dev-1"); !reflect.DeepEqual(got, values(`{"from":"webhook"}`, "")) {
			t.Errorf("twin %+v", got)
		}
		q := h.calls()[0]
		if q.EnrollmentGroup.EnrollmentGroupID != "g" || q.IndividualEnrollment != nil || q.DeviceRuntimeContext.RegistrationID != "dev-1" ||
			string(q.DeviceRuntimeContext.Payload) != `{"model":"x"}` || q.DeviceRuntimeContext.CurrentIotHubHostName != "" ||
			!reflect.DeepEqual(q.LinkedHubs, []string{"h2:8443", "localhost:8443"}) || q.DeviceRuntimeContext.X509.ClientCertificates.Primary.Info.SHA256Thumbprint != print(leaf) ||
			strings.Contains(q.EnrollmentGroup.CustomAllocationDefinition.WebhookURL, "secret") {
			t.Errorf("asked %+v", q)
		}
		// Again: the webhook learns where the device is, and moves it by its name.
		h.says(say(`{"iotHubHostName":"HUB-1"}`))
		if got := r.arrive("dev-1", leaf.Leaf); got.Hub != "hub-1" || got.Substatus != provisioning.DataMigrated || got.Answer != "" {
			t.Errorf("moved: %+v", got)
		}
		if q := h.calls()[1]; q.DeviceRuntimeContext.CurrentIotHubHostName != "h2:8443" || q.DeviceRuntimeContext.CurrentDeviceID != "dev-1" {
			t.Errorf("asked again %+v", q)
		}
		if got := w.hub.TwinOf("dev-1"); got.Tags["from"] != "webhook" {
			t.Errorf("twin did not move along: %+v", got)
		}
		// A policy that keeps devices does not ask.
		terms.Reprovision = keep
		w.group(r, "g", w.ca, terms)
		if got := r.arrive("dev-1", leaf.Leaf); got.Hub != "hub-1" || len(h.calls()) != 2 {
			t.Errorf("kept: %+v after %d calls", got, len(h.calls()))
		}
	})
}

// Whatever a webhook answers, a device never lands where its enrolment does not let it, and the rule's failure is the
// device's patience or the fallback, never a lost registration.
func TestWebhookFails(t *testing.T) {
	testenv.Long(t)
	w, h := newWorld(t, t.TempDir()+"/p.db"), newHook(t)
	change, _ := w.hooked(h, 200*time.Millisecond)
	r := w.start(true, change)
	h.key = r.WebhookKey(h.URL + "/api?code=secret")
	for i, c := range []struct {
		name   string
		answer func(http.ResponseWriter, *dps.AllocationRequest)
	}{
		{"a hub that is not linked", say(`{"iotHubHostName":"evil.example"}`)},
		{"a hub of another enrolment", say(`{"iotHubHostName":"h2:8443"}`)},
		{"part of a name", say(`{"iotHubHostName":"hub"}`)},
		{"another port", say(`{"iotHubHostName":"localhost:1"}`)},
		{"a name with a trailing dot", say(`{"iotHubHostName":"localhost."}`)},
		{"a host with credentials", say(`{"iotHubHostName":"hub-1@evil.example"}`)},
		{"a wrong twin", say(`{"iotHubHostName":"hub-1","initialTwin":[]}`)},
		{"a huge twin", say(`{"iotHubHostName":"hub-1","initialTwin":{"tags":{"a":"` + strings.Repeat("x", 90<<10) + `"}}}`)},
		{"nothing", say(``)},
		{"500", func(w http.ResponseWriter, _ *dps.AllocationRequest) { w.WriteHeader(500) }},
		{"redirect", func(w http.ResponseWriter, _ *dps.AllocationRequest) {
			w.Header().Set("Location", "/x")
			w.WriteHeader(302)
		}},
		{"slow", func(http.ResponseWriter, *dps.AllocationRequest) { time.Sleep(400 * time.Millisecond) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ca := provisioningtest.NewCA(t, "acme", c.name)
			id := "dev-" + string(rune('a'+i))
			terms := custom(h, provisioning.FallbackHashed)
			terms.Hubs = []string{"hub-1"}
			w.group(r, id, ca, terms)
			h.says(c.answer)
			if got := r.arrive(id, ca.Leaf(id, nil).Leaf); got.Status != provisioning.Assigned || got.Hub != "hub-1" {
				t.Errorf("with fallback: %+v", got)
			}
			// Without a fallback it waits, over a restart too, until the webhook has come to its senses.
			terms.Custom.Fallback = ""
			w.group(r, id, ca, terms)
			other := id + "-waits"
			leaf := ca.Leaf(other, nil)
			before := len(h.calls())
			reg, cl, err := r.register(other, leaf.Leaf)
			if err != nil {
				t.Fatal(err)
			}
			if c.name != "500" && c.name != "slow" { // those have opened the circuit
				testenv.Eventually(t, "it is asked", func() bool { return len(h.calls()) > before })
			}
			if got, err := r.Operation(t.Context(), cl, reg.Operation, 0); err != nil || got.Status != provisioning.Assigning || got.Hub != "" {
				t.Errorf("without fallback: %+v %v", got, err)
			}
			h.says(say(`{"iotHubHostName":"hub-1"}`))
			if i == 0 {
				r.stop()
				r = w.start(true, change)
				if cl, err = r.Authenticate(t.Context(), shown(other, leaf.Leaf)); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.await(cl, reg.Operation); got.Status != provisioning.Assigned || got.Hub != "hub-1" {
				t.Errorf("afterwards: %+v", got)
			}
		})
	}
	// A refusal is the operator's word: the device is told, and nothing is tried again.
	ca := provisioningtest.NewCA(t, "acme", "refused")
	w.group(r, "refused", ca, custom(h, provisioning.FallbackHashed))
	h.says(func(w http.ResponseWriter, _ *dps.AllocationRequest) { w.WriteHeader(403) })
	if got := r.arrive("dev-refused", ca.Leaf("dev-refused", nil).Leaf); got.Status != provisioning.Failed || !strings.Contains(got.ErrorMessage, "refuses") || got.Hub != "" {
		t.Errorf("refused: %+v", got)
	}
}

// What happens to the enrolment while a webhook thinks.
func TestWebhookIsRechecked(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, r *replica, terms provisioning.Terms)
		text   string
	}{
		"other hubs": {func(w *world, r *replica, t provisioning.Terms) { t.Hubs = []string{"hub-1"}; w.group(r, "g", w.ca, t) }, "changed"},
		"not custom": {func(w *world, r *replica, t provisioning.Terms) {
			t.Allocation, t.Custom = provisioning.Static, nil
			w.group(r, "g", w.ca, t)
		}, "changed"},
		"deleted": {func(w *world, r *replica, t provisioning.Terms) { r.DeleteGroup(w.t.Context(), "g", "") }, "deleted"},
		"hub draining": {func(w *world, r *replica, t provisioning.Terms) {
			r.SetState(w.t.Context(), "hub-2", allocate.Draining)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w, h := newWorld(t, t.TempDir()+"/p.db"), newHook(t)
			change, second := w.hooked(h, time.Minute)
			r := w.start(true, change)
			h.key = r.WebhookKey(h.URL + "/api?code=secret")
			terms := custom(h, "")
			w.group(r, "g", w.ca, terms)
			var once sync.Once
			h.says(func(rw http.ResponseWriter, _ *dps.AllocationRequest) {
				once.Do(func() { c.change(w, r, terms) })
				say(`{"iotHubHostName":"h2:8443"}`)(rw, nil)
			})
			reg, cl, err := r.register("dev-1", w.ca.Leaf("dev-1", nil).Leaf)
			if err != nil {
				t.Fatal(err)
			}
			if c.text == "" {
				testenv.Eventually(t, "it is asked twice", func() bool { return len(h.calls()) > 1 })
				if second.Device("dev-1") != nil {
					t.Error("the device is at a hub that is drained")
				}
				return
			}
			if got := r.await(cl, reg.Operation); got.Status != provisioning.Failed || !strings.Contains(got.ErrorMessage, c.text) || second.Device("dev-1") != nil {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestExpressionAllocates(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		change, _ := w.twoHubs()
		r := w.start(true, change)
		rule := func(cel, fallback string) {
			w.group(r, "g", w.ca, provisioning.Terms{Allocation: provisioning.Custom, Reprovision: migrate, Custom: &provisioning.CustomAllocation{CEL: cel, Fallback: fallback}})
		}
		leaf := w.ca.Leaf("dev-1", nil)
		rule(`registration_id == "dev-1" && account == "acme" && enrollment == "g" && attestation == "x509" && current_hub == "" ? "hub-2" : "hub-1"`, "")
		if got := r.arrive("dev-1", leaf.Leaf); got.Hub != "hub-2" {
			t.Errorf("%+v", got)
		}
		if got := r.arrive("dev-1", leaf.Leaf); got.Hub != "hub-1" || got.Substatus != provisioning.DataMigrated {
			t.Errorf("again: %+v", got)
		}
		rule(`tier == "discrete-tpm" && proved ? "hub-2" : "hub-1"`, "")
		proved := w.ca.Leaf("dev-2", func(c *x509.Certificate) {
			c.Policies = []x509.OID{cradle.TierPolicy(cradle.DiscreteTPM), cradle.PolicyKeyProved}
		})
		if got := r.arrive("dev-2", proved.Leaf); got.Hub != "hub-2" {
			t.Errorf("tier: %+v", got)
		}
		rule(`untrusted.payload.hub`, "")
		if _, _, err := r.register("dev-1", leaf.Leaf); cradle.KindOf(err) != cradle.Busy || !strings.Contains(err.Error(), "no such") {
			t.Errorf("a rule that stumbles: %v", err)
		}
		if reg, err := r.Registration(t.Context(), "dev-1"); err != nil || reg.Status != provisioning.Assigned {
			t.Errorf("a refusal changed something: %+v %v", reg, err)
		}
		rule(`"elsewhere"`, provisioning.FallbackHashed)
		if got := r.arrive("dev-1", leaf.Leaf); got.Status != provisioning.Assigned {
			t.Errorf("fallback: %+v", got)
		}
	})
}

func TestTermsRefused(t *testing.T) {
	w, h := newWorld(t, t.TempDir()+"/p.db"), newHook(t)
	change, _ := w.hooked(h, time.Minute)
	r := w.start(false, change)
	for name, c := range map[string]struct {
		terms provisioning.Terms
		text  string
	}{
		"no rule":        {provisioning.Terms{Allocation: "custom"}, "webhookUrl or a cel"},
		"two rules":      {provisioning.Terms{Allocation: "custom", Custom: &provisioning.CustomAllocation{WebhookURL: "https://h/", CEL: `"a"`}}, "not both"},
		"rule unused":    {provisioning.Terms{Allocation: "hashed", Custom: &provisioning.CustomAllocation{CEL: `"a"`}}, "policy is hashed"},
		"wrong cel":      {provisioning.Terms{Allocation: "custom", Custom: &provisioning.CustomAllocation{CEL: `tier +`}}, "line 1, column"},
		"plain http":     {provisioning.Terms{Allocation: "custom", Custom: &provisioning.CustomAllocation{WebhookURL: "http://h/"}}, "https://"},
		"wrong fallback": {provisioning.Terms{Allocation: "custom", Custom: &provisioning.CustomAllocation{CEL: `"a"`, Fallback: "x"}}, "fallback"},
		"wrong region":   {provisioning.Terms{Region: "E U"}, "region"},
		"unknown policy": {provisioning.Terms{Allocation: "nearest"}, "not supported"},
		"unknown hub":    {provisioning.Terms{Hubs: []string{"hub-9"}}, "not linked"},
		"twin's name":    {provisioning.Terms{InitialTwin: json.RawMessage(`{"tags":{"a.b":1}}`)}, "tags: property name"},
		"twin's text":    {provisioning.Terms{InitialTwin: json.RawMessage(`{"properties":{"desired":{"a":"` + strings.Repeat("x", 4097) + `"}}}`)}, "desired properties: string of 4097"},
		"twin's section": {provisioning.Terms{InitialTwin: json.RawMessage(`{"tags":7}`)}, "tags: not a JSON object"},
		"twin too large": {provisioning.Terms{InitialTwin: json.RawMessage(`{"tags":{"a":"` + strings.Repeat("x", 4000) + `","b":"` + strings.Repeat("x", 4000) + `","c":"` + strings.Repeat("x", 4000) + `"}}`)}, "at most 8192"},
		"no twin":        {provisioning.Terms{InitialTwin: json.RawMessage(`[]`)}, "initialTwin"},
		"wrong twin":     {provisioning.Terms{InitialTwin: json.RawMessage(`7`)}, "initialTwin"},
	} {
		_, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: "g", Attestation: provisioning.SignedBy(w.ca.Cert, nil), Terms: c.terms})
		detail, hint := cradle.Public(err)
		if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(detail+hint, c.text) {
			t.Errorf("%s: %v %s", name, err, hint)
		}
	}
}
