package admin

import (
	"time"

	"github.com/cradle-iot/cradle"
)

// Revoke changes the standing of what its one selector names.
type Revoke struct {
	Change   string            `json:"change,omitempty"`    // revoke (default), suspend or release
	Serial   cradle.CertSerial `json:"serial,omitempty"`    // one certificate
	Device   cradle.DeviceID   `json:"device,omitempty"`    // one device
	Order    cradle.OrderID    `json:"order,omitempty"`     // an order's devices
	Lot      cradle.LotID      `json:"lot,omitempty"`       // a lot's devices
	OEM      cradle.OEMID      `json:"oem,omitempty"`       // an OEM's devices
	EKIssuer string            `json:"ek_issuer,omitempty"` // devices whose EK certificate has this issuer on its path: SHA-256 of its certificate or public key
	Maker    cradle.MakerID    `json:"maker,omitempty"`     // devices with this maker's TPM
	Reason   string            `json:"reason,omitempty"`    // begins with a name of RFC 5280 §5.3.1, as "keyCompromise: found in a bin"
	Preview  bool              `json:"preview,omitempty"`   // of a set: count its devices, change nothing
}

// Revocation is how such a change stands.
type Revocation struct {
	ID       string           `json:"id,omitempty"` // of a set's job
	Account  cradle.AccountID `json:"account"`
	Selector string           `json:"selector"`
	Value    string           `json:"value"`
	Change   string           `json:"change"`
	Reason   string           `json:"reason,omitempty"`
	State    string           `json:"state"`   // preview, running or done
	Total    int64            `json:"total"`   // devices, or certificates
	Changed  int64            `json:"changed"` // by this change; others were so already
	Feed     int64            `json:"feed,omitempty"`
	Created  *time.Time       `json:"created_at,omitempty"`
	Finished *time.Time       `json:"finished_at,omitempty"`
	// When each service refuses the last of them; nil where that is not known yet.
	EST          *time.Time `json:"est_at,omitempty"`
	Provisioning *time.Time `json:"provisioning_at,omitempty"`
	Hub          *time.Time `json:"hub_at,omitempty"`
}

// TPMMaker is a TPM maker with what was imported of it.
type TPMMaker struct {
	Maker   cradle.MakerID `json:"maker"`
	Devices int64          `json:"devices"`
	Anchors []TPMAnchor    `json:"anchors"`
}

// TPMAnchor is a CA certificate of a TPM maker.
type TPMAnchor struct {
	Fingerprint string      `json:"fingerprint"`
	Subject     string      `json:"subject"`
	Tier        cradle.Tier `json:"tier"`
	NotAfter    time.Time   `json:"not_after"`
	Distrusted  bool        `json:"distrusted"` // by itself or by an issuer of its
}

// TPMMakers is whose TPMs are believed.
type TPMMakers struct {
	Makers     []TPMMaker      `json:"makers"`
	Distrusted []DistrustedKey `json:"distrusted"`
}

// DistrustedKey is a key that is not believed any more.
type DistrustedKey struct {
	Digest string    `json:"digest"` // SHA-256 of its SubjectPublicKeyInfo
	Kind   string    `json:"kind"`   // ek or issuer
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Distrust names one TPM maker, issuer or endorsement key.
type Distrust struct {
	Maker       cradle.MakerID `json:"maker,omitempty"`
	Certificate string         `json:"certificate,omitempty"` // SHA-256 of an issuer's certificate or public key
	EK          string         `json:"ek,omitempty"`          // SHA-256 of an endorsement key, as a device shows it
	Reason      string         `json:"reason,omitempty"`
	Confirm     bool           `json:"confirm,omitempty"` // without it the answer is the list of what it would hit
}

// Concern is what a distrust hits.
type Concern struct {
	Confirmed bool                       `json:"confirmed"`
	Keys      []string                   `json:"keys"`
	Accounts  map[cradle.AccountID]int64 `json:"accounts"` // devices in each
	Devices   []AccountDevice            `json:"devices"`  // the first 1000
	Jobs      []Revocation               `json:"jobs,omitempty"`
}

// AccountDevice names a device.
type AccountDevice struct {
	Account cradle.AccountID `json:"account"`
	Device  cradle.DeviceID  `json:"device"`
}
