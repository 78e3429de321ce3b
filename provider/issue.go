package provider

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
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
	Peer      *x509.Certificate // TLS client certificate; TLS proved its key, nothing more
	CSR       []byte            // DER
}

// Endpoint finds what a label stands for.
func (p *Provider) Endpoint(label string) (Endpoint, error) {
	for _, pr := range []cradle.Profile{cradle.IDevID, cradle.IAK, cradle.LDevID, cradle.Operational} {
		suffix := "-" + string(pr)
		if n := len(label) - len(suffix); n > 0 && label[n:] == suffix {
			if a := p.dir.Load().accounts[cradle.AccountID(label[:n])]; a != nil {
				return Endpoint{a.ID, pr, label}, nil
			}
		}
	}
	return Endpoint{}, cradle.Errorf(cradle.NotFound, "no such EST label %q", label).
		WithHint("labels are <account>-<profile>; cradle account show lists them")
}

// CACerts returns what chains an endpoint's certificates to the account's roots (RFC 7030 §4.1.3): for each
// class the issuing CA, then the root.
func (p *Provider) CACerts(e Endpoint) ([]*x509.Certificate, error) {
	d := p.dir.Load()
	var out []*x509.Certificate
	for _, class := range []cradle.Class{cradle.Production, cradle.Evaluation} {
		switch e.Profile {
		case cradle.LDevID, cradle.Operational:
			kind := OnboardingCA
			if e.Profile == cradle.Operational {
				kind = OperationalCA
			}
			if a := d.byRole[role{kind, e.Account, "", class}]; a != nil {
				out = append(out, a.issuer.Cert)
			}
		default:
			for r, a := range d.byRole {
				if r.kind == IDevIDCA && r.account == e.Account && r.class == class {
					out = append(out, a.issuer.Cert)
				}
			}
		}
		if a := d.byRole[role{RootCA, e.Account, "", class}]; a != nil {
			out = append(out, a.issuer.Cert)
		}
	}
	if len(out) == 0 {
		return nil, cradle.Errorf(cradle.NotFound, "no CA certificates for %s", e.Label)
	}
	return out, nil
}

// authenticate finds the record of a TLS client certificate and refuses one that may not be used any
// more. Only certificates that this provider recorded are known here: the digest of the whole
// certificate is the key, so its signature needs no second check.
func (p *Provider) authenticate(ctx context.Context, e Endpoint, peer *x509.Certificate) (*Credential, error) {
	if peer == nil {
		return nil, cradle.Errorf(cradle.Unauthorized, "no TLS client certificate").
			WithHint("authenticate with the certificate that %s asks for", e.Profile)
	}
	c, err := p.store.Credential(ctx, ca.Digest(peer.Raw))
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, cradle.Errorf(cradle.Unauthorized, "the client certificate (%s, serial %s) was not issued here", peer.Subject, peer.SerialNumber.Text(16)).
			WithHint("use a certificate of account %s", e.Account)
	}
	if err != nil {
		return nil, err
	}
	now := p.now()
	switch {
	case c.Cert.Account != e.Account:
		return nil, cradle.Errorf(cradle.Forbidden, "the client certificate belongs to another account than label %s", e.Label)
	case !c.Cert.Revoked.IsZero():
		return nil, cradle.Errorf(cradle.Forbidden, "the client certificate was revoked on %s", c.Cert.Revoked.Format(time.RFC3339))
	case now.Before(c.Cert.NotBefore):
		return nil, cradle.Errorf(cradle.Unauthorized, "the client certificate is not valid before %s", c.Cert.NotBefore.Format(time.RFC3339))
	case now.After(c.Cert.NotAfter):
		return nil, cradle.Errorf(cradle.Unauthorized, "the client certificate expired on %s", c.Cert.NotAfter.Format(time.RFC3339)).
			WithHint("enrol again with the LDevID or IDevID")
	}
	if c.Device.State.Blocked() {
		return nil, blockedError(&c.Device)
	}
	return &c, nil
}

