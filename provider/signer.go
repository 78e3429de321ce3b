package provider

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Signer turns stored intents into certificates. In the default install it is in this process and holds the
// issuing keys; it may be another process (DESIGN §5), which then judges the request again for itself.
type Signer interface {
	// Sign spends a permit: it signs, and stores the certificate with its leaf, which closes the intent. When it
	// fails no certificate has left the signer, and the intent is void, or open where the store's answer was lost.
	// Busy: the signer is away.
	Sign(ctx context.Context, pm Permit) (*Issued, error)
	// BirthNonce and Birth are Nonce and Enroll for an IAK or IDevID certificate. Births are the signer's from the
	// challenge on: who makes it knows the secret that shows that a TPM holds its attestation key.
	BirthNonce(ctx context.Context, e Endpoint, peer *x509.Certificate, claim json.RawMessage) (*NonceReply, error)
	Birth(ctx context.Context, r Request) (*Issued, error)
	// PrepareOrder makes the IDevID CA for an order that its account signed, unless there is one.
	PrepareOrder(ctx context.Context, jws []byte) error
	// AcceptOrder opens a countersigned order and certifies its station, as Provider.AcceptOrder.
	AcceptOrder(ctx context.Context, id cradle.OrderID, r order.AcceptRequest, providerURL string) (*order.Accepted, error)
}

// Permit asks for the one certificate that a stored intent allows.
type Permit struct {
	Intent  *Intent
	Request Request
	Made    []byte      // SPKI of the key that was made for the client (serverkeygen)
	TPM     *TPMRequest // of tpmenroll

	decided *decision // what this process found out about the request
}

// decision is what the provider found out about a request that it found right. It is made of the request,
// the records and the time alone, so that a signer apart comes to the same one.
type decision struct {
	cred   *Credential
	csr    *evidence.CSR
	wishes ca.Wishes
	dev    Device
	birth  bool
	auth   *authority

	operation Operation
	lineage   string        // of the certificate to be
	draft     *ca.Draft     // once it was found that it can be signed; made anew where it is nil
	made      crypto.Signer // serverkeygen: the key, made here
	tpm       *TPMRequest   // tpmenroll
	client    string        // without evidence: what the intent names as the authenticating party
	rests     *Rests        // the client's record was remembered
	expiry    time.Time     // with evidence: of the challenge
}

// key is what is to be certified.
func (d *decision) key() (pub crypto.PublicKey, spki []byte) {
	if d.made == nil {
		return d.csr.Request.PublicKey, d.csr.SPKI
	}
	spki, err := x509.MarshalPKIXPublicKey(d.made.Public())
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return d.made.Public(), spki
}

// proved reports whether the request had evidence.
func (d *decision) proved() bool { return d.client == "" }

// spends says what an intent names as the authenticating party, and what it spends.
func (d *decision) spends(r Request, intent string) (auth, once string) {
	switch {
	case d.proved():
		return d.cred.Cert.Digest, challengeKey(d.expiry, d.csr.Bundle.Challenge)
	case d.made != nil: // the key is kept nowhere, so that nothing can be answered again
		return d.client, "key/" + intent
	}
	return d.client, onceFor(r, d)
}

// inProcess is the signer of the default install: it believes its own provider's decision.
type inProcess struct{ p *Provider }

// Sign implements Signer.
func (s inProcess) Sign(ctx context.Context, pm Permit) (*Issued, error) {
	return s.p.sign(ctx, pm.Intent, pm.Request, pm.decided)
}

// BirthNonce implements Signer.
func (s inProcess) BirthNonce(ctx context.Context, e Endpoint, peer *x509.Certificate, claim json.RawMessage) (*NonceReply, error) {
	if !s.p.kindOf(e.Account, e.Profile).Birth() {
		return nil, cradle.Errorf(cradle.Forbidden, "profile %s is no birth", e.Profile)
	}
	return s.p.Nonce(ctx, e, peer, claim)
}

