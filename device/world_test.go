package device_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/settings"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

// world is everything outside one device: its TPM, the provider, the provisioning service and a hub. It holds the
// device to the protocol: who may authenticate what, one certificate per challenge, the same answer to the
// same request, no more than two thumbprints, a time that only the signed statement gives. Its clock is the bubble's.
type world struct {
	t   *testing.T
	dir string
	set *settings.Agent

	services, root, onboarding, operational, factory, timeKey, server authority
	serverLife                                                        time.Duration // of the services' TLS certificate, made for each handshake
	opLife                                                            time.Duration
	idevid                                                            *ecdsa.PrivateKey
	idevidCert                                                        []byte

	mu         sync.Mutex
	tpmCleared int                          // counts clears: keys of the storage hierarchy are of one epoch
	ldevidKeys map[int]*ecdsa.PrivateKey    // by epoch
	blobs      map[string]*ecdsa.PrivateKey // operational keys
	challenges map[string]*spent            // issued challenges
	issued     []*x509.Certificate          // by the provider, LDevID and operational
	registered map[string]bool              // digests that DPS accepted
	primary    string                       // thumbprints at the hub
	secondary  string
	conn       *hubConn
	connects   []string // thumbprints of accepted CONNECTs
	seqs       []string // telemetry in order of arrival
	calls      []string
	handshakes []string // the provider's: the calls that they were made for

	noTime       bool
	cacertsApart bool // each label's cacerts names its own CA alone
	noAuthTime   bool // the provider tells nobody the time who shows a certificate
	blocked      bool // device suspended or revoked
	lot          bool // accepted
	// fault is asked twice per call: before the service acts and after it did, before the reply.
	fault func(call string, acted bool) error
}

type spent struct {
	label, auth string
	csr, cert   []byte
}

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

var errNet = errors.New("network: broken pipe")

const (
	acme = "acme"
	unit = "acme-0001"
)

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func sign(pub crypto.PublicKey, t *x509.Certificate, by authority) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)
	t.SerialNumber = new(big.Int).SetBytes(serial)
	parent := by.cert
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, by.key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

func newCA(name string, by authority) authority {
	k := newKey()
	if by.key == nil {
		by.key = k
	}
	return authority{k, sign(k.Public(), &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().AddDate(-1, 0, 0),
		NotAfter: time.Now().AddDate(50, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, by)}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), serverLife: 90 * 24 * time.Hour, opLife: 24 * time.Hour, ldevidKeys: map[int]*ecdsa.PrivateKey{}, lot: true,
		blobs: map[string]*ecdsa.PrivateKey{}, challenges: map[string]*spent{}, registered: map[string]bool{}, idevid: newKey(),
		fault: func(string, bool) error { return nil }}
	w.services = newCA("services", authority{})
	w.root = newCA("root", authority{})
	w.onboarding, w.operational, w.factory = newCA("onboarding", w.root), newCA("operational", w.root), newCA("idevid ca", w.root)
	w.timeKey.key = newKey()
	w.timeKey.cert = sign(w.timeKey.key.Public(), &x509.Certificate{Subject: pkix.Name{CommonName: "time"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(5, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}}, w.services)
	w.server.key = newKey()
	w.idevidCert = sign(w.idevid.Public(), &x509.Certificate{Subject: pkix.Name{Organization: []string{acme}, CommonName: unit},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}, w.factory).Raw
	w.file("services-anchors.pem", w.services.cert.Raw)
	w.file("account-anchors.pem", w.root.cert.Raw)
	w.file("idevid.pem", w.idevidCert, w.factory.cert.Raw)
	rotate := true
	w.set = &settings.Agent{Account: acme, Device: unit, Serial: "0001", StateDir: filepath.Join(w.dir, "state"), IDevID: filepath.Join(w.dir, "idevid.pem"),
		Made: time.Now().Add(-time.Hour), Anchors: settings.Anchors{Services: filepath.Join(w.dir, "services-anchors.pem"), Account: filepath.Join(w.dir, "account-anchors.pem")},
		Provider: settings.Provider{URL: "https://est.example:8443"}, Provisioning: settings.Provisioning{Endpoint: "https://dps.example", IDScope: "0ne1"},
		Telemetry: settings.Telemetry{Interval: settings.Duration(10 * time.Minute)}, Renewal: settings.Renewal{Fraction: 0.6, RotateKey: &rotate}}
	return w
}

