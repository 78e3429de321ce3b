package estserver_test

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
)

func TestMain(m *testing.M) { testenv.Leakless(m) }

// Our own client against our own server: every operation, with label and without.
func TestOperations(t *testing.T) {
	s := start(t, nil)
	for _, base := range []string{"", "acme-operational", "acme-ldevid"} {
		c := &est.Client{HTTP: s.client(s.device), URL: s.url(base)}
		certs, err := c.CACerts(t.Context())
		if err != nil || len(certs) != 2 || !certs[0].Equal(s.ca.cert) || !certs[1].Equal(s.ca.root) {
			t.Errorf("cacerts: %d, %v", len(certs), err)
		}
		n, err := c.Nonce(t.Context(), x509.OID{}, nil)
		if err != nil || len(n.Nonce) != 32 || n.Expiry != 300 {
			t.Errorf("nonce: %+v, %v", n, err)
		}
		n, err = c.Nonce(t.Context(), cradle.OIDActivation, map[string]int{"x": 1})
		if err != nil || string(n.RespInfo) != `{"x":1}` {
			t.Errorf("nonce: %+v, %v", n, err)
		}
		csr := newCSR(t, "device-1")
		for _, enroll := range []func(context.Context, []byte) (*x509.Certificate, error){c.SimpleEnroll, c.SimpleReenroll} {
			leaf, err := enroll(t.Context(), csr)
			if err != nil {
				t.Fatal(err)
			}
			if err := leaf.CheckSignatureFrom(s.ca.cert); err != nil || leaf.Subject.CommonName != "device-1" {
				t.Errorf("%s: %v", leaf.Subject, err)
			}
		}
	}
	log := s.logs.Take()
	if n := strings.Count(log, "\n"); n != 15 {
		t.Errorf("%d log lines for 15 requests", n)
	}
	for _, want := range []string{`"status":200`, `"op":"simplereenroll"`, `"label":"acme-ldevid"`, `"account":"acme"`, `"peer":"device-1"`, `"took":`} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in the log", want)
		}
	}
}

// What the profile gave in place of the CSR's wishes stands in a header of the answer.
func TestReplacedWishesAreTold(t *testing.T) {
	s := start(t, nil)
	for _, replaced := range [][]string{nil, {"subject", "1.2.3"}, {strings.Repeat("1.", 200) + "1"}} {
		s.ca.replaced = replaced
		r := s.do(s.client(s.device), "POST", "simpleenroll", base64.StdEncoding.EncodeToString(newCSR(t, "d")), map[string]string{"Content-Type": "application/pkcs10"})
		want := strings.Join(replaced, ", ")
		if len(want) > 256 {
			want = "and more"
		}
		if got := r.header.Get("Cradle-Replaced"); r.code != 200 || got != want {
			t.Errorf("status %d, Cradle-Replaced %q, want %q", r.code, got, want)
		}
	}
}

// est.md §2 c, k and b: what strongSwan, Bouncy Castle, libest and estclient need of an answer.
func TestAnswerForm(t *testing.T) {
	s := start(t, nil)
	c := s.client(s.device)
	csr := base64.StdEncoding.EncodeToString(newCSR(t, "d"))
	for _, tc := range []struct {
		path, method, agent, contentType string
		lines                            bool
	}{
		{"cacerts", "GET", "libest 3.2.0p", "application/pkcs7-mime", true},
		{"cacerts", "GET", "", "application/pkcs7-mime", false},
		{"simpleenroll", "POST", "curl/7.88", "application/pkcs7-mime; smime-type=certs-only", true},
		{"simpleenroll", "POST", "", "application/pkcs7-mime; smime-type=certs-only", false},
	} {
		header := map[string]string{"User-Agent": tc.agent}
		body := ""
		if tc.method == "POST" {
			header["Content-Type"], body = "application/pkcs10", csr
		}
		r := s.do(c, tc.method, tc.path, body, header)
		if r.code != 200 || r.header.Get("Content-Type") != tc.contentType || r.header.Get("Content-Transfer-Encoding") != "base64" {
			t.Errorf("%s for %q: %d %v", tc.path, tc.agent, r.code, r.header)
		}
		if got := strings.Contains(r.body, "\n"); got != tc.lines || strings.Contains(r.body, "\r") {
			t.Errorf("%s for %q: lines %v", tc.path, tc.agent, got)
		}
		if !tc.lines && strings.ContainsAny(r.body, " \r\n\t") {
			t.Errorf("%s for %q: white space", tc.path, tc.agent)
		}
		for line := range strings.SplitSeq(r.body, "\n") {
			if tc.lines && len(line) > 76 {
				t.Errorf("%s: a line of %d", tc.path, len(line))
			}
		}
		if len(r.header) > 12 {
			t.Errorf("%d header fields: libest keeps 16", len(r.header))
		}
	}
	if r := s.do(c, "HEAD", "cacerts", "", nil); r.code != 200 || r.body != "" || r.header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %+v", r)
	}
}

