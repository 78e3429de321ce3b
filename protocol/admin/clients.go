package admin

import (
	"time"

	"github.com/cradle-iot/cradle"
)

// SetBasicUser lets a user of HTTP Basic in at one EST profile, or changes one.
type SetBasicUser struct {
	Profile  cradle.Profile `json:"profile"`
	User     string         `json:"user"`
	Password string         `json:"password,omitempty"`
	Names    string         `json:"names,omitempty"` // pattern of the device names it may ask for
	Tier     cradle.Tier    `json:"tier,omitempty"`  // of its devices; default software-key
	Disable  bool           `json:"disable,omitempty"`
}

// BasicUser describes a user of HTTP Basic.
type BasicUser struct {
	Account  cradle.AccountID `json:"account"`
	Profile  cradle.Profile   `json:"profile"`
	User     string           `json:"user"`
	Names    string           `json:"names,omitempty"`
	Tier     cradle.Tier      `json:"tier"`
	Disabled bool             `json:"disabled"`
	Created  time.Time        `json:"created_at"`
}

// SetClientCA lets units of another CA in at one EST profile.
type SetClientCA struct {
	Profile  cradle.Profile `json:"profile"`
	PEM      string         `json:"pem"`
	Manifest string         `json:"manifest,omitempty"`
	OEM      cradle.OEMID   `json:"oem,omitempty"`   // the units of its accepted lots
	Names    string         `json:"names,omitempty"` // pattern of the names that units without one may ask for
	Tier     cradle.Tier    `json:"tier,omitempty"`
}

// ClientCA describes another CA whose units are let in.
type ClientCA struct {
	ID           string           `json:"id"`
	Account      cradle.AccountID `json:"account"`
	Profile      cradle.Profile   `json:"profile"`
	Certificates []string         `json:"certificates"` // SHA-256
	Tier         cradle.Tier      `json:"tier"`
	OEM          cradle.OEMID     `json:"oem,omitempty"`
	Names        string           `json:"names,omitempty"`
	Units        int              `json:"units,omitempty"` // of the manifest just given
	Disabled     bool             `json:"disabled"`
	Created      time.Time        `json:"created_at"`
}

// SetRegistrar makes a credential for a registration authority at one EST profile, or ends them.
type SetRegistrar struct {
	Profile cradle.Profile `json:"profile"`
	Name    string         `json:"name"`
	Names   string         `json:"names,omitempty"` // pattern of the device names it may ask for
	Tier    cradle.Tier    `json:"tier,omitempty"`  // of its devices; default software-key
	CSR     []byte         `json:"csr,omitempty"`   // PKCS#10 DER of its key
	Days    int            `json:"days,omitempty"`  // life of the credential; default 365
	Own     bool           `json:"own,omitempty"`   // for this installation's own provisioning service and hubs, which keep the key
	Replace bool           `json:"replace,omitempty"`
	End     bool           `json:"end,omitempty"`
	Reason  string         `json:"reason,omitempty"`
}

// Registrar describes a credential of a registration authority.
type Registrar struct {
	Account     cradle.AccountID  `json:"account"`
	Profile     cradle.Profile    `json:"profile"`
	Name        string            `json:"name"`
	Names       string            `json:"names,omitempty"`
	Tier        cradle.Tier       `json:"tier"`
	Serial      cradle.CertSerial `json:"serial"`
	Fingerprint string            `json:"fingerprint"` // SHA-256 of the certificate
	NotAfter    time.Time         `json:"not_after"`
	Revoked     *time.Time        `json:"revoked_at,omitempty"`
	PEM         string            `json:"pem"`             // the certificate
	Chain       string            `json:"chain,omitempty"` // PEM of the CAs above it, when it is made
	URL         string            `json:"url"`             // EST label at which it asks
}

// RegistrarSet is what a change of a registration authority's credentials made and ended.
type RegistrarSet struct {
	Made  *Registrar  `json:"made,omitempty"`
	Ended []Registrar `json:"ended"`
}

// Healed says how many lineages left quarantine.
type Healed struct {
	Device  cradle.DeviceID  `json:"device"`
	Account cradle.AccountID `json:"account"`
	Healed  int64            `json:"healed"`
}

// Approval is an enrolment that waits for an operator, or what became of it.
type Approval struct {
	ID      string           `json:"id"`
	Account cradle.AccountID `json:"account"`
	Profile cradle.Profile   `json:"profile"`
	Device  cradle.DeviceID  `json:"device"`
	Client  string           `json:"client"` // what authenticated it: a certificate's SHA-256 or basic/USER
	Subject string           `json:"subject,omitempty"`
	SPKI    string           `json:"spki"`  // SHA-256 of the key
	State   string           `json:"state"` // waiting, approved, denied, used
	Reason  string           `json:"reason,omitempty"`
	Asked   time.Time        `json:"asked_at"`
	Decided *time.Time       `json:"decided_at,omitempty"`
	Expires time.Time        `json:"expires_at"`
	CSR     string           `json:"csr,omitempty"` // PEM
}

// Decide approves or denies.
type Decide struct {
	Reason string `json:"reason,omitempty"`
}

// SetKEK registers a key-encryption key of serverkeygen; without a key it ends one.
type SetKEK struct {
	ID  string `json:"id"` // DecryptKeyIdentifier, hexadecimal
	Key []byte `json:"key,omitempty"`
}

// KEK names a key-encryption key of serverkeygen.
type KEK struct {
	Account cradle.AccountID `json:"account"`
	ID      string           `json:"id"`
}
