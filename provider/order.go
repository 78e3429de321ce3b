package provider

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// openOrder is an order whose two signatures were verified, ready to judge units by.
type openOrder struct {
	*order.Order
	row   Order
	rules attest.Rules
}

// orderCache keeps verified orders: their signed content never changes. Whether an order is still open
// is decided in the transaction that reserves (Store.BeginIssue).
type orderCache struct {
	mu sync.Mutex
	m  map[cradle.OrderID]*openOrder
}

const orderCacheSize = 1024

func (p *Provider) openOrder(ctx context.Context, id cradle.OrderID) (*openOrder, error) {
	p.orders.mu.Lock()
	o := p.orders.m[id]
	p.orders.mu.Unlock()
	if o != nil {
		return o, nil
	}
	row, acc, oem, err := p.parties(ctx, id)
	if err != nil {
		return nil, err
	}
	if row.State != OrderOpen {
		e := cradle.Errorf(cradle.Forbidden, "order %s is %s", id, row.State)
		if row.State == OrderSigned {
			return nil, e.WithHint("the OEM has to countersign it: cradle-oem order accept FILE")
		}
		return nil, e
	}
	ord, err := verifyOrder(row.JWS, acc.OrderKey, oem.OrderKey)
	if err != nil {
		return nil, err
	}
	o = &openOrder{ord, row, attest.Rules{Tiers: ord.Tiers, Makers: ord.TPMMakers, EKTypes: ord.EKTypes}}
	p.orders.mu.Lock()
	defer p.orders.mu.Unlock()
	if p.orders.m == nil || len(p.orders.m) >= orderCacheSize {
		p.orders.m = map[cradle.OrderID]*openOrder{}
	}
	p.orders.m[id] = o
	return o, nil
}

// parties finds an order with its account and its OEM.
func (p *Provider) parties(ctx context.Context, id cradle.OrderID) (row Order, acc *Account, oem *OEM, err error) {
	if row, err = p.Order(ctx, id); err != nil {
		return row, nil, nil, err
	}
	if acc, err = p.account(ctx, row.Account); err != nil {
		return row, nil, nil, err
	}
	o, err := p.store.OEM(ctx, row.OEM)
	return row, acc, &o, err
}

func (p *Provider) forgetOrder(id cradle.OrderID) {
	p.orders.mu.Lock()
	delete(p.orders.m, id)
	p.orders.mu.Unlock()
}

// verifyOrder checks an order's signatures; oemKey nil leaves out the countersignature.
func verifyOrder(jws, accountKey, oemKey []byte) (*order.Order, error) {
	a, err := order.ParsePublic(accountKey)
	if err != nil {
		return nil, err
	}
	var o *ecdsa.PublicKey
	if oemKey != nil {
		if o, err = order.ParsePublic(oemKey); err != nil {
			return nil, err
		}
	}
	return order.Verify(jws, a, o)
}

// checkUnit refuses a unit outside the order. The quantity is not looked at here but in the
// transaction that reserves it, where a unit personalised before counts once.
func (o *openOrder) checkUnit(now time.Time, ek attest.EKFacts, serial string) error {
	return order.Refusal(o.Order, o.CheckUnit(now, order.Facts{EKMaker: ek.Maker, Tier: ek.Tier, EKType: ek.Type, Serial: serial,
		KeyAlgorithm: order.KeyECDSAP256}))
}

