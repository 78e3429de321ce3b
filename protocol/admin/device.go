package admin

import (
	"time"

	"github.com/cradle-iot/cradle"
)

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
