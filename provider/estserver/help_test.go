package estserver_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/estserver"
)

// ca is a fake provider of account "acme", which is also the account of the server name "localhost". It checks
// what the contract promises it.
type ca struct {
	t    testing.TB
	cert *x509.Certificate
	root *x509.Certificate
	key  *ecdsa.PrivateKey

	mu       sync.Mutex
	serial   int64
	refuse   error                           // of every call but Resolve
	before   func(ctx context.Context) error // runs inside Enroll
	padding  int                             // bytes of an extension in each issued certificate
	realm    string                          // of every endpoint
	bound    bool
	want     est.CSRAttributes
	keks     map[string][]byte
	strength int              // told of the last generated key
	client   estserver.Client // of the last call
	tpm      est.TPMEnrollRequest
	replaced []string // told of each enrolment
}

func newCA(t testing.TB) *ca {
	t.Helper()
	root := makeCert(t, "acme root", nil, nil)
	own := makeCert(t, "acme operational", root, nil)
	return &ca{t: t, cert: own.Cert, root: root.Cert, key: own.Key}
}

func makeCert(t testing.TB, name string, by *testca.Pair, names []string) *testca.Pair {
	t.Helper()
	return testca.New(t, &x509.Certificate{Subject: pkix.Name{Organization: []string{"acme"}, CommonName: name}, DNSNames: names,
		IsCA: names == nil, BasicConstraintsValid: true}, by)
}

// pair is the issuing CA.
func (c *ca) pair() *testca.Pair { return &testca.Pair{Cert: c.cert, Key: c.key} }

func (c *ca) Resolve(_ context.Context, serverName, label string) (estserver.Endpoint, error) {
	for _, p := range []cradle.Profile{cradle.Operational, cradle.LDevID} {
		if l := cradle.Label("acme", p); label == l || label == "" && serverName == "localhost" {
			return estserver.Endpoint{Account: "acme", Profile: p, Label: l, Realm: c.realm, Bound: c.bound}, nil
		}
	}
	return estserver.Endpoint{}, cradle.Errorf(cradle.NotFound, "no account offers EST label %q here", label).WithHint("look into the order")
}

func (c *ca) check(ctx context.Context, e estserver.Endpoint) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		c.t.Error("a call without deadline")
	}
	if e.Account != "acme" || e.Label != cradle.Label("acme", e.Profile) {
		c.t.Errorf("an endpoint that Resolve never gave: %+v", e)
	}
	return c.refuse
}

func (c *ca) CACerts(ctx context.Context, e estserver.Endpoint) ([]*x509.Certificate, error) {
	return []*x509.Certificate{c.cert, c.root}, c.check(ctx, e)
}

func (c *ca) CSRAttributes(ctx context.Context, e estserver.Endpoint, cl estserver.Client) (est.CSRAttributes, error) {
	c.client = cl
	return c.want, c.check(ctx, e)
}

func (c *ca) Nonce(ctx context.Context, e estserver.Endpoint, _ estserver.Client, q est.NonceRequest) (est.NonceResponse, error) {
	if err := c.check(ctx, e); err != nil {
		return est.NonceResponse{}, err
	}
	if q.Type == "" {
		return est.NonceResponse{Nonce: bytes.Repeat([]byte{7}, 32), Expiry: 300}, nil
	}
	return est.NonceResponse{Type: q.Type, RespInfo: q.ReqInfo, Expiry: 300}, nil
}

func (c *ca) DecryptKey(ctx context.Context, e estserver.Endpoint, id []byte) ([]byte, error) {
	if key, ok := c.keks[string(id)]; ok {
		return key, c.check(ctx, e)
	}
	return nil, cradle.Errorf(cradle.NotFound, "no such key")
}

func (c *ca) KeyGenerator() ([]*x509.Certificate, crypto.Signer) {
	if c.keks == nil {
		return nil, nil
	}
	return []*x509.Certificate{c.cert}, c.key
}

