package provider

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Endpoint is an account's profile, as an EST label names it.
type Endpoint struct {
	Account cradle.AccountID
	Profile cradle.Profile
	Label   string
}

// Request is one EST enrolment.
type Request struct {
	Endpoint
	Operation Operation
	Client    Client
	CSR       []byte // DER
}

// Issued is the answer to an enrolment.
type Issued struct {
	DER []byte // the certificate
	// Replaced names what the CSR asked for and the profile gave otherwise (ca.Wishes.Replaced).
	Replaced []string
}

// Enroll is the issuing cycle. After a crash
//   - before BeginIssue: nothing happened, the challenge is unspent;
//   - after it: an open intent, voided at start; the same request may be sent again;
//   - after the signature: the same, the certificate was given to nobody;
//   - after FinishIssue: certificate and leaf are there; the client asks again and gets this very certificate.
func (p *Provider) Enroll(ctx context.Context, r Request) (*Issued, error) {
	out, err := p.enroll(ctx, r)
	if err != nil {
		p.logRefusal(ctx, r, err)
	}
	return out, err
}

func (p *Provider) enroll(ctx context.Context, r Request) (*Issued, error) {
	if p.apart && p.kindOf(r.Account, r.Profile).Birth() {
		return p.signer.Birth(ctx, r)
	}
	var m memory
	d, err := p.judge(ctx, r, &m)
	if err == nil {
		var out *Issued
		if out, err = p.issue(ctx, r, d); !errors.Is(err, ErrStale) {
			return out, err
		}
	}
	if !m.used {
		return nil, err
	}
	// What was remembered has changed, or may have: judged anew by the record, nothing having been stored.
	p.remembered.forget(r.Client.digestOf())
	if d, err = p.judge(ctx, r, nil); err != nil {
		return nil, err
	}
	return p.issue(ctx, r, d)
}

