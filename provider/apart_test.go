package provider_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/permit"
)

// apart is a rig whose issuing keys are in another process: signer has them, r.p is an EST front end without any.
type apart struct {
	*rig
	signer  *provider.Provider
	server  *httptest.Server
	handler *permit.Handler
	front   *permit.Identity
	door    *permit.Client // what a front end calls
	attack  atomic.Pointer[func(context.Context, provider.Permit) (*provider.Issued, error)]
}

// Sign lets an attack stand where an honest front end calls its signer.
func (a *apart) Sign(ctx context.Context, pm provider.Permit) (*provider.Issued, error) {
	if f := a.attack.Load(); f != nil {
		return (*f)(ctx, pm)
	}
	return a.door.Sign(ctx, pm)
}

func (a *apart) BirthNonce(ctx context.Context, e provider.Endpoint, peer *x509.Certificate, claim json.RawMessage) (*provider.NonceReply, error) {
	return a.door.BirthNonce(ctx, e, peer, claim)
}

func (a *apart) Birth(ctx context.Context, r provider.Request) (*provider.Issued, error) {
	return a.door.Birth(ctx, r)
}

func (a *apart) PrepareOrder(ctx context.Context, jws []byte) error {
	return a.door.PrepareOrder(ctx, jws)
}

func (a *apart) AcceptOrder(ctx context.Context, id cradle.OrderID, r order.AcceptRequest, url string) (*order.Accepted, error) {
	return a.door.AcceptOrder(ctx, id, r, url)
}

