package provider

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// PendingKey is the key of a CA that waits for its certificate from elsewhere. Until that is installed nothing is
// signed with it.
type PendingKey struct {
	ID         string // SHA-256 of SPKI, hexadecimal
	Kind       AuthorityKind
	Account    cradle.AccountID
	OEM        cradle.OEMID
	Class      cradle.Class
	CommonName string
	SPKI       []byte
	Key        keystore.Key
	Created    time.Time
}

func (k *PendingKey) role() role { return role{k.Kind, k.Account, k.OEM, k.Class} }

func (a *Authority) role() role { return role{a.Kind, a.Account, a.OEM, a.Class} }

// Digest is the SHA-256 of the certificate, hexadecimal.
func (a *Authority) Digest() string {
	d, _, _ := strings.Cut(a.ID, "/")
	return d
}

// accountCAs are the kinds of CAs that each account has for each class from the start; their names, and their
// lives in years.
var accountCAs = []AuthorityKind{OnboardingCA, OperationalCA, UnprovedCA}

const issuingYears = 30

// rootPath is how many CAs may stand between a root and a leaf: the issuing CA, and a newer root when the
// two are cross-signed.
const rootPath = 2

// commonName names a CA. Each generation has a name of its own, so that a certificate's issuer, a CRL's and
// an OCSP responder's is one key.
func (r role) commonName(generation int) string {
	name := fmt.Sprintf("%s %s %s CA", r.account, r.class, r.kind)
	switch r.kind {
	case RootCA:
		name = fmt.Sprintf("%s %s root", r.account, r.class)
	case IDevIDCA:
		name = fmt.Sprintf("%s IDevID CA of %s (%s)", r.oem, r.account, r.class)
	}
	if generation > 1 {
		name += fmt.Sprintf(" G%d", generation)
	}
	return name
}

// waiting is the refusal where a CA's certificate has to come from the account's root, which is kept elsewhere.
func (r role) waiting() error {
	oem := ""
	if r.oem != "" {
		oem = " --oem " + string(r.oem)
	}
	return cradle.Errorf(cradle.Busy, "the %s CA of account %s (%s) waits for its certificate from the account's external root", r.kind, r.account, r.class).
		WithHint("cradle ca csr %s --ca %s --class %s%s --out ca.csr; have it signed; cradle ca install %s ca.pem root.pem", r.account, r.kind, r.class, oem, r.account)
}

