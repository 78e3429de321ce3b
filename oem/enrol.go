package oem

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// attempts bounds how often an exchange is tried while the provider is busy or away; the waits
// between them grow from firstWait and are at least what the provider asks for, at most maxWait.
const (
	attempts  = 6
	firstWait = 500 * time.Millisecond
	maxWait   = 15 * time.Second
)

// connect makes the station's connection to EST.
func (l *line) connect() (*http.Client, error) {
	anchors, err := l.anchors()
	if err != nil {
		return nil, err
	}
	return l.client(anchors, &l.station)
}

// enrol makes one attested enrolment (DESIGN §4.4): nonce with the unit's claim, activation of the
// credential by EK and IAK, Certify of key by the IAK over the binding, CSR signed by key. A
// failed try leaves a spent or expiring challenge and perhaps a certificate, which the same unit gets again.
func (m *making) enrol(ctx context.Context, hc *http.Client, base string, p cradle.Profile, iak []byte, signer crypto.Signer, key *tpmkey.Key) (*x509.Certificate, error) {
	wait := firstWait
	for try := 1; ; try++ {
		cert, err := m.exchange(ctx, &est.Client{HTTP: hc, URL: base}, p, iak, signer, key)
		after, again := retryable(err)
		if !again || try == attempts {
			return cert, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(max(wait, after), maxWait)):
		}
		wait *= 2
	}
}

func (m *making) exchange(ctx context.Context, c *est.Client, p cradle.Profile, iak []byte, signer crypto.Signer, key *tpmkey.Key) (*x509.Certificate, error) {
	answer, err := c.Nonce(ctx, cradle.OIDActivation, evidence.Claim{EKCert: m.ek.Cert, EKChain: m.ek.Chain, AttestationKey: iak, Serial: m.serial, Order: m.order.ID})
	if err != nil {
		return nil, err
	}
	ch, err := evidence.ParseChallenge(answer.RespInfo)
	if err != nil {
		return nil, err
	}
	if len(ch.CredentialBlob) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "the provider's challenge holds no credential to activate")
	}
	secret, err := m.tpm.Activate(ctx, ch.CredentialBlob, ch.EncryptedSecret)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	extra := evidence.Binding{Challenge: ch.Challenge, Account: m.order.Account, Label: cradle.Label(m.order.Account, p),
		Secret: secret, AuthCert: m.station.Leaf.Raw, SPKI: spki}.ExtraData()
	certify, err := m.tpm.Certify(ctx, key, extra[:])
	if err != nil {
		return nil, err
	}
	subject := pkix.Name{Organization: []string{string(m.order.Account)}, CommonName: string(m.device)}
	csr, err := evidence.CreateCSR(subject, signer, &evidence.Bundle{Certify: &certify, Challenge: ch.Challenge})
	if err != nil {
		return nil, err
	}
	return c.SimpleEnroll(ctx, csr)
}

// retryable says whether an error may pass by itself: the provider is busy or waits for an operator, or is not reached. Trust
// that fails does not pass.
func retryable(err error) (after time.Duration, again bool) {
	var status *est.StatusError
	if errors.As(err, &status) {
		kind := cradle.KindOf(err)
		return status.RetryAfter, kind == cradle.Busy || kind == cradle.Pending
	}
	var untrusted *tls.CertificateVerificationError
	var network *url.Error
	return 0, errors.As(err, &network) && !errors.As(err, &untrusted) && !errors.Is(err, context.Canceled)
}
