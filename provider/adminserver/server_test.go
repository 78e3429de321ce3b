package adminserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/adminserver"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

var tokenKey = []byte("0123456789abcdef0123456789abcdef")

func server(t *testing.T) (*httptest.Server, *provider.Provider) {
	t.Helper()
	s, p, _ := serverOn(t)
	return s, p
}

func serverOn(t *testing.T) (*httptest.Server, *provider.Provider, provider.Store) {
	t.Helper()
	vault, err := filekey.OpenVault(filepath.Join(t.TempDir(), "kek"), false)
	if err != nil {
		t.Fatal(err)
	}
	db, err := providerdb.Open(t.Context(), filepath.Join(t.TempDir(), "p.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	log := slog.New(slog.DiscardHandler)
	p, err := provider.New(t.Context(), provider.Config{Store: db, Vault: vault, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(adminserver.New(adminserver.Config{Provider: p, Key: tokenKey, Log: log,
		Public: adminserver.Public{URL: "https://example.com", ESTHost: func(a cradle.AccountID) string { return string(a) + ".est.example.com" }},
		Status: func(context.Context) admin.Status {
			return admin.Status{IDScope: "0ne1", Checkpoint: []admin.Checkpoint{{Log: "acme"}, {Log: "other"}, {Log: "provider"}}}
		},
		ServiceKey: func(_ context.Context, s string) (string, error) { return "key of " + s, nil }}))
	t.Cleanup(s.Close)
	return s, p, db
}

func client(s *httptest.Server, account cradle.AccountID) *admin.Client {
	return &admin.Client{HTTP: s.Client(), URL: s.URL, Token: adminserver.Token(tokenKey, account)}
}

func orderKey(t *testing.T) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAccountsAreApart(t *testing.T) {
	s, _ := server(t)
	owner := client(s, "")
	for _, name := range []cradle.AccountID{"acme", "other"} {
		var a admin.Account
		if err := owner.Call(t.Context(), http.MethodPost, "/accounts", admin.CreateAccount{Name: name, OrderKey: orderKey(t)}, &a); err != nil {
			t.Fatal(err)
		}
		if a.Token != adminserver.Token(tokenKey, name) || len(a.Authorities) != 8 || len(a.Labels) != 4 {
			t.Errorf("account %s: %d authorities, %d labels", name, len(a.Authorities), len(a.Labels))
		}
	}
	acme := client(s, "acme")
	if err := acme.Call(t.Context(), http.MethodGet, "/accounts/acme", nil, nil); err != nil {
		t.Errorf("own account: %v", err)
	}
	for _, c := range []struct {
		method, path string
		in           any
		kind         cradle.Kind
	}{
		{http.MethodGet, "/accounts/other", nil, cradle.NotFound},
		{http.MethodGet, "/devices?account=other", nil, cradle.NotFound},
		{http.MethodGet, "/lots?account=other", nil, cradle.NotFound},
		{http.MethodGet, "/accounts/other/devices/x", nil, cradle.NotFound},
		{http.MethodPost, "/accounts/other/devices/x/revoke", admin.ChangeState{}, cradle.NotFound},
		{http.MethodGet, "/audit/other", nil, cradle.NotFound},
		{http.MethodGet, "/audit/provider", nil, cradle.Forbidden},
		{http.MethodPost, "/accounts", admin.CreateAccount{Name: "third"}, cradle.Forbidden},
		{http.MethodPost, "/oems", admin.CreateOEM{}, cradle.Forbidden},
		{http.MethodPost, "/tpm-makers", admin.ImportMaker{}, cradle.Forbidden},
		{http.MethodGet, "/service-key/dps", nil, cradle.Forbidden},
	} {
		if err := acme.Call(t.Context(), c.method, c.path, c.in, nil); err == nil || cradle.KindOf(err) != c.kind {
			t.Errorf("acme's token on %s %s: %v, want %v", c.method, c.path, err, c.kind)
		}
	}
}

// TestAccountAnswerLost: asking again with the same order key gives the token again; with another it is refused.
func TestAccountAnswerLost(t *testing.T) {
	s, _ := server(t)
	owner, key := client(s, ""), orderKey(t)
	for range 2 {
		var a admin.Account
		if err := owner.Call(t.Context(), http.MethodPost, "/accounts", admin.CreateAccount{Name: "acme", OrderKey: key}, &a); err != nil || a.Token == "" {
			t.Fatalf("token %q, %v", a.Token, err)
		}
	}
	for what, in := range map[string]admin.CreateAccount{
		"another order key":     {OrderKey: orderKey(t)},
		"another validity":      {OrderKey: key, OperationalValidity: "5m"},
		"another kind of keys":  {OrderKey: key, CAKey: "ec-p384"},
		"a root kept elsewhere": {OrderKey: key, ExternalRoot: true},
		"another LDevID's life": {OrderKey: key, OperationalValidity: "24h", LDevIDValidity: "10d"},
	} {
		in.Name = "acme"
		if err := owner.Call(t.Context(), http.MethodPost, "/accounts", in, nil); cradle.KindOf(err) != cradle.Conflict {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := owner.Call(t.Context(), http.MethodPost, "/accounts", admin.CreateAccount{Name: "acme", OrderKey: key, OperationalValidity: "1d", CAKey: "ec-p256"}, nil); err != nil {
		t.Errorf("the same in other words: %v", err)
	}
}

func TestTokens(t *testing.T) {
	s, _ := server(t)
	good := adminserver.Token(tokenKey, "acme")
	for name, tok := range map[string]string{
		"none": "", "of another key": adminserver.Token([]byte("x"), ""), "cut": good[:len(good)-1], "another account's name on it": strings.Replace(adminserver.Token(tokenKey, ""), "..", ".YWNtZQ.", 1),
		"installation's name on an account's": func() string {
			p := strings.Split(good, ".")
			return p[0] + ".." + p[2]
		}(), "long": good + strings.Repeat("x", 1000), "nonsense": "a.b.c",
	} {
		c := &admin.Client{HTTP: s.Client(), URL: s.URL, Token: tok}
		if err := c.Call(t.Context(), http.MethodGet, "/status", nil, nil); cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("token %s: %v", name, err)
		}
	}
}

func TestBadBodies(t *testing.T) {
	s, p := server(t)
	for name, body := range map[string]string{
		"not JSON": "{", "unknown member": `{"name":"acme","colour":"red"}`, "two objects": `{"name":"acme"}{}`, "empty": "", "wrong type": `{"name":7}`,
		"no order key": `{"name":"acme"}`, "bad name": `{"name":"Acme Inc","order_key":""}`, "bad duration": `{"name":"acme","operational_validity":"soon"}`,
		"duration out of bounds": `{"name":"acme","operational_validity":"1s"}`,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/admin/v1/accounts", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+adminserver.Token(tokenKey, ""))
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var pr admin.Problem
		if resp.StatusCode != http.StatusBadRequest || json.Unmarshal(b, &pr) != nil || pr.Detail == "" {
			t.Errorf("%s: %s %s", name, resp.Status, b)
		}
	}
	if _, _, err := p.Account(t.Context(), "acme"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("a bad request made the account: %v", err)
	}
}

func TestImportRefusesByName(t *testing.T) {
	s, p := server(t)
	owner := client(s, "")
	for name, pem := range map[string]string{
		"empty": "", "key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"not DER": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		err := owner.Call(t.Context(), http.MethodPost, "/tpm-makers", admin.ImportMaker{Maker: "m", Tier: cradle.DiscreteTPM, PEM: pem}, nil)
		if cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := admin.PEM(p.Services().Raw) // any CA certificate
	if err := owner.Call(t.Context(), http.MethodPost, "/tpm-makers", admin.ImportMaker{Maker: "m", Tier: "best", PEM: good}, nil); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("unknown tier: %v", err)
	}
	var m admin.Maker
	for i, added := range []int{1, 0} {
		if err := owner.Call(t.Context(), http.MethodPost, "/tpm-makers", admin.ImportMaker{Maker: "m", Tier: cradle.DiscreteTPM, PEM: good}, &m); err != nil || m.Added != added {
			t.Errorf("import %d: added %d, %v", i, m.Added, err)
		}
	}
	if err := owner.Call(t.Context(), http.MethodPost, "/tpm-makers", admin.ImportMaker{Maker: "m", Tier: cradle.FirmwareTPM, PEM: good}, nil); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("the same certificate under another tier: %v", err)
	}
}

// TestFeed reads the status feed over HTTP, as a service of somebody else does.
func TestFeed(t *testing.T) {
	s, p := server(t)
	src := status.HTTPSource{HTTP: s.Client(), URL: s.URL + "/status/v1/feed"}
	e, err := src.After(t.Context(), 0, true)
	if err != nil {
		t.Fatal(err)
	}
	key, err := status.DecodeKey(status.EncodeKey(p.FeedKey())) // as "cradle status" shows it
	if err != nil {
		t.Fatal(err)
	}
	st, err := status.Verify(e, key, 0)
	if err != nil || len(st.Events) != 0 || time.Since(st.Time).Abs() > time.Minute {
		t.Errorf("heartbeat: %+v, %v", st, err)
	}
	for _, query := range []string{"after=-1", "now=2"} {
		resp, err := s.Client().Get(s.URL + "/status/v1/feed?" + query)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", query, resp.Status)
		}
	}
}

func TestExportIsWhole(t *testing.T) {
	s, _ := server(t)
	owner := client(s, "")
	if err := owner.Call(t.Context(), http.MethodPost, "/accounts", admin.CreateAccount{Name: "acme", OrderKey: orderKey(t)}, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := client(s, "acme").Stream(t.Context(), "/audit/acme", &b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b.Bytes(), []byte(`{"end":`)) {
		t.Errorf("the export has no end: %s", b.Bytes())
	}
}
