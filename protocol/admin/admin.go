// Package admin is the provider's admin API: messages and client (JSON over HTTPS under /admin/v1,
// bearer token). The command line, the demo and later the console speak it; nothing else reaches into
// the provider.
//
// Errors travel as Problem with the status that StatusOf gives their kind, and come back from the
// client as a *cradle.Error of the same kind, so that a caller sees the detail and the hint.
package admin

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle"
)

// Prefix of every path.
const Prefix = "/admin/v1"

// Context is the file context.json: where the provider is, whom to trust, and the token. Mode 0600.
type Context struct {
	URL      string           `json:"url"`
	Anchors  string           `json:"anchors"` // PEM of the services CA
	Token    string           `json:"token"`
	Account  cradle.AccountID `json:"account,omitempty"`   // set in an account's own context
	OrderKey string           `json:"order_key,omitempty"` // file of the account's order key, relative to the context's folder
}

// ReadContext reads a context file.
func ReadContext(file string) (*Context, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "context: %w", err).
			WithHint("start the services with: cradle serve, or name a context with --context FILE")
	}
	var c Context
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "context %s: %w", file, err)
	}
	if c.OrderKey != "" && !filepath.IsAbs(c.OrderKey) {
		c.OrderKey = filepath.Join(filepath.Dir(file), c.OrderKey)
	}
	return &c, nil
}

// Problem is the body of an error answer.
type Problem struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// StatusOf maps an error kind to its HTTP status.
func StatusOf(k cradle.Kind) int {
	switch k {
	case cradle.Invalid:
		return http.StatusBadRequest
	case cradle.Unauthorized:
		return http.StatusUnauthorized
	case cradle.Forbidden:
		return http.StatusForbidden
	case cradle.NotFound:
		return http.StatusNotFound
	case cradle.Conflict:
		return http.StatusConflict
	case cradle.Busy:
		return http.StatusServiceUnavailable
	case cradle.TooLarge:
		return http.StatusRequestEntityTooLarge
	case cradle.Pending:
		return http.StatusAccepted
	}
	return http.StatusInternalServerError
}

// Service is one row of the status.
type Service struct {
	Service string `json:"service"`
	URL     string `json:"url"`
	Healthy bool   `json:"healthy"`
	Detail  string `json:"detail,omitempty"`
}

// Status is what `cradle status` prints.
type Status struct {
	Services   []Service    `json:"services"`
	ESTURL     string       `json:"est_url"`
	DPSHost    string       `json:"dps_host"`
	IDScope    string       `json:"id_scope"`
	Hubs       []string     `json:"hubs"`   // host:port
	Listen     []string     `json:"listen"` // addresses that are served, the first is the one of --listen
	Checkpoint []Checkpoint `json:"checkpoint"`
	FeedKey    string       `json:"feed_key"`
	Version    string       `json:"version"`
}

// Checkpoint names a log's newest signed state.
type Checkpoint struct {
	Log  string `json:"log"`
	Size int64  `json:"size"`
	Note string `json:"note"` // C2SP signed note
	Key  string `json:"key"`  // verifier key
}

// Anchors is what a TLS client must trust.
type Anchors struct {
	PEM string `json:"pem"`
}

// CreateAccount asks for an account.
type CreateAccount struct {
	Name                cradle.AccountID `json:"name"`
	OrderKey            []byte           `json:"order_key"`                      // SPKI DER
	OperationalValidity string           `json:"operational_validity,omitempty"` // Go duration
	LDevIDValidity      string           `json:"ldevid_validity,omitempty"`
	CAKey               string           `json:"ca_key,omitempty"`        // ec-p256 (default), ec-p384, rsa-3072, rsa-4096
	ExternalRoot        bool             `json:"external_root,omitempty"` // no root is made here: the CAs wait for certificates from elsewhere
}

// Account describes an account.
type Account struct {
	Name        cradle.AccountID `json:"name"`
	Region      string           `json:"region"`
	ESTHost     string           `json:"est_host"`
	Labels      []Label          `json:"labels"`
	Authorities []Authority      `json:"authorities"`
	Profiles    []Profile        `json:"profiles"`
	Created     time.Time        `json:"created_at"`
	Token       string           `json:"token,omitempty"` // at creation alone
}

// Label is one EST endpoint of an account.
type Label struct {
	Profile cradle.Profile `json:"profile"`
	Label   string         `json:"label"`
	URL     string         `json:"url"`
}

