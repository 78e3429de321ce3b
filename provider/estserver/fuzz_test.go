package estserver_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/estserver"
)

// FuzzRequest: whatever is asked, the answer is one that HTTP and RFC 7030 allow, a refusal has its reason, and nothing
// fails inside.
func FuzzRequest(f *testing.F) {
	provider := newCA(f)
	provider.realm, provider.keks = "acme-operational", map[string][]byte{"k": make([]byte, 32)}
	h := estserver.New(estserver.Config{Provider: provider, Log: slog.New(slog.DiscardHandler)})
	device := makeCert(f, "device-1", provider.pair(), []string{}).Cert
	flat := base64.StdEncoding.EncodeToString(newCSR(f, "d"))
	typ, tpm, err := est.TPMEnrollRequest{CSR: newCSR(f, "d"), EKChain: [][]byte{provider.cert.Raw}, EKPublic: []byte("e"), AKPublic: []byte("a")}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("GET", "/.well-known/est/cacerts", "", "", "libest", []byte(""), true)
	f.Add("GET", "/.well-known/est/acme-ldevid/csrattrs", "", "", "", []byte(""), false)
	f.Add("POST", "/.well-known/est/simpleenroll", "application/pkcs10", "", "", []byte(flat), true)
	f.Add("POST", "/.well-known/est/simpleenroll", "application/pkcs10", "Basic am9lOnNlY3JldA==", "x", []byte(flat), false)
	f.Add("POST", "/.well-known/est/acme-operational/serverkeygen", "application/pkcs10", "", "", []byte(flat), true)
	f.Add("POST", "/.well-known/est/tpmenroll", typ, "", "", tpm, true)
	f.Add("POST", "/.well-known/est/nonce", est.TypeNonce, "", "", []byte(`{"len":32}`), true)
	f.Add("POST", "/.well-known/est/fullcmc", "application/pkcs7-mime", "", "", []byte("x"), true)
	f.Fuzz(func(t *testing.T, method, path, typ, authorization, agent string, body []byte, cert bool) {
		u, err := url.ParseRequestURI(path)
		if err != nil || !strings.HasPrefix(path, "/") {
			return // net/http refuses it
		}
		r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		r.Method, r.URL = method, u
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS12, ServerName: "localhost", CipherSuite: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLSUnique: make([]byte, 12)}
		if cert {
			r.TLS.PeerCertificates = []*x509.Certificate{device}
		}
		for k, v := range map[string]string{"Content-Type": typ, "Authorization": authorization, "User-Agent": agent} {
			if v != "" {
				r.Header.Set(k, v)
			}
		}
		before := provider.issued()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		head := w.Header()
		reason := w.Body.String() + head.Get(est.ReasonHeader)
		switch {
		case w.Code == http.StatusInternalServerError, w.Code < 200, w.Code >= 300 && w.Code < 400:
			t.Fatalf("%d %s", w.Code, reason)
		case w.Code >= 400 && strings.TrimSpace(reason) == "" && method != http.MethodHead:
			t.Fatalf("%d without a reason", w.Code)
		case w.Code >= 400 && provider.issued() != before:
			t.Fatalf("%d, but a certificate was issued", w.Code)
		case w.Code == http.StatusMethodNotAllowed && head.Get("Allow") == "":
			t.Fatal("405 without Allow")
		case w.Code == http.StatusUnauthorized && (len(head["WWW-Authenticate"]) != 1 || w.Body.Len() > 0):
			t.Fatalf("401 with %v and a body of %d bytes", head, w.Body.Len())
		case w.Code == http.StatusServiceUnavailable && head.Get("Retry-After") == "":
			t.Fatal("503 without Retry-After")
		}
		var wire bytes.Buffer
		if err := head.Write(&wire); err != nil || wire.Len() > 900 {
			t.Fatalf("a head of %d bytes, %v", wire.Len(), err)
		}
	})
}
