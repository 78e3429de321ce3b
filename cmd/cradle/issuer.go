package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// ownRA gets certificates for the devices of this process's provisioning service and hubs, as a registration authority
// (RFC 7030 §3.7) at the provider's EST: over TLS, as another vendor's service would. Its credentials are files
// of the data folder, ra/ACCOUNT-PROFILE.pem: key, certificate, CAs. An operator's act makes the first one; this replaces
// each in time, and makes one of its own for a further process of the installation.
type ownRA struct {
	prov   *provider.Provider
	dir    string
	url    string // of the EST server, without a label
	client func(...tls.Certificate) *http.Client
	now    func() time.Time
	log    *slog.Logger

	mu   sync.Mutex // also serializes the making of credentials
	open map[string]*raClient
}

// ownRAName is the authority for which a further process makes a credential by itself.
const ownRAName = "provisioning"

type raClient struct {
	est  *est.Client
	cert *x509.Certificate

	mu  sync.Mutex
	cas []*x509.Certificate // of cacerts
}

func (o *ownRA) file(label string) string { return filepath.Join(o.dir, label+".pem") }

// add makes a credential and uses it from now on.
func (o *ownRA) add(ctx context.Context, ra ca.Registrar, life time.Duration) (*provider.Registrar, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.make(ctx, ra, life)
}

// make: if we stop after the provider made the credential, nobody has its key, and the next call makes another.
func (o *ownRA) make(ctx context.Context, ra ca.Registrar, life time.Duration) (*provider.Registrar, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	made, err := o.prov.AddRegistrar(ctx, ra, csr, life)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range append([][]byte{made.Cert.DER}, made.Chain...) {
		text = append(text, admin.PEM(c)...)
	}
	if err := durable.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	label := cradle.Label(ra.Account, ra.Profile)
	if err := durable.WriteFile(o.file(label), text, 0o600); err != nil {
		return nil, err
	}
	return made, o.load(label)
}

// load reads a credential from its file.
func (o *ownRA) load(label string) error {
	text, err := os.ReadFile(o.file(label))
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%s: %v", o.file(label), err)
	}
	if o.open == nil {
		o.open = map[string]*raClient{}
	}
	if old := o.open[label]; old != nil {
		old.est.HTTP.CloseIdleConnections()
	}
	pair.Certificate = pair.Certificate[:1]
	o.open[label] = &raClient{est: &est.Client{HTTP: o.client(pair), URL: o.url + est.WellKnown + label}, cert: pair.Leaf}
	return nil
}

// at returns the client for a profile of an account, with a credential that is not about to expire.
func (o *ownRA) at(ctx context.Context, account cradle.AccountID, profile cradle.Profile) (*raClient, error) {
	label := cradle.Label(account, profile)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open[label] == nil {
		if err := o.load(label); errors.Is(err, fs.ErrNotExist) {
			if err := o.join(ctx, account, profile); err != nil {
				return nil, err
			}
		} else if err != nil {
			return nil, err
		}
	}
	c := o.open[label]
	if life := c.cert.NotAfter.Sub(c.cert.NotBefore); o.now().After(c.cert.NotBefore.Add(life * 2 / 3)) {
		if err := o.replace(ctx, c.cert); err != nil {
			o.log.Warn("the credential of the registration authority is not replaced", "account", account, "profile", profile, "until", c.cert.NotAfter, "err", err)
		}
	}
	return o.open[label], nil
}

// join makes this process a credential of its own where another one of the installation has one.
func (o *ownRA) join(ctx context.Context, account cradle.AccountID, profile cradle.Profile) error {
	all, err := o.prov.Registrars(ctx, account)
	if err != nil {
		return err
	}
	for _, r := range slices.Backward(all) {
		if r.Name == ownRAName && r.Profile == profile && r.Cert.Revoked.IsZero() {
			_, err := o.make(ctx, r.Registrar, r.Cert.NotAfter.Sub(r.Cert.NotBefore))
			return err
		}
	}
	return cradle.Errorf(cradle.Forbidden, "this service is no registration authority for policy %s of account %s", profile, account).
		WithHint("the account's operator makes it one: cradle account ra %s --profile %s --own", account, profile)
}

