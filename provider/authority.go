package provider

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func (p *Provider) openAuthority(ctx context.Context, a Authority) (*authority, error) {
	cert, err := x509.ParseCertificate(a.Cert)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", a.ID, err)
	}
	iss := &ca.Issuer{ID: a.ID, Cert: cert, Points: p.points(a.ID, a.Kind)}
	if a.Class != "" && len(ca.MissingPolicies(cert, a.Class, a.Kind.unproved())) == len(cradle.ClassPolicies(a.Class, true)) {
		iss.Policies = cradle.ClassPolicies(a.Class, !a.Kind.unproved()) // another's CA left all of them out
	}
	if a.Key.Ref == "" || p.apart { // a root that is kept elsewhere, a key that was lost with an earlier store; a front end
		return &authority{a, iss}, nil
	}
	key, err := p.keys.Open(ctx, a.Key, cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%s CA %s: %w", a.Kind, a.ID, err)
	}
	iss.Key = ca.Proved(key)
	return &authority{a, iss}, nil
}

func (p *Provider) authority(k AuthorityKind, acc cradle.AccountID, oem cradle.OEMID, c cradle.Class) (*authority, error) {
	if a := p.dir.Load().byRole[role{k, acc, oem, c}]; a != nil {
		return a, nil
	}
	if d := p.dir.Load(); d.pending[role{k, acc, oem, c}].ID != "" {
		return nil, role{k, acc, oem, c}.waiting()
	}
	return nil, cradle.Errorf(cradle.NotFound, "no %s CA for account %q, OEM %q, class %q", k, acc, oem, c)
}

// newAuthority makes a key and its CA certificate under parent (nil: self-signed).
func (p *Provider) newAuthority(ctx context.Context, alg keystore.Algorithm, r role, name string, org string, pathLen int, years int, parent *authority) (*authority, error) {
	k, err := p.newKey(ctx, alg, r, name)
	if err != nil {
		return nil, err
	}
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return nil, err
	}
	key, err := p.keys.Open(ctx, k.Key, pub)
	if err != nil {
		return nil, err
	}
	now := p.now().Truncate(time.Second)
	spec := ca.Authority{Organization: org, CommonName: name, Class: r.class, PathLen: pathLen,
		Unproved: r.kind.unproved(), NotBefore: now.Add(-ca.Backdate), NotAfter: ca.Forever}
	if years > 0 {
		spec.NotAfter = now.AddDate(years, 0, 0)
	}
	var iss *ca.Issuer
	var chain [][]byte
	if parent != nil {
		iss = parent.issuer
		chain = append([][]byte{parent.Cert}, parent.Chain...)
		if spec.NotAfter.After(iss.Cert.NotAfter) {
			spec.NotAfter = iss.Cert.NotAfter
		}
	}
	cert, err := ca.SignAuthority(iss, pub, spec, key)
	if err != nil {
		return nil, err
	}
	return p.openAuthority(ctx, Authority{ID: ca.Digest(cert.Raw), Kind: r.kind, Account: r.account, OEM: r.oem, Class: r.class, Cert: cert.Raw,
		Chain: chain, Key: k.Key, State: ActiveCA, Created: now})
}

// idevidCA returns the CA that signs IDevIDs of this OEM for this account and class, making it at the
// first order: certified by the account's root (so that every chain of a device ends there alone) and
// by the OEM's IDevID root.
func (p *Provider) idevidCA(ctx context.Context, account cradle.AccountID, oem cradle.OEMID, class cradle.Class) (*authority, error) {
	r := role{IDevIDCA, account, oem, class}
	if a := p.dir.Load().byRole[r]; a != nil {
		return a, nil
	}
	root, err := p.authority(RootCA, account, "", class)
	if err != nil {
		return nil, err
	}
	if root.issuer.Key == nil {
		if _, err := p.CASigningRequest(ctx, account, IDevIDCA, oem, class, false); err != nil {
			return nil, err
		}
		return nil, r.waiting()
	}
	acc, err := p.account(ctx, account)
	if err != nil {
		return nil, err
	}
	a, err := p.newAuthority(ctx, acc.CAs.Key, r, r.commonName(1), string(account), 0, 0, root)
	if err != nil {
		return nil, err
	}
	if a.Cross, err = p.oemCross(a, r); err != nil {
		return nil, err
	}
	leaf, err := p.leafBy(ctx, string(account), ledger.KindAccount, map[string]any{"account": account, "oem": oem, "authorities": []string{a.ID}, "roles": roles(a.Authority)})
	if err != nil {
		return nil, err
	}
	if _, err := p.store.AddAuthority(ctx, a.Authority, leaf); err != nil {
		return nil, err
	}
	if err := p.reload(ctx); err != nil {
		return nil, err
	}
	return p.authority(r.kind, account, oem, class)
}

func digests(cas []Authority) []string {
	out := make([]string, len(cas))
	for i := range cas {
		out[i] = cas[i].Digest()
	}
	return out
}

// roles is what an account's leaf says that CAs are for.
func roles(cas ...Authority) map[string]string {
	out := map[string]string{}
	for i := range cas {
		d := cas[i].Digest()
		out[d] = strings.TrimSpace(out[d] + " " + ledger.Role(string(cas[i].Kind), string(cas[i].Class), string(cas[i].OEM))) // a root may be of both classes
	}
	return out
}
