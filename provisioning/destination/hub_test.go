package destination_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/hub/hubserver"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/destination"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// never is a hub's status feed of which nobody is blocked: a foreign hub knows of a block by its registry alone.
type never struct{}

func (never) Blocked(cradle.AccountID, cradle.DeviceID) (cradle.DeviceState, bool) { return "", false }
func (never) CertBlocked([32]byte) bool                                            { return false }
func (never) Fresh(time.Time) bool                                                 { return true }

// foreign is a real hub behind a front that refuses as Azure does when it wants to.
type foreign struct {
	*httptest.Server
	refuse atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	calls  atomic.Int64
	link   provisioning.Link
	reg    *iothub.Registry
}

func newForeign(t *testing.T) *foreign {
	t.Helper()
	kek, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := hubdb.Open(t.Context(), t.TempDir()+"/hub.db", kek)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	h := hub.New(hub.Config{Store: db, Status: never{}, Log: slog.New(slog.DiscardHandler)})
	if err := h.Ensure(t.Context(), hub.DefaultName); err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewServer(hubserver.New(hubserver.Config{Hub: h, Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(backend.Close)
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }}
	f := &foreign{}
	f.says(nil)
	f.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.calls.Add(1)
		if (*f.refuse.Load())(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	cs, err := h.ConnectionString(t.Context(), hub.DefaultName, f.Listener.Addr().String(), hub.Owner)
	if err != nil {
		t.Fatal(err)
	}
	f.reg = iothub.NewRegistry(f.Client(), cs)
	f.link = provisioning.Link{Name: "azure-1", Kind: provisioning.LinkAzure, Host: f.Listener.Addr().String(), Weight: 1, Secret: provisioning.Secret(cs.String()),
		Anchors: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))}
	return f
}

func (f *foreign) says(refuse func(http.ResponseWriter, *http.Request) bool) {
	if refuse == nil {
		refuse = func(http.ResponseWriter, *http.Request) bool { return false }
	}
	f.refuse.Store(&refuse)
}

// azureError is a refusal in Azure's shape.
func azureError(status int, code, retryAfter string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, `{"Message":"ErrorCode:`+code+`;refused","ExceptionMessage":"Tracking ID:1-TimeStamp:11/23/2026 17:00:00"}`)
		return true
	}
}