// Profile is what certificates of one kind hold.
type Profile struct {
	Profile  cradle.Profile `json:"profile"`
	Kind     string         `json:"kind"`
	Validity string         `json:"validity"`
	Evidence string         `json:"evidence"` // required, optional, none
	Keys     []string       `json:"keys"`
	Default  bool           `json:"default,omitempty"`
	Closed   bool           `json:"closed,omitempty"`
	Digest   string         `json:"digest"` // SHA-256 of toml, as in the log
	TOML     string         `json:"toml"`
}

// SetProfiles asks for profiles of an account to be what TOML says.
type SetProfiles struct {
	TOML   string `json:"toml"` // a table each
	DryRun bool   `json:"dry_run,omitempty"`
}

// ProfileChanges says what a SetProfiles changes.
type ProfileChanges struct {
	Account cradle.AccountID `json:"account"`
	Changes []ProfileChange  `json:"changes"`
	DryRun  bool             `json:"dry_run,omitempty"`
}

// ProfileChange is one field.
type ProfileChange struct {
	Profile cradle.Profile `json:"profile"`
	Field   string         `json:"field"`
	Old     string         `json:"old,omitempty"` // TOML
	New     string         `json:"new,omitempty"`
}

// Authority is a CA certificate.
type Authority struct {
	Kind        string       `json:"kind"`
	Class       cradle.Class `json:"class,omitempty"`
	Fingerprint string       `json:"fingerprint"`
	PEM         string       `json:"pem"`
	Crosses     string       `json:"crosses,omitempty"` // PEM: the same key certified by another root
}

// CreateOEM registers a device maker.
type CreateOEM struct {
	Name   cradle.OEMID `json:"name"`
	Public string       `json:"public"` // content of oem.pub
}

// OEM describes a device maker.
type OEM struct {
	Name        cradle.OEMID `json:"name"`
	Authorities []Authority  `json:"authorities"`
	Created     time.Time    `json:"created_at"`
}

// ImportMaker adds a TPM maker's CA certificates.
type ImportMaker struct {
	Maker cradle.MakerID `json:"maker"`
	Tier  cradle.Tier    `json:"tier"`
	PEM   string         `json:"pem"` // certificates, with any text between them
}

// Maker is what an import did.
type Maker struct {
	Maker         cradle.MakerID `json:"maker"`
	Tier          cradle.Tier    `json:"tier"`
	Certificates  int            `json:"certificates"`
	Added         int            `json:"added"` // the others were imported before
	Roots         int            `json:"roots"`
	Intermediates int            `json:"intermediates"` // that lead to a certificate that is trusted
	Alone         int            `json:"alone"`         // whose issuer is not trusted: they are trusted by themselves
	Fingerprints  []string       `json:"fingerprints"`
	Imported      []Imported     `json:"imported"`
}

// Imported is one certificate of a bundle.
type Imported struct {
	Fingerprint string    `json:"fingerprint"` // SHA-256
	Subject     string    `json:"subject"`
	Root        bool      `json:"root"`
	Signer      string    `json:"signer,omitempty"` // fingerprint of who signed it, if that is trusted
	NotAfter    time.Time `json:"not_after"`
}

// CreateOrder hands in an order signed by the account.
type CreateOrder struct {
	JWS json.RawMessage `json:"jws"`
}

// Order describes an order.
type Order struct {
	ID       cradle.OrderID    `json:"id"`
	Account  cradle.AccountID  `json:"account"`
	OEM      cradle.OEMID      `json:"oem"`
	State    string            `json:"state"`
	Used     int64             `json:"used"`
	Quantity int64             `json:"quantity"`
	Reason   string            `json:"reason,omitempty"`
	Created  time.Time         `json:"created_at"`
	Devices  []cradle.DeviceID `json:"devices_affected,omitempty"` // of a withdrawal
}

// Lot describes a lot.
type Lot struct {
	ID       cradle.LotID     `json:"id"`
	Account  cradle.AccountID `json:"account"`
	Order    cradle.OrderID   `json:"order"`
	OEM      cradle.OEMID     `json:"oem"`
	State    string           `json:"state"`
	Units    int64            `json:"units"`
	Findings []string         `json:"findings,omitempty"`
	Closed   time.Time        `json:"closed_at"`
	Accepted *time.Time       `json:"accepted_at,omitempty"`
	Report   json.RawMessage  `json:"report,omitempty"`  // JWS
	Custody  json.RawMessage  `json:"custody,omitempty"` // JWS
}