func blockedError(d *Device) error {
	e := cradle.Errorf(cradle.Forbidden, "device %s is %s", d.ID, d.State)
	if d.State == cradle.Suspended {
		return e.WithHint("the account's operator can release it")
	}
	return e.WithHint("this is final; the account's operator knows why")
}

// authorize says who may ask for what with which certificate (the table in DESIGN §2).
func authorize(e Endpoint, op Operation, c *Credential) error {
	have := c.Cert.Profile
	refuse := func(want string) error {
		return cradle.Errorf(cradle.Forbidden, "a %s certificate does not authenticate %s at label %s", have, op, e.Label).
			WithHint("authenticate with %s", want)
	}
	if op == Reenroll {
		if have != e.Profile || (have != cradle.LDevID && have != cradle.Operational) {
			return refuse("the certificate that is to be renewed (RFC 7030 §4.2.2)")
		}
		return nil
	}
	switch e.Profile {
	case cradle.IDevID, cradle.IAK:
		if have != StationProfile {
			return refuse("the station's certificate of the order")
		}
		return nil
	case cradle.LDevID:
		if have != cradle.IDevID && have != cradle.LDevID {
			return refuse("the device's IDevID")
		}
	case cradle.Operational:
		// The LDevID at first and after expiry, else the IDevID (DESIGN §2); the certificate itself as some
		// clients renew by simpleenroll.
		if have != cradle.LDevID && have != cradle.Operational && have != cradle.IDevID {
			return refuse("the device's LDevID")
		}
	}
	if have == cradle.IDevID && c.Device.State == cradle.Made {
		return cradle.Errorf(cradle.Forbidden, "device %s is not accepted yet: its lot is open or waits for acceptance", c.Device.ID).
			WithHint("cradle lot list; cradle lot accept ID")
	}
	return nil
}

// StationProfile marks the certificate of a line's station.
const StationProfile cradle.Profile = "station"

// challengeLife is how long a challenge may be answered.
const challengeLife = 5 * time.Minute

// maxClaim bounds the JSON of a claim.
const maxClaim = 32 << 10

// NonceReply is the answer to a nonce request.
type NonceReply struct {
	Nonce     []byte
	Expires   time.Duration
	Challenge evidence.Challenge
}

// Nonce makes a challenge for the endpoint and the client behind peer: sealed, so that any replica
// opens it and nothing is stored until it is spent. At birth (IAK, IDevID) the claim names the TPM, the
// unit and the order, and the secret can be read only by the TPM of that endorsement key which holds
// that attestation key (TPM 2.0 Part 1 §24, credential activation).
func (p *Provider) Nonce(ctx context.Context, e Endpoint, peer *x509.Certificate, claim json.RawMessage) (*NonceReply, error) {
	c, err := p.authenticate(ctx, e, peer)
	if err != nil {
		return nil, err
	}
	now := p.now()
	nonce := make([]byte, 32)
	rand.Read(nonce)
	auth := sha256.Sum256(peer.Raw)
	st := challenge{ChallengeState: attest.ChallengeState{Account: e.Account, Label: e.Label, AuthCert: auth[:], Nonce: nonce, Expiry: now.Add(challengeLife)}}
	out := &NonceReply{Nonce: nonce, Expires: challengeLife}
	if e.Profile == cradle.IAK || e.Profile == cradle.IDevID {
		if err := authorize(e, Enroll, c); err != nil {
			return nil, err
		}
		if err := p.claimUnit(ctx, now, c, claim, &st, &out.Challenge); err != nil {
			return nil, err
		}
	}
	plain, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	out.Challenge.Challenge = p.seal.Seal(nil, nil, plain, challengeAAD)
	return out, nil
}

// challenge is what travels sealed.
type challenge struct {
	attest.ChallengeState
	EKCert []byte `json:"ek_cert,omitempty"` // DER, for the record
}

var challengeAAD = []byte("cradle-challenge-v1")

