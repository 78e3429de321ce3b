package provider

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// party is who a client turned out to be: the holder of one of our certificates (Credential is whole), a user of
// HTTP Basic, or a unit of another CA (Credential holds at most the device).
type party struct {
	Credential
	origin string          // the credential by which a device of its comes; empty for our certificates
	auth   string          // what the intent names: a certificate's digest or basic/USER
	fixed  cradle.DeviceID // the only name it may have
	had    *Device         // with fixed, when it was looked for: the device of that name, zero when there is none
	names  string          // pattern of the names it may wish for
	tier   cradle.Tier
	// registrar: a registration authority, which asks for a device that has another credential.
	registrar bool
}

// issued reports whether the client holds a certificate of ours.
func (pt *party) issued() bool { return pt.Cert.Digest != "" }

// identify finds out who the client is. A certificate of ours decides; one of another CA is looked at where its CA
// is registered for this very profile; a password where the client has no certificate that is known here.
// Another CA's certificate lets a client in to enrol and no more (RFC 7030 §3.3.2). With m the record may be a remembered one.
func (p *Provider) identify(ctx context.Context, e Endpoint, c Client, m *memory) (*party, error) {
	pt, err := p.identifyBy(ctx, p.clients(e), e, c, m)
	if cradle.KindOf(err) != cradle.Unauthorized || c.Peer == nil && c.Basic == nil {
		return pt, err
	}
	known := p.clients(e)
	if read, rerr := p.reread(ctx); rerr != nil || !read {
		return nil, cmp.Or(rerr, err)
	}
	if with := p.clients(e); with.admitsMore(known) { // registered at another replica a moment ago
		return p.identifyBy(ctx, with, e, c, m)
	}
	return nil, err
}

// identifyBy is identify by the clients that are registered for the endpoint; nil is none.
func (p *Provider) identifyBy(ctx context.Context, with *clientsOf, e Endpoint, c Client, m *memory) (*party, error) {
	if c.Peer != nil {
		if m != nil {
			if cred, ok := p.recall(c.digestOf(), rememberedAge); ok {
				m.used = true
				if _, err := p.admit(ctx, e, c.Peer, cred); err != nil {
					return nil, err
				}
				return &party{Credential: *cred, auth: cred.Cert.Digest}, nil
			}
		}
		if pt := p.unitOf(ctx, e, with, c); pt != nil {
			return pt, nil
		}
		cred, err := p.authenticate(ctx, e, c.Peer)
		if err == nil && cred.Cert.Profile == RegistrarProfile {
			return registrarParty(e, cred, c.Peer)
		}
		if err == nil {
			return &party{Credential: *cred, auth: cred.Cert.Digest}, nil
		}
		if cradle.KindOf(err) != cradle.Unauthorized || with == nil {
			return nil, err
		}
		if len(with.cas) > 0 && errors.Is(err, errNoRecord) {
			pt, ferr := p.foreignParty(ctx, e, with.cas, c)
			if ferr == nil || cradle.KindOf(ferr) != cradle.Unauthorized {
				return pt, ferr
			}
			err = ferr
		}
		if c.Basic == nil || !with.basic {
			return nil, err
		}
	}
	if c.Basic != nil && with != nil && with.basic {
		return p.basicParty(ctx, e, *c.Basic)
	}
	hint := fmt.Sprintf("authenticate with the certificate that %s asks for", e.Profile)
	if with != nil && with.basic {
		hint = "authenticate with a client certificate or with HTTP Basic"
	}
	return nil, cradle.Errorf(cradle.Unauthorized, "no TLS client certificate").WithHint("%s", hint)
}

// Passwords reports whether the endpoint takes HTTP Basic: a client without certificate is then asked for it.
func (p *Provider) Passwords(e Endpoint) bool {
	c := p.clients(e)
	return c != nil && c.basic
}

