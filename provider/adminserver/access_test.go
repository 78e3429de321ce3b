package adminserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/adminserver"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// mayDo says what each role may do, beside package adminserver's own table.
var mayDo = map[admin.Role]string{
	admin.Line:     "know follow",
	admin.Auditor:  "know follow view",
	admin.Operator: "know follow view work",
	admin.Owner:    "know follow view work own",
}

type tenants struct {
	*httptest.Server
	p      *provider.Provider
	orders map[cradle.AccountID]cradle.OrderID
	lots   map[cradle.AccountID]cradle.LotID
	signed map[cradle.AccountID][]byte // an order not yet handed in
}

// twoTenants has accounts acme and other, each with an order and a lot.
func twoTenants(t *testing.T) *tenants {
	s, p, db := serverOn(t)
	w := &tenants{s, p, map[cradle.AccountID]cradle.OrderID{"nobody": "order-of-nobody"}, map[cradle.AccountID]cradle.LotID{"nobody": "lot-of-nobody"}, map[cradle.AccountID][]byte{}}
	oemKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.CreateOEM(t.Context(), "maker1", order.OEMPublic{Order: &oemKey.PublicKey, Lot: &oemKey.PublicKey}); err != nil {
		t.Fatal(err)
	}
	for _, account := range []cradle.AccountID{"acme", "other"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.CreateAccount(t.Context(), account, spki, provider.Profiles{}, provider.CAs{}); err != nil {
			t.Fatal(err)
		}
		_, cas, err := p.Account(t.Context(), account)
		if err != nil {
			t.Fatal(err)
		}
		root := cas[slices.IndexFunc(cas, func(a provider.Authority) bool {
			return a.Kind == provider.RootCA && a.Class == cradle.Evaluation
		})]
		sign := func(account cradle.AccountID, id cradle.OrderID) []byte {
			o := &order.Order{ID: id, Account: account, OEM: "maker1", Model: "gw1", Quantity: 10, SerialFirst: "0001", SerialLast: "0100", Tiers: []cradle.Tier{cradle.Simulator},
				TPMMakers: []cradle.MakerID{"soft"}, Naming: "{account}-{serial}", ProviderURL: "https://localhost", ServicesAnchors: admin.PEM(p.Services().Raw),
				AccountAnchors: admin.PEM(root.Cert), ProvisioningEndpoint: "https://localhost", IDScope: "0ne1"}
			o.Complete(time.Now())
			jws, err := order.Sign(o, key)
			if err != nil {
				t.Fatal(err)
			}
			return jws
		}
		w.orders[account], w.lots[account] = "order-of-"+cradle.OrderID(account), "lot-of-"+cradle.LotID(account)
		if _, err := p.CreateOrder(t.Context(), sign(account, w.orders[account]), func(cradle.AccountID) error { return nil }); err != nil {
			t.Fatal(err)
		}
		w.signed["nobody"] = sign("nobody", "second-of-nobody")
		w.signed[account] = sign(account, "second-of-"+cradle.OrderID(account))
		leaf, err := ledger.NewLeaf(string(account), ledger.KindOperator, time.Now(), map[string]any{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.AskApproval(t.Context(), provider.Approval{ID: "approval-of-" + string(account), Account: account, Request: string(account), CSR: []byte{}, State: provider.Waiting,
			Asked: time.Now(), Expires: time.Now().Add(time.Hour)}, 1, leaf); err != nil {
			t.Fatal(err)
		}
		if _, err := db.CreateLot(t.Context(), provider.Lot{ID: w.lots[account], Account: account, Order: w.orders[account], OEM: "maker1", State: "waiting",
			Report: []byte(`"` + account + `"`), Custody: []byte(`""`), Closed: time.Now()}, nil, leaf); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// token makes an operator and returns his token.
func (w *tenants) token(t *testing.T, account cradle.AccountID, role admin.Role) string {
	t.Helper()
	tok, _, err := w.p.AddOperator(t.Context(), provider.Operator{Account: account, Name: string(role), Role: role})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// request is a call of a route about an account: path and body. Routes that name no account in their path are
// here; one of the scope "found" that is missing fails the test.
func (w *tenants) request(route adminserver.Route, account cradle.AccountID) (path, body string, known bool) {
	_, path, _ = strings.Cut(route.Pattern, " ")
	body, known = "{}", route.Scope != "found"
	switch {
	case strings.Contains(path, "/orders/{id}"):
		path, known = strings.Replace(path, "{id}", string(w.orders[account]), 1), true
	case strings.Contains(path, "/approvals/{id}"):
		path, known = strings.Replace(path, "{id}", "approval-of-"+string(account), 1), true
	case strings.Contains(path, "/lots/{id}"):
		path, known = strings.Replace(path, "{id}", string(w.lots[account]), 1), true
	case strings.HasPrefix(path, "/audit/{log}"):
		path, known = strings.Replace(path, "{log}", string(account), 1), true
	case route.Pattern == "POST /orders":
		body, known = `{"jws":`+string(w.signed[account])+`}`, w.signed[account] != nil
	case strings.HasPrefix(path, "/operators"):
		path, known = strings.Replace(path, "{name}", "nobody", 1)+"?account="+string(account), true
		if route.Pattern == "POST /operators" {
			path, body = "/operators", `{"name":"eve","role":"owner","account":"`+string(account)+`"}`
		}
	}
	path = strings.NewReplacer("{account}", string(account), "{id}", "d1", "{service}", "dps").Replace(path)
	if route.Scope == "named" && !strings.Contains(route.Pattern, "{account}") {
		path += "?account=" + string(account)
	}
	return admin.Prefix + path, body, known
}

func (w *tenants) do(t *testing.T, route adminserver.Route, account cradle.AccountID, token string) (int, string) {
	t.Helper()
	path, body, known := w.request(route, account)
	if !known && account != "nobody" {
		t.Fatalf("%s finds its account by itself: say in request how to call it", route.Pattern)
	}
	method, _, _ := strings.Cut(route.Pattern, " ")
	req, err := http.NewRequestWithContext(t.Context(), method, w.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestRights calls every route with every role, of the installation and of an account, on the own account
// and on another one.
func TestRights(t *testing.T) {
	w := twoTenants(t)
	heads := func() map[string]int64 {
		heads, err := w.p.Checkpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sizes := map[string]int64{}
		for _, h := range heads {
			sizes[h.Log] = h.Size
		}
		return sizes
	}
	routes := adminserver.Routes()
	if len(routes) < 20 {
		t.Fatalf("%d routes", len(routes))
	}
	for _, role := range admin.Roles {
		may := func(r adminserver.Route) bool { return slices.Contains(strings.Fields(mayDo[role]), r.Need) }
		acme := w.token(t, "acme", role)
		before := heads()["other"]
		for _, r := range routes {
			status, body := w.do(t, r, "other", acme)
			switch {
			case r.Scope == "everywhere":
				if (status == http.StatusOK) != may(r) {
					t.Errorf("%s of acme: %s: %d %s", role, r.Pattern, status, body)
				}
				if strings.Contains(body, "other") {
					t.Errorf("%s of acme: %s tells of another account: %s", role, r.Pattern, body)
				}
			case r.Scope == "installation":
				if status != http.StatusForbidden {
					t.Errorf("%s of acme: %s: %d %s, want 403", role, r.Pattern, status, body)
				}
			default: // what is another's is answered as what is not there
				nostatus, nobody := w.do(t, r, "nobody", acme)
				if status != nostatus || strings.ReplaceAll(body, "other", "nobody") != nobody || status != http.StatusNotFound && status != http.StatusForbidden {
					t.Errorf("%s of acme: %s on another account: %d %s; on none: %d %s", role, r.Pattern, status, body, nostatus, nobody)
				}
			}
		}
		if after := heads()["other"]; after != before {
			t.Errorf("%s of acme added %d entries to the log of another account", role, after-before)
		}
		for _, account := range []cradle.AccountID{"acme", ""} {
			token := acme
			if account == "" {
				if role == admin.Line {
					continue
				}
				token = w.token(t, "", role)
			}
			for _, r := range routes {
				status, body := w.do(t, r, "acme", token)
				var p admin.Problem
				_ = json.Unmarshal([]byte(body), &p)
				denied := status == http.StatusForbidden && (strings.Contains(p.Detail, "the role") || strings.Contains(p.Detail, "not for account"))
				want := !may(r) || account != "" && r.Scope == "installation"
				if denied != want || status == http.StatusUnauthorized || status == http.StatusInternalServerError {
					t.Errorf("%s of %q: %s on acme: %d %s; denied should be %v", role, account, r.Pattern, status, body, want)
				}
			}
		}
	}
}

// TestInstallationLogIsNoAccounts: the installation's own log is for its operators.
func TestInstallationLogIsNoAccounts(t *testing.T) {
	w := twoTenants(t)
	route := adminserver.Route{Pattern: "GET /audit/provider", Need: "view", Scope: "everywhere"}
	if status, body := w.do(t, route, "acme", w.token(t, "acme", admin.Owner)); status != http.StatusForbidden {
		t.Errorf("an account's owner: %d %s", status, body)
	}
	if status, body := w.do(t, route, "acme", w.token(t, "", admin.Auditor)); status != http.StatusOK {
		t.Errorf("the installation's auditor: %d %s", status, body)
	}
}