// Bodies as clients really send them (est.md §2 a, j, m), all accepted.
func TestRequestForms(t *testing.T) {
	s := start(t, nil)
	c := s.client(s.device)
	der := newCSR(t, "d")
	flat := base64.StdEncoding.EncodeToString(der)
	armour := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	for name, tc := range map[string]struct {
		body   string
		header map[string]string
	}{
		"flat":             {flat, map[string]string{"Content-Type": "application/pkcs10"}},
		"lines":            {string(est.EncodeBody(der, true)), map[string]string{"Content-Type": "application/pkcs10"}},
		"PEM":              {armour, map[string]string{"Content-Type": "application/pkcs10"}},
		"case, parameters": {flat, map[string]string{"Content-Type": "Application/PKCS10; charset=x", "Content-Transfer-Encoding": "BASE64"}},
		"binary, it says":  {flat, map[string]string{"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "binary"}},
	} {
		if r := s.do(c, "POST", "simpleenroll", tc.body, tc.header); r.code != 200 {
			t.Errorf("%s: %d %s", name, r.code, r.body)
		}
	}
	chunked, _ := http.NewRequest("POST", s.url("simpleenroll"), struct{ io.Reader }{strings.NewReader(flat)})
	chunked.Header.Set("Content-Type", "application/pkcs10")
	resp, err := c.Do(chunked)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("chunked: %v", err)
	}
	resp.Body.Close()
}

// Every refusal has its status, a reason and a hint where there is something to do, and issues nothing.
func TestRefusals(t *testing.T) {
	s := start(t, nil)
	with, without := s.client(s.device), s.client()
	flat := base64.StdEncoding.EncodeToString(newCSR(t, "d"))
	pkcs10 := map[string]string{"Content-Type": "application/pkcs10"}
	nonceType := map[string]string{"Content-Type": est.TypeNonce}
	for _, tc := range []struct {
		name         string
		client       *http.Client
		method, path string
		body         string
		header       map[string]string
		code         int
		want         string
	}{
		{"method of cacerts", with, "POST", "cacerts", "", nil, 405, "POST"},
		{"method of simpleenroll", with, "GET", "acme-ldevid/simpleenroll", "", nil, 405, "GET"},
		{"method of nonce", with, "PUT", "nonce", "", nil, 405, "PUT"},
		{"label", with, "GET", "other-ldevid/cacerts", "", nil, 404, "other-ldevid"},
		{"operation", with, "GET", "acme-ldevid/cacert", "", nil, 404, "no such EST resource"},
		{"nothing", with, "GET", "", "", nil, 404, "no such EST resource"},
		{"label only", with, "GET", "acme-ldevid", "", nil, 404, "no such EST resource"},
		{"two labels", with, "GET", "a/b/cacerts", "", nil, 404, "no such EST resource"},
		{"empty label", with, "GET", "/cacerts", "", nil, 404, "no such EST resource"},
		{"operation as label", with, "GET", "simpleenroll/cacerts", "", nil, 404, "no such EST resource"},
		{"final slash", with, "GET", "cacerts/", "", nil, 404, "no such EST resource"},
		{"long label", with, "GET", strings.Repeat("a", 200) + "/cacerts", "", nil, 404, "no such EST resource"},
		{"not implemented", with, "POST", "acme-ldevid/fullcmc", flat, pkcs10, 501, "full CMC (RFC 5272) is not implemented"},
		{"encoded slash", with, "GET", "acme-ldevid%2fcacerts", "", nil, 404, "no such EST resource"},
		{"media type", with, "POST", "simpleenroll", flat, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/pkcs10"},
		{"prefix of the media type", with, "POST", "simpleenroll", flat, map[string]string{"Content-Type": "application/pkcs10x"}, 415, "application/pkcs10x"},
		{"no media type", with, "POST", "simpleenroll", flat, nil, 415, "application/pkcs10"},
		{"no certificate", without, "POST", "simpleenroll", flat, pkcs10, 403, "no TLS client certificate"},
		{"no certificate to renew", without, "POST", "simplereenroll", flat, pkcs10, 403, "no TLS client certificate"},
		{"empty", with, "POST", "simpleenroll", "", pkcs10, 400, "empty"},
		{"not base64", with, "POST", "simpleenroll", "%%%", pkcs10, 400, "base64"},
		{"raw DER", with, "POST", "simpleenroll", string(newCSR(t, "d")), pkcs10, 400, "raw DER"},
		{"truncated", with, "POST", "simpleenroll", flat[:100], pkcs10, 400, "certificate request"},
		{"odd truncation", with, "POST", "simpleenroll", flat[:99], pkcs10, 400, "base64"},
		{"PEM certificate", with, "POST", "simpleenroll", "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n", pkcs10, 400, "CERTIFICATE"},
		{"too large", with, "POST", "simpleenroll", strings.Repeat("A", est.MaxBody+1), pkcs10, 413, "65536"},
		{"nonce media type", with, "POST", "nonce", "{}", map[string]string{"Content-Type": "application/json"}, 415, est.TypeNonce},
		{"nonce too large", with, "POST", "nonce", `{"x":"` + strings.Repeat("A", est.MaxBody) + `"}`, nonceType, 413, "65536"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.logs.Take()
			r := s.do(tc.client, tc.method, tc.path, tc.body, tc.header)
			if r.code != tc.code || !strings.Contains(r.body, tc.want) {
				t.Errorf("got %d %q, want %d and %q", r.code, r.body, tc.code, tc.want)
			}
			if ct := r.header.Get("Content-Type"); ct != "text/plain; charset=utf-8" {
				t.Errorf("content type %q", ct)
			}
			if tc.code == 405 && r.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if log := s.logs.Take(); strings.Count(log, "\n") != 1 || !strings.Contains(log, `"reason":"`) || !strings.Contains(log, `"level":"WARN"`) {
				t.Errorf("log: %s", log)
			}
		})
	}
	for _, body := range []string{"", "x", `{"len":7}`, `{"reqInfo":1}`} {
		r := s.do(with, "POST", "nonce", body, nonceType)
		if r.code != 400 || r.body != "" || r.header.Get("Content-Type") != "" || r.header.Get(est.ReasonHeader) == "" {
			t.Errorf("nonce %q: %+v", body, r)
		}
	}
	// The path without label belongs to the account of the server name, and this name has none.
	other := s.client(s.device)
	other.Transport.(*http.Transport).TLSClientConfig.ServerName = "other.example"
	if r := s.do(other, "GET", "cacerts", "", nil); r.code != 404 {
		t.Errorf("no label under a foreign name: %d", r.code)
	}
	if n := s.ca.issued(); n != 0 {
		t.Errorf("%d certificates issued", n)
	}
}

// Kinds of the provider's errors become statuses; what has no kind stays inside.
func TestProviderErrors(t *testing.T) {
	s := start(t, nil)
	c := s.client(s.device)
	flat := base64.StdEncoding.EncodeToString(newCSR(t, "d"))
	secret := errors.New("secret cause")
	for _, tc := range []struct {
		err  error
		code int
		body string
	}{
		{cradle.Errorf(cradle.Invalid, "weak key"), 400, "weak key\n"},
		{cradle.Errorf(cradle.Unauthorized, "expired").WithHint("attest"), 403, "expired\nattest\n"},
		{cradle.Errorf(cradle.Forbidden, "device %q is revoked", "d"), 403, "device \"d\" is revoked\n"},
		{fmt.Errorf("wrapped: %w", cradle.Errorf(cradle.NotFound, "no order")), 404, "no order\n"},
		{cradle.Errorf(cradle.Conflict, "challenge already spent"), 409, "challenge already spent\n"},
		{cradle.Errorf(cradle.TooLarge, "chain"), 413, "chain\n"},
		{&cradle.Error{Kind: cradle.Busy, Detail: "store is away", Err: secret}, 503, "store is away\n"},
		{cradle.Errorf(cradle.Pending, "waits for approval").After(90 * time.Second), 202, "waits for approval\n"},
		{secret, 500, "internal error\n"},
	} {
		s.ca.mu.Lock()
		s.ca.refuse = tc.err
		s.ca.mu.Unlock()
		s.logs.Take()
		r := s.do(c, "POST", "acme-ldevid/simpleenroll", flat, map[string]string{"Content-Type": "application/pkcs10"})
		if r.code != tc.code || !strings.HasPrefix(r.body, tc.body) || strings.Contains(r.body, "secret") {
			t.Errorf("%v: %d %q", tc.err, r.code, r.body)
		}
		if (r.header.Get("Retry-After") != "") != (tc.code == 503 || tc.code == 202) || tc.code == 202 && r.header.Get("Retry-After") != "90" {
			t.Errorf("%d with Retry-After %q", r.code, r.header.Get("Retry-After"))
		}
		if log := s.logs.Take(); errors.Is(tc.err, secret) && !strings.Contains(log, "secret cause") {
			t.Errorf("the log does not know the cause: %s", log)
		}
		n := s.do(c, "POST", "nonce", "{}", map[string]string{"Content-Type": est.TypeNonce})
		want := tc.code
		if want == 500 {
			want = 503 // the draft's word for a server that is unable
		}
		if n.code != want || (n.body == "") != (tc.code == 400) {
			t.Errorf("nonce, %v: %d %q", tc.err, n.code, n.body)
		}
		if n.code == 400 && n.header.Get(est.ReasonHeader) != "weak key" {
			t.Errorf("nonce: reason %q", n.header.Get(est.ReasonHeader))
		}
		var status *est.StatusError
		_, err := (&est.Client{HTTP: c, URL: s.url("")}).CACerts(t.Context())
		if !errors.As(err, &status) || status.Code != tc.code || status.Reason != strings.TrimSpace(strings.SplitN(tc.body, "\n", 2)[0]) {
			t.Errorf("client: %v", err)
		}
	}
}