// claimUnit checks a claim at birth against makers and order, and encrypts a secret to the TPM.
func (p *Provider) claimUnit(ctx context.Context, now time.Time, c *Credential, raw json.RawMessage, st *challenge, ch *evidence.Challenge) error {
	if len(raw) > maxClaim {
		return cradle.Errorf(cradle.TooLarge, "the claim has %d bytes; at most %d", len(raw), maxClaim)
	}
	claim, err := evidence.ParseClaim(raw)
	if err != nil {
		return err
	}
	if claim.Order == "" || claim.Serial == "" || len(claim.EKCert) == 0 {
		return cradle.Errorf(cradle.Invalid, "the claim lacks the order, the serial or the EK certificate")
	}
	ord, err := p.openOrder(ctx, claim.Order)
	if err != nil {
		return err
	}
	if ord.row.Account != st.Account || string(c.Cert.Device) != string(claim.Order) {
		return cradle.Errorf(cradle.Forbidden, "this station works on order %s, not on %s", c.Cert.Device, claim.Order)
	}
	ek, why := p.dir.Load().anchors.VerifyEK(now, claim.EKCert, claim.EKChain, ord.rules, nil)
	if err := why.Err(); err != nil {
		return err
	}
	ak, why := attest.VerifyAttestationKey(claim.AttestationKey)
	if err := why.Err(); err != nil {
		return err
	}
	if err := ord.checkUnit(now, ek.Facts, claim.Serial); err != nil {
		return err
	}
	st.Order, st.Serial, st.EK, st.EKCert, st.IAK = claim.Order, claim.Serial, ek.Facts, claim.EKCert, claim.AttestationKey
	st.Secret = make([]byte, 32)
	rand.Read(st.Secret)
	ch.CredentialBlob, ch.EncryptedSecret, err = attest.Activation(ek, ak.Name, st.Secret)
	return err
}

// Enroll is the issuing cycle. After a crash
//   - before BeginIssue: nothing happened, the challenge is unspent;
//   - after it: an open intent, voided at start; the same request may be sent again;
//   - after the signature: the same, the certificate was given to nobody;
//   - after FinishIssue: certificate and leaf are there; the client asks again and gets this very certificate.
func (p *Provider) Enroll(ctx context.Context, r Request) (*x509.Certificate, error) {
	cert, err := p.enroll(ctx, r)
	if err != nil && r.Peer != nil {
		p.logRefusal(ctx, r, err)
	}
	return cert, err
}

func (p *Provider) enroll(ctx context.Context, r Request) (*x509.Certificate, error) {
	c, err := p.authenticate(ctx, r.Endpoint, r.Peer)
	if err != nil {
		return nil, err
	}
	if err := authorize(r.Endpoint, r.Operation, c); err != nil {
		return nil, err
	}
	if c.Cert.Slot == Superseded {
		return nil, p.quarantine(ctx, r, c)
	}
	csr, err := evidence.ParseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	if r.Operation == Reenroll {
		if err := sameSubject(csr, c); err != nil {
			return nil, err
		}
	}
	if csr.Bundle == nil || len(csr.Bundle.Challenge) == 0 {
		return nil, cradle.Errorf(cradle.Forbidden, "the CSR carries no evidence").
			WithHint("ask /.well-known/est/%s/nonce first and put the evidence into the CSR", r.Label)
	}
	st, err := p.openChallenge(csr.Bundle.Challenge)
	if err != nil {
		return nil, err
	}
	now := p.now()
	birth := r.Profile == cradle.IAK || r.Profile == cradle.IDevID
	in := attest.Request{Profile: r.Profile, Account: r.Account, Label: r.Label, CSR: csr, AuthCert: r.Peer.Raw, Anchors: p.dir.Load().anchors}
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
			Anchor: st.EK.Anchor, EKDigest: st.EK.Digest, EKCert: st.EKCert, IAK: st.IAK, State: cradle.Made, Created: now}
	} else {
		st.IAK = dev.IAK // of the record, never of the client's telling
		st.EK = attest.EKFacts{Digest: dev.EKDigest, Tier: dev.Tier, Maker: dev.Maker, Anchor: dev.Anchor}
	}
	in.State = st.ChallengeState
	v := attest.VerifyCSR(now, in)
	if err := v.Err(); err != nil {
		return nil, err
	}
	if c.Quarantined && c.Cert.Profile == r.Profile {
		return nil, cradle.Errorf(cradle.Forbidden, "the %s credentials of %s are in quarantine: a superseded certificate was used", r.Profile, dev.ID).
			WithHint("attest afresh: enrol with the LDevID or IDevID")
	}
	return p.issue(ctx, r, c, csr, dev, birth)
}