// CreateOrder registers an order signed by its account. may decides whether the caller acts for that account.
func (p *Provider) CreateOrder(ctx context.Context, jws []byte, may func(cradle.AccountID) error) (*Order, error) {
	peek, err := order.Peek(jws)
	if err != nil {
		return nil, err
	}
	if err := may(peek.Account); err != nil {
		return nil, err
	}
	acc, err := p.account(ctx, peek.Account)
	if err != nil {
		return nil, err
	}
	o, err := verifyOrder(jws, acc.OrderKey, nil)
	if err != nil {
		return nil, err
	}
	if o.InstallLDevID {
		return nil, cradle.Errorf(cradle.Invalid, "install_ldevid: lines of this version install no LDevID").
			WithHint("leave it out: the agent enrols for its LDevID at first power-on")
	}
	if _, err := p.store.OEM(ctx, o.OEM); err != nil {
		return nil, err
	}
	root, err := p.authority(RootCA, o.Account, "", o.Class())
	if err != nil {
		return nil, err
	}
	anchors, err := order.Anchors(o.AccountAnchors)
	if err != nil {
		return nil, err
	}
	found := false
	for _, a := range anchors {
		found = found || a.Equal(root.issuer.Cert)
	}
	if !found {
		return nil, cradle.Errorf(cradle.Invalid, "the order's account anchors do not hold the %s root of account %s", o.Class(), o.Account).
			WithHint("leave account_anchors out: cradle order create fills them in")
	}
	if err := p.signer.PrepareOrder(ctx, jws); err != nil {
		return nil, err
	}
	if p.apart { // what the signer made
		if err := p.reload(ctx); err != nil {
			return nil, err
		}
	}
	row := Order{ID: o.ID, Account: o.Account, OEM: o.OEM, JWS: jws, Quantity: o.Quantity, State: OrderSigned, Created: p.now()}
	leaf, err := p.leafBy(ctx, string(o.Account), ledger.KindOrder, map[string]any{"order": o.ID, "digest": o.Digest(), "oem": o.OEM, "quantity": o.Quantity, "state": OrderSigned})
	if err != nil {
		return nil, err
	}
	return &row, p.store.CreateOrder(ctx, row, leaf)
}

// prepareOrder makes what an order needs of issuing keys.
func (p *Provider) prepareOrder(ctx context.Context, jws []byte) error {
	peek, err := order.Peek(jws)
	if err != nil {
		return err
	}
	acc, err := p.account(ctx, peek.Account)
	if err != nil {
		return err
	}
	o, err := verifyOrder(jws, acc.OrderKey, nil)
	if err != nil {
		return err
	}
	_, err = p.idevidCA(ctx, o.Account, o.OEM, o.Class())
	return err
}

// PrepareOrder is the signer's side of Signer.PrepareOrder. It rereads the directory first: a TPM maker that was
// imported at a front end before the order is known here from then on.
func (p *Provider) PrepareOrder(ctx context.Context, jws []byte) error {
	if err := p.reload(ctx); err != nil {
		return err
	}
	return p.signer.PrepareOrder(ctx, jws)
}

// Order returns an order.
func (p *Provider) Order(ctx context.Context, id cradle.OrderID) (Order, error) {
	if err := cradle.CheckID("order", string(id)); err != nil {
		return Order{}, err
	}
	return p.store.Order(ctx, id)
}

// CheckOrder is NotFound unless it is an order of the account.
func (p *Provider) CheckOrder(ctx context.Context, account cradle.AccountID, id cradle.OrderID) error {
	o, err := p.store.Order(ctx, id)
	if cradle.KindOf(err) == cradle.NotFound || err == nil && o.Account != account {
		return cradle.Errorf(cradle.NotFound, "account %s has no order %.80q", account, id).WithHint("cradle order show %.80s says whose it is", id)
	}
	return err
}

// stationLife is how long a station's certificate works; the order may end sooner.
const stationLife = 365 * 24 * time.Hour

// AcceptOrder takes an OEM's countersigned order and gives its station a certificate for this order. It
// needs no token: the countersignature is by the OEM's registered key.
func (p *Provider) AcceptOrder(ctx context.Context, id cradle.OrderID, r order.AcceptRequest, providerURL string) (*order.Accepted, error) {
	return p.signer.AcceptOrder(ctx, id, r, providerURL)
}

