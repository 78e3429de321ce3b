package estserver_test

import (
	"bytes"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/estserver"
)

func transport(c *http.Client) *http.Transport { return c.Transport.(*http.Transport) }

// RFC 7030 §4.1.2: cacerts needs no authentication.
func TestCACertsWithoutAuthentication(t *testing.T) {
	s := start(t, nil)
	s.ca.realm = "acme-operational"
	if certs, err := (&est.Client{HTTP: s.client(), URL: s.url("acme-ldevid")}).CACerts(t.Context()); err != nil || len(certs) != 2 {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
}

// RFC 7030 §4.5: csrattrs needs no authentication, and says nothing by 204.
func TestCSRAttributes(t *testing.T) {
	s := start(t, nil)
	c := &est.Client{HTTP: s.client(), URL: s.url("acme-ldevid")}
	if got, err := c.CSRAttributes(t.Context()); err != nil || !got.Empty() {
		t.Errorf("%+v, %v", got, err)
	}
	if r := s.do204(s.client(), "csrattrs"); r.StatusCode != 204 || r.Header.Get("Content-Length") != "" || r.Header.Get("Content-Type") != "" {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	s.ca.want = est.CSRAttributes{OIDs: []asn1.ObjectIdentifier{est.OIDECDSAWithSHA256}, Attributes: []est.Attribute{est.ECKey(est.OIDP256)}, Template: &est.Template{Key: est.ECKeyTemplate(est.OIDP256)}}
	got, err := c.CSRAttributes(t.Context())
	if err != nil || got.Template == nil || len(got.Attributes) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, agent := range []string{"", "libest 3.2.0p"} {
		r := s.do(s.client(), "GET", "csrattrs", "", map[string]string{"User-Agent": agent})
		if r.code != 200 || r.header.Get("Content-Type") != "application/csrattrs" || r.header.Get("Content-Transfer-Encoding") != "base64" || strings.Contains(r.body, "\n") != (agent != "") {
			t.Errorf("%q: %d %v %q", agent, r.code, r.header, r.body)
		}
	}
	if r := s.do(s.client(), "HEAD", "csrattrs", "", nil); r.code != 200 || r.body != "" {
		t.Errorf("HEAD: %d", r.code)
	}
	if _, err := (&est.Client{HTTP: s.client(s.device), URL: s.url("")}).CSRAttributes(t.Context()); err != nil || s.ca.client.Peer == nil {
		t.Errorf("the provider is not told who asks: %v", err)
	}
	s.ca.want.OIDs = []asn1.ObjectIdentifier{{9, 9}}
	if r := s.do(s.client(), "GET", "csrattrs", "", nil); r.code != 500 {
		t.Errorf("a message that cannot be: %d", r.code)
	}
}

func (s *server) do204(c *http.Client, path string) *http.Response {
	s.t.Helper()
	resp, err := c.Get(s.url(path))
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// RFC 7030 §3.5: where POP linking is demanded csrattrs says so, and a CSR without it is refused.
func TestPOPLinkingDemanded(t *testing.T) {
	s := start(t, nil)
	s.ca.bound = true
	got, err := (&est.Client{HTTP: s.client(), URL: s.url("")}).CSRAttributes(t.Context())
	if err != nil || !slices.ContainsFunc(got.OIDs, est.OIDChallengePassword.Equal) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, op := range []string{"simpleenroll", "simplereenroll", "serverkeygen"} {
		r := s.do(s.client(s.device), "POST", op, base64.StdEncoding.EncodeToString(newCSR(t, "d")), map[string]string{"Content-Type": "application/pkcs10"})
		if r.code != 400 || !strings.Contains(r.body, "POP linking failed") || !strings.Contains(r.body, "tls-exporter") {
			t.Errorf("%s: %d %q", op, r.code, r.body)
		}
	}
}

// HTTP Basic: 401 with a challenge where it is accepted, 403 elsewhere; a password may come unasked.
func TestBasic(t *testing.T) {
	s := start(t, nil)
	flat := base64.StdEncoding.EncodeToString(newCSR(t, "d"))
	pkcs10 := map[string]string{"Content-Type": "application/pkcs10"}
	with := func(authorization string) map[string]string {
		return map[string]string{"Content-Type": "application/pkcs10", "Authorization": authorization}
	}
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }

	r := s.do(s.client(), "POST", "simpleenroll", flat, pkcs10)
	if r.code != 403 || r.header.Get("WWW-Authenticate") != "" || !strings.Contains(r.body, "no TLS client certificate") {
		t.Errorf("not accepted here: %d %v %q", r.code, r.header, r.body)
	}
	s.ca.realm = "acme-operational"
	for _, op := range []string{"simpleenroll", "simplereenroll", "serverkeygen"} {
		r = s.do(s.client(), "POST", op, flat, pkcs10)
		if r.code != 401 || r.header.Get("WWW-Authenticate") != `Basic realm="acme-operational"` || r.header.Get("Content-Length") != "0" || !strings.Contains(r.header.Get(est.ReasonHeader), "neither a TLS client certificate") {
			t.Errorf("%s: %d %v %q", op, r.code, r.header, r.body)
		}
	}
	for _, tc := range []struct{ sent, user, password string }{{"joe:secret", "joe", "secret"}, {":only a password", "", "only a password"}, {"joe:a:b", "joe", "a:b"}} {
		r = s.do(s.client(), "POST", "simpleenroll", flat, with(basic(tc.sent)))
		if b := s.ca.client.Basic; r.code != 200 || b == nil || b.User != tc.user || b.Password != tc.password || s.ca.client.Peer != nil {
			t.Errorf("%q: %d, %+v", tc.sent, r.code, b)
		}
	}
	if log := s.logs.Take(); strings.Contains(log, "secret") || !strings.Contains(log, `"user":"joe"`) {
		t.Errorf("log: %s", log)
	}
	for _, bad := range []string{"Bearer x", "Basic !", "Basic", "Digest username=x", basic("no colon"), basic("a:b\x00c"), basic("joe:" + strings.Repeat("x", 2000))} {
		if r := s.do(s.client(), "POST", "simpleenroll", flat, with(bad)); r.code != 401 || r.body != "" {
			t.Errorf("%q: %d %q", bad, r.code, r.body)
		}
	}
	s.ca.refuse = cradle.Errorf(cradle.Unauthorized, "wrong user or password")
	if r := s.do(s.client(), "POST", "simpleenroll", flat, with(basic("joe:x"))); r.code != 401 || r.header.Get(est.ReasonHeader) != "wrong user or password" {
		t.Errorf("%d %v", r.code, r.header)
	}
}

// The header is spelled as libest compares it (est.md §2e), and the 401 has no body (f).
func TestBasicChallengeOnTheWire(t *testing.T) {
	s := start(t, nil)
	s.ca.realm = "acme-operational"
	head := s.raw(nil, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	for _, want := range []string{"HTTP/1.1 401 Unauthorized\r\n", "\r\nWWW-Authenticate: Basic realm=\"acme-operational\"\r\n", "\r\nContent-Length: 0\r\n"} {
		if !strings.Contains(head, want) {
			t.Errorf("no %q in %q", want, head)
		}
	}
	if !strings.HasSuffix(head, "\r\n\r\n") || len(head) > 1024 {
		t.Errorf("%q", head)
	}
}

// RFC 7030 §4.2.3: 202 with Retry-After, and the same request again is what the provider gets.
func TestPending(t *testing.T) {
	s := start(t, nil)
	s.ca.refuse = cradle.Errorf(cradle.Pending, "waits for the operator's approval").After(2 * time.Minute)
	c := &est.Client{HTTP: s.client(s.device), URL: s.url("")}
	csr := newCSR(t, "d")
	_, err := c.SimpleEnroll(t.Context(), csr)
	if cradle.KindOf(err) != cradle.Pending || cradle.RetryAfter(err) != 2*time.Minute || !strings.Contains(err.Error(), "waits for the operator") {
		t.Errorf("%v", err)
	}
	if _, err := c.ServerKeyGen(t.Context(), csr); cradle.KindOf(err) != cradle.Pending {
		t.Errorf("%v", err)
	}
	s.ca.refuse = nil
	if _, err := c.SimpleEnroll(t.Context(), csr); err != nil {
		t.Error(err)
	}
}

// GlobalSign's tpmenroll, as its client v1.0.6 sends and reads it.
func TestTPMEnroll(t *testing.T) {
	s := start(t, nil)
	csr := newCSR(t, "d")
	q := est.TPMEnrollRequest{CSR: csr, EKChain: [][]byte{s.ca.cert.Raw, s.ca.root.Raw}, EKPublic: []byte("ek public"), AKPublic: []byte("ak public")}
	typ, body, err := q.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*http.Client{s.client(), s.client(s.device)} {
		r := s.do(c, "POST", "acme-ldevid/tpmenroll", string(body), map[string]string{"Content-Type": typ})
		if r.code != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "multipart/mixed; boundary=estTPMEnrollBoundary") {
			t.Fatalf("%d %v %s", r.code, r.header, r.body)
		}
		a, err := est.ParseTPMEnrollResponse(r.header.Get("Content-Type"), []byte(r.body))
		if err != nil || string(a.CredentialBlob) != "blob" || string(a.EncryptedSecret) != "secret" {
			t.Fatalf("%+v, %v", a, err)
		}
		if _, err := cms.DecryptData(a.Certificate, bytes.Repeat([]byte{5}, 16)); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(s.ca.tpm.CSR, csr) || len(s.ca.tpm.EKChain) != 2 || string(s.ca.tpm.AKPublic) != "ak public" {
			t.Errorf("%+v", s.ca.tpm)
		}
	}
	if r := s.do(s.client(), "POST", "tpmenroll", "x", map[string]string{"Content-Type": typ}); r.code != 400 {
		t.Errorf("a body that is none: %d %s", r.code, r.body)
	}
	if r := s.do(s.client(), "POST", "tpmenroll", string(body), map[string]string{"Content-Type": "application/pkcs10"}); r.code != 415 {
		t.Errorf("another type: %d", r.code)
	}
}

func TestFullCMC(t *testing.T) {
	s := start(t, nil)
	r := s.do(s.client(s.device), "POST", "fullcmc", "x", map[string]string{"Content-Type": "application/pkcs7-mime; smime-type=CMC-request"})
	if r.code != 501 || !strings.Contains(r.body, "full CMC (RFC 5272) is not implemented") {
		t.Errorf("%d %q", r.code, r.body)
	}
}

// The nonce resource says by 503 that it gives no such nonce or cannot now; the reason is visible.
func TestNonceRefusals(t *testing.T) {
	s := start(t, nil)
	for _, tc := range []struct {
		err  error
		code int
		text string
		head bool // the reason is in the header
	}{
		{&cradle.Error{Kind: cradle.Invalid, Detail: "no nonce without a type", Err: estserver.ErrUnwilling}, 503, "no nonce without a type", false},
		{cradle.Errorf(cradle.Invalid, "a bad claim"), 400, "a bad claim", true},
		{cradle.Errorf(cradle.Busy, "later"), 503, "later", false},
		{cradle.Errorf(cradle.Forbidden, "not this order"), 403, "not this order", false},
	} {
		s.ca.refuse = tc.err
		r := s.do(s.client(), "GET", "nonce", "", nil)
		if r.code != tc.code || strings.Contains(r.body, tc.text) == tc.head || (r.header.Get(est.ReasonHeader) == tc.text) != tc.head || tc.code == 400 && r.header.Get("Content-Length") != "0" {
			t.Errorf("%v: %d %v %q", tc.err, r.code, r.header, r.body)
		}
	}
}

// The chain goes to the provider as the client sent it, and a client that sends no TLS server name is known by its Host.
func TestClientAndHost(t *testing.T) {
	s := start(t, nil)
	chain := s.device
	chain.Certificate = append(slices.Clone(chain.Certificate), s.ca.cert.Raw)
	if _, err := (&est.Client{HTTP: s.client(chain), URL: s.url("")}).SimpleEnroll(t.Context(), newCSR(t, "d")); err != nil {
		t.Fatal(err)
	}
	if c := s.ca.client; len(c.Chain) != 2 || !c.Chain[0].Equal(c.Peer) || !c.Chain[1].Equal(s.ca.cert) {
		t.Errorf("%d certificates", len(c.Chain))
	}
	noSNI := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a client that sends no name cannot verify one
	for host, want := range map[string]string{"localhost": "200", "LOCALHOST.:8443": "200", "other.example": "404"} {
		got := s.raw(noSNI, "GET /.well-known/est/cacerts HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 "+want) {
			t.Errorf("Host %s: %.60q", host, got)
		}
	}
}
