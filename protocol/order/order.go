// Package order is the customization instructions that an account gives to a device maker (DESIGN
// §3): what may be born, how many, with which keys, and what its settings are. The provider makes no
// IDevID outside an order; the factory line makes no unit outside it.
//
// On the wire an order is a JWS (package internal/jws) with two signatures over the same payload: first the
// account's, then the OEM's countersignature. The payload is the JSON of Order as this package
// encodes it, byte for byte: one order has one encoding, and Order.Digest identifies it.
//
// The order carries the account's key. That names the signer and proves nothing: who verifies an order takes
// the key from elsewhere. The provider has it registered; an OEM compares its fingerprint when it
// accepts an account's first order and keeps it from then on.
//
// Everything here is pure but the key files (keys.go) and the client of what an OEM asks the
// provider (client.go).
package order

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/internal/stricttoml"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// Version is the format of Order that this package reads and writes.
const Version = 1

// KeyECDSAP256 is the one key algorithm of IAK and IDevID so far.
const KeyECDSAP256 = "ecdsa-p256"

// EKTypes lists the endorsement keys an order may allow; names as keys/tpmkey reports them.
var EKTypes = []string{"p256", "p384", "rsa2048"}

// Order is what the account orders. The zero value is no order: use ParseTOML and Complete.
type Order struct {
	Version int              `json:"version" toml:"-"`
	ID      cradle.OrderID   `json:"id" toml:"id"`           // unique in the installation; Complete makes one
	Account cradle.AccountID `json:"account" toml:"account"` // who orders
	OEM     cradle.OEMID     `json:"oem" toml:"oem"`         // who makes
	Model   string           `json:"model" toml:"model"`     // printable, 1 to 64 characters

	Quantity     int64     `json:"quantity" toml:"quantity"`           // units, 1 to MaxQuantity; at most as many as serials
	SerialPrefix string    `json:"serial_prefix" toml:"serial_prefix"` // before the counter; may be empty
	SerialFirst  string    `json:"serial_first" toml:"serial_first"`   // decimal counter with leading zeros, for example "000001"
	SerialLast   string    `json:"serial_last" toml:"serial_last"`     // inclusive; as many digits as the first
	NotBefore    time.Time `json:"not_before" toml:"not_before"`       // units are made from then; whole seconds, UTC
	NotAfter     time.Time `json:"not_after" toml:"not_after"`         // until then, exclusive

	Tiers        []cradle.Tier    `json:"tiers" toml:"tiers"`                 // all of one class
	TPMMakers    []cradle.MakerID `json:"tpm_makers" toml:"tpm_makers"`       // as the provider's operator tagged them
	EKTypes      []string         `json:"ek_types" toml:"ek_types"`           // default: all of EKTypes
	KeyAlgorithm string           `json:"key_algorithm" toml:"key_algorithm"` // default and only KeyECDSAP256
	Naming       string           `json:"naming" toml:"naming"`               // template of device ids, see DeviceName; default DefaultNaming

	ProviderURL          string `json:"provider_url" toml:"provider_url"`         // https, base of EST and of the OEM's calls
	ServicesAnchors      string `json:"services_anchors" toml:"services_anchors"` // PEM: what the TLS of provider, provisioning and hub chains to
	AccountAnchors       string `json:"account_anchors" toml:"account_anchors"`   // PEM: the account's root of the order's class
	ProvisioningEndpoint string `json:"provisioning_endpoint" toml:"provisioning_endpoint"`
	IDScope              string `json:"id_scope" toml:"id_scope"`

	Agent         Agent `json:"agent" toml:"agent"`
	InstallLDevID bool  `json:"install_ldevid" toml:"install_ldevid"` // the line installs an LDevID, for devices whose own software starts from one
	AutoAccept    bool  `json:"auto_accept" toml:"auto_accept"`       // lots that match the order are accepted by themselves; default true

	AccountKey []byte `json:"account_key" toml:"-"` // SPKI DER of the signing key; filled in by Sign
}

