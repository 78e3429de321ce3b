package provider

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// directory is a snapshot of what changes seldom; replaced whole by reload.
type directory struct {
	at        time.Time // when it was read
	accounts  map[cradle.AccountID]*Account
	profiles  map[cradle.AccountID]Profiles
	oems      map[cradle.OEMID]*OEM
	byID      map[string]*authority
	byRole    map[role]*authority // the active ones
	issuing   map[string]bool     // SHA-256 of the SPKI of each authority, hexadecimal
	pending   map[role]PendingKey
	anchors   *attest.AnchorSet
	clients   clientProfiles
	count     int // anchors
	makers    []Anchor
	distrusts []Distrusted
	caCerts   sync.Map // Endpoint -> *caCerts: as many as there are profiles

	serialsOnce sync.Once
	serials     map[cradle.CertSerial]string // of CA certificates: who signed them
}

type role struct {
	kind    AuthorityKind
	account cradle.AccountID
	oem     cradle.OEMID
	class   cradle.Class
}

type authority struct {
	Authority
	issuer *ca.Issuer
}

func (p *Provider) reload(ctx context.Context) error {
	p.dirMu.Lock()
	defer p.dirMu.Unlock()
	if err := p.loadRestored(ctx); err != nil {
		return fmt.Errorf("reading the restoration: %w", err)
	}
	old := p.dir.Load()
	d := &directory{at: p.now(), accounts: map[cradle.AccountID]*Account{}, profiles: map[cradle.AccountID]Profiles{}, oems: map[cradle.OEMID]*OEM{},
		byID: map[string]*authority{}, byRole: map[role]*authority{}, issuing: map[string]bool{}, pending: map[role]PendingKey{}}
	accounts, err := p.store.Accounts(ctx)
	if err != nil {
		return fmt.Errorf("reading accounts: %w", err)
	}
	for i := range accounts {
		d.accounts[accounts[i].ID] = &accounts[i]
		d.profiles[accounts[i].ID] = p.readProfiles(&accounts[i], old)
	}
	oems, err := p.store.OEMs(ctx)
	if err != nil {
		return fmt.Errorf("reading OEMs: %w", err)
	}
	for i := range oems {
		d.oems[oems[i].ID] = &oems[i]
	}
	cas, err := p.store.Authorities(ctx)
	if err != nil {
		return fmt.Errorf("reading authorities: %w", err)
	}
	for _, a := range cas {
		if old != nil && old.byID[a.ID] != nil { // certificate and key never change
			d.put(&authority{a, old.byID[a.ID].issuer})
			continue
		}
		open, err := p.openAuthority(ctx, a)
		if err != nil {
			return err
		}
		d.put(open)
	}
	waiting, err := p.store.PendingKeys(ctx)
	if err != nil {
		return fmt.Errorf("reading keys that wait: %w", err)
	}
	for _, k := range waiting {
		d.pending[k.role()] = k
	}
	anchors, err := p.store.Anchors(ctx)
	if err != nil {
		return fmt.Errorf("reading TPM makers' anchors: %w", err)
	}
	if d.distrusts, err = p.store.Distrusts(ctx); err != nil {
		return fmt.Errorf("reading distrusted keys: %w", err)
	}
	if d.anchors, err = anchorSet(anchors, d.distrusts, p.ekCache); err != nil {
		return err
	}
	d.makers = anchors
	d.count = len(anchors)
	if d.clients, err = p.readClients(ctx); err != nil {
		return fmt.Errorf("reading clients: %w", err)
	}
	p.dir.Store(d)
	return nil
}

// rereadEvery is how often somebody who is not in the directory may cause a look into the store.
const rereadEvery = time.Second

// reread brings the directory up to date for the sake of who is not in it: another replica may have put him there a moment
// ago. It reports whether it did.
func (p *Provider) reread(ctx context.Context) (bool, error) {
	if p.now().Sub(p.dir.Load().at).Abs() < rereadEvery {
		return false, nil
	}
	return true, p.reload(ctx)
}

func (d *directory) put(a *authority) {
	d.byID[a.ID] = a
	d.issuing[hexDigest(a.issuer.Cert.RawSubjectPublicKeyInfo)] = true
	if a.State == ActiveCA {
		d.byRole[role{a.Kind, a.Account, a.OEM, a.Class}] = a
	}
}