// A device is assigned to a hub of another installation by its registry's REST API, moves there with its twin, is
// disabled there when it is revoked; and throttling, quotas and wrong keys are waited out and shown.
func TestForeignHub(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, store string) {
		f := newForeign(t)
		db, err := provisioningdb.Open(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		own, feed, ca := provisioningtest.NewHub(t), provisioningtest.NewFeed(), provisioningtest.NewCA(t, "acme", "acme operational")
		svc, err := provisioning.New(t.Context(), provisioning.Config{Store: db, Feed: feed, Open: destination.Open, Log: slog.New(slog.DiscardHandler),
			Hubs: []provisioning.Hub{{Name: "hub-1", Host: "localhost:8443", Registry: own, Twins: own}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); svc.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		if _, err := svc.Link(t.Context(), f.link, ""); err != nil {
			t.Fatal(err)
		}
		group := func(hub string) {
			t.Helper()
			etag := ""
			if g, err := svc.Group(t.Context(), "g"); err == nil {
				etag = g.ETag
			}
			if _, err := svc.PutGroup(t.Context(), provisioning.GroupRequest{ID: "g", IfMatch: etag, Attestation: provisioning.SignedBy(ca.Cert, nil),
				Terms: provisioning.Terms{Enabled: true, Hubs: []string{hub}, Reprovision: provisioning.Reprovision{UpdateHub: true, MigrateData: true},
					InitialTwin: []byte(`{"tags":{"site":"north"},"properties":{"desired":{"rate":5}}}`)}}); err != nil {
				t.Fatal(err)
			}
		}
		register := func(leaf *x509.Certificate) (*provisioning.Caller, string) {
			t.Helper()
			c, err := svc.Authenticate(t.Context(), provisioning.Credentials{RegistrationID: leaf.Subject.CommonName, Chain: []*x509.Certificate{leaf}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := svc.Register(t.Context(), c, provisioning.Ask{})
			if err != nil {
				t.Fatal(err)
			}
			return c, r.Operation
		}
		await := func(c *provisioning.Caller, operation string) (r provisioning.Registration) {
			t.Helper()
			testenv.Eventually(t, "the registration is decided", func() bool {
				if r, err = svc.Operation(t.Context(), c, operation, 50*time.Millisecond); err != nil {
					t.Fatal(err)
				}
				return r.Status != provisioning.Assigning
			})
			return r
		}

		// First at the hub of this installation, then at Azure's.
		group("hub-1")
		leaf := ca.Leaf("dev-1", nil).Leaf
		if r := await(register(leaf)); r.Hub != "hub-1" {
			t.Fatalf("%+v", r)
		}
		own.EditTwin("dev-1", func(tw *provisioningtest.Twin) { tw.Desired["rate"] = 7.0 })
		group("azure-1")
		if r := await(register(leaf)); r.Hub != "azure-1" || r.Substatus != provisioning.DataMigrated || svc.HubHost(r.Hub) != f.Listener.Addr().String() {
			t.Fatalf("%+v", r)
		}
		d, err := f.reg.GetDevice(t.Context(), "dev-1")
		print := provisioning.Thumbprint(sha256.Sum256(leaf.Raw)).String()
		if err != nil || d.Status != iothub.Enabled || !strings.EqualFold(d.Authentication.X509Thumbprint.PrimaryThumbprint, print) {
			t.Fatalf("%+v %v", d, err)
		}
		tw, err := f.reg.Twin(t.Context(), "dev-1")
		if err != nil || string(tw.Tags) != `{"site":"north"}` || !strings.Contains(string(tw.Properties.Desired), `"rate":7`) {
			t.Fatalf("%s %s %v", tw.Tags, tw.Properties.Desired, err)
		}
		testenv.Eventually(t, "it has left hub-1", func() bool { return own.Device("dev-1") == nil })

		// Throttled: it waits as long as it is told, and asks no sooner.
		f.says(azureError(429, "ThrottlingException", "1"))
		second := ca.Leaf("dev-2", nil).Leaf
		c, operation := register(second)
		before := f.calls.Load()
		testenv.Eventually(t, "the throttling is shown", func() bool {
			known, err := svc.Known(t.Context(), "dev-2")
			return err == nil && len(known) == 1 && known[0].State == "pending" && known[0].Attempts > 0 && strings.Contains(known[0].Reason, "ThrottlingException")
		})
		began := f.calls.Load()
		for range 5 { // others that come meanwhile do not ask either
			register(ca.Leaf("dev-2", nil).Leaf)
		}
		if n := f.calls.Load() - began; n > 1 || began-before > 1 {
			t.Errorf("%d and %d calls while the hub had asked for a pause", began-before, n)
		}
		f.says(nil)
		_ = operation
		if r := await(c, operationOf(t, svc, "dev-2")); r.Status != provisioning.Assigned || r.Hub != "azure-1" {
			t.Errorf("after throttling: %+v", r)
		}

		// Over its quota, or with a key that was changed: the device waits, and the reason is there.
		for status, code := range map[int]string{403: "IotHubQuotaExceeded", 401: "IotHubUnauthorizedAccess", 500: "ServerError", 503: "ServiceUnavailable"} {
			f.says(azureError(status, code, ""))
			id := "dev-" + strings.ToLower(code)
			c, operation := register(ca.Leaf(id, nil).Leaf)
			testenv.Eventually(t, code+" is shown", func() bool {
				h, err := svc.HubHealth(t.Context())
				return err == nil && h["azure-1"].Waiting > 0 && strings.Contains(h["azure-1"].Trouble, code)
			})
			f.says(nil)
			if r := await(c, operation); r.Status != provisioning.Assigned {
				t.Errorf("after %s: %+v", code, r)
			}
		}
		// What Azure will never take ends the registration.
		f.says(azureError(400, "ArgumentInvalid", ""))
		if r := await(register(ca.Leaf("dev-bad", nil).Leaf)); r.Status != provisioning.Failed || !strings.Contains(r.ErrorMessage, "ArgumentInvalid") {
			t.Errorf("refused: %+v", r)
		}
		// A redirect would carry the token elsewhere.
		elsewhere := atomic.Bool{}
		other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Store(true) }))
		defer other.Close()
		f.says(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		})
		c, operation = register(ca.Leaf("dev-r", nil).Leaf)
		testenv.Eventually(t, "the redirect is an error", func() bool {
			h, err := svc.HubHealth(t.Context())
			return err == nil && strings.Contains(h["azure-1"].Trouble, "307")
		})
		f.says(nil)
		if r := await(c, operation); r.Status != provisioning.Assigned || elsewhere.Load() {
			t.Errorf("after the redirect: %+v, followed %v", r, elsewhere.Load())
		}

		// Revoked: the foreign hub hears of it by the same outbox.
		feed.Set("acme", "dev-1", cradle.Revoked)
		svc.OnBlock("acme", "dev-1", cradle.Revoked)
		testenv.Eventually(t, "it is disabled at the foreign hub", func() bool {
			d, err := f.reg.GetDevice(t.Context(), "dev-1")
			return err == nil && d.Status == iothub.Disabled && strings.Contains(d.StatusReason, "revoked")
		})
		testenv.Eventually(t, "and that is shown", func() bool {
			known, err := svc.Known(t.Context(), "dev-1")
			return err == nil && len(known) == 1 && known[0].Kind == provisioning.LinkAzure && known[0].Wants == "disabled" && known[0].State == "told"
		})
	})
}