func (w *world) file(name string, certs ...[]byte) {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c})
	}
	if err := os.WriteFile(filepath.Join(w.dir, name), b.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) options() device.Options {
	var out io.Writer = io.Discard
	if testing.Verbose() {
		out = w.t.Output()
	}
	return device.Options{OpenTPM: func(context.Context) (device.TPM, error) { return fakeTPM{w}, nil }, Network: w,
		Log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// start runs the device in the background; the returned function ends it and gives its error.
func (w *world) start(o device.Options) (stop func() error) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- device.Run(ctx, w.set, o) }()
	return sync.OnceValue(func() error { cancel(); return <-done })
}

// until lets time pass in steps until cond holds.
func (w *world) until(what string, limit time.Duration, cond func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(max(5*time.Second, limit/1000)) {
		w.mu.Lock()
		ok := cond()
		w.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			r, _ := device.Status(w.set)
			b, _ := json.Marshal(r)
			w.t.Fatalf("after %v still not: %s\ncalls: %s\nstatus: %s", limit, what, strings.Join(w.calls[max(0, len(w.calls)-30):], " "), b)
		}
	}
}

// check holds at any time: every number arrived, in order but for repeats, and no certificate that DPS does not know but the last.
func (w *world) check() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[string]bool{}
	highest := 0
	for _, s := range w.seqs {
		var n int
		fmt.Sscan(s, &n)
		if n > highest+1 {
			w.t.Errorf("telemetry %d arrived after %d", n, highest)
		}
		highest = max(highest, n)
		seen[s] = true
	}
	if len(seen) != highest {
		w.t.Errorf("telemetry has gaps: %d numbers up to %d", len(seen), highest)
	}
}

func (w *world) count(by authority) (n int) {
	for _, c := range w.issued {
		if c.CheckSignatureFrom(by.cert) == nil {
			n++
		}
	}
	return n
}

// handshake does what TLS would: the client judges the server, and proves that it holds its certificate's key.
func (w *world) handshake(c *tls.Config, host string) (client *x509.Certificate, err error) {
	cert := sign(w.server.key.Public(), &x509.Certificate{DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(w.serverLife), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, w.services)
	if c.MinVersion != tls.VersionTLS13 || c.ServerName != host {
		w.t.Errorf("TLS %x to %q, want 1.3 to %q", c.MinVersion, c.ServerName, host)
	}
	if err := c.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, ServerName: host}); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if c.GetClientCertificate == nil {
		return nil, nil
	}
	mine, err := c.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256([]byte("handshake"))
	sig, err := mine.PrivateKey.(crypto.Signer).Sign(rand.Reader, h[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(mine.Certificate[0])
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(leaf.PublicKey.(*ecdsa.PublicKey), h[:], sig) {
		w.t.Errorf("client certificate %v without its key", leaf.Subject)
	}
	return leaf, nil
}

// call runs one service call under the world's lock and its faults.
func (w *world) call(ctx context.Context, name string, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		w.t.Errorf("%s without a deadline", name)
	}
	w.mu.Lock()
	fault := w.fault
	w.calls = append(w.calls, name)
	w.mu.Unlock()
	if err := fault(name, false); err != nil {
		if err == errHang {
			<-ctx.Done()
			return ctx.Err()
		}
		return err
	}
	w.mu.Lock()
	err := fn()
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return fault(name, true)
}

var errHang = errors.New("half-open link")

func refuse(code int, reason string) error { return &est.StatusError{Code: code, Reason: reason} }