// GenerateKey makes a P-256 key, or one of P-384 where the request may have it.
func (c *ca) GenerateKey(ctx context.Context, e estserver.Enrolment, strength int) (estserver.GeneratedKey, error) {
	c.strength = strength
	curve := elliptic.P256()
	if strength >= 192 {
		curve = elliptic.P384()
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return estserver.GeneratedKey{}, err
	}
	e.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "generated"}}, key)
	if err != nil {
		return estserver.GeneratedKey{}, err
	}
	issued, err := c.Enroll(ctx, e)
	if err != nil {
		return estserver.GeneratedKey{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return estserver.GeneratedKey{Issued: issued, PKCS8: der}, err
}

func (c *ca) TPMEnroll(ctx context.Context, e estserver.Endpoint, cl estserver.Client, q est.TPMEnrollRequest) (estserver.TPMIssued, error) {
	c.tpm = q
	if cl.Peer == nil { // who may come with nothing but a TPM is the provider's to say
		cl.Basic = &estserver.Basic{}
	}
	issued, err := c.Enroll(ctx, estserver.Enrolment{Endpoint: e, Operation: estserver.Enroll, Client: cl, CSR: q.CSR})
	return estserver.TPMIssued{Issued: issued, CredentialBlob: []byte("blob"), EncryptedSecret: []byte("secret"), Secret: bytes.Repeat([]byte{5}, 16)}, err
}

func (c *ca) Enroll(ctx context.Context, e estserver.Enrolment) (estserver.Issued, error) {
	if err := c.check(ctx, e.Endpoint); err != nil {
		return estserver.Issued{}, err
	}
	if e.Client.Peer == nil && e.Client.Basic == nil {
		c.t.Error("an enrolment without client")
	}
	c.client = e.Client
	if e.Operation != estserver.Enroll && e.Operation != estserver.Reenroll {
		c.t.Errorf("operation %q", e.Operation)
	}
	req, err := x509.ParseCertificateRequest(e.CSR)
	if err != nil {
		return estserver.Issued{}, cradle.Errorf(cradle.Invalid, "certificate request: %w", err)
	}
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return estserver.Issued{}, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(c.serial), Subject: req.Subject, NotAfter: time.Now().Add(time.Hour)}
	if c.padding > 0 {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: make([]byte, c.padding)}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, req.PublicKey, c.key)
	return estserver.Issued{Certificate: der, Replaced: c.replaced}, err
}

func (c *ca) issued() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.serial
}

// server is an EST server on a real TLS port.
type server struct {
	t      testing.TB
	ca     *ca
	addr   string
	logs   *testenv.Buffer
	roots  *x509.CertPool
	device tls.Certificate
	stop   context.CancelFunc
}

func start(t testing.TB, change func(*estserver.Config)) *server {
	t.Helper()
	s := &server{t: t, ca: newCA(t), logs: new(testenv.Buffer), roots: x509.NewCertPool()}
	c := estserver.Config{Provider: s.ca, Log: slog.New(slog.NewJSONHandler(s.logs, nil))}
	if change != nil {
		change(&c)
	}
	own := makeCert(t, "server", nil, []string{"localhost", "other.example"})
	s.roots.AddCert(own.Cert)
	cert := own.TLS()
	s.device = makeCert(t, "device-1", s.ca.pair(), []string{}).TLS()
	ln, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	f := front.New(front.Config{
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Default:     front.Route{HTTP: estserver.New(c)},
		Log:         slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, ln) }()
	var once sync.Once
	s.stop = func() { once.Do(func() { cancel(); <-ended }) }
	t.Cleanup(s.stop)
	return s
}

func (s *server) client(certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots, ServerName: "localhost", Certificates: certs}}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (s *server) url(rest string) string { return "https://" + s.addr + est.WellKnown + rest }

func newCSR(t testing.TB, name string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, testca.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

type response struct {
	code   int
	header http.Header
	body   string
}

// do sends one request; header entries with an empty value are left out.
func (s *server) do(c *http.Client, method, path, body string, header map[string]string) response {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url(path), strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if method != http.MethodHead && resp.ContentLength != int64(len(b)) {
		s.t.Errorf("%s %s: Content-Length %d, body %d", method, path, resp.ContentLength, len(b))
	}
	return response{resp.StatusCode, resp.Header, string(b)}
}

// connState is the state of a fresh connection to the server.
func (s *server) connState() tls.ConnectionState {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots, ServerName: "localhost"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState()
}

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// raw sends bytes on a connection of its own and returns all that comes until the server closes it.
func (s *server) raw(c *tls.Config, bytes string) string {
	s.t.Helper()
	if c == nil {
		c = &tls.Config{RootCAs: s.roots, ServerName: "localhost"}
	}
	conn, err := tls.Dial("tcp", s.addr, c)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, bytes); err != nil {
		s.t.Fatal(err)
	}
	got, _ := io.ReadAll(conn) // a reset after the answer is an end as well
	return string(got)
}