func anchorSet(rows []Anchor, distrusts []Distrusted, cache *attest.Cache) (*attest.AnchorSet, error) {
	anchors := make([]attest.Anchor, 0, len(rows))
	for _, r := range rows {
		cert, err := attest.ParseAnchor(r.Cert)
		if err != nil {
			return nil, fmt.Errorf("TPM maker's anchor %s: %w", r.Fingerprint, err)
		}
		anchors = append(anchors, attest.Anchor{Maker: r.Maker, Tier: r.Tier, Cert: cert, Distrusted: r.Distrusted})
	}
	var keys []string
	for _, x := range distrusts {
		if x.Kind == DistrustedIssuer {
			keys = append(keys, x.Digest)
		}
	}
	return attest.NewAnchorSet(anchors, keys...).WithCache(cache), nil
}

// deniedEK reports whether an endorsement key is distrusted by itself (attest.Denied).
func (d *directory) deniedEK(digest string) bool {
	return slices.ContainsFunc(d.distrusts, func(x Distrusted) bool { return x.Kind == DistrustedEK && x.Digest == digest })
}

// account finds an account, rereading the directory once: another replica may have made it.
func (p *Provider) account(ctx context.Context, id cradle.AccountID) (*Account, error) {
	if a := p.dir.Load().accounts[id]; a != nil {
		return a, nil
	}
	if cradle.CheckID("account", string(id)) == nil {
		if _, err := p.store.Account(ctx, id); err == nil {
			if err := p.reload(ctx); err != nil {
				return nil, err
			}
			if a := p.dir.Load().accounts[id]; a != nil {
				return a, nil
			}
		} else if cradle.KindOf(err) != cradle.NotFound {
			return nil, err
		}
	}
	return nil, cradle.Errorf(cradle.NotFound, "no account %q", id).WithHint("cradle account create %s", id)
}

// CreateAccount makes an account with its roots and issuing CAs for both classes; with an external root, with the
// keys alone, which wait for their certificates.
// orderKey is the SPKI of the key that will sign its orders.
func (p *Provider) CreateAccount(ctx context.Context, id cradle.AccountID, orderKey []byte, pr Profiles, c CAs) (*Account, error) {
	if err := cradle.CheckID("account", string(id)); err != nil {
		return nil, err
	}
	if len(id) > 40 {
		return nil, cradle.Errorf(cradle.Invalid, "account name has %d characters; at most 40, since labels and device names are made from it", len(id))
	}
	if string(id) == InstallationLog {
		return nil, cradle.Errorf(cradle.Invalid, "account name %q is reserved", id)
	}
	pr, err := pr.complete()
	if err != nil {
		return nil, err
	}
	if c.Key, err = keystore.ParseAlgorithm(string(c.Key)); err != nil {
		return nil, err
	}
	if _, err := order.ParsePublic(orderKey); err != nil {
		return nil, err
	}
	if err := p.openAll(); err != nil { // the account may be among what the store has lost
		return nil, err
	}
	if _, err := p.store.Account(ctx, id); err == nil { // before keys are made for nothing
		return nil, AccountExists(id)
	} else if cradle.KindOf(err) != cradle.NotFound {
		return nil, err
	}
	var cas []Authority
	var waiting []PendingKey
	for _, class := range []cradle.Class{cradle.Production, cradle.Evaluation} {
		var root *authority
		if !c.External {
			r := role{RootCA, id, "", class}
			if root, err = p.newAuthority(ctx, c.Key, r, r.commonName(1), string(id), rootPath, years(r), nil); err != nil {
				return nil, err
			}
			cas = append(cas, root.Authority)
		}
		for _, kind := range accountCAs {
			r := role{kind, id, "", class}
			if c.External {
				k, err := p.newKey(ctx, c.Key, r, r.commonName(1))
				if err != nil {
					return nil, err
				}
				waiting = append(waiting, k)
				continue
			}
			a, err := p.newAuthority(ctx, c.Key, r, r.commonName(1), string(id), 0, years(r), root)
			if err != nil {
				return nil, err
			}
			cas = append(cas, a.Authority)
		}
	}
	a := Account{ID: id, Region: p.region, OrderKey: orderKey, Profiles: pr.texts(), CAs: c, Created: p.now()}
	leaf, err := p.leafBy(ctx, string(id), ledger.KindAccount, map[string]any{"account": id, "region": a.Region,
		"order_key": hexDigest(orderKey), "authorities": digests(cas), "roles": roles(cas...), "profiles": pr.digests()})
	if err != nil {
		return nil, err
	}
	if err := p.store.CreateAccount(ctx, a, cas, waiting, leaf); err != nil {
		return nil, err
	}
	return &a, p.reload(ctx)
}