func (p *Provider) acceptOrder(ctx context.Context, id cradle.OrderID, r order.AcceptRequest, providerURL string) (*order.Accepted, error) {
	row, acc, oem, err := p.parties(ctx, id)
	if err != nil {
		return nil, err
	}
	o, err := verifyOrder(r.Order, acc.OrderKey, oem.OrderKey)
	if err != nil {
		return nil, err
	}
	registered, err := verifyOrder(row.JWS, acc.OrderKey, nil)
	if err != nil {
		return nil, err
	}
	if o.ID != id || o.Digest() != registered.Digest() {
		return nil, cradle.Errorf(cradle.Conflict, "this is not the order %s that the account registered", id).WithHint("get the order file again from the account")
	}
	now := p.now()
	if !now.Before(o.NotAfter) {
		return nil, cradle.Errorf(cradle.Forbidden, "order %s expired on %s", id, o.NotAfter.Format(time.RFC3339))
	}
	csr, err := x509.ParseCertificateRequest(r.StationCSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "the station's CSR: %v", err)
	}
	if !isP256(csr.PublicKey) || csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return nil, cradle.Errorf(cradle.Invalid, "the station's CSR is not signed by an EC P-256 key with SHA-256")
	}
	leaf, err := p.leaf(string(row.Account), ledger.KindOrder, map[string]any{"order": id, "digest": o.Digest(), "oem": o.OEM, "state": OrderOpen})
	if err != nil {
		return nil, err
	}
	if err := p.store.OpenOrder(ctx, id, r.Order, leaf); err != nil {
		return nil, err
	}
	station, err := p.authority(StationCA, "", o.OEM, "")
	if err != nil {
		return nil, err
	}
	end := now.Add(stationLife)
	if o.NotAfter.Before(end) {
		end = o.NotAfter
	}
	cert, err := ca.Station(station.issuer, csr.PublicKey, o.OEM, id, now.Add(-ca.Backdate).Truncate(time.Second), end.Truncate(time.Second))
	if err != nil {
		return nil, err
	}
	c := Certificate{Digest: ca.Digest(cert.Raw), Serial: ca.SerialString(cert.SerialNumber), Account: row.Account, Device: cradle.DeviceID(id),
		Profile: StationProfile, Lineage: string(StationProfile), Authority: station.ID, DER: cert.Raw, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Issued: now}
	if leaf, err = p.leaf(string(row.Account), ledger.KindStation, map[string]any{"order": id, "certificate": c.Digest, "serial": c.Serial}); err != nil {
		return nil, err
	}
	if err := p.store.StoreStation(ctx, id, c, leaf); err != nil {
		return nil, err
	}
	idevid, err := p.idevidCA(ctx, o.Account, o.OEM, o.Class())
	if err != nil {
		return nil, err
	}
	root, err := p.authority(RootCA, o.Account, "", o.Class())
	if err != nil {
		return nil, err
	}
	est := providerURL + "/.well-known/est/"
	return &order.Accepted{Order: id, StationCertificate: cert.Raw, StationIssuer: station.Cert,
		IAKURL: est + cradle.Label(o.Account, cradle.IAK), IDevIDURL: est + cradle.Label(o.Account, cradle.IDevID),
		IDevIDChain: [][]byte{idevid.Cert}, AccountAnchors: [][]byte{root.Cert}}, nil
}

// WithdrawOrder ends an order: no further unit is born under it. It returns the devices that were,
// whose standing the account may want to change.
func (p *Provider) WithdrawOrder(ctx context.Context, id cradle.OrderID, reason string) ([]cradle.DeviceID, error) {
	row, err := p.Order(ctx, id)
	if err != nil {
		return nil, err
	}
	leaf, err := p.leafBy(ctx, string(row.Account), ledger.KindOrder, map[string]any{"order": id, "state": OrderWithdrawn, "reason": reason})
	if err != nil {
		return nil, err
	}
	if err := p.store.WithdrawOrder(ctx, id, reason, leaf); err != nil {
		return nil, err
	}
	p.forgetOrder(id)
	var out []cradle.DeviceID
	for f := (DeviceFilter{Order: id}); ; {
		page, err := p.store.DeviceList(ctx, row.Account, f)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return out, nil
		}
		for _, d := range page {
			out = append(out, d.ID)
		}
		f.After = out[len(out)-1]
	}
}

// Account returns an account with its CAs.
func (p *Provider) Account(ctx context.Context, id cradle.AccountID) (*Account, []Authority, error) {
	a, err := p.account(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	var cas []Authority
	d := p.dir.Load()
	for _, class := range []cradle.Class{cradle.Production, cradle.Evaluation} {
		for _, k := range []AuthorityKind{RootCA, OnboardingCA, OperationalCA, UnprovedCA, RegistrationCA} {
			if x := d.byRole[role{k, id, "", class}]; x != nil {
				cas = append(cas, x.Authority)
			}
		}
	}
	return a, cas, nil
}
