// Package admin is the provider's admin API: messages and client (JSON over HTTPS under /admin/v1,
// bearer token). The command line, the demo and later the console speak it; nothing else reaches into
// the provider.
//
// Errors travel as Problem with the status that StatusOf gives their kind, and come back from the
// client as a *cradle.Error of the same kind, so that a caller sees the detail and the hint.
package admin

import (
	"encoding/json"
	"encoding/pem"
	"time"

	"github.com/cradle-iot/cradle"
)

// Prefix of every path.
const Prefix = "/admin/v1"

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

// ServiceKey is a connection string for a service API.
type ServiceKey struct {
	ConnectionString string `json:"connection_string"`
}

// PEM encodes a certificate.
func PEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
