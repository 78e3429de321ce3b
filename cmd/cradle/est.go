package main

import (
	"context"
	"crypto"
	"crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/estserver"
)

// estProvider lets the EST server ask the provider. host is the base name below which every account has
// its own: <account>.est.<host>. Under any other name a path without a label is the default account's, if there is one.
type estProvider struct {
	p              *provider.Provider
	host           string
	defaultAccount cradle.AccountID // may be empty
}

func estHost(host string, a cradle.AccountID) string { return string(a) + ".est." + host }

// Resolve implements estserver.Provider.
func (e estProvider) Resolve(ctx context.Context, serverName, label string) (estserver.Endpoint, error) {
	var ep provider.Endpoint
	var err error
	if label != "" {
		ep, err = e.p.Endpoint(ctx, label)
	} else {
		account, ok := strings.CutSuffix(serverName, ".est."+e.host)
		if !ok {
			account = string(e.defaultAccount)
		}
		if account == "" {
			return estserver.Endpoint{}, cradle.Errorf(cradle.NotFound, "no account is known by the server name %q", serverName).
				WithHint("give a label, /.well-known/est/<account>-<profile>/, or use the account's own host name, or have serve started with --est-default-account")
		}
		ep, err = e.p.DefaultEndpoint(ctx, cradle.AccountID(account))
	}
	if err != nil {
		return estserver.Endpoint{}, err
	}
	out := estserver.Endpoint{Account: ep.Account, Profile: ep.Profile, Label: ep.Label, Bound: e.p.POPLinking(ep)}
	if e.p.Passwords(ep) {
		out.Realm = ep.Label
	}
	return out, nil
}

func endpoint(e estserver.Endpoint) provider.Endpoint {
	return provider.Endpoint{Account: e.Account, Profile: e.Profile, Label: e.Label}
}

func client(c estserver.Client) provider.Client {
	return provider.Client{Peer: c.Peer, Chain: c.Chain, Basic: (*provider.Basic)(c.Basic)}
}

func enrolment(r estserver.Enrolment) provider.Request {
	return provider.Request{Endpoint: endpoint(r.Endpoint), Operation: provider.Operation(r.Operation), Client: client(r.Client), CSR: r.CSR}
}

// CACerts implements estserver.Provider.
func (e estProvider) CACerts(_ context.Context, ep estserver.Endpoint) ([]*x509.Certificate, error) {
	return e.p.CACerts(endpoint(ep))
}

// CSRAttributes implements estserver.Provider.
func (e estProvider) CSRAttributes(ctx context.Context, ep estserver.Endpoint, c estserver.Client) (est.CSRAttributes, error) {
	return e.p.CSRAttributes(ctx, endpoint(ep), client(c))
}

// Nonce implements estserver.Provider.
func (e estProvider) Nonce(ctx context.Context, ep estserver.Endpoint, c estserver.Client, q est.NonceRequest) (est.NonceResponse, error) {
	switch {
	case q.Type == est.TypeActivation:
	case !e.p.NeedsEvidence(endpoint(ep)):
		return est.NonceResponse{}, nil // an empty nonce: a CSR without evidence will do
	default:
		return est.NonceResponse{}, &cradle.Error{Kind: cradle.Invalid, Detail: "a nonce is given here for evidence of type " + est.TypeActivation + " only",
			Hint: "POST a request of that type", Err: estserver.ErrUnwilling}
	}
	r, err := e.p.Nonce(ctx, endpoint(ep), c.Peer, q.ReqInfo)
	if err != nil {
		return est.NonceResponse{}, err
	}
	if q.Len > 0 { // as unique, and as hard to guess
		long := sha512.Sum512(r.Nonce)
		r.Nonce = long[:q.Len]
	}
	info, err := json.Marshal(r.Challenge)
	return est.NonceResponse{Nonce: r.Nonce, Expiry: int(r.Expires.Seconds()), Type: q.Type, RespInfo: info}, err
}

// Enroll implements estserver.Provider.
func (e estProvider) Enroll(ctx context.Context, r estserver.Enrolment) (estserver.Issued, error) {
	c, err := e.p.Enroll(ctx, enrolment(r))
	if err != nil {
		return estserver.Issued{}, err
	}
	return estserver.Issued{Certificate: c.DER, Replaced: c.Replaced}, nil
}

// GenerateKey implements estserver.Provider.
func (e estProvider) GenerateKey(ctx context.Context, r estserver.Enrolment, strength int) (estserver.GeneratedKey, error) {
	k, err := e.p.GenerateKey(ctx, enrolment(r), strength)
	if err != nil {
		return estserver.GeneratedKey{}, err
	}
	return estserver.GeneratedKey{Issued: estserver.Issued{Certificate: k.DER, Replaced: k.Replaced}, PKCS8: k.PKCS8}, nil
}

// DecryptKey implements estserver.Provider.
func (e estProvider) DecryptKey(ctx context.Context, ep estserver.Endpoint, id []byte) ([]byte, error) {
	return e.p.DecryptKey(ctx, endpoint(ep), id)
}

// KeyGenerator implements estserver.Provider.
func (e estProvider) KeyGenerator() ([]*x509.Certificate, crypto.Signer) { return e.p.KeyGenerator() }

// TPMEnroll implements estserver.Provider.
func (e estProvider) TPMEnroll(ctx context.Context, ep estserver.Endpoint, c estserver.Client, q est.TPMEnrollRequest) (estserver.TPMIssued, error) {
	r, err := e.p.TPMEnroll(ctx, provider.TPMRequest{Endpoint: endpoint(ep), Client: client(c), CSR: q.CSR, EKChain: q.EKChain, EKPublic: q.EKPublic, AKPublic: q.AKPublic})
	if err != nil {
		return estserver.TPMIssued{}, err
	}
	return estserver.TPMIssued{Issued: estserver.Issued{Certificate: r.Cert}, CredentialBlob: r.CredentialBlob, EncryptedSecret: r.EncryptedSecret, Secret: r.Secret}, nil
}
