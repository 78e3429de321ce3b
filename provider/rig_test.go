package provider_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// rig is a provider over a real store with an account, an OEM, a maker of software TPMs and an open
// order, driven without network.
type rig struct {
	t       *testing.T
	url     string
	vault   *filekey.Vault
	keys    keystore.Store
	db      provider.Store
	p       *provider.Provider
	offset  atomic.Int64 // of the clock, nanoseconds
	maker   *softkey.Maker
	account *ecdsa.PrivateKey
	oem     order.OEMPublic
	oemKey  *ecdsa.PrivateKey
	lotKey  *ecdsa.PrivateKey
	roots   *x509.CertPool
	config  []func(*provider.Config)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spki(t *testing.T, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r *rig) now() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) }

func (r *rig) advance(d time.Duration) { r.offset.Add(int64(d)) }

func newRig(t *testing.T, url string, config ...func(*provider.Config)) *rig {
	t.Helper()
	return openRig(&rig{t: t, url: url, config: config}, provider.CAs{})
}

// newRigWith is newRig with other choices about CAs; keys are kept in a store, if one is given, else in files.
func newRigWith(t *testing.T, url string, cas provider.CAs, keys ...keystore.Store) *rig {
	t.Helper()
	r := &rig{t: t, url: url}
	if len(keys) > 0 {
		r.keys = keys[0]
	}
	return openRig(r, cas)
}