// AcceptLot accepts a lot that waits.
type AcceptLot struct {
	Custody json.RawMessage `json:"custody"` // the lot's custody record with the account's signature added
}

// Device describes a device.
type Device struct {
	ID          cradle.DeviceID    `json:"id"`
	Account     cradle.AccountID   `json:"account"`
	OEM         cradle.OEMID       `json:"oem"`
	Order       cradle.OrderID     `json:"order"`
	Lot         cradle.LotID       `json:"lot,omitempty"`
	Origin      string             `json:"origin,omitempty"` // the credential by which it came without an order: basic/USER or ca/ID/UNIT
	Serial      string             `json:"serial"`
	State       cradle.DeviceState `json:"state"`
	Tier        cradle.Tier        `json:"tier"`
	Maker       cradle.MakerID     `json:"tpm_maker"`
	EKDigest    string             `json:"ek_digest"`
	Epoch       int64              `json:"epoch"`
	Reason      string             `json:"reason,omitempty"`
	Created     time.Time          `json:"created_at"`
	Credentials []Credential       `json:"credentials,omitempty"` // show alone, newest first
	History     []Happening        `json:"history,omitempty"`     // show alone, oldest first
}

// Happening is one moment of a device's life.
type Happening struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
}

// Credential is one certificate of a device.
type Credential struct {
	Profile     cradle.Profile    `json:"profile"`
	Serial      cradle.CertSerial `json:"serial"`
	Fingerprint string            `json:"fingerprint"` // SHA-256
	Slot        string            `json:"slot"`
	Proved      bool              `json:"proved"` // the key was proved to live in the device's TPM
	NotBefore   time.Time         `json:"not_before"`
	NotAfter    time.Time         `json:"not_after"`
	Issued      time.Time         `json:"issued_at"`
	Revoked     *time.Time        `json:"revoked_at,omitempty"`
	Hold        bool              `json:"hold,omitempty"` // since revoked_at; it may be released
	Reason      string            `json:"reason,omitempty"`
	PEM         string            `json:"pem"`
	Chain       string            `json:"chain"` // PEM of the issuers
}

// ChangeState moves a device.
type ChangeState struct {
	Reason string `json:"reason"`
}

// Changed says when each service refuses the device.
type Changed struct {
	Device       cradle.DeviceID    `json:"device"`
	Account      cradle.AccountID   `json:"account"`
	State        cradle.DeviceState `json:"state"`
	Feed         int64              `json:"feed"` // number of the event in the status feed
	EST          time.Time          `json:"est_at"`
	Provisioning *time.Time         `json:"provisioning_at,omitempty"`
	Hub          *time.Time         `json:"hub_at,omitempty"`
}

// ServiceKey is a connection string for a service API.
type ServiceKey struct {
	ConnectionString string `json:"connection_string"`
}

// Client calls the admin API.
type Client struct {
	HTTP  *http.Client
	URL   string
	Token string
}

// NewClient makes a client that trusts the context's anchors alone.
func NewClient(c *Context, transport func(roots *x509.CertPool) http.RoundTripper) (*Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Anchors)) {
		return nil, cradle.Errorf(cradle.Invalid, "context holds no anchors")
	}
	return &Client{HTTP: &http.Client{Transport: transport(roots), Timeout: 2 * time.Minute}, URL: c.URL, Token: c.Token}, nil
}

// Call sends in (nil: no body) and decodes the answer into out (nil: ignored).
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 256<<20)).Decode(out); err != nil {
		return fmt.Errorf("answer of %s %s: %w", method, path, err)
	}
	return nil
}

// Stream copies the answer's body to w.
func (c *Client) Stream(ctx context.Context, path string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+Prefix+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, cradle.Errorf(cradle.Busy, "provider at %s: %w", c.URL, err).WithHint("is it running? start it with: cradle serve")
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil || p.Detail == "" {
		return nil, cradle.Errorf(cradle.Internal, "%s %s: %s", method, path, resp.Status)
	}
	return nil, &cradle.Error{Kind: cradle.ParseKind(p.Kind), Detail: p.Detail, Hint: p.Hint}
}

// PEM encodes a certificate.
func PEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
