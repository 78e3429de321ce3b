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
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/settings"
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
	cacertsApart bool            // each label's cacerts names its own CA alone
	noAuthTime   bool            // the provider tells nobody the time who shows a certificate
	blocked      bool            // device suspended or revoked
	superseded   map[string]bool // certificates that a newer one has replaced
	lot          bool            // accepted
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