// AccountExists is the refusal of a second account of that name.
func AccountExists(id cradle.AccountID) error {
	return cradle.Errorf(cradle.Conflict, "account %q exists already", id).WithHint("choose another name, or look at it: cradle account show %s", id)
}

// CreateOEM registers a device maker by its public keys and makes its IDevID CAs and station CA.
func (p *Provider) CreateOEM(ctx context.Context, id cradle.OEMID, public order.OEMPublic) (*OEM, []Authority, error) {
	if err := cradle.CheckID("OEM", string(id)); err != nil {
		return nil, nil, err
	}
	orderKey, err := x509.MarshalPKIXPublicKey(public.Order)
	if err != nil {
		return nil, nil, err
	}
	lotKey, err := x509.MarshalPKIXPublicKey(public.Lot)
	if err != nil {
		return nil, nil, err
	}
	var cas []Authority
	for _, class := range []cradle.Class{cradle.Production, cradle.Evaluation} {
		root, err := p.newAuthority(ctx, keystore.P256, role{OEMRootCA, "", id, class}, fmt.Sprintf("%s %s IDevID root", id, class), string(id), 1, 0, nil)
		if err != nil {
			return nil, nil, err
		}
		cas = append(cas, root.Authority)
	}
	station, err := p.newAuthority(ctx, keystore.P256, role{StationCA, "", id, ""}, string(id)+" station CA", string(id), 0, 30, nil)
	if err != nil {
		return nil, nil, err
	}
	cas = append(cas, station.Authority)
	o := OEM{ID: id, OrderKey: orderKey, LotKey: lotKey, Created: p.now()}
	leaf, err := p.leafBy(ctx, InstallationLog, ledger.KindOEM, map[string]any{"oem": id, "order_key": hexDigest(orderKey),
		"lot_key": hexDigest(lotKey), "authorities": digests(cas)})
	if err != nil {
		return nil, nil, err
	}
	if err := p.store.CreateOEM(ctx, o, cas, leaf); err != nil {
		return nil, nil, err
	}
	return &o, cas, p.reload(ctx)
}

// ImportMaker adds a TPM maker's CA certificates under one maker id and tier. It returns how many were new.
func (p *Provider) ImportMaker(ctx context.Context, maker cradle.MakerID, tier cradle.Tier, certs [][]byte) ([]Anchor, int, error) {
	if err := cradle.CheckID("TPM maker", string(maker)); err != nil {
		return nil, 0, err
	}
	if _, err := cradle.ParseTier(string(tier)); err != nil {
		return nil, 0, err
	}
	var anchors []Anchor
	for i, der := range certs {
		c, err := attest.ParseAnchor(der)
		if err != nil {
			return nil, 0, cradle.Errorf(cradle.Invalid, "certificate %d of the bundle: %v", i+1, err)
		}
		if !c.IsCA {
			return nil, 0, cradle.Errorf(cradle.Invalid, "certificate %d (%s) is not a CA certificate", i+1, c.Subject)
		}
		anchors = append(anchors, Anchor{Fingerprint: ca.Digest(c.Raw), Maker: maker, Tier: tier, Cert: c.Raw, Imported: p.now()})
	}
	if len(anchors) == 0 {
		return nil, 0, cradle.Errorf(cradle.Invalid, "the bundle holds no certificate").WithHint("give a PEM file of CA certificates")
	}
	fps := make([]string, len(anchors))
	for i := range anchors {
		fps[i] = anchors[i].Fingerprint
	}
	leaf, err := p.operatorLeaf(ctx, InstallationLog, "tpm-maker import", map[string]any{"maker": maker, "tier": tier, "anchors": fps})
	if err != nil {
		return nil, 0, err
	}
	added, err := p.store.ImportAnchors(ctx, anchors, leaf)
	if err != nil {
		return nil, 0, err
	}
	return anchors, added, p.reload(ctx)
}

func isP256(k any) bool {
	e, ok := k.(*ecdsa.PublicKey)
	return ok && e.Curve == elliptic.P256()
}