// issue is the second half of enroll: everything about the request was found right.
func (p *Provider) issue(ctx context.Context, r Request, c *Credential, csr *evidence.CSR, dev Device, birth bool) (*x509.Certificate, error) {
	now := p.now()
	kind := map[cradle.Profile]AuthorityKind{cradle.IDevID: IDevIDCA, cradle.IAK: IDevIDCA, cradle.LDevID: OnboardingCA, cradle.Operational: OperationalCA}[r.Profile]
	var oem cradle.OEMID
	if birth {
		oem = dev.OEM
	}
	auth, err := p.authority(kind, r.Account, oem, dev.Class())
	if err != nil {
		return nil, err
	}
	serial := ca.NewSerial()
	in := &Intent{ID: newID(), Account: r.Account, Device: dev.ID, Profile: r.Profile, Operation: r.Operation, Authority: auth.ID,
		AuthCert: c.Cert.Digest, AuthProfile: c.Cert.Profile, CSR: hexDigest(r.CSR), SPKI: hexDigest(csr.SPKI), Challenge: hexDigest(csr.Bundle.Challenge),
		Serial: ca.SerialString(serial), Epoch: dev.Epoch, Created: now, Replica: p.replica}
	var b *Birth
	if birth {
		b = &Birth{dev}
	}
	promote := ""
	if c.Cert.Slot == Next {
		promote = c.Cert.Digest
	}
	begun, err := p.store.BeginIssue(ctx, in, b, promote)
	if err != nil {
		return nil, err
	}
	if begun.Replay != nil {
		return p.replay(begun.Replay, now)
	}
	if begun.Existing != nil {
		return x509.ParseCertificate(begun.Existing.DER)
	}
	cert, err := ca.Issue(auth.issuer, ca.NewPermit(in.ID, serial), p.leafFor(r, csr, dev, auth, now))
	if err != nil {
		verr := p.store.VoidIssue(context.WithoutCancel(ctx), in.ID, err.Error())
		return nil, errors.Join(err, verr)
	}
	row := Certificate{Digest: ca.Digest(cert.Raw), Serial: in.Serial, Account: r.Account, Device: dev.ID, Profile: r.Profile, Authority: auth.ID,
		DER: cert.Raw, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Intent: in.ID, Issued: now}
	leaf, err := p.leaf(string(r.Account), ledger.KindIssuance, map[string]any{"certificate": row.Digest, "serial": row.Serial, "device": dev.ID,
		"profile": r.Profile, "order": dev.Order, "unit": dev.Serial, "ek": dev.EKDigest, "intent": in.ID, "authenticated_by": in.AuthCert,
		"csr": in.CSR, "tier": dev.Tier, "maker": dev.Maker, "proved": true})
	if err != nil {
		return nil, err
	}
	if err := p.store.FinishIssue(ctx, in.ID, row, leaf); err != nil {
		return nil, err
	}
	return cert, nil
}

func (p *Provider) leafFor(r Request, csr *evidence.CSR, dev Device, auth *authority, now time.Time) ca.Leaf {
	ek, _ := hex.DecodeString(dev.EKDigest)
	l := ca.Leaf{Profile: r.Profile, Account: r.Account, Device: dev.ID, Serial: dev.Serial, Tier: dev.Tier, Proved: true, EKDigest: ek,
		Public: csr.Request.PublicKey, SPKI: csr.SPKI, NotBefore: now.Add(-ca.Backdate).Truncate(time.Second), NotAfter: ca.Forever}
	if nb := auth.issuer.Cert.NotBefore; l.NotBefore.Before(nb) {
		l.NotBefore = nb
	}
	pr := p.dir.Load().accounts[r.Account].Profiles
	switch r.Profile {
	case cradle.LDevID:
		l.NotAfter = now.Add(pr.LDevIDValidity).Truncate(time.Second)
	case cradle.Operational:
		l.NotAfter = now.Add(pr.OperationalValidity).Truncate(time.Second)
	}
	return l
}

