package est_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

// serve runs one handler under TLS and returns a client for label "acme-ldevid".
func serve(t *testing.T, h http.HandlerFunc) *est.Client {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	return &est.Client{HTTP: srv.Client(), URL: srv.URL + est.WellKnown + "acme-ldevid"}
}

func sendCerts(t *testing.T, w http.ResponseWriter, contentType string, lines bool, certs ...[]byte) {
	msg, err := est.EncodeCerts(certs...)
	if err != nil {
		t.Error(err)
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(est.EncodeBody(msg, lines))
}

func TestClient(t *testing.T) {
	ca, key := newCert(t, "ca")
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.Method + " " + r.URL.Path {
		case "GET /.well-known/est/acme-ldevid/cacerts":
			sendCerts(t, w, "Application/PKCS7-MIME", true, ca.Raw, ca.Raw)
		case "POST /.well-known/est/acme-ldevid/simpleenroll", "POST /.well-known/est/acme-ldevid/simplereenroll":
			if got := r.Header.Get("Content-Type"); got != "application/pkcs10" {
				t.Errorf("content type %q", got)
			}
			der, err := est.DecodeBody(body)
			if err != nil {
				t.Error(err)
			}
			req, err := x509.ParseCertificateRequest(der)
			if err != nil {
				t.Error(err)
			}
			leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: ca.SerialNumber, Subject: req.Subject, NotAfter: time.Now().Add(time.Hour)}, ca, req.PublicKey, key)
			if err != nil {
				t.Error(err)
			}
			sendCerts(t, w, est.TypeCertsOnly, false, leaf)
		case "GET /.well-known/est/acme-ldevid/nonce":
			w.Header().Set("Content-Type", est.TypeNonce)
			fmt.Fprint(w, `{"nonce":"AAECAwQFBgc","expiry":60}`)
		case "POST /.well-known/est/acme-ldevid/nonce":
			req, err := est.ParseNonceRequest(body)
			if err != nil || string(req.ReqInfo) != `{"ek":"x"}` || r.Header.Get("Content-Type") != est.TypeNonce {
				t.Errorf("%s: %v", body, err)
			}
			w.Header().Set("Content-Type", est.TypeNonce)
			_ = json.NewEncoder(w).Encode(est.NonceResponse{Type: req.Type, RespInfo: req.ReqInfo})
		default:
			t.Errorf("asked for %s %s", r.Method, r.URL.Path)
		}
	})
	ctx := t.Context()
	if got, err := c.CACerts(ctx); err != nil || len(got) != 2 || !got[0].Equal(ca) {
		t.Errorf("cacerts: %d, %v", len(got), err)
	}
	c.URL += "/" // a final slash makes no difference
	csr, _ := newCSR(t, "device")
	if got, err := c.SimpleEnroll(ctx, csr); err != nil || got.Subject.CommonName != "device" {
		t.Errorf("simpleenroll: %v", err)
	}
	if got, err := c.SimpleReenroll(ctx, csr); err != nil || got.Subject.CommonName != "device" {
		t.Errorf("simplereenroll: %v", err)
	}
	if got, err := c.Nonce(ctx, x509.OID{}, nil); err != nil || !bytes.Equal(got.Nonce, []byte{0, 1, 2, 3, 4, 5, 6, 7}) || got.Expiry != 60 {
		t.Errorf("bare nonce: %+v, %v", got, err)
	}
	if got, err := c.Nonce(ctx, cradle.OIDActivation, map[string]string{"ek": "x"}); err != nil || string(got.RespInfo) != `{"ek":"x"}` {
		t.Errorf("nonce: %+v, %v", got, err)
	}
}