func thumb(c []byte) string { d := sha256.Sum256(c); return fmt.Sprintf("%x", d[:8]) }

// The provider.

// fakeProvider is one connection to it, which is there after the first call that got through the handshake.
type fakeProvider struct {
	w         *world
	c         *tls.Config
	connected bool
	peer      *x509.Certificate
}

type fakeEST struct {
	*fakeProvider
	label string
}

func (w *world) Provider(url string, c *tls.Config) device.Provider {
	if url != "https://est.example:8443" {
		w.t.Errorf("provider at %s", url)
	}
	return &fakeProvider{w: w, c: c}
}

func (p *fakeProvider) EST(label string) device.EST { return &fakeEST{p, label} }

func (p *fakeProvider) Close() { p.connected = false }

func (p *fakeProvider) connect() (err error) {
	if p.connected {
		return nil
	}
	p.w.handshakes = append(p.w.handshakes, p.w.calls[len(p.w.calls)-1])
	p.peer, err = p.w.handshake(p.c, "est.example")
	p.connected = err == nil
	return err
}

func (e *fakeEST) CACerts(ctx context.Context) (out []*x509.Certificate, err error) {
	err = e.w.call(ctx, "cacerts", func() error {
		if err := e.connect(); err != nil {
			return err
		}
		issuer := e.w.onboarding
		if e.label == acme+"-operational" {
			issuer = e.w.operational
		}
		out = []*x509.Certificate{issuer.cert, e.w.root.cert}
		if e.label == acme+"-ldevid" && !e.w.cacertsApart {
			out = append(out, e.w.operational.cert)
		}
		return nil
	})
	return out, err
}

func (e *fakeEST) authenticate(op string) (*x509.Certificate, error) {
	w := e.w
	if err := e.connect(); err != nil {
		return nil, err
	}
	peer := e.peer
	if peer == nil {
		return nil, refuse(401, "no certificate")
	}
	if time.Now().After(peer.NotAfter) {
		return nil, refuse(401, "the client certificate expired")
	}
	if w.blocked {
		return nil, refuse(403, "device is revoked")
	}
	from := func(a authority) bool { return peer.CheckSignatureFrom(a.cert) == nil }
	var ok bool
	switch {
	case op == "simplereenroll":
		ok = e.label == acme+"-ldevid" && from(w.onboarding) || e.label == acme+"-operational" && from(w.operational)
	case e.label == acme+"-ldevid":
		ok = from(w.factory) || from(w.onboarding)
	case e.label == acme+"-operational":
		ok = from(w.onboarding) || from(w.operational)
	}
	if !ok {
		return nil, refuse(403, fmt.Sprintf("%v does not authenticate %s at %s", peer.Issuer, op, e.label))
	}
	if from(w.factory) && !w.lot {
		return nil, refuse(403, "the lot is not accepted")
	}
	return peer, nil
}

func (e *fakeEST) Nonce(ctx context.Context, typ x509.OID, claim any) (r est.NonceResponse, err error) {
	err = e.w.call(ctx, "nonce", func() error {
		peer, err := e.authenticate("nonce")
		if err != nil {
			return err
		}
		if !typ.Equal(cradle.OIDActivation) || claim.(evidence.Claim).Check() != nil {
			return refuse(400, "claim")
		}
		ch := make([]byte, 32)
		rand.Read(ch)
		e.w.challenges[string(ch)] = &spent{label: e.label, auth: thumb(peer.Raw)}
		r.Type = typ.String()
		r.RespInfo, _ = json.Marshal(evidence.Challenge{Challenge: ch})
		return nil
	})
	return r, err
}

func (e *fakeEST) SimpleEnroll(ctx context.Context, csr []byte) (*x509.Certificate, error) {
	return e.enroll(ctx, "simpleenroll", csr)
}

func (e *fakeEST) SimpleReenroll(ctx context.Context, csr []byte) (*x509.Certificate, error) {
	return e.enroll(ctx, "simplereenroll", csr)
}