// replayFor is how long a lost reply is answered again (DESIGN §4.7).
const replayFor = 10 * time.Minute

// replay answers a request that was answered before, while the certificate is unused, unrevoked and
// before its renewal threshold. The caller has authorised the request anew.
func (p *Provider) replay(c *Certificate, now time.Time) (*x509.Certificate, error) {
	life := c.NotAfter.Sub(c.NotBefore)
	threshold := p.dir.Load().accounts[c.Account].Profiles.RenewalThreshold
	birth := c.Profile == cradle.IDevID || c.Profile == cradle.IAK
	due := !birth && now.After(c.NotBefore.Add(time.Duration(float64(life)*threshold)))
	if now.Sub(c.Issued) > replayFor || !c.Revoked.IsZero() || c.Slot == Superseded || due {
		return nil, cradle.Errorf(cradle.Conflict, "the challenge was spent on %s", c.Issued.Format(time.RFC3339)).WithHint("ask for a fresh nonce")
	}
	return x509.ParseCertificate(c.DER)
}

// openChallenge unseals a challenge that this provider (any replica) made.
func (p *Provider) openChallenge(sealed []byte) (*challenge, error) {
	plain, err := p.seal.Open(nil, nil, sealed, challengeAAD)
	if err != nil {
		return nil, cradle.Errorf(cradle.Forbidden, "the challenge was not made here").WithHint("ask for a fresh nonce")
	}
	var st challenge
	if err := json.Unmarshal(plain, &st); err != nil {
		return nil, fmt.Errorf("internal error: own challenge: %w", err)
	}
	return &st, nil
}

// sameSubject: in a re-enrolment the CSR's names must be those of the certificate (RFC 7030 §4.2.2).
func sameSubject(csr *evidence.CSR, c *Credential) error {
	old, err := x509.ParseCertificate(c.Cert.DER)
	if err != nil {
		return err
	}
	if !slices.Equal(csr.Request.RawSubject, old.RawSubject) {
		return cradle.Errorf(cradle.Invalid, "the CSR's subject %q is not that of the certificate to be renewed, %q", csr.Request.Subject, old.Subject)
	}
	return nil
}

// quarantine answers a superseded certificate that shows up again: somebody else has its key, or the
// device went back in time. With evidence the device heals by attesting afresh with its LDevID or IDevID.
func (p *Provider) quarantine(ctx context.Context, r Request, c *Credential) error {
	leaf, err := p.leaf(string(r.Account), ledger.KindRefusal, map[string]any{"device": c.Device.ID, "certificate": c.Cert.Digest,
		"profile": c.Cert.Profile, "reason": "superseded certificate used; quarantined"})
	if err != nil {
		return err
	}
	if err := p.store.Quarantine(ctx, *c, p.now(), leaf); err != nil {
		return err
	}
	p.feed.notify()
	return cradle.Errorf(cradle.Forbidden, "the client certificate was superseded by a newer one of %s", c.Device.ID).
		WithHint("its credentials are in quarantine; attest afresh: enrol with the LDevID or IDevID")
}

// logRefusal makes a refused enrolment a leaf of the log, when its client is one of ours (an
// unknown client must not be able to fill the log). Nothing else changes.
func (p *Provider) logRefusal(ctx context.Context, r Request, cause error) {
	switch cradle.KindOf(cause) {
	case cradle.Busy, cradle.Internal, cradle.Unauthorized, cradle.NotFound:
		return
	}
	if !p.refusal.allow(p.now()) {
		return
	}
	leaf, err := p.leaf(string(r.Account), ledger.KindRefusal, map[string]any{"label": r.Label, "operation": r.Operation,
		"authenticated_by": ca.Digest(r.Peer.Raw), "csr": hexDigest(r.CSR), "reason": cause.Error()})
	if err == nil {
		err = p.store.Append(context.WithoutCancel(ctx), leaf)
	}
	if err != nil {
		p.log.Warn("refusal not logged", "err", err)
	}
}

func newID() string {
	b := make([]byte, 12)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}