// judge is the first half of enroll: who asks, and whether what is asked for may be had.
func (p *Provider) judge(ctx context.Context, r Request, m *memory) (d *decision, err error) {
	if err := p.openLog(string(r.Account)); err != nil {
		return nil, err
	}
	rules, err := p.profile(r.Account, r.Profile)
	if err != nil {
		return nil, err
	}
	if rules.Closed {
		return nil, cradle.Errorf(cradle.Forbidden, "profile %s of account %s is closed", r.Profile, r.Account).
			WithHint("the account's operator closed it; cradle account profile show %s", r.Account)
	}
	pt, err := p.identify(ctx, r.Endpoint, r.Client, m)
	if err != nil {
		return nil, err
	}
	c := &pt.Credential
	if m != nil && m.used {
		defer func() {
			if d != nil {
				d.rests = &Rests{c.Cert.Serial, c.Cert.Slot, c.Cert.Lineage}
			}
		}()
	}
	switch {
	case pt.registrar:
		if err := mayRegister(r, rules.Kind); err != nil {
			return nil, err
		}
	case pt.issued() && c.Cert.Registered():
		return nil, registeredElsewhere(c)
	case pt.issued():
		if err := p.authorize(r.Endpoint, r.Operation, c); err != nil {
			return nil, err
		}
		if c.Cert.Slot == Superseded {
			return nil, p.quarantine(ctx, r, c)
		}
		if c.Cert.Slot == Sealed {
			if err := p.unseal(ctx, c); err != nil {
				return nil, err
			}
		}
	case r.Operation == Reenroll:
		return nil, cradle.Errorf(cradle.Forbidden, "simplereenroll is authenticated by the certificate that is to be renewed (RFC 7030 §4.2.2)").
			WithHint("enrol by simpleenroll first")
	}
	csr, err := evidence.ParseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	wishes, err := ca.ReadWishes(csr.Request)
	if err != nil {
		return nil, err
	}
	if r.Operation == Reenroll {
		if err := sameNames(csr, r.Client.Peer); err != nil {
			return nil, err
		}
	}
	if err := changeNames(rules, r, pt, csr, &wishes); err != nil {
		return nil, err
	}
	if csr.Bundle == nil || len(csr.Bundle.Challenge) == 0 || !pt.issued() || rules.Evidence == ca.EvidenceNone || r.Operation == ServerKeyGen || r.Operation == TPMEnroll {
		return p.judgeUnproved(ctx, r, rules, pt, csr, wishes)
	}
	st, err := p.openChallenge(rules.Kind.Birth(), csr.Bundle.Challenge)
	if err != nil {
		return nil, err
	}
	now := p.now()
	birth := rules.Kind.Birth()
	in := attest.Request{Profile: r.Profile, Account: r.Account, Label: r.Label, CSR: csr, AuthCert: r.Client.Peer.Raw, Anchors: p.dir.Load().anchors, Denied: p.dir.Load().deniedEK}
	dev := c.Device
	if birth {
		ord, err := p.openOrder(ctx, st.Order)
		if err != nil {
			return nil, err
		}
		if err := ord.checkUnit(now, st.EK, st.Serial); err != nil { // the order may have ended since the nonce
			return nil, err
		}
		id, err := ord.DeviceName(st.Serial)
		if err != nil {
			return nil, err
		}
		in.Rules = ord.rules
		dev = Device{ID: id, Account: r.Account, OEM: ord.row.OEM, Order: ord.row.ID, Serial: st.Serial, Tier: st.EK.Tier, Maker: st.EK.Maker,
			Anchor: st.EK.Anchor, Issuers: st.EK.Issuers, EKDigest: st.EK.Digest, EKCert: st.EKCert, IAK: st.IAK, State: cradle.Made, Created: now}
	} else {
		st.IAK = dev.IAK // of the record, never of the client's telling
		st.EK = attest.EKFacts{Digest: dev.EKDigest, Tier: dev.Tier, Maker: dev.Maker, Anchor: dev.Anchor}
	}
	in.State = st.ChallengeState
	v := attest.VerifyCSR(now, in)
	if err := v.Err(); err != nil {
		return nil, err
	}
	if c.Quarantined && c.Cert.Profile == r.Profile && c.Cert.Proved() {
		return nil, cradle.Errorf(cradle.Forbidden, "the %s credentials of %s are in quarantine: a superseded certificate was used", r.Profile, dev.ID).
			WithHint("attest afresh: enrol with the LDevID or IDevID")
	}
	var oem cradle.OEMID
	if birth {
		oem = dev.OEM
	}
	auth, err := p.authority(issuerKinds[rules.Kind], r.Account, oem, dev.Class())
	if err != nil {
		return nil, err
	}
	return &decision{cred: c, csr: csr, wishes: wishes, dev: dev, birth: birth, auth: auth, lineage: string(r.Profile), expiry: st.Expiry}, nil
}