func operationOf(t *testing.T, svc *provisioning.Service, id provisioning.RegistrationID) string {
	t.Helper()
	r, err := svc.Registration(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return r.Operation
}

func TestOpenRefuses(t *testing.T) {
	good := provisioning.Link{Name: "h", Host: "h", Secret: provisioning.Secret((&sas.ConnectionString{HostName: "h", KeyName: "p", Key: []byte("k")}).String())}
	broker := provisioning.Link{Name: "b", Host: "b", Kind: provisioning.LinkMQTT, Control: "b:8884", Secret: "admin:pw"}
	for name, c := range map[string]struct {
		link   provisioning.Link
		change func(*provisioning.Link)
		ok     bool
	}{
		"azure":     {good, func(l *provisioning.Link) { l.Kind = provisioning.LinkAzure }, true},
		"cradle":    {good, func(l *provisioning.Link) { l.Kind = provisioning.LinkCradle }, true},
		"broker":    {broker, func(*provisioning.Link) {}, true},
		"no kind":   {good, func(*provisioning.Link) {}, false},
		"no secret": {good, func(l *provisioning.Link) { l.Kind, l.Secret = provisioning.LinkAzure, "" }, false},
		"a device's string": {good, func(l *provisioning.Link) {
			l.Kind, l.Secret = provisioning.LinkAzure, "HostName=h;DeviceId=d;SharedAccessKey=aw=="
		}, false},
		"wrong anchors":      {good, func(l *provisioning.Link) { l.Kind, l.Anchors = provisioning.LinkAzure, "PEM" }, false},
		"no control":         {broker, func(l *provisioning.Link) { l.Control = "" }, false},
		"no port":            {broker, func(l *provisioning.Link) { l.Control = "b" }, false},
		"no password":        {broker, func(l *provisioning.Link) { l.Secret = "hunter2" }, false},
		"string to a broker": {broker, func(l *provisioning.Link) { l.Secret = good.Secret }, false},
	} {
		c.change(&c.link)
		_, err := destination.Open(c.link)
		if (err == nil) != c.ok || err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && c.link.Secret != "" && strings.Contains(err.Error(), string(c.link.Secret)) {
			t.Errorf("%s: the error shows the secret", name)
		}
	}
}
