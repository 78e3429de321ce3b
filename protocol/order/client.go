package order

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"github.com/cradle-iot/cradle"
)

// What an OEM asks the provider, beside EST. The calls carry no token: what they hand in is signed
// by keys that the provider has registered, and what they return is worth something only to who has the station's key.
//
//	POST {provider_url}/oem/v1/orders/{id}/accept   AcceptRequest -> Accepted
//	GET  {provider_url}/oem/v1/orders/{id}          -> Status
//	POST {provider_url}/oem/v1/orders/{id}/lots     LotRequest -> LotAnswer
//
// An error answer is {"kind", "detail", "hint"}, kind being a cradle.Kind's name.

// PathPrefix is the first part of the paths.
const PathPrefix = "/oem/v1/orders/"

// MaxBody bounds a request or an answer, in bytes.
const MaxBody = 16 << 20

// AcceptRequest hands in a countersigned order and asks for a station certificate. Asking again
// with another request gives another station its certificate.
type AcceptRequest struct {
	Order      json.RawMessage `json:"order"`       // countersigned JWS
	StationCSR []byte          `json:"station_csr"` // PKCS#10 DER, signed by the station's key; its subject is ignored
}

// Accepted is the answer: all that the line needs for the order.
type Accepted struct {
	Order              cradle.OrderID `json:"order"`
	StationCertificate []byte         `json:"station_certificate"` // DER, TLS client certificate for this order alone
	StationIssuer      []byte         `json:"station_issuer"`      // DER
	IAKURL             string         `json:"est_iak_url"`
	IDevIDURL          string         `json:"est_idevid_url"`
	IDevIDChain        [][]byte       `json:"idevid_chain"`    // DER: the CA that issues IDevID and IAK, then its issuers up to, without, the account's root
	AccountAnchors     [][]byte       `json:"account_anchors"` // DER: roots; must be among the order's
}

// Status is where an order is.
type Status struct {
	ID       cradle.OrderID `json:"id"`
	State    string         `json:"state"` // signed, open, closed, withdrawn
	Quantity int64          `json:"quantity"`
	Used     int64          `json:"used"`
}

// LotRequest hands in a closed lot (package custody).
type LotRequest struct {
	Report  json.RawMessage `json:"report"`  // JWS by the OEM's lot key
	Custody json.RawMessage `json:"custody"` // JWS
}

// The states of a lot.
const (
	LotAccepted = "accepted"
	LotWaiting  = "waiting" // for the owner; Reasons says why
)

// LotAnswer says what became of a lot. Handing in the same lot again gives the answer again.
type LotAnswer struct {
	Lot     cradle.LotID `json:"lot"`
	State   string       `json:"state"`
	Reasons []string     `json:"reasons,omitempty"`
}

// Provider is what the line asks; Client is it over HTTP.
type Provider interface {
	Accept(ctx context.Context, id cradle.OrderID, r AcceptRequest) (*Accepted, error)
	Status(ctx context.Context, id cradle.OrderID) (*Status, error)
	CloseLot(ctx context.Context, id cradle.OrderID, r LotRequest) (*LotAnswer, error)
}

// Client calls the provider. It never follows a redirect.
type Client struct {
	HTTP *http.Client // required; trusts the services' anchors
	URL  string       // the order's provider_url
}

// Accept hands in a countersigned order. The answer's certificates are not verified.
func (c *Client) Accept(ctx context.Context, id cradle.OrderID, r AcceptRequest) (*Accepted, error) {
	a := new(Accepted)
	return a, c.call(ctx, http.MethodPost, id, "/accept", r, a)
}

// CloseLot hands in a lot.
func (c *Client) CloseLot(ctx context.Context, id cradle.OrderID, r LotRequest) (*LotAnswer, error) {
	a := new(LotAnswer)
	return a, c.call(ctx, http.MethodPost, id, "/lots", r, a)
}

func (c *Client) call(ctx context.Context, method string, id cradle.OrderID, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return cradle.Errorf(cradle.Invalid, "request for order %s: %w", id, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+PathPrefix+url.PathEscape(string(id))+path, body)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "request for order %s: %w", id, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	hc := *c.HTTP
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := hc.Do(req)
	if err != nil {
		return cradle.Errorf(cradle.Busy, "provider: %w", err).WithHint("is the provider running at %s, and are the services anchors of the order the right ones?", c.URL)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil || len(b) > MaxBody {
		return cradle.Errorf(cradle.Busy, "provider: the answer about order %s broke off or is too long", id).WithHint("try again")
	}
	if resp.StatusCode/100 != 2 {
		var p struct{ Kind, Detail, Hint string }
		if err := json.Unmarshal(b, &p); err != nil || p.Detail == "" {
			kind := cradle.Invalid
			if resp.StatusCode >= 500 {
				kind = cradle.Busy
			}
			return cradle.Errorf(kind, "provider answered %s", resp.Status).WithHint("is %s a Cradle provider?", c.URL)
		}
		return &cradle.Error{Kind: cradle.ParseKind(p.Kind), Detail: p.Detail, Hint: p.Hint}
	}
	if err := json.Unmarshal(b, out); err != nil {
		return cradle.Errorf(cradle.Invalid, "provider: answer about order %s: %w", id, err)
	}
	return nil
}