func identity(t *testing.T, hosts ...string) *permit.Identity {
	t.Helper()
	id, err := permit.NewIdentity("test", hosts, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newApart(t *testing.T, url string) *apart {
	t.Helper()
	vault, err := filekey.CreateVault(filepath.Join(t.TempDir(), "issuing"))
	if err != nil {
		t.Fatal(err)
	}
	a := &apart{rig: newRigWith(t, url, provider.CAs{}, keystore.Stores{filekey.Store{Vault: vault}})}
	if a.signer, err = provider.New(t.Context(), provider.Config{Store: a.db, Vault: a.vault, Keys: a.keys, BirthKey: make([]byte, 32), Replica: "signer", Now: a.now,
		Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	own := identity(t, permit.ServerName)
	a.front = identity(t)
	a.handler = &permit.Handler{Provider: a.signer, Log: slog.New(slog.DiscardHandler), Front: func(d string) (string, bool) { return "front-1", d == permit.Digest(a.front.Leaf) }}
	a.server = httptest.NewUnstartedServer(a.handler)
	a.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	a.server.TLS = &tls.Config{Certificates: []tls.Certificate{own.Certificate}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	a.server.StartTLS()
	t.Cleanup(a.server.Close)
	a.door = permit.NewClient(a.server.URL, a.front, own.Leaf)
	a.p = a.frontEnd(a)
	return a
}

func (a *apart) frontEnd(s provider.Signer) *provider.Provider {
	a.t.Helper()
	p, err := provider.New(a.t.Context(), provider.Config{Store: a.db, Vault: a.vault, Signer: s, Replica: "front", Now: a.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		a.t.Fatal(err)
	}
	return p
}

// A device's whole life through a front end that has no issuing keys; what needs them is done at the signer.
func TestSignerApart(t *testing.T) {
	for name, url := range map[string]func() string{
		"sqlite":   func() string { return filepath.Join(t.TempDir(), "p.db") },
		"postgres": func() string { return testenv.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newApart(t, url())
			_, err := a.p.CreateAccount(t.Context(), "other", spki(t, newKey(t)), nil, provider.CAs{})
			refused(t, err, cradle.Conflict, "held by a signer apart")
			_, err = a.p.RollCA(t.Context(), "acme", provider.OperationalCA, "", cradle.Evaluation)
			refused(t, err, cradle.Conflict, "held by a signer apart")

			o := a.order(nil) // for which the signer makes the IDevID CA
			u := a.active(o, a.station(o), "SN0001")
			renewed, err := a.renew(u, u.op)
			if err != nil {
				t.Fatal(err)
			}
			a.trusts(a.root(cradle.Evaluation), renewed, cradle.Operational)
			a.check()
		})
	}
}

// The signer is down: devices are told to come again, nothing is lost, and the same request is answered afterwards.
func TestSignerAway(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	o := a.order(nil)
	u := a.active(o, a.station(o), "SN0001")
	k, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	req, err := a.request(a.p, u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.op, key: k, subject: u.op.Subject})
	if err != nil {
		t.Fatal(err)
	}
	gone := func(context.Context, provider.Permit) (*provider.Issued, error) {
		return permit.NewClient("https://127.0.0.1:1", a.front, a.front.Leaf).Sign(t.Context(), provider.Permit{Intent: &provider.Intent{}})
	}
	a.attack.Store(&gone)
	_, err = a.p.Enroll(t.Context(), req)
	refused(t, err, cradle.Busy, "the signer is away")
	var e *cradle.Error
	if !errors.As(err, &e) || e.RetryAfter <= 0 {
		t.Errorf("no Retry-After in %v", err)
	}
	lost := func(ctx context.Context, pm provider.Permit) (*provider.Issued, error) { // signed, and the answer lost on the way
		if _, err := a.door.Sign(ctx, pm); err != nil {
			t.Error(err)
		}
		return nil, cradle.Errorf(cradle.Busy, "the signer is away")
	}
	a.attack.Store(&lost)
	_, err = a.p.Enroll(t.Context(), req)
	refused(t, err, cradle.Busy, "the signer is away")
	a.attack.Store(nil)
	if _, err := a.p.Enroll(t.Context(), req); err != nil { // the very certificate, by the replay rule
		t.Error(err)
	}
	certs, err := a.db.Certificates(t.Context(), "acme", cradle.DeviceID(u.op.Subject.CommonName))
	if err != nil || len(certs) != 5 {
		t.Errorf("%d certificates on record, %v; want IAK, IDevID, LDevID and two operational", len(certs), err)
	}
	a.check()
}

// A taken front end makes the challenge of a birth itself, so that it knows the secret, and vouches for an attestation
// key that is in no TPM.
func TestBirthIsTheSigners(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	o := a.order(nil)
	st := a.station(o)
	vault, err := filekey.CreateVault(filepath.Join(t.TempDir(), "any"))
	if err != nil {
		t.Fatal(err)
	}
	// It has all that a provider has but the issuing keys and the signer's key of challenges.
	taken, err := provider.New(t.Context(), provider.Config{Store: a.db, Vault: a.vault, Keys: anyKeys{filekey.Store{Vault: vault}}, Replica: "taken", Now: a.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	u := a.unit(o, "SN0001")
	req, err := a.request(taken, u, attempt{profile: cradle.IAK, peer: st, key: u.IAK, claim: u.claim()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.door.Birth(t.Context(), req)
	refused(t, err, cradle.Forbidden, "the challenge was not made here")
	req.Profile, req.Label = cradle.LDevID, "acme-ldevid"
	_, err = a.door.Birth(t.Context(), req)
	refused(t, err, cradle.Forbidden, "is no birth")
	if err := a.birth(u, st); err != nil { // and rightly made it is born
		t.Error(err)
	}
	a.check()
}

// anyKeys opens every issuing key as another.
type anyKeys struct{ filekey.Store }

func (k anyKeys) Open(ctx context.Context, _ keystore.Key, _ crypto.PublicKey) (crypto.Signer, error) {
	s, _, err := k.Generate(ctx, "", keystore.P256)
	return s, err
}

// tpmenroll and serverkeygen through a front end: the signer verifies the TPM for itself.
func TestApartWithoutEvidence(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	a.basicUser(cradle.LDevID, "line", "")
	a.p = a.frontEnd(a)
	tpm, err := a.maker.NewDevice("")
	if err != nil {
		t.Fatal(err)
	}
	q, _ := tpmRequest(t, a.rig, cradle.LDevID, byBasic("line"), tpm, "gw-1")
	soft := func(ctx context.Context, pm provider.Permit) (*provider.Issued, error) { // the front end's check left out
		pm.TPM.AKPublic = tpm.IAK.TPMTPublic()
		return a.door.Sign(ctx, pm)
	}
	a.attack.Store(&soft)
	_, err = a.p.TPMEnroll(t.Context(), q)
	refused(t, err, cradle.Forbidden, "")
	none := func(ctx context.Context, pm provider.Permit) (*provider.Issued, error) {
		pm.TPM = nil
		return a.door.Sign(ctx, pm)
	}
	a.attack.Store(&none)
	q, _ = tpmRequest(t, a.rig, cradle.LDevID, byBasic("line"), tpm, "gw-1")
	_, err = a.p.TPMEnroll(t.Context(), q)
	refused(t, err, cradle.Forbidden, "operation")
	a.attack.Store(nil)
	q, _ = tpmRequest(t, a.rig, cradle.LDevID, byBasic("line"), tpm, "gw-1")
	if _, err := a.p.TPMEnroll(t.Context(), q); err != nil {
		t.Error(err)
	}
	ep, err := a.p.Endpoint(t.Context(), "acme-ldevid")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-2"}}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	k, err := a.p.GenerateKey(t.Context(), provider.Request{Endpoint: ep, Client: byBasic("line"), CSR: csr}, 256)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
	if err != nil {
		t.Fatal(err)
	}
	if pub, ok := parsed(t, k.DER).PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.(crypto.Signer).Public()) {
		t.Error("the certificate is not for the key that was made")
	}
	a.check()
}

// An installation moves its issuing keys to a signer: afterwards the old key-encryption key opens none of them.
func TestReseal(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	vault, err := filekey.CreateVault(filepath.Join(t.TempDir(), "issuing"))
	if err != nil {
		t.Fatal(err)
	}
	to := filekey.Store{Vault: vault}
	for _, want := range []int{12, 0} { // eight CAs of the account, three of the OEM, its IDevID CA; then there is nothing left to do
		if n, err := provider.Reseal(t.Context(), r.db, r.vault, to); err != nil || n != want {
			t.Fatalf("moved %d keys, %v; want %d", n, err, want)
		}
	}
	if _, err := provider.New(t.Context(), provider.Config{Store: r.db, Vault: r.vault, Replica: "r"}); err == nil {
		t.Error("the old key-encryption key still opens issuing keys")
	}
	r.keys = keystore.Stores{to}
	r.p = r.replica(r.db)
	if _, err := r.renew(u, u.op); err != nil {
		t.Error(err)
	}
}
