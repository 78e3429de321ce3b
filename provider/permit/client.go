package permit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
)

// Client is the front end's side: a signer in another process.
type Client struct {
	url  string
	http *http.Client
}

var _ provider.Signer = (*Client)(nil)

// retry is when a device may come again while the signer is away.
const retry = 5 * time.Second

// NewClient makes the client of the signer at url, which must show the very certificate signer.
func NewClient(url string, front *Identity, signer *x509.Certificate) *Client {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ServerName,
		InsecureSkipVerify: true, // crypto/tls would ask for a CA; VerifyConnection asks for the one certificate that there is
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !s.PeerCertificates[0].Equal(signer) {
				return errors.New("this is not the signer that the credential is for")
			}
			return nil
		},
		// Not Certificates: those are withheld when the server names CAs.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &front.Certificate, nil },
	}
	return &Client{url, &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}}}
}

// Sign implements provider.Signer.
func (c *Client) Sign(ctx context.Context, pm provider.Permit) (*provider.Issued, error) {
	in := message(&pm.Request)
	in.Intent, in.Made = pm.Intent.ID, pm.Made
	if q := pm.TPM; q != nil {
		in.TPM = &tpm{q.EKChain, q.EKPublic, q.AKPublic}
	}
	return c.ask(ctx, Path, in)
}

// Birth implements provider.Signer.
func (c *Client) Birth(ctx context.Context, r provider.Request) (*provider.Issued, error) {
	return c.ask(ctx, BirthPath, message(&r))
}

// BirthNonce implements provider.Signer.
func (c *Client) BirthNonce(ctx context.Context, e provider.Endpoint, peer *x509.Certificate, claim json.RawMessage) (*provider.NonceReply, error) {
	in := nonceRequest{Account: e.Account, Profile: e.Profile, Label: e.Label, Claim: claim}
	if peer != nil {
		in.Peer = peer.Raw
	}
	out := new(provider.NonceReply)
	return out, c.call(ctx, NoncePath, in, out)
}

// message is a device's request on the wire.
func message(r *provider.Request) request {
	in := request{Account: r.Account, Profile: r.Profile, Label: r.Label, Operation: r.Operation, Basic: r.Client.Basic, CSR: r.CSR}
	if r.Client.Peer != nil {
		in.Peer = r.Client.Peer.Raw
	}
	for _, x := range r.Client.Chain {
		in.Chain = append(in.Chain, x.Raw)
	}
	return in
}

func (c *Client) ask(ctx context.Context, path string, in request) (*provider.Issued, error) {
	var out answer
	if err := c.call(ctx, path, in, &out); err != nil {
		return nil, err
	}
	if _, err := x509.ParseCertificate(out.Certificate); err != nil {
		return nil, cradle.Errorf(cradle.Busy, "the signer's answer: %v", err)
	}
	return &provider.Issued{DER: out.Certificate, Replaced: out.Replaced}, nil
}

// PrepareOrder implements provider.Signer.
func (c *Client) PrepareOrder(ctx context.Context, jws []byte) error {
	return c.call(ctx, PreparePath, prepareRequest{jws}, new(struct{}))
}

// AcceptOrder implements provider.Signer.
func (c *Client) AcceptOrder(ctx context.Context, id cradle.OrderID, r order.AcceptRequest, providerURL string) (*order.Accepted, error) {
	out := new(order.Accepted)
	return out, c.call(ctx, AcceptPath, acceptRequest{id, r, providerURL}, out)
}

// Alive asks whether the signer takes permits of this front end; Busy when not.
func (c *Client) Alive(ctx context.Context) error {
	return c.call(ctx, AlivePath, struct{}{}, new(struct{}))
}

func (c *Client) call(ctx context.Context, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return &cradle.Error{Kind: cradle.Busy, Detail: "the signer is away", Hint: "try again in a while", Err: err, RetryAfter: retry}
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxBody)
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(body).Decode(out); err != nil {
			return &cradle.Error{Kind: cradle.Busy, Detail: "the signer's answer was cut off", Err: err, RetryAfter: retry}
		}
		return nil
	}
	var p admin.Problem
	if err := json.NewDecoder(body).Decode(&p); err != nil || p.Detail == "" {
		return &cradle.Error{Kind: cradle.Busy, Detail: "the signer is away", Err: errors.New(resp.Status), RetryAfter: retry}
	}
	if resp.Header.Get("WWW-Authenticate") == door { // it is we who are not known there; the device did nothing wrong, and has no other credential
		return &cradle.Error{Kind: cradle.Busy, Detail: "the signer does not take permits of this front end", Hint: "try again in a while", Err: errors.New(p.Detail), RetryAfter: retry}
	}
	e := &cradle.Error{Kind: cradle.ParseKind(p.Kind), Detail: p.Detail, Hint: p.Hint}
	if e.Kind == cradle.Busy {
		e.RetryAfter = retry
	}
	return e
}