// newKey makes a key in the key store: for a CA, or for whoever signs beside one (an OCSP responder).
func (p *Provider) newKey(ctx context.Context, alg keystore.Algorithm, r role, name string) (PendingKey, error) {
	if p.apart {
		return PendingKey{}, errApart
	}
	key, ref, err := p.keys.Generate(ctx, name, alg)
	if err != nil {
		return PendingKey{}, fmt.Errorf("key of %s: %w", name, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	return PendingKey{ID: hexDigest(spki), Kind: r.kind, Account: r.account, OEM: r.oem, Class: r.class, CommonName: name, SPKI: spki, Key: ref, Created: p.now()}, err
}

// generation is the number of the next CA of a role.
func (d *directory) generation(r role) int {
	n := 1
	for _, a := range d.byID {
		if a.role() == r {
			n++
		}
	}
	return n
}

// of lists the CAs of an account, roots first, the newest of a kind first.
func (d *directory) of(account cradle.AccountID) []*authority {
	var out []*authority
	for _, a := range d.byID {
		if a.Account == account {
			out = append(out, a)
		}
	}
	order := []AuthorityKind{RootCA, OnboardingCA, OperationalCA, UnprovedCA, RegistrationCA, IDevIDCA}
	slices.SortFunc(out, func(a, b *authority) int {
		return cmp.Or(cmp.Compare(b.Class, a.Class), cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind)), cmp.Compare(a.OEM, b.OEM),
			cmp.Compare(a.State, b.State), b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// CAs lists an account's CAs, also those that are not active any more, and its keys that wait for a certificate.
func (p *Provider) CAs(ctx context.Context, account cradle.AccountID) ([]Authority, []PendingKey, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, nil, err
	}
	if err := p.reload(ctx); err != nil {
		return nil, nil, err
	}
	d := p.dir.Load()
	var out []Authority
	for _, a := range d.of(account) {
		out = append(out, a.Authority)
	}
	var keys []PendingKey
	for _, k := range d.pending {
		if k.Account == account {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b PendingKey) int { return cmp.Compare(a.CommonName, b.CommonName) })
	return out, keys, nil
}

// caRole checks what an operator says of a CA of an account.
func (p *Provider) caRole(ctx context.Context, account cradle.AccountID, kind AuthorityKind, oem cradle.OEMID, class cradle.Class) (role, *Account, error) {
	acc, err := p.account(ctx, account)
	if err != nil {
		return role{}, nil, err
	}
	if kind != RootCA && kind != IDevIDCA && kind != RegistrationCA && !slices.Contains(accountCAs, kind) {
		return role{}, nil, cradle.Errorf(cradle.Invalid, "an account has no %q CA", kind).WithHint("root, onboarding, operational, unproved, registration or idevid")
	}
	if class != cradle.Production && class != cradle.Evaluation {
		return role{}, nil, cradle.Errorf(cradle.Invalid, "no such class %q", class).WithHint("production or evaluation")
	}
	if (kind == IDevIDCA) != (oem != "") {
		return role{}, nil, cradle.Errorf(cradle.Invalid, "an idevid CA belongs to an OEM, and no other CA of an account does").WithHint("--ca idevid --oem NAME")
	}
	if oem != "" {
		if _, err := p.store.OEM(ctx, oem); err != nil {
			return role{}, nil, err
		}
	}
	return role{kind, account, oem, class}, acc, p.reload(ctx)
}

// CASigningRequest makes the PKCS#10 request for a CA of the account: for the key that waits for a certificate, else
// for the active CA's, else (or with fresh) for a new key, which then waits. For the root it is the request of a
// root that was superseded by one that is kept elsewhere, to be cross-signed there.
func (p *Provider) CASigningRequest(ctx context.Context, account cradle.AccountID, kind AuthorityKind, oem cradle.OEMID, class cradle.Class, fresh bool) ([]byte, error) {
	if p.apart {
		return nil, errApart
	}
	r, acc, err := p.caRole(ctx, account, kind, oem, class)
	if err != nil {
		return nil, err
	}
	d := p.dir.Load()
	spec := ca.Authority{Organization: string(account), Class: class, Unproved: kind.unproved()}
	if kind == RootCA {
		old := d.supersededRoot(r)
		if old == nil || fresh {
			return nil, cradle.Errorf(cradle.Invalid, "account %s has no %s root that was replaced by an external one", account, class).
				WithHint("a root is not signed by anybody; to have the account's CAs signed by an external root, ask for their requests")
		}
		spec.PathLen = rootPath - 1
		return ca.SigningRequest(old.issuer.Key, old.issuer.Cert, spec)
	}
	if a := d.byRole[r]; a != nil && !fresh && d.pending[r].ID == "" {
		return ca.SigningRequest(a.issuer.Key, a.issuer.Cert, spec)
	}
	k := d.pending[r]
	if k.ID == "" {
		if k, err = p.newKey(ctx, acc.CAs.Key, r, r.commonName(d.generation(r))); err != nil {
			return nil, err
		}
		leaf, err := p.operatorLeaf(ctx, string(account), "ca csr", map[string]any{"account": account, "oem": oem, "kind": kind, "class": class, "key": k.ID})
		if err != nil {
			return nil, err
		}
		if k, err = p.store.AddPendingKey(ctx, k, leaf); err != nil {
			return nil, err
		}
		if err := p.reload(ctx); err != nil {
			return nil, err
		}
	}
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return nil, err
	}
	key, err := p.keys.Open(ctx, k.Key, pub)
	if err != nil {
		return nil, err
	}
	spec.CommonName = k.CommonName
	return ca.SigningRequest(key, nil, spec)
}

// supersededRoot is the newest root of a role that is not active any more and whose key is kept here.
func (d *directory) supersededRoot(r role) *authority {
	var out *authority
	for _, a := range d.byID {
		if a.role() == r && a.State == SupersededCA && a.issuer.Key != nil && (out == nil || a.Created.After(out.Created)) {
			out = a
		}
	}
	return out
}

// RollCA gives a CA of the account a new key: the next certificate is signed by the new one, and the old
// one stays known, so that what it signed can be verified, renewed and revoked. A root is cross-signed with its
// predecessor at once. It returns the new CA.
func (p *Provider) RollCA(ctx context.Context, account cradle.AccountID, kind AuthorityKind, oem cradle.OEMID, class cradle.Class) (*Authority, error) {
	if p.apart {
		return nil, errApart
	}
	r, acc, err := p.caRole(ctx, account, kind, oem, class)
	if err != nil {
		return nil, err
	}
	d := p.dir.Load()
	if d.byRole[r] == nil {
		return nil, cradle.Errorf(cradle.NotFound, "account %s has no active %s CA of class %s", account, kind, class)
	}
	root := d.byRole[role{RootCA, account, "", class}]
	if root == nil || root.issuer.Key == nil {
		return nil, cradle.Errorf(cradle.Conflict, "the %s root of account %s is kept elsewhere", class, account).
			WithHint("cradle ca csr %s --ca %s --class %s --new-key --out ca.csr; have it signed; cradle ca install", account, kind, class)
	}
	name := r.commonName(d.generation(r))
	var a *authority
	crosses := map[string][][]byte{}
	if kind == RootCA {
		if a, err = p.newAuthority(ctx, acc.CAs.Key, r, name, string(account), rootPath, 0, nil); err != nil {
			return nil, err
		}
		if crosses[a.ID], err = p.crossPair(root, a); err != nil {
			return nil, err
		}
		crosses[a.ID] = append(crosses[a.ID], root.Cross...)
	} else {
		if a, err = p.newAuthority(ctx, acc.CAs.Key, r, name, string(account), 0, years(r), root); err != nil {
			return nil, err
		}
		if kind == IDevIDCA {
			if a.Cross, err = p.oemCross(a, r); err != nil {
				return nil, err
			}
		}
	}
	leaf, err := p.leafBy(ctx, string(account), ledger.KindAccount, map[string]any{"account": account, "oem": oem, "action": "ca roll", "authorities": []string{a.ID}, "roles": roles(a.Authority)})
	if err != nil {
		return nil, err
	}
	if err := p.store.InstallAuthorities(ctx, []Authority{a.Authority}, crosses, leaf); err != nil {
		return nil, err
	}
	return &a.Authority, p.reload(ctx)
}

func years(r role) int {
	if r.kind == RootCA || r.kind == IDevIDCA {
		return 0 // no end
	}
	return issuingYears
}

// oemCross certifies the key of an IDevID CA by the OEM's root.
func (p *Provider) oemCross(a *authority, r role) ([][]byte, error) {
	root, err := p.authority(OEMRootCA, "", r.oem, r.class)
	if err != nil {
		return nil, err
	}
	cross, err := ca.CrossSign(root.issuer, a.issuer.Cert, 0, cradle.ClassPolicies(r.class, true))
	if err != nil {
		return nil, err
	}
	return [][]byte{cross.Raw, root.Cert}, nil
}

// crossPair certifies two roots by each other, as far as their keys are here: NewWithOld lets those who trust the
// old one verify what is below the new one, OldWithNew the other way (RFC 4210 §4.4).
func (p *Provider) crossPair(old, next *authority) ([][]byte, error) {
	var out [][]byte
	for _, x := range []struct{ by, of *authority }{{old, next}, {next, old}} {
		if x.by.issuer.Key == nil {
			continue
		}
		c, err := ca.CrossSign(x.by.issuer, x.of.issuer.Cert, rootPath-1, cradle.ClassPolicies(old.Class, true), cradle.PolicyKeyNotProved)
		if err != nil {
			return nil, err
		}
		out = append(out, c.Raw)
	}
	return out, nil
}

// CrossRoots cross-signs the account's active root of a class with those that it superseded, as far as their keys
// are kept here, and returns the certificates, which cacerts serves from then on.
func (p *Provider) CrossRoots(ctx context.Context, account cradle.AccountID, class cradle.Class) ([][]byte, error) {
	if p.apart {
		return nil, errApart
	}
	r, _, err := p.caRole(ctx, account, RootCA, "", class)
	if err != nil {
		return nil, err
	}
	d := p.dir.Load()
	active := d.byRole[r]
	if active == nil {
		return nil, r.waiting()
	}
	crosses := slices.Clone(active.Cross)
	found := false
	for _, old := range d.of(account) {
		if old.role() != r || old.ID == active.ID {
			continue
		}
		found = true
		made, err := p.crossPair(old, active)
		if err != nil {
			return nil, err
		}
		for _, c := range made {
			if !sameCrossing(crosses, c) {
				crosses = append(crosses, c)
			}
		}
	}
	if !found {
		return nil, cradle.Errorf(cradle.Conflict, "account %s has had one %s root only", account, class).WithHint("cradle ca roll %s --ca root --class %s makes a second one and cross-signs the two", account, class)
	}
	leaf, err := p.operatorLeaf(ctx, string(account), "ca cross", map[string]any{"account": account, "class": class, "crosses": hexDigests(crosses)})
	if err != nil {
		return nil, err
	}
	if err := p.store.InstallAuthorities(ctx, nil, map[string][][]byte{active.ID: crosses}, leaf); err != nil {
		return nil, err
	}
	return crosses, p.reload(ctx)
}

// sameCrossing reports whether certs hold one of the same subject, key and issuer.
func sameCrossing(certs [][]byte, der []byte) bool {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(certs, func(b []byte) bool {
		o, err := x509.ParseCertificate(b)
		return err == nil && bytes.Equal(o.RawSubject, c.RawSubject) && bytes.Equal(o.RawIssuer, c.RawIssuer) &&
			bytes.Equal(o.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) && bytes.Equal(o.AuthorityKeyId, c.AuthorityKeyId)
	})
}

func hexDigests(certs [][]byte) []string {
	out := make([]string, len(certs))
	for i, c := range certs {
		out[i] = ca.Digest(c)
	}
	return out
}
