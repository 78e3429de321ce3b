package provider

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Installed says what InstallCAs did.
type Installed struct {
	CAs      []Authority // with the roots that are new here
	Crossed  [][]byte    // certificates by which two roots vouch for each other
	Warnings []string
}

// InstallCAs puts certificates in place that an external root, or another CA below it, signed for keys of the account's
// CAs; certs hold also what lies between and the root itself, in any order. Each is checked before any is stored:
// key and name are ours, it is a CA that may sign certificates and CRLs, valid now, its path leads to a
// self-signed root, and a certificate below it verifies. From then on it signs; the CA that it follows stays known.
func (p *Provider) InstallCAs(ctx context.Context, account cradle.AccountID, certs []*x509.Certificate) (*Installed, error) {
	if p.apart {
		return nil, errApart
	}
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	if err := p.reload(ctx); err != nil {
		return nil, err
	}
	in := &installation{p: p, d: p.dir.Load(), account: account, certs: certs, now: p.now().Truncate(time.Second), crosses: map[string][][]byte{}, roots: map[role]*x509.Certificate{}}
	for _, c := range certs {
		if isRoot(c) {
			in.anchors = append(in.anchors, c)
		}
	}
	for _, a := range in.d.of(account) {
		if a.Kind == RootCA {
			in.anchors = append(in.anchors, a.issuer.Cert)
		}
	}
	found := 0
	for _, c := range certs {
		n, err := in.take(ctx, c)
		if err != nil {
			return nil, cradleWrap(err, c)
		}
		found += n
	}
	if found == 0 && in.known != nil {
		return nil, cradle.Errorf(cradle.Conflict, "the certificate of %q is installed already", in.known.Subject.CommonName).WithHint("cradle ca list %s", account)
	}
	if found == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "none of the %d certificates holds the key of a CA of account %s", len(certs), account).
			WithHint("cradle ca csr %s makes the request that has to be signed; was it another account's?", account)
	}
	in.sharedRoot()
	leaf, err := p.leafBy(ctx, string(account), ledger.KindAccount, map[string]any{"account": account, "action": "ca install", "authorities": digests(in.out.CAs), "roles": roles(in.out.CAs...), "crosses": hexDigests(in.out.Crossed)})
	if err != nil {
		return nil, err
	}
	if err := p.store.InstallAuthorities(ctx, in.out.CAs, in.crosses, leaf); err != nil {
		return nil, err
	}
	return &in.out, p.reload(ctx)
}

func cradleWrap(err error, c *x509.Certificate) error {
	return fmt.Errorf("certificate %q: %w", c.Subject, err)
}

func isRoot(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// installation is one InstallCAs.
type installation struct {
	p       *Provider
	d       *directory
	account cradle.AccountID
	certs   []*x509.Certificate
	anchors []*x509.Certificate // self-signed: those handed in, and those known
	now     time.Time

	known   *x509.Certificate // one that is a CA's already; nil: none
	out     Installed
	crosses map[string][][]byte
	roots   map[role]*x509.Certificate // of the CAs taken so far
}

func (in *installation) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(in.out.Warnings, w) {
		in.out.Warnings = append(in.out.Warnings, w)
	}
}

// take finds out whose certificate c is. It returns 0 for those that only stand between a CA and its root.
func (in *installation) take(ctx context.Context, c *x509.Certificate) (int, error) {
	for _, k := range in.d.pending {
		if k.Account != in.account || !bytes.Equal(k.SPKI, c.RawSubjectPublicKeyInfo) {
			continue
		}
		key, err := in.p.keys.Open(ctx, k.Key, c.PublicKey)
		if err != nil {
			return 0, err
		}
		want := []string{string(in.account)}
		if c.Subject.CommonName != k.CommonName || !slices.Equal(c.Subject.Organization, want) || len(c.Subject.Names) != 2 {
			return 0, cradle.Errorf(cradle.Invalid, "the request was for \"O=%s, CN=%s\"; the certificate is for %q", in.account, k.CommonName, c.Subject).
				WithHint("have it signed with the subject of the request: devices' certificates name their issuer, and the account stands in it")
		}
		return 1, in.add(&authority{Authority{Kind: k.Kind, Account: k.Account, OEM: k.OEM, Class: k.Class, Key: k.Key}, &ca.Issuer{Cert: c, Key: key}})
	}
	for _, a := range in.d.of(in.account) {
		if !bytes.Equal(a.issuer.Cert.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) {
			continue
		}
		if a.issuer.Cert.Equal(c) || isRoot(c) {
			if !isRoot(c) {
				in.known = c
			}
			return 0, nil // it may stand there as part of a chain
		}
		if !bytes.Equal(a.issuer.Cert.RawSubject, c.RawSubject) {
			return 0, cradle.Errorf(cradle.Invalid, "the CA of this key is %q; under another name the certificates that it signed would not chain to it", a.issuer.Cert.Subject)
		}
		if !bytes.Equal(a.issuer.Cert.SubjectKeyId, c.SubjectKeyId) {
			return 0, cradle.Errorf(cradle.Invalid, "its subjectKeyIdentifier is %x; what the CA of this key signed names it %x, and verifiers as OpenSSL find the issuer by that", c.SubjectKeyId, a.issuer.Cert.SubjectKeyId).
				WithHint("the request holds the identifier: have it copied (openssl: -copy_extensions copyall, and no subjectKeyIdentifier in the extensions file)")
		}
		if a.Kind == RootCA {
			return 1, in.cross(a, c)
		}
		return 1, in.add(&authority{Authority{Kind: a.Kind, Account: a.Account, OEM: a.OEM, Class: a.Class, Key: a.Key}, &ca.Issuer{Cert: c, Key: a.issuer.Key}})
	}
	return 0, nil
}