// Agent is what the line puts into a unit's settings; zero fields leave the agent's default.
type Agent struct {
	TelemetryInterval settings.Duration `json:"telemetry_interval,omitempty" toml:"telemetry_interval"`
	RenewalFraction   float64           `json:"renewal_fraction,omitempty" toml:"renewal_fraction"`
	RotateKey         *bool             `json:"rotate_key,omitempty" toml:"rotate_key"`
}

// ParseTOML reads an order file as a builder writes it. Unknown keys are refused. What the file
// leaves out (id, account, OEM, dates, anchors, URLs) is filled in by the caller and Complete; nothing
// is checked before Check or Sign.
func ParseTOML(b []byte) (*Order, error) {
	if len(b) > MaxSize {
		return nil, cradle.Errorf(cradle.TooLarge, "order file of %d bytes is over %d", len(b), MaxSize)
	}
	o := &Order{AutoAccept: true}
	if err := stricttoml.Decode(string(b), o); err != nil {
		hint := "see docs for the keys of an order file; text stands in quotes"
		if unknown := new(stricttoml.Unknown); errors.As(err, &unknown) {
			hint = "known keys: " + strings.Join(tomlKeys(), ", ")
		}
		return nil, cradle.Errorf(cradle.Invalid, "order file: %v", err).WithHint("%s", hint)
	}
	return o, nil
}

// Complete fills what is empty: version, an id, dates (from now for a year), EK types, key
// algorithm, naming. Times become whole seconds of UTC.
func (o *Order) Complete(now time.Time) {
	o.Version = Version
	if o.ID == "" {
		b := make([]byte, 10)
		rand.Read(b)
		o.ID = cradle.OrderID("ord-" + strings.ToLower(base32.StdEncoding.EncodeToString(b)))
	}
	if o.NotBefore.IsZero() {
		o.NotBefore = now
	}
	if o.NotAfter.IsZero() {
		o.NotAfter = o.NotBefore.AddDate(1, 0, 0)
	}
	o.NotBefore = o.NotBefore.UTC().Truncate(time.Second)
	o.NotAfter = o.NotAfter.UTC().Truncate(time.Second)
	if len(o.EKTypes) == 0 {
		o.EKTypes = append([]string(nil), EKTypes...)
	}
	if o.KeyAlgorithm == "" {
		o.KeyAlgorithm = KeyECDSAP256
	}
	if o.Naming == "" {
		o.Naming = DefaultNaming
	}
}

// Class is the class of the order's tiers: under which root its devices land.
func (o *Order) Class() cradle.Class {
	if len(o.Tiers) == 0 {
		return cradle.Evaluation
	}
	return o.Tiers[0].Class()
}

// Encode returns the order's only encoding, the payload of its JWS.
func (o *Order) Encode() ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encoding order %s: %w", o.ID, err)
	}
	return b, nil
}

// Digest is the lower-case hexadecimal SHA-256 of the encoding: reports and custody name an order by it.
func (o *Order) Digest() string {
	b, err := o.Encode()
	if err != nil {
		panic("internal error: " + err.Error()) // Check admits nothing that JSON cannot hold
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// decode reads a payload that has this package's encoding and no other, and checks it.
func decode(payload []byte) (*Order, error) {
	if len(payload) > MaxSize {
		return nil, cradle.Errorf(cradle.TooLarge, "order of %d bytes is over %d", len(payload), MaxSize)
	}
	var o Order
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "order: %v", strictjson.Reason(err)).WithHint("it may come from a newer version of cradle")
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	if b, err := o.Encode(); err != nil || !bytes.Equal(b, payload) {
		return nil, cradle.Errorf(cradle.Invalid, "order is not in canonical encoding").
			WithHint("make orders with: cradle order create")
	}
	return &o, nil
}
