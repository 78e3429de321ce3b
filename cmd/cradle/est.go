package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/estserver"
)

// estProvider lets the EST server ask the provider. host is the base name below which every account has
// its own: <account>.est.<host>.
type estProvider struct {
	p    *provider.Provider
	host string
}

func estHost(host string, a cradle.AccountID) string { return string(a) + ".est." + host }

// Resolve implements estserver.Provider.
func (e estProvider) Resolve(serverName, label string) (estserver.Endpoint, error) {
	if label == "" {
		account, ok := strings.CutSuffix(strings.ToLower(serverName), ".est."+e.host)
		if !ok {
			return estserver.Endpoint{}, cradle.Errorf(cradle.NotFound, "no account is known by the server name %q", serverName).
				WithHint("give a label, /.well-known/est/<account>-<profile>/, or use the account's own host name")
		}
		ep, err := e.p.DefaultEndpoint(cradle.AccountID(account))
		return estserver.Endpoint{Account: ep.Account, Profile: ep.Profile, Label: ep.Label}, err
	}
	ep, err := e.p.Endpoint(label)
	return estserver.Endpoint{Account: ep.Account, Profile: ep.Profile, Label: ep.Label}, err
}

func endpoint(e estserver.Endpoint) provider.Endpoint {
	return provider.Endpoint{Account: e.Account, Profile: e.Profile, Label: e.Label}
}

// CACerts implements estserver.Provider.
func (e estProvider) CACerts(_ context.Context, ep estserver.Endpoint) ([]*x509.Certificate, error) {
	return e.p.CACerts(endpoint(ep))
}

// Nonce implements estserver.Provider.
func (e estProvider) Nonce(ctx context.Context, ep estserver.Endpoint, peer *x509.Certificate, typ string, claim json.RawMessage) (est.NonceResponse, error) {
	if typ != cradle.OIDActivation.String() {
		return est.NonceResponse{}, cradle.Errorf(cradle.Invalid, "nonce requests here have the type %s, not %q", cradle.OIDActivation, typ)
	}
	r, err := e.p.Nonce(ctx, endpoint(ep), peer, claim)
	if err != nil {
		return est.NonceResponse{}, err
	}
	info, err := json.Marshal(r.Challenge)
	return est.NonceResponse{Nonce: r.Nonce, Expiry: int(r.Expires.Seconds()), Type: typ, RespInfo: info}, err
}

// Enroll implements estserver.Provider.
func (e estProvider) Enroll(ctx context.Context, r estserver.Enrolment) (estserver.Issued, error) {
	c, err := e.p.Enroll(ctx, provider.Request{Endpoint: endpoint(r.Endpoint), Operation: provider.Operation(r.Operation), Client: provider.Client{Peer: r.Peer}, CSR: r.CSR})
	if err != nil {
		return estserver.Issued{}, err
	}
	return estserver.Issued{Certificate: c.Cert.Raw, Replaced: c.Replaced}, nil
}