// add checks the certificate of an issuing CA and takes it.
func (in *installation) add(a *authority) error {
	c := a.issuer.Cert
	a.ID, a.Cert, a.State, a.Created = ca.Digest(c.Raw), c.Raw, ActiveCA, in.now
	a.issuer.ID = a.ID
	if err := in.checkCA(c); err != nil {
		return err
	}
	chain, err := in.chain(c)
	if err != nil {
		return err
	}
	for _, x := range chain {
		a.Chain = append(a.Chain, x.Raw)
	}
	if err := in.trial(a, chain); err != nil {
		return err
	}
	in.look(a, chain)
	if a.Kind == IDevIDCA {
		if a.Cross, err = in.p.oemCross(a, a.role()); err != nil {
			return err
		}
	}
	in.out.CAs = append(in.out.CAs, a.Authority)
	return in.root(a, chain[len(chain)-1])
}

// checkCA checks what crypto/x509 leaves to its caller.
func (in *installation) checkCA(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return cradle.Errorf(cradle.Invalid, "it is no CA certificate: basicConstraints must say CA:TRUE (RFC 5280 §4.2.1.9)").
			WithHint("with openssl x509 give -copy_extensions copyall; with openssl ca, copy_extensions = copyall")
	case c.KeyUsage&x509.KeyUsageCertSign == 0 || c.KeyUsage&x509.KeyUsageCRLSign == 0:
		return cradle.Errorf(cradle.Invalid, "its keyUsage must have keyCertSign and cRLSign (RFC 5280 §4.2.1.3)")
	case len(c.UnknownExtKeyUsage)+len(c.ExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return cradle.Errorf(cradle.Invalid, "its extKeyUsage leaves out clientAuth, which devices' certificates have")
	case ca.SignatureAlgorithm(c.PublicKey) == x509.UnknownSignatureAlgorithm:
		return cradle.Errorf(cradle.Invalid, "its key is none of ec-p256, ec-p384, rsa-3072 and rsa-4096")
	case in.now.Add(5 * time.Minute).Before(c.NotBefore):
		return cradle.Errorf(cradle.Invalid, "it is not valid before %s", c.NotBefore.Format(time.RFC3339))
	case !in.now.Before(c.NotAfter):
		return cradle.Errorf(cradle.Invalid, "it expired on %s", c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// chain is the path from c's issuer up to a self-signed root.
func (in *installation) chain(c *x509.Certificate) ([]*x509.Certificate, error) {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, a := range in.anchors {
		roots.AddCert(a)
	}
	for _, x := range in.certs {
		if !isRoot(x) {
			between.AddCert(x)
		}
	}
	paths, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: latestTime(in.now, c.NotBefore), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "it does not lead to a self-signed root: %v", err).
			WithHint("hand in, with it, the certificates between it and the root, and the root itself")
	}
	if len(paths[0]) < 2 {
		return nil, cradle.Errorf(cradle.Invalid, "it is self-signed")
	}
	return paths[0][1:], nil
}

func latestTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// trial signs a certificate that nobody gets, as a device's would be, and verifies it up to the root: path lengths
// and name constraints hold, and the key is there and is the certificate's.
func (in *installation) trial(a *authority, chain []*x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c, err := ca.Trial(a.issuer, key.Public(), in.account, in.now)
	if err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, x := range append([]*x509.Certificate{a.issuer.Cert}, chain[:len(chain)-1]...) {
		between.AddCert(x)
	}
	_, err = c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: latestTime(in.now, c.NotBefore), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "devices' certificates below it would not verify: %v", err)
	}
	return nil
}