func TestClientStatus(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		want   est.StatusError
		kind   cradle.Kind
	}{
		{"reason and hint", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "device d1 is revoked\nask its owner", 403)
		},
			est.StatusError{Code: 403, Reason: "device d1 is revoked", Hint: "ask its owner"}, cradle.Forbidden},
		{"busy", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			http.Error(w, "later", 503)
		},
			est.StatusError{Code: 503, RetryAfter: 7 * time.Second, Reason: "later"}, cradle.Busy},
		{"busy for ever", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "99999999999")
			w.WriteHeader(503)
		},
			est.StatusError{Code: 503, RetryAfter: 24 * time.Hour}, cradle.Busy},
		{"pending", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "999999999")
			w.WriteHeader(202)
		},
			est.StatusError{Code: 202, RetryAfter: 24 * time.Hour}, cradle.Pending},
		{"without content", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(est.ReasonHeader, "bad claim")
			w.WriteHeader(400)
		},
			est.StatusError{Code: 400, Reason: "bad claim"}, cradle.Invalid},
		{"terminal escapes", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x1b[2Jgone\x00\u202e\xff", 404) },
			est.StatusError{Code: 404, Reason: "[2Jgone"}, cradle.NotFound},
		{"html", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(502)
			fmt.Fprint(w, "<html>")
		},
			est.StatusError{Code: 502}, cradle.Busy},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://elsewhere/", 307) },
			est.StatusError{Code: 307, Reason: "redirected to https://elsewhere/", Hint: "redirects are not followed: put the right address into the settings"}, cradle.Invalid},
		{"long", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("é", 100_000), 409) },
			est.StatusError{Code: 409, Reason: strings.Repeat("é", 512)}, cradle.Conflict},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := serve(t, tc.answer).CACerts(t.Context())
			var got *est.StatusError
			if !errors.As(err, &got) {
				t.Fatalf("got %v", err)
			}
			if *got != tc.want {
				t.Errorf("got %+v, want %+v", *got, tc.want)
			}
			if cradle.KindOf(err) != tc.kind {
				t.Errorf("kind %v, want %v", cradle.KindOf(err), tc.kind)
			}
		})
	}
}

func TestClientRefusesAnswers(t *testing.T) {
	c, _ := newCert(t, "c")
	csr, _ := newCSR(t, "d")
	for name, answer := range map[string]http.HandlerFunc{
		"two certificates": func(w http.ResponseWriter, _ *http.Request) { sendCerts(t, w, est.TypeCertsOnly, true, c.Raw, c.Raw) },
		"another key":      func(w http.ResponseWriter, _ *http.Request) { sendCerts(t, w, est.TypeCertsOnly, true, c.Raw) },
		"content type":     func(w http.ResponseWriter, _ *http.Request) { sendCerts(t, w, "text/html", true, c.Raw) },
		"no content type":  func(w http.ResponseWriter, _ *http.Request) { w.Header()["Content-Type"] = nil },
		"smime type": func(w http.ResponseWriter, _ *http.Request) {
			sendCerts(t, w, est.TypePKCS7+"; smime-type=CMC-response", true, c.Raw)
		},
		"not base64": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", est.TypePKCS7)
			_, _ = w.Write(c.Raw)
		},
		"too large": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", est.TypePKCS7)
			_, _ = w.Write(make([]byte, est.MaxBody+1))
		},
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", est.TypePKCS7)
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("QUJD"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, answer)
			if got, err := client.SimpleEnroll(t.Context(), csr); err == nil {
				t.Errorf("accepted %v", got.Subject)
			}
		})
	}
	untyped := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", est.TypeNonce)
		fmt.Fprint(w, `{"nonce":""}`)
	})
	if _, err := untyped.Nonce(t.Context(), cradle.OIDActivation, nil); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("nonce of another type: %v", err)
	}
}

func TestClientRefusesSettings(t *testing.T) {
	for _, url := range []string{"", "http://host/.well-known/est", "https:///x", "https://host/?a=b", "host/x", "https://host/#f"} {
		c := &est.Client{HTTP: http.DefaultClient, URL: url}
		if _, err := c.CACerts(t.Context()); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%q: %v", url, err)
		}
	}
	c := &est.Client{URL: "https://host/"}
	if _, err := c.CACerts(t.Context()); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("without HTTP: %v", err)
	}
	c.HTTP = http.DefaultClient
	if _, err := c.SimpleEnroll(t.Context(), []byte("no CSR")); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("no CSR: %v", err)
	}
}