// Birth implements Signer.
func (s inProcess) Birth(ctx context.Context, r Request) (*Issued, error) {
	if !s.p.kindOf(r.Account, r.Profile).Birth() {
		return nil, cradle.Errorf(cradle.Forbidden, "profile %s is no birth", r.Profile)
	}
	return s.p.enroll(ctx, r)
}

// PrepareOrder implements Signer.
func (s inProcess) PrepareOrder(ctx context.Context, jws []byte) error {
	return s.p.prepareOrder(ctx, jws)
}

// AcceptOrder implements Signer.
func (s inProcess) AcceptOrder(ctx context.Context, id cradle.OrderID, r order.AcceptRequest, providerURL string) (*order.Accepted, error) {
	return s.p.acceptOrder(ctx, id, r, providerURL)
}

// sign makes the certificate that was decided on and stores it with its leaf.
func (p *Provider) sign(ctx context.Context, in *Intent, r Request, d *decision) (*Issued, error) {
	now, changes := p.now(), p.feed.changes.Load()
	serial, err := ca.ParseSerial(in.Serial)
	if err != nil {
		return nil, err
	}
	if d.draft == nil {
		l, err := p.leafFor(r, d, now)
		if err == nil {
			d.draft, err = ca.NewDraft(d.auth.issuer, serial, l)
		}
		if err != nil {
			return nil, errors.Join(err, p.store.VoidIssue(context.WithoutCancel(ctx), in.ID, err.Error()))
		}
	}
	der, err := d.draft.Sign(ca.NewPermit(in.ID, serial))
	if err != nil {
		return nil, errors.Join(err, p.store.VoidIssue(context.WithoutCancel(ctx), in.ID, err.Error()))
	}
	out := &Issued{DER: der}
	if out.Replaced, err = d.draft.Replaced(d.wishes, der); err != nil {
		return nil, err
	}
	row := Certificate{Digest: ca.Digest(der), Serial: in.Serial, Account: in.Account, Device: in.Device, Profile: in.Profile, Authority: d.auth.ID,
		DER: der, NotBefore: d.draft.NotBefore.UTC(), NotAfter: d.draft.NotAfter.UTC(), Intent: in.ID, Issued: now, Lineage: in.Lineage}
	body := map[string]any{"certificate": row.Digest, "serial": row.Serial, "device": in.Device,
		"profile": in.Profile, "order": d.dev.Order, "unit": d.dev.Serial, "ek": d.dev.EKDigest, "intent": in.ID, "authenticated_by": in.AuthCert,
		"csr": in.CSR, "tier": d.dev.Tier, "maker": d.dev.Maker, "proved": d.proved(), "replaced": out.Replaced, "challenge": in.Challenge, "lineage": in.Lineage}
	if d.dev.Origin != "" {
		body["origin"] = d.dev.Origin
	}
	if d.made != nil {
		body["key"] = "server"
	}
	if d.birth {
		born := d.dev.Row()
		body["record"] = born.Record()
		if len(d.dev.Issuers) > 0 {
			body["ek_issuers"], body["settings"] = d.dev.Issuers, settings(EKIssuersSetting(d.dev.ID, d.dev.Issuers))
		}
	}
	if d.activated() { // secret until it is used
		row.Salt = newSalt()
		body["commitment"] = ledger.Commitment(row.Salt, row.Digest)
		delete(body, "certificate")
		delete(body, "serial")
	}
	leaf, err := p.leaf(string(in.Account), ledger.KindIssuance, body)
	if err != nil {
		return nil, err
	}
	if err := p.store.FinishIssue(ctx, in.ID, row, leaf); err != nil {
		return nil, err
	}
	p.verified.add(row.Digest)                                       // signed here, by the key that the row names
	if !d.activated() && !p.kindOf(in.Account, in.Profile).Birth() { // usable from now on
		row.Slot = Current // the first of its lineage is; of a later one the transaction that rests on it knows better
		if in.AuthProfile == in.Profile {
			row.Slot = Next
		}
		p.remembered.put(Credential{Cert: row, Device: d.dev}, now, changes)
	}
	return out, nil
}
