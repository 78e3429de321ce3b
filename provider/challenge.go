package provider

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
)

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
	if err := p.openLog(string(e.Account)); err != nil {
		return nil, err
	}
	birth := p.kindOf(e.Account, e.Profile).Birth()
	if birth && p.apart {
		return p.signer.BirthNonce(ctx, e, peer, claim)
	}
	c, err := p.askedBy(ctx, e, peer)
	if err != nil {
		return nil, err
	}
	now := p.now()
	nonce := make([]byte, 32)
	rand.Read(nonce)
	auth := sha256.Sum256(peer.Raw)
	st := challenge{ChallengeState: attest.ChallengeState{Account: e.Account, Label: e.Label, AuthCert: auth[:], Nonce: nonce, Expiry: now.Add(challengeLife)}}
	out := &NonceReply{Nonce: nonce, Expires: challengeLife}
	if birth {
		if err := p.authorize(e, Enroll, c); err != nil {
			return nil, err
		}
		if err := p.claimUnit(ctx, now, c, claim, &st, &out.Challenge); err != nil {
			return nil, err
		}
	}
	plain, err := st.encode()
	if err != nil {
		return nil, err
	}
	out.Challenge.Challenge = p.sealOf(birth).Seal(nil, nil, plain, challengeAAD)
	return out, nil
}

// askedBy is authenticate for a request that gets no more than a challenge.
func (p *Provider) askedBy(ctx context.Context, e Endpoint, peer *x509.Certificate) (*Credential, error) {
	if peer != nil {
		if c, ok := p.recall(ca.Digest(peer.Raw), recentAge); ok {
			return p.admit(ctx, e, peer, c)
		}
	}
	return p.authenticate(ctx, e, peer)
}

// sealOf seals challenges. A signer apart has a key of its own for those of births: who makes a birth's challenge knows
// the secret that shows a TPM to hold its attestation key.
func (p *Provider) sealOf(birth bool) cipher.AEAD {
	if birth && p.birthSeal != nil {
		return p.birthSeal
	}
	return p.seal
}

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
	ek, err := p.verifyEK(now, ord, claim)
	if err != nil {
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

// openChallenge unseals a challenge that this provider (any replica) made.
func (p *Provider) openChallenge(birth bool, sealed []byte) (*challenge, error) {
	plain, err := p.sealOf(birth).Open(nil, nil, sealed, challengeAAD)
	if err != nil {
		return nil, cradle.Errorf(cradle.Forbidden, "the challenge was not made here").WithHint("ask for a fresh nonce")
	}
	return decodeChallenge(plain)
}

// challengeKey is what an intent says of its challenge: when it expires, as it was sealed, so that rows follow each other in
// the store's index, and its SHA-256.
func challengeKey(expiry time.Time, sealed []byte) string {
	return fmt.Sprintf("%012x-%s", expiry.UnixMilli(), hexDigest(sealed))
}