func (e *fakeEST) enroll(ctx context.Context, op string, der []byte) (cert *x509.Certificate, err error) {
	w := e.w
	err = w.call(ctx, op, func() error {
		peer, err := e.authenticate(op)
		if err != nil {
			return err
		}
		csr, err := evidence.ParseCSR(der)
		if err != nil || csr.Request.CheckSignature() != nil || csr.Bundle == nil || csr.Bundle.Certify == nil {
			w.t.Errorf("CSR: %v", err)
			return refuse(400, "CSR")
		}
		if op == "simplereenroll" && !bytes.Equal(csr.Request.RawSubject, peer.RawSubject) {
			w.t.Errorf("simplereenroll of %v with subject %v", peer.Subject, csr.Request.Subject)
		}
		ch := w.challenges[string(csr.Bundle.Challenge)]
		if ch == nil || ch.label != e.label || ch.auth != thumb(peer.Raw) {
			return refuse(403, "the challenge was not made here")
		}
		want := evidence.Binding{Challenge: csr.Bundle.Challenge, Account: acme, Label: e.label, AuthCert: peer.Raw, SPKI: csr.SPKI}.ExtraData()
		if !bytes.Equal(csr.Bundle.Certify.Attest, want[:]) || !bytes.Equal(csr.Bundle.Certify.Public, csr.SPKI) {
			w.t.Error("the evidence is not bound to the request")
			return refuse(403, "evidence")
		}
		if ch.cert != nil {
			if !bytes.Equal(ch.csr, der) {
				w.t.Error("a spent challenge with another CSR")
				return refuse(409, "spent")
			}
			cert, _ = x509.ParseCertificate(ch.cert)
			return nil
		}
		issuer, life := w.onboarding, 365*24*time.Hour
		if e.label == acme+"-operational" {
			issuer, life = w.operational, w.opLife
		}
		cert = sign(csr.Request.PublicKey, &x509.Certificate{Subject: pkix.Name{Organization: []string{acme}, CommonName: unit},
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, issuer)
		ch.csr, ch.cert = der, cert.Raw
		w.issued = append(w.issued, cert)
		return nil
	})
	return cert, err
}

func (p *fakeProvider) Time(ctx context.Context, nonce []byte) (s *timestamp.Statement, err error) {
	w := p.w
	err = w.call(ctx, "time", func() error {
		if err := p.connect(); err != nil {
			return err
		}
		if p.peer != nil && w.noAuthTime {
			p.connected = false
			return errNet
		}
		if w.noTime {
			return cradle.Errorf(cradle.NotFound, "no time here")
		}
		s, err = timestamp.Sign(w.timeKey.key, [][]byte{w.timeKey.cert.Raw}, nonce, time.Now())
		return err
	})
	return s, err
}

// The provisioning service.

func (w *world) Register(ctx context.Context, endpoint, scope string, c *tls.Config, id string) (a *dps.Assignment, err error) {
	err = w.call(ctx, "register", func() error {
		peer, err := w.handshake(c, "dps.example")
		if err != nil {
			return err
		}
		if peer == nil || peer.CheckSignatureFrom(w.operational.cert) != nil || time.Now().After(peer.NotAfter) || id != unit || scope != "0ne1" {
			return cradle.Errorf(cradle.Unauthorized, "not one of the group")
		}
		if w.blocked {
			return cradle.Errorf(cradle.Forbidden, "registration is disabled")
		}
		w.registered[thumb(peer.Raw)] = true
		if t := thumb(peer.Raw); t != w.primary {
			if w.primary == "" {
				w.primary = t
			} else {
				w.secondary = t
			}
		}
		a = &dps.Assignment{Hub: "hub.example:9883", DeviceID: unit}
		return nil
	})
	return a, err
}

// The hub.

type hubConn struct {
	w     *world
	thumb string
	end   chan struct{}
	once  sync.Once
}

func (w *world) Connect(ctx context.Context, hub string, c *tls.Config, o mqtt.Options) (h device.Hub, err error) {
	err = w.call(ctx, "connect", func() error {
		peer, err := w.handshake(c, "hub.example")
		if err != nil {
			return err
		}
		t := thumb(peer.Raw)
		if w.blocked || time.Now().After(peer.NotAfter) || t != w.primary && t != w.secondary {
			return &mqtt.ConnackError{Code: mqtt.NotAuthorized}
		}
		if hub != "hub.example:9883" || o.ClientID != unit || o.Username != iothub.UserName("hub.example", unit) {
			w.t.Errorf("CONNECT to %s as %s, %s", hub, o.ClientID, o.Username)
		}
		if t == w.secondary {
			w.primary, w.secondary = t, ""
		}
		if w.conn != nil {
			w.conn.cut()
		}
		w.conn = &hubConn{w: w, thumb: t, end: make(chan struct{})}
		w.connects = append(w.connects, t)
		h = w.conn
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (h *hubConn) cut() { h.once.Do(func() { close(h.end) }) }

func (h *hubConn) Close() error { h.cut(); return nil }

func (h *hubConn) Run(ctx context.Context) error {
	select {
	case <-h.end:
		return mqtt.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *hubConn) Send(topic string, qos mqtt.QoS, payload []byte) (<-chan error, error) {
	select {
	case <-h.end:
		return nil, mqtt.ErrClosed
	default:
	}
	w := h.w
	ack := make(chan error, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	fault := w.fault
	if err := fault("publish", false); err != nil {
		if err == errHang {
			return ack, nil
		}
		h.cut()
		return nil, err
	}
	id, bag, err := iothub.ParseTelemetryTopic(topic)
	seq, ok := bag.Get(iothub.PropSequence)
	var body struct{ Seq json.Number }
	if err != nil || id != unit || !ok || qos != mqtt.AtLeastOnce || json.Unmarshal(payload, &body) != nil || body.Seq.String() != seq {
		w.t.Errorf("telemetry on %s: %s", topic, payload)
	}
	w.seqs = append(w.seqs, seq)
	if err := fault("publish", true); err != nil {
		h.cut()
		ack <- err
		return ack, nil
	}
	ack <- nil
	return ack, nil
}

// The TPM.

type fakeTPM struct{ w *world }

func (t fakeTPM) IDevID(context.Context) (device.Key, error) { return t.w.idevid, nil }

func (t fakeTPM) IDevIDCertificate(context.Context) ([]byte, error) { return t.w.idevidCert, nil }

func (t fakeTPM) LDevID(context.Context) (device.Key, error) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if t.w.ldevidKeys[t.w.tpmCleared] == nil {
		t.w.ldevidKeys[t.w.tpmCleared] = newKey()
	}
	return t.w.ldevidKeys[t.w.tpmCleared], nil
}

func (t fakeTPM) CreateKey(context.Context) ([]byte, error) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	blob := fmt.Sprintf("blob %d of TPM %d", len(t.w.blobs), t.w.tpmCleared)
	t.w.blobs[blob] = newKey()
	return []byte(blob), nil
}

func (t fakeTPM) LoadKey(_ context.Context, blob []byte) (device.Key, error) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if k := t.w.blobs[string(blob)]; k != nil && strings.HasSuffix(string(blob), fmt.Sprintf("TPM %d", t.w.tpmCleared)) {
		return k, nil
	}
	return nil, cradle.Errorf(cradle.Invalid, "this key is not of this TPM")
}

func (t fakeTPM) Activate(context.Context, []byte, []byte) ([]byte, error) {
	t.w.t.Error("nothing to activate in these exchanges")
	return nil, errors.New("no")
}

func (t fakeTPM) Certify(_ context.Context, k device.Key, extra []byte) (evidence.Certify, error) {
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	return evidence.Certify{Attest: slices.Clone(extra), Signature: []byte("signature"), Public: spki}, err
}

func (t fakeTPM) Close() error { return nil }
