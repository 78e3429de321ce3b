package iothub

import (
	"strings"

	"github.com/cradle-iot/cradle"
)

// APIVersion is sent by this package's clients; servers accept any.
const APIVersion = "2021-04-12"

// Status of a registered device.
const (
	Enabled  = "enabled"
	Disabled = "disabled"
)

// Authentication types. Cradle's hub admits devices by SelfSigned thumbprints only.
const (
	SelfSigned = "selfSigned"
	AuthNone   = "none"
)

// Connection states as the registry reports them.
const (
	Connected    = "Connected"
	Disconnected = "Disconnected"
)

// Device is a registry entry as REST carries it. The hub sets GenerationID, ETag, the connection
// state and the times; what a client sends in them is ignored (but for ETag: see Registry.PutDevice).
type Device struct {
	DeviceID                   cradle.DeviceID `json:"deviceId"`
	GenerationID               string          `json:"generationId,omitempty"`
	ETag                       string          `json:"etag,omitempty"`
	ConnectionState            string          `json:"connectionState,omitempty"`
	Status                     string          `json:"status,omitempty"` // Enabled, Disabled; empty means Enabled
	StatusReason               string          `json:"statusReason,omitempty"`
	ConnectionStateUpdatedTime string          `json:"connectionStateUpdatedTime,omitempty"`
	StatusUpdatedTime          string          `json:"statusUpdatedTime,omitempty"`
	LastActivityTime           string          `json:"lastActivityTime,omitempty"`
	CloudToDeviceMessageCount  int             `json:"cloudToDeviceMessageCount"`
	Authentication             Authentication  `json:"authentication"`
	Capabilities               Capabilities    `json:"capabilities"`
}

// Authentication says how a device proves itself.
type Authentication struct {
	Type           string         `json:"type"` // SelfSigned
	X509Thumbprint X509Thumbprint `json:"x509Thumbprint"`
}

// X509Thumbprint holds the two slots: SHA-256 (64 hex digits) or SHA-1 (40) of the certificate's DER, in
// any case; empty means free. The first CONNECT accepted with the secondary makes it the primary and
// frees the secondary (DESIGN §4.7).
type X509Thumbprint struct {
	PrimaryThumbprint   string `json:"primaryThumbprint,omitempty"`
	SecondaryThumbprint string `json:"secondaryThumbprint,omitempty"`
}

// Capabilities of a device; kept for the SDKs' sake.
type Capabilities struct {
	IoTEdge bool `json:"iotEdge"`
}

// MaxDeviceIDLen bounds a hub device id (Azure). Ids that Cradle itself makes are shorter and lower case.
const MaxDeviceIDLen = 128

// CheckDeviceID accepts Azure's device ids: 1 to 128 of letters, digits and -:.+%_#*?!(),=@$'
// Ids are case-sensitive.
func CheckDeviceID(id cradle.DeviceID) error {
	if id == "" || len(id) > MaxDeviceIDLen {
		return cradle.Errorf(cradle.Invalid, "device id must have 1 to %d characters, not %d", MaxDeviceIDLen, len(id))
	}
	for i := range len(id) {
		c := id[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			continue
		}
		if strings.IndexByte("-:.+%_#*?!(),=@$'", c) < 0 {
			return cradle.Errorf(cradle.Invalid, "device id %q: character %q is not allowed", id, c)
		}
	}
	return nil
}
