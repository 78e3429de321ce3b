package adminserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/provider/adminserver"
)

// Keylime CVE-2026-1709: the registrar's administrative calls were answered without any client authentication, since
// the check of the TLS certificate was not enforced. Here every route that changes or tells anything is
// called without a token, and with what is not one.
func TestFailureKeylimeNoAuthentication(t *testing.T) {
	w := twoTenants(t)
	before, err := w.p.Checkpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	owner := adminserver.Token(tokenKey, "")
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: "operator"}, Raw: []byte("x")}
	for _, r := range adminserver.Routes() {
		method, _, _ := strings.Cut(r.Pattern, " ")
		path, body, _ := w.request(r, "acme")
		for name, change := range map[string]func(*http.Request){
			"nothing":                    func(*http.Request) {},
			"a client certificate alone": func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}} },
			"an empty token":             func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") },
			"the token in the query":     func(r *http.Request) { r.URL.RawQuery += "&access_token=" + owner + "&token=" + owner },
			"the token as a password":    func(r *http.Request) { r.SetBasicAuth("operator", owner) },
			"the token in a cookie":      func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "Authorization", Value: "Bearer " + owner}) },
			"another scheme":             func(r *http.Request) { r.Header.Set("Authorization", "Token "+owner) },
			"a second token behind":      func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer x", "Bearer " + owner} },
			"a header of a proxy": func(r *http.Request) {
				r.Header.Set("X-Forwarded-User", "operator")
				r.Header.Set("X-Remote-User", "owner")
			},
			"from this machine":        func(r *http.Request) { r.RemoteAddr = "127.0.0.1:1" },
			"another method by header": func(r *http.Request) { r.Header.Set("X-HTTP-Method-Override", "GET") },
		} {
			req := httptest.NewRequest(method, path, strings.NewReader(body))
			change(req)
			rec := httptest.NewRecorder()
			w.Config.Handler.ServeHTTP(rec, req)
			if rec.Code != http.StatusUnauthorized {
				t.Errorf("%s with %s: %d %s", r.Pattern, name, rec.Code, rec.Body)
			}
		}
	}
	after, err := w.p.Checkpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if before[i].Size != after[i].Size {
			t.Errorf("log %s grew by %d", before[i].Log, after[i].Size-before[i].Size)
		}
	}
}