func openRig(r *rig, cas provider.CAs) *rig {
	t, url := r.t, r.url
	t.Helper()
	r.account, r.oemKey, r.lotKey = newKey(t), newKey(t), newKey(t)
	var err error
	if r.vault, err = filekey.OpenVault(filepath.Join(t.TempDir(), "kek"), false); err != nil {
		t.Fatal(err)
	}
	db, err := providerdb.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	r.db = db
	r.p = r.replica(db)
	r.account = newKey(t)
	if _, err := r.p.CreateAccount(t.Context(), "acme", spki(t, r.account), provider.Profiles{cradle.Operational: {Validity: ca.Duration(time.Hour)}}, cas); err != nil {
		t.Fatal(err)
	}
	r.oem = order.OEMPublic{Order: &r.oemKey.PublicKey, Lot: &r.lotKey.PublicKey}
	if _, _, err := r.p.CreateOEM(t.Context(), "maker1", r.oem); err != nil {
		t.Fatal(err)
	}
	if r.maker, err = softkey.NewMaker("test maker"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.p.ImportMaker(t.Context(), "soft", cradle.Simulator, [][]byte{r.maker.Cert.Raw}); err != nil {
		t.Fatal(err)
	}
	r.roots = x509.NewCertPool()
	if !cas.External {
		r.roots.AddCert(r.root(cradle.Evaluation))
	}
	return r
}

// replica opens a further provider over the same store.
func (r *rig) replica(db provider.Store) *provider.Provider {
	r.t.Helper()
	c := provider.Config{Store: db, Vault: r.vault, Keys: r.keys, Replica: "r", Now: r.now, Log: slog.New(slog.DiscardHandler)}
	for _, change := range r.config {
		change(&c)
	}
	p, err := provider.New(r.t.Context(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) root(c cradle.Class) *x509.Certificate { return r.authority(provider.RootCA, c) }

// ca is the account's CA of that kind for evaluation.
func (r *rig) ca(k provider.AuthorityKind) *x509.Certificate {
	return r.authority(k, cradle.Evaluation)
}

func (r *rig) authority(k provider.AuthorityKind, c cradle.Class) *x509.Certificate {
	r.t.Helper()
	_, cas, err := r.p.Account(r.t.Context(), "acme")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range cas {
		if a.Kind == k && a.Class == c {
			cert, err := x509.ParseCertificate(a.Cert)
			if err != nil {
				r.t.Fatal(err)
			}
			return cert
		}
	}
	r.t.Fatalf("account has no %s CA for %s", k, c)
	return nil
}

func pemText(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// order registers an order; change may alter it before it is signed.
func (r *rig) order(change func(*order.Order)) *order.Order {
	r.t.Helper()
	o := &order.Order{Account: "acme", OEM: "maker1", Model: "gw1", Quantity: 10, SerialPrefix: "SN", SerialFirst: "0001", SerialLast: "0100",
		Tiers: []cradle.Tier{cradle.Simulator}, TPMMakers: []cradle.MakerID{"soft"}, Naming: "{account}-{serial}",
		ProviderURL: "https://localhost", ServicesAnchors: pemText(r.p.Services()),
		ProvisioningEndpoint: "https://localhost", IDScope: "0ne1", AutoAccept: true}
	if change != nil {
		change(o)
	}
	if o.AccountAnchors == "" {
		o.AccountAnchors = pemText(r.root(o.Class()))
	}
	o.Complete(r.now())
	if _, err := r.p.CreateOrder(r.t.Context(), r.signed(o), func(cradle.AccountID) error { return nil }); err != nil {
		r.t.Fatal(err)
	}
	return o
}

func (r *rig) signed(o *order.Order) []byte {
	r.t.Helper()
	jws, err := order.Sign(o, r.account)
	if err != nil {
		r.t.Fatal(err)
	}
	return jws
}

// station countersigns the order and gets the station's certificate.
func (r *rig) station(o *order.Order) *x509.Certificate {
	r.t.Helper()
	jws, err := order.Countersign(r.signed(o), r.oemKey)
	if err != nil {
		r.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := r.p.AcceptOrder(r.t.Context(), o.ID, order.AcceptRequest{Order: jws, StationCSR: csr}, "https://localhost")
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(a.StationCertificate)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// unit is a device in the making.
type unit struct {
	*softkey.Device
	order  *order.Order
	serial string
	idevid *x509.Certificate
	iak    *x509.Certificate
	ldevid *x509.Certificate
	op     *x509.Certificate
	chain  [][]byte // sent with the claim
}

func (r *rig) unit(o *order.Order, serial string) *unit {
	r.t.Helper()
	d, err := r.maker.NewDevice("")
	if err != nil {
		r.t.Fatal(err)
	}
	return &unit{Device: d, order: o, serial: serial}
}

// attempt is one attested enrolment, whose parts a test may bend before they are sent.
type attempt struct {
	profile   cradle.Profile
	operation provider.Operation
	peer      *x509.Certificate // authenticates both requests
	key       *softkey.Key
	claim     evidence.Claim
	subject   pkix.Name
	bendCSR   func(*evidence.Binding)
	account   cradle.AccountID
}

func (r *rig) request(p *provider.Provider, u *unit, a attempt) (provider.Request, error) {
	if a.operation == "" {
		a.operation = provider.Enroll
	}
	if a.account == "" {
		a.account = "acme"
	}
	ep, err := p.Endpoint(r.t.Context(), cradle.Label(a.account, a.profile))
	if err != nil {
		return provider.Request{}, err
	}
	claim, err := json.Marshal(a.claim)
	if err != nil {
		return provider.Request{}, err
	}
	n, err := p.Nonce(context.Background(), ep, a.peer, claim)
	if err != nil {
		return provider.Request{}, err
	}
	b := evidence.Binding{Challenge: n.Challenge.Challenge, Account: ep.Account, Label: ep.Label, AuthCert: a.peer.Raw}
	if len(n.Challenge.CredentialBlob) > 0 {
		if b.Secret, err = u.Activate(n.Challenge.CredentialBlob, n.Challenge.EncryptedSecret); err != nil {
			return provider.Request{}, err
		}
	}
	if b.SPKI, err = x509.MarshalPKIXPublicKey(a.key.Public()); err != nil {
		return provider.Request{}, err
	}
	if a.bendCSR != nil {
		a.bendCSR(&b)
	}
	extra := b.ExtraData()
	cert, err := u.Certify(a.key, extra[:])
	if err != nil {
		return provider.Request{}, err
	}
	csr, err := evidence.CreateCSR(a.subject, a.key, &evidence.Bundle{Certify: &cert, Challenge: b.Challenge})
	return provider.Request{Endpoint: ep, Operation: a.operation, Client: provider.Client{Peer: a.peer}, CSR: csr}, err
}

func (r *rig) enroll(u *unit, a attempt) (*x509.Certificate, error) {
	req, err := r.request(r.p, u, a)
	if err != nil {
		return nil, err
	}
	out, err := r.p.Enroll(r.t.Context(), req)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(out.DER)
}

func (u *unit) claim() evidence.Claim {
	return evidence.Claim{EKCert: u.EKCert, EKChain: u.chain, AttestationKey: u.IAK.TPMTPublic(), Serial: u.serial, Order: u.order.ID}
}

// birth makes IAK and IDevID certificates.
func (r *rig) birth(u *unit, station *x509.Certificate) error {
	var err error
	if u.iak, err = r.enroll(u, attempt{profile: cradle.IAK, peer: station, key: u.IAK, claim: u.claim()}); err != nil {
		return err
	}
	k, err := u.NewIDevID()
	if err != nil {
		return err
	}
	u.idevid, err = r.enroll(u, attempt{profile: cradle.IDevID, peer: station, key: k, claim: u.claim()})
	return err
}

func (r *rig) report(o *order.Order, units ...*unit) order.LotRequest {
	r.t.Helper()
	var rows []custody.Unit
	for _, u := range units {
		d, err := r.p.Device(r.t.Context(), "acme", cradle.DeviceID(u.idevid.Subject.CommonName))
		if err != nil {
			r.t.Fatal(err)
		}
		rows = append(rows, custody.Unit{Serial: u.serial, Device: d.ID, EK: d.EKDigest, IDevID: ca.Digest(u.idevid.Raw), IAK: ca.Digest(u.iak.Raw),
			Made: r.now().UTC().Truncate(time.Second)})
	}
	rep, err := custody.NewReport(o, rows, r.now(), "test")
	if err != nil {
		r.t.Fatal(err)
	}
	signed, err := custody.SignReport(rep, r.lotKey)
	if err != nil {
		r.t.Fatal(err)
	}
	rec, err := custody.Give(custody.Born(rep).Next(custody.Party{Role: custody.Account, Name: "acme"}, r.now()), r.oemKey)
	if err != nil {
		r.t.Fatal(err)
	}
	return order.LotRequest{Report: signed, Custody: rec}
}

// active brings a unit from birth to its operational certificate.
func (r *rig) active(o *order.Order, station *x509.Certificate, serial string) *unit {
	r.t.Helper()
	u := r.unit(o, serial)
	if err := r.birth(u, station); err != nil {
		r.t.Fatal(err)
	}
	a, err := r.p.CloseLot(r.t.Context(), o.ID, r.report(o, u))
	if err != nil {
		r.t.Fatal(err)
	}
	if a.State != order.LotAccepted {
		r.t.Fatalf("lot is %s: %v", a.State, a.Reasons)
	}
	if err := r.ownerCredentials(u); err != nil {
		r.t.Fatal(err)
	}
	return u
}

func (r *rig) ownerCredentials(u *unit) error {
	var err error
	if u.ldevid, err = r.enrollKey(u, cradle.LDevID, u.idevid); err != nil {
		return fmt.Errorf("LDevID: %w", err)
	}
	if u.op, err = r.enrollKey(u, cradle.Operational, u.ldevid); err != nil {
		return fmt.Errorf("operational: %w", err)
	}
	return nil
}

// enrollKey enrols a fresh key.
func (r *rig) enrollKey(u *unit, p cradle.Profile, peer *x509.Certificate) (*x509.Certificate, error) {
	k, err := u.NewOperational()
	if err != nil {
		return nil, err
	}
	return r.enroll(u, attempt{profile: p, peer: peer, key: k})
}

func (r *rig) renew(u *unit, peer *x509.Certificate) (*x509.Certificate, error) {
	k, err := u.NewOperational()
	if err != nil {
		return nil, err
	}
	return r.enroll(u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: peer, key: k, subject: peer.Subject})
}

// export returns the account's log as an auditor gets it.
func (r *rig) export() []byte {
	r.t.Helper()
	var b bytes.Buffer
	if err := r.p.Export(r.t.Context(), "acme", ledger.NewWriter(&b)); err != nil {
		r.t.Fatal(err)
	}
	return b.Bytes()
}

// check verifies everything that must hold after each story: a clean audit.
func (r *rig) check() {
	r.t.Helper()
	findings, _, err := ledger.Verify(bytes.NewReader(r.export()), ledger.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range findings {
		r.t.Errorf("audit: %s: %s: %s", f.Code, f.Subject, f.Detail)
	}
}

// refused asserts that err is of that kind and its text holds part.
func refused(t *testing.T, err error, kind cradle.Kind, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want refusal %q", part)
	}
	if cradle.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
		t.Fatalf("refused with %v: %v\nwant %v: ...%s...", cradle.KindOf(err), err, kind, part)
	}
}

func newMaker() (*softkey.Maker, error) { return softkey.NewMaker("a maker that nobody imported") }

// accept signs a waiting lot's custody record as the account and hands it in.
func (r *rig) accept(id cradle.LotID, req order.LotRequest) error {
	doc, err := custody.Receive(req.Custody, r.account)
	if err != nil {
		return err
	}
	_, err = r.p.AcceptLot(r.t.Context(), id, doc)
	return err
}

// parsed reads a certificate.
func parsed(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	return must[*x509.Certificate](t)(x509.ParseCertificate(der))
}