// replace makes the successor of a credential, unless that was ended, and ends it.
func (o *ownRA) replace(ctx context.Context, old *x509.Certificate) error {
	ra, err := ca.ParseRegistrar(old)
	if err != nil {
		return err
	}
	all, err := o.prov.Registrars(ctx, ra.Account)
	if err != nil {
		return err
	}
	digest := ca.Digest(old.Raw)
	i := slices.IndexFunc(all, func(r provider.Registrar) bool { return r.Cert.Digest == digest })
	if i < 0 || !all[i].Cert.Revoked.IsZero() {
		return cradle.Errorf(cradle.Forbidden, "it was ended")
	}
	if _, err := o.make(ctx, *ra, old.NotAfter.Sub(old.NotBefore)); err != nil {
		return err
	}
	_, _, err = o.prov.ChangeCertificate(ctx, ra.Account, all[i].Cert.Serial, provider.Revoke, "superseded")
	return err
}

// IssueByCSR implements provisioning.Issuer and hub.Issuer: a certificate for a device's CSR under a policy, which is a
// profile of the account. The chain is DER, leaf first, and ends at the root.
func (o *ownRA) IssueByCSR(ctx context.Context, account cradle.AccountID, policy string, id cradle.DeviceID, csr []byte) ([][]byte, error) {
	for what, s := range map[string]string{"account": string(account), "credential policy": policy} {
		if err := cradle.CheckID(what, s); err != nil {
			return nil, err
		}
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "the CSR does not parse: %v", err)
	}
	if !strings.EqualFold(req.Subject.CommonName, string(id)) {
		return nil, cradle.Errorf(cradle.Invalid, "the CSR's common name is %.70q, not %q", req.Subject.CommonName, id)
	}
	c, err := o.at(ctx, account, cradle.Profile(policy))
	if err != nil {
		return nil, err
	}
	leaf, err := c.est.SimpleEnroll(ctx, csr)
	if err != nil {
		return nil, err
	}
	if leaf.Subject.CommonName != string(id) {
		return nil, cradle.Errorf(cradle.Internal, "a certificate for %q came for the CSR of %q", leaf.Subject.CommonName, id)
	}
	return c.chain(ctx, leaf)
}

// chain finds the CAs above a certificate, by cacerts, which is asked again when it does not have them.
func (c *raClient) chain(ctx context.Context, leaf *x509.Certificate) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, err := chainOf(leaf, c.cas)
	if err == nil {
		return out, nil
	}
	cas, err := c.est.CACerts(ctx)
	if err != nil {
		return nil, err
	}
	c.cas = cas
	return chainOf(leaf, cas)
}

func chainOf(leaf *x509.Certificate, cas []*x509.Certificate) ([][]byte, error) {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range cas {
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			roots.AddCert(c)
		} else {
			between.AddCert(c)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: leaf.NotBefore.Add(ca.Backdate), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, c := range chains[0] {
		out = append(out, c.Raw)
	}
	return out, nil
}

// renewals is the issuer of the hubs: they renew what a registration brought, and make no device of a name that is free.
type renewals struct{ *ownRA }

// IssueByCSR implements hub.Issuer.
func (r renewals) IssueByCSR(ctx context.Context, account cradle.AccountID, policy string, id cradle.DeviceID, csr []byte) ([][]byte, error) {
	d, err := r.prov.Device(ctx, account, id)
	switch {
	case cradle.KindOf(err) == cradle.NotFound, err == nil && !strings.HasPrefix(d.Origin, "ra/"):
		return nil, cradle.Errorf(cradle.Forbidden, "the certificates of device %s did not come by a registration: they are not renewed here", id).
			WithHint("renew by EST")
	case err != nil:
		return nil, err
	}
	return r.ownRA.IssueByCSR(ctx, account, policy, id, csr)
}