// judgeUnproved decides on a CSR without evidence. It is allowed where the profile says so or an operator registered other
// clients for it, and in a lineage that began so. Whether the device has a lineage with evidence,
// which never continues without, is looked at again in the intent's transaction.
func (p *Provider) judgeUnproved(ctx context.Context, r Request, rules *ca.Profile, pt *party, csr *evidence.CSR, w ca.Wishes) (*decision, error) {
	refuse := func(hint string) error {
		return cradle.Errorf(cradle.Forbidden, "the CSR carries no evidence").WithHint(hint, r.Label)
	}
	const ask = "ask /.well-known/est/%s/nonce first and put the evidence into the CSR"
	continues := pt.issued() && pt.Cert.Profile == r.Profile
	switch {
	case rules.Kind.Birth():
		return nil, refuse(ask)
	case pt.registrar: // what it may ask for was looked at
	case continues && pt.Cert.Proved():
		return nil, refuse("the certificate began with evidence: ask /.well-known/est/%s/nonce and put it into the CSR again")
	case continues || p.unprovedHere(r.Endpoint):
	default: // unless another replica allowed it a moment ago
		if read, err := p.reread(ctx); err != nil {
			return nil, err
		} else if !read || !p.unprovedHere(r.Endpoint) {
			return nil, refuse(ask)
		}
	}
	if r.Operation != ServerKeyGen { // whose CSR's key and signature count for nothing (RFC 7030 §4.4.1)
		if err := attest.VerifyPossession(csr).Refuse(cradle.Invalid, "CSR"); err != nil {
			return nil, err
		}
	}
	d := &decision{cred: &pt.Credential, csr: csr, wishes: w, operation: r.Operation, lineage: lineageOf(r.Profile, csr)}
	kind := UnprovedCA
	switch r.Operation {
	case Reenroll:
		d.lineage = pt.Cert.Lineage
	case Enroll:
		if pt.registrar {
			d.lineage, kind = registeredLineage(r.Profile), RegistrationCA
		}
	case ServerKeyGen:
		d.lineage = string(r.Profile) + "/server"
	case TPMEnroll:
		d.lineage = string(r.Profile) + "/tpm"
	}
	if err := p.unprovedDevice(ctx, r, pt, d); err != nil {
		return nil, err
	}
	d.client = pt.auth
	var err error
	d.auth, err = p.lateCA(ctx, kind, r.Account, d.dev.Class())
	return d, err
}

// unprovedDevice finds the device that asks, or describes the one that comes.
func (p *Provider) unprovedDevice(ctx context.Context, r Request, pt *party, d *decision) error {
	wish, err := wishedName(d.csr.Request.Subject)
	if err != nil {
		return err
	}
	have := cmp.Or(pt.Device.ID, pt.fixed)
	if have != "" && wish != "" && wish != have {
		return cradle.Errorf(cradle.Forbidden, "the CSR asks for the name %q, but this client is %q", wish, have).
			WithHint("put %s into the subject's common name, or leave the subject empty", have)
	}
	if pt.Device.ID != "" {
		d.dev = pt.Device
		if d.dev.State.Blocked() {
			return blockedError(&d.dev)
		}
		return nil
	}
	id := cmp.Or(have, wish)
	switch {
	case id == "":
		return cradle.Errorf(cradle.Invalid, "the CSR names no device").WithHint("put its name into the subject's common name")
	case have == "" && !nameAllowed(pt.names, id):
		return cradle.Errorf(cradle.Forbidden, "this client may not ask for the name %q, only for %q", id, pt.names)
	}
	dev, err := p.deviceOf(ctx, r, pt, id)
	switch {
	case cradle.KindOf(err) == cradle.NotFound, err == nil && dev.ID == "":
		// The unit's serial number is its name: nobody vouches for another.
		d.dev = Device{ID: id, Account: r.Account, Serial: string(id), Tier: pt.tier, Origin: pt.origin, State: cradle.Active, Created: p.now()}
		d.birth = true
		return nil
	case err != nil:
		return err
	case dev.Origin != pt.origin:
		return takenName(id)
	case dev.State.Blocked():
		return blockedError(&dev)
	}
	d.dev = dev
	return nil
}

// deviceOf is the device of the party's name, if there is one: zero or NotFound when there is none.
func (p *Provider) deviceOf(ctx context.Context, r Request, pt *party, id cradle.DeviceID) (Device, error) {
	if pt.had != nil {
		return *pt.had, nil
	}
	return p.store.Device(ctx, r.Account, id)
}

// takenName does not say whose it is.
func takenName(id cradle.DeviceID) error {
	return cradle.Errorf(cradle.Forbidden, "the name %q belongs to a device that did not come by this credential", id).WithHint("ask for another name")
}