// issue is the second half of enroll: everything about the request was found right.
func (p *Provider) issue(ctx context.Context, r Request, d *decision) (*Issued, error) {
	now, c := p.now(), d.cred
	if err := p.preSign(r, d, ca.LeafSerial(now), now); err != nil {
		return nil, err
	}
	_, spki := d.key()
	in := &Intent{ID: newID(), Account: r.Account, Device: d.dev.ID, Profile: r.Profile, Operation: r.Operation, Authority: d.auth.ID,
		AuthProfile: c.Cert.Profile, CSR: hexDigest(r.CSR), SPKI: hexDigest(spki),
		Serial: ca.SerialString(d.draft.SerialNumber()), Epoch: d.dev.Epoch, Created: now, Replica: p.replica, Lineage: d.lineage, Rests: d.rests}
	in.AuthCert, in.Challenge = d.spends(r, in.ID)
	if !d.proved() && d.made == nil {
		in.ReplayAfter = now.Add(-p.replayWindow(r.Endpoint))
	}
	if err := p.approve(ctx, r, d, in); err != nil {
		return nil, err
	}
	var b *Birth
	if d.birth {
		if d.rests != nil {
			return nil, ErrStale
		}
		b = &Birth{d.dev}
	}
	var promote cradle.CertSerial
	if c.Cert.Slot == Next {
		promote = c.Cert.Serial
	}
	begun, err := p.store.BeginIssue(ctx, in, b, promote)
	if err != nil {
		return nil, err
	}
	if d.birth {
		d.dev = begun.Device // as it is on record
	}
	if promote != "" { // what is remembered says otherwise
		p.remembered.forget(c.Cert.Digest)
	}
	if begun.Replay != nil {
		if d.proved() {
			if err := p.replayable(begun.Replay, now); err != nil {
				return nil, err
			}
		}
		return answered(begun.Replay, d.wishes)
	}
	if begun.Existing != nil {
		return answered(begun.Existing, d.wishes)
	}
	pm := Permit{Intent: in, Request: r, TPM: d.tpm, decided: d}
	if d.made != nil {
		pm.Made = spki
	}
	out, err := p.signer.Sign(ctx, pm)
	if err != nil {
		if p.apart { // its answer may have been lost: what is done stays done, and the client asks again
			err = errors.Join(err, p.store.VoidIssue(context.WithoutCancel(ctx), in.ID, err.Error()))
		}
		return nil, err
	}
	return out, nil
}

// answered is a certificate that was issued before, as the answer to a request with these wishes.
func answered(c *Certificate, w ca.Wishes) (*Issued, error) {
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return nil, err
	}
	return &Issued{DER: c.DER, Replaced: w.Replaced(cert)}, nil
}

// preSign makes the draft of the certificate, and refuses what could not be signed before a challenge is spent for it.
func (p *Provider) preSign(r Request, d *decision, serial *big.Int, now time.Time) error {
	l, err := p.leafFor(r, d, now)
	if err != nil {
		return err
	}
	if p.dir.Load().issuing[hexDigest(d.csr.SPKI)] {
		return cradle.Errorf(cradle.Invalid, "the CSR's key is an issuing key of this installation")
	}
	d.draft, err = ca.NewDraft(d.auth.issuer, serial, l)
	return err
}

// leafFor is the certificate that was decided on, with what the profile grants of the CSR's wishes; it refuses those
// that the profile refuses.
func (p *Provider) leafFor(r Request, d *decision, now time.Time) (ca.Leaf, error) {
	rules, err := p.profile(r.Account, r.Profile)
	if err != nil {
		return ca.Leaf{}, err
	}
	ek, _ := hex.DecodeString(d.dev.EKDigest)
	public, spki := d.key()
	l := ca.Leaf{Profile: r.Profile, Rules: rules, Account: r.Account, Device: d.dev.ID, Serial: d.dev.Serial, Order: d.dev.Order, OEM: d.dev.OEM,
		Tier: d.dev.Tier, Maker: d.dev.Maker, Proved: d.proved(), Activated: d.activated(), EKDigest: ek, Public: public, SPKI: spki,
		NotBefore: now.Add(-ca.Backdate).Truncate(time.Second), NotAfter: ca.Forever}
	iss := d.auth.issuer.Cert
	if l.NotBefore.Before(iss.NotBefore) {
		l.NotBefore = iss.NotBefore
	}
	if rules.Validity != ca.Endless {
		l.NotAfter = now.Add(time.Duration(rules.Validity)).Truncate(time.Second)
	}
	if l.NotAfter.After(iss.NotAfter) { // also of what has no end, below a CA that an external root certified
		l.NotAfter = iss.NotAfter
	}
	return l, d.wishes.Grant(&l)
}

// ReplayFor is how long a lost reply is answered again (DESIGN §4.7).
const ReplayFor = 10 * time.Minute