// look says what is not wrong but has consequences.
func (in *installation) look(a *authority, chain []*x509.Certificate) {
	c, name := a.issuer.Cert, a.issuer.Cert.Subject.CommonName
	unproved := a.Kind.unproved()
	for _, x := range append([]*x509.Certificate{c}, chain[:len(chain)-1]...) {
		if miss := ca.MissingPolicies(x, a.Class, unproved); len(miss) > 0 {
			var ids []string
			for _, o := range miss {
				ids = append(ids, o.String())
			}
			in.warn("%s lacks the certificate policies %s: verifiers that demand a tier's policy refuse what is signed below it; others do not notice", x.Subject.CommonName, strings.Join(ids, ", "))
		}
	}
	if c.MaxPathLen != 0 || !c.MaxPathLenZero {
		in.warn("%s may sign further CAs by its basicConstraints; pathlen:0 would be enough", name)
	}
	if a.Kind == IDevIDCA && c.NotAfter.Before(ca.Forever) {
		in.warn("%s ends on %s, and the IDevIDs that it signs end with it; IEEE 802.1AR wants them to have no end", name, c.NotAfter.Format(time.DateOnly))
	} else if c.NotAfter.Before(in.now.AddDate(1, 0, 0)) {
		in.warn("%s ends on %s", name, c.NotAfter.Format(time.DateOnly))
	}
	if a.Kind == OperationalCA {
		in.warn("register the %s operational CA again at every provisioning service: cradle attestation register --account %s", a.Class, in.account)
	}
}

// root takes the root of an issuing CA as the account's for its class.
func (in *installation) root(a *authority, root *x509.Certificate) error {
	r := role{RootCA, in.account, "", a.Class}
	// One external root may be that of several accounts, and of both classes: its row's id says whose.
	id := ca.Digest(root.Raw) + "/" + string(in.account) + "/" + string(a.Class)
	if before := in.roots[r]; before != nil && !before.Equal(root) {
		return cradle.Errorf(cradle.Invalid, "the CAs of one class must have one root; these have %q and %q", before.Subject, root.Subject)
	}
	first := in.roots[r] == nil
	in.roots[r] = root
	have := in.d.byRole[r]
	if !first || have != nil && have.issuer.Cert.Equal(root) {
		return nil
	}
	if known := in.d.byID[id]; known != nil {
		return cradle.Errorf(cradle.Conflict, "its root %q was replaced on this account, and does not come back", root.Subject)
	}
	in.out.CAs = append(in.out.CAs, Authority{ID: id, Kind: RootCA, Account: in.account, Class: a.Class, Cert: root.Raw, State: ActiveCA, Created: in.now})
	if have != nil {
		in.warn("the %s root of %s is now %q: orders made before hold the old one as anchor, so cross-sign the two (cradle ca cross %s --class %s) before their devices renew",
			a.Class, in.account, root.Subject, in.account, a.Class)
	}
	return nil
}

// sharedRoot warns of one root for both classes.
func (in *installation) sharedRoot() {
	root := func(c cradle.Class) []byte {
		r := role{RootCA, in.account, "", c}
		if x := in.roots[r]; x != nil {
			return x.Raw
		}
		if a := in.d.byRole[r]; a != nil {
			return a.Cert
		}
		return nil
	}
	if p := root(cradle.Production); p != nil && bytes.Equal(p, root(cradle.Evaluation)) {
		in.warn("production and evaluation share one root: whoever trusts it admits simulators as well, unless he looks at the policies")
	}
}

// cross takes the certificate of one of the account's roots by another: OldWithNew or NewWithOld.
func (in *installation) cross(of *authority, c *x509.Certificate) error {
	if err := in.checkCA(c); err != nil {
		return err
	}
	chain, err := in.chain(c)
	if err != nil {
		return err
	}
	active := in.d.byRole[of.role()]
	by := chain[len(chain)-1]
	if active == nil || !slices.ContainsFunc(in.d.of(in.account), func(a *authority) bool { return a.role() == of.role() && a.issuer.Cert.Equal(by) }) {
		return cradle.Errorf(cradle.Invalid, "it certifies the root %q by %q, which is no root of this account", c.Subject, by.Subject).
			WithHint("install the CAs that the new root signed first")
	}
	if in.crosses[active.ID] == nil {
		in.crosses[active.ID] = slices.Clone(active.Cross)
	}
	for _, x := range append([]*x509.Certificate{c}, chain[:len(chain)-1]...) {
		if !sameCrossing(in.crosses[active.ID], x.Raw) {
			in.crosses[active.ID] = append(in.crosses[active.ID], x.Raw)
			in.out.Crossed = append(in.out.Crossed, x.Raw)
		}
	}
	return nil
}