// lineageOf names the slot that a request without evidence is for. Clients keep several certificates of one name (IoT
// Identity Service: est-id and device-id) and say nowhere which one a request is for; but each of their slots
// always asks in the same way: the kind of key and the extensions wished for (docs/decisions/0015).
func lineageOf(profile cradle.Profile, csr *evidence.CSR) string {
	var b strings.Builder
	switch k := csr.Request.PublicKey.(type) {
	case *rsa.PublicKey:
		fmt.Fprintf(&b, "rsa %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		fmt.Fprintf(&b, "ec %d", k.Params().BitSize)
	case ed25519.PublicKey:
		b.WriteString("ed25519")
	}
	ext := make([]string, 0, len(csr.Request.Extensions))
	for _, e := range csr.Request.Extensions {
		ext = append(ext, e.Id.String())
	}
	slices.Sort(ext)
	fmt.Fprintf(&b, " %v", ext)
	h := sha256.Sum256([]byte(b.String()))
	return string(profile) + "/" + hex.EncodeToString(h[:4])
}

// onceFor is what a request without a challenge spends: who asks for what. A client that signs its CSR anew asks the
// same, so the signature does not count. Of a client that holds a certificate of ours it begins as the serial number does, with
// the time: devices renew about in the order of their certificates, so their rows lie together in the store's index.
func onceFor(r Request, d *decision) string {
	h := sha256.New()
	for _, s := range []string{string(r.Account), string(r.Profile), string(r.Operation), d.client, string(d.dev.ID), d.lineage, string(d.csr.SPKI), string(d.csr.Request.RawSubject)} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	for _, e := range d.csr.Request.Extensions {
		fmt.Fprintf(h, "%s=%d:%s", e.Id, len(e.Value), e.Value)
	}
	var begun cradle.CertSerial
	if c := &d.cred.Cert; d.client == c.Digest {
		begun = c.Serial[:min(len(c.Serial), 10)]
	}
	return "once/" + string(begun) + "/" + hex.EncodeToString(h.Sum(nil))
}

// lateCA returns a CA that signs keys that nothing proved, of this account and class, and makes it at first need: that
// of registration authorities, and the other in accounts from before there was one.
func (p *Provider) lateCA(ctx context.Context, kind AuthorityKind, account cradle.AccountID, class cradle.Class) (*authority, error) {
	r := role{kind, account, "", class}
	if a := p.dir.Load().byRole[r]; a != nil {
		return a, nil
	}
	if p.dir.Load().pending[r].ID != "" { // perhaps there is no root either
		return nil, r.waiting()
	}
	root, err := p.authority(RootCA, account, "", class)
	if err != nil {
		return nil, err
	}
	if root.issuer.Key == nil {
		if _, err := p.CASigningRequest(ctx, account, kind, "", class, false); err != nil {
			return nil, err
		}
		return nil, r.waiting()
	}
	acc, err := p.account(ctx, account)
	if err != nil {
		return nil, err
	}
	a, err := p.newAuthority(ctx, acc.CAs.Key, r, r.commonName(1), string(account), 0, years(r), root)
	if err != nil {
		return nil, err
	}
	leaf, err := p.leaf(string(account), ledger.KindAccount, map[string]any{"account": account, "authorities": []string{a.ID}, "roles": roles(a.Authority)})
	if err != nil {
		return nil, err
	}
	if _, err := p.store.AddAuthority(ctx, a.Authority, leaf); err != nil {
		return nil, err
	}
	if err := p.reload(ctx); err != nil {
		return nil, err
	}
	return p.authority(r.kind, account, "", class)
}

// supersededGrace is how long a certificate of a lineage without evidence may still come after its successor: a
// client with two requests under way sends both with the one it had.
const supersededGrace = time.Minute

// justSuperseded answers within the grace.
func (p *Provider) justSuperseded(c *Credential) error {
	if c.Cert.Proved() || c.Cert.Superseded.IsZero() || p.now().Sub(c.Cert.Superseded) > supersededGrace {
		return nil
	}
	return cradle.Errorf(cradle.Conflict, "the client certificate was superseded a moment ago").WithHint("use the newer one")
}

// Heal lifts the quarantine of a device's lineages that began without evidence, which wait for an operator; those with
// evidence heal by attesting afresh. That there are none to lift is a refusal, as with the other changes of a device.
func (p *Provider) Heal(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, reason string) (int64, error) {
	if _, err := p.Device(ctx, account, id); err != nil {
		return 0, err
	}
	if len(reason) > 200 {
		return 0, cradle.Errorf(cradle.Invalid, "the reason has %d bytes; at most 200", len(reason))
	}
	leaf, err := p.operatorLeaf(ctx, string(account), "device heal", map[string]any{"account": account, "device": id, "reason": reason})
	if err != nil {
		return 0, err
	}
	n, err := p.store.Heal(ctx, account, id, leaf)
	if err == nil && n == 0 {
		err = cradle.Errorf(cradle.Conflict, "device %s: no credentials that began without evidence are in quarantine", id).
			WithHint("nothing was changed; those that began with evidence heal by attesting afresh: cradle device show %s", id)
	}
	return n, err
}