// replayWindow is how long a request without a challenge is answered again with the same certificate: never beyond
// the certificate's renewal threshold.
func (p *Provider) replayWindow(e Endpoint) time.Duration {
	rules, err := p.profile(e.Account, e.Profile)
	if err != nil {
		return 0
	}
	return min(ReplayFor, time.Duration(float64(rules.Validity)*rules.RenewalThreshold))
}

// replayable refuses to answer a request again unless its certificate is unused, unrevoked and before its
// renewal threshold. The caller has authorised the request anew.
func (p *Provider) replayable(c *Certificate, now time.Time) error {
	life := c.NotAfter.Sub(c.Issued)
	rules, err := p.profile(c.Account, c.Profile)
	if err != nil {
		return err
	}
	threshold := rules.RenewalThreshold
	due := !rules.Kind.Birth() && now.After(c.Issued.Add(time.Duration(float64(life)*threshold)))
	if now.Sub(c.Issued) > ReplayFor || !c.Revoked.IsZero() || c.Slot == Superseded || due {
		return cradle.Errorf(cradle.Conflict, "the challenge was spent on %s", c.Issued.Format(time.RFC3339)).WithHint("ask for a fresh nonce")
	}
	return nil
}

// quarantine answers a superseded certificate that shows up again: somebody else has its key, or the
// device went back in time. With evidence the device heals by attesting afresh with its LDevID or IDevID.
func (p *Provider) quarantine(ctx context.Context, r Request, c *Credential) error {
	if err := p.justSuperseded(c); err != nil {
		return err
	}
	leaf, err := p.leaf(string(r.Account), ledger.KindRefusal, map[string]any{"device": c.Device.ID, "certificate": c.Cert.Digest,
		"profile": c.Cert.Profile, "lineage": c.Cert.Lineage, "reason": QuarantineReason})
	if err != nil {
		return err
	}
	if err := p.store.Quarantine(ctx, *c, p.now(), leaf); err != nil {
		return err
	}
	p.feed.notify()
	refuse := cradle.Errorf(cradle.Forbidden, "the client certificate was superseded by a newer one of %s", c.Device.ID)
	if !c.Cert.Proved() {
		return refuse.WithHint("its credentials are in quarantine until the account's operator lifts it: cradle device heal %s", c.Device.ID)
	}
	return refuse.WithHint("its credentials are in quarantine; %s", est.AttestAfresh)
}

// logRefusal makes a refused enrolment a leaf of the log, when its client is one of ours (an
// unknown client must not be able to fill the log). Nothing else changes.
func (p *Provider) logRefusal(ctx context.Context, r Request, cause error) {
	switch cradle.KindOf(cause) {
	case cradle.Busy, cradle.Internal, cradle.Unauthorized, cradle.NotFound, cradle.Pending:
		return
	}
	if !p.refusal.allow(p.now()) {
		return
	}
	client := ""
	switch {
	case r.Client.Peer != nil:
		client = ca.Digest(r.Client.Peer.Raw)
	case r.Client.Basic != nil: // right, else the refusal were Unauthorized
		client = "basic/" + r.Client.Basic.User
	}
	leaf, err := p.leaf(string(r.Account), ledger.KindRefusal, map[string]any{"label": r.Label, "operation": r.Operation,
		"authenticated_by": client, "csr": hexDigest(r.CSR), "reason": cause.Error()})
	if err == nil {
		err = p.store.Append(context.WithoutCancel(ctx), leaf)
	}
	if err != nil {
		p.log.Warn("refusal not logged", "err", err)
	}
}

// newID ascends with time, so that rows follow each other in the store's indexes, and is random behind that.
func newID() string {
	b := make([]byte, 15)
	binary.BigEndian.PutUint64(b, uint64(time.Now().UnixMicro())<<12)
	rand.Read(b[6:])
	return idText.EncodeToString(b)
}

// idText keeps the order of what it encodes.
var idText = base32.HexEncoding.WithPadding(base32.NoPadding)
