package iothub

import (
	"encoding/json"
	"strconv"
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

// Authentication types.
const (
	SAS                  = "sas"                  // by a token signed with one of two symmetric keys
	SelfSigned           = "selfSigned"           // by a certificate known by its thumbprint
	CertificateAuthority = "certificateAuthority" // by a certificate that a known authority issued
	AuthNone             = "none"                 // not at all
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
	CloudToDeviceMessageCount  Count           `json:"cloudToDeviceMessageCount"`
	Authentication             Authentication  `json:"authentication"`
	Capabilities               Capabilities    `json:"capabilities"`
	// DeviceScope names an IoT Edge device's scope, made by the hub; of another device, the scope of its parent.
	DeviceScope string `json:"deviceScope,omitempty"`
	// ParentScopes holds the scope of the parent, if there is one.
	ParentScopes []string `json:"parentScopes,omitempty"`
	// CredentialPolicy is that under which the hub renews the device's certificate, "<account>-<profile>"; empty: it does
	// not. Nil leaves it as it is. Azure has no such field.
	CredentialPolicy *string `json:"credentialPolicy,omitempty"`
}

// Count is a number that some clients send back as a string.
type Count int

// UnmarshalJSON accepts a number or a string of one.
func (c *Count) UnmarshalJSON(b []byte) error {
	if i, err := strconv.Atoi(string(b)); err == nil {
		*c = Count(i)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil || n == "" {
		return err
	}
	i, err := n.Int64()
	*c = Count(i)
	return err
}

// Authentication says how a device or module proves itself.
type Authentication struct {
	// Type is one of the four; empty means SelfSigned where a thumbprint is given, else SAS.
	Type           string         `json:"type,omitempty"`
	SymmetricKey   SymmetricKey   `json:"symmetricKey"`
	X509Thumbprint X509Thumbprint `json:"x509Thumbprint"`
}

// Bounds of a symmetric key, in bytes before base64 (Azure).
const (
	MinKey = 16
	MaxKey = 64
)

// SymmetricKey holds the two keys of SAS, base64 on the wire; a secret. Empty means: the hub makes one.
type SymmetricKey struct {
	PrimaryKey   string `json:"primaryKey"`
	SecondaryKey string `json:"secondaryKey"`
}

// slots writes a pair of strings as Azure does: one that is not there is null.
func slots(primary, p, secondary, s string) ([]byte, error) {
	b := make([]byte, 0, len(primary)+len(p)+len(secondary)+len(s)+len(`{"":null,"":null}`))
	for _, x := range [2][3]string{{`{"`, primary, p}, {`,"`, secondary, s}} {
		b = append(append(append(b, x[0]...), x[1]...), `":`...)
		if x[2] == "" {
			b = append(b, "null"...)
			continue
		}
		text, err := json.Marshal(x[2])
		if err != nil {
			return nil, err
		}
		b = append(b, text...)
	}
	return append(b, '}'), nil
}

// MarshalJSON writes keys that are not there as null, as Azure does.
func (k SymmetricKey) MarshalJSON() ([]byte, error) {
	return slots("primaryKey", k.PrimaryKey, "secondaryKey", k.SecondaryKey)
}

// String keeps the keys out of logs.
func (SymmetricKey) String() string { return "symmetric key" }

// GoString keeps the keys out of logs.
func (SymmetricKey) GoString() string { return "symmetric key" }

// X509Thumbprint holds the two slots: SHA-256 (64 hex digits) or SHA-1 (40) of the certificate's DER, in
// any case; empty means free. The first CONNECT accepted with the secondary makes it the primary and
// frees the secondary (DESIGN §4.7).
type X509Thumbprint struct {
	PrimaryThumbprint   string `json:"primaryThumbprint"`
	SecondaryThumbprint string `json:"secondaryThumbprint"`
}

// MarshalJSON writes free slots as null, as Azure does.
func (t X509Thumbprint) MarshalJSON() ([]byte, error) {
	return slots("primaryThumbprint", t.PrimaryThumbprint, "secondaryThumbprint", t.SecondaryThumbprint)
}

// Capabilities of a device; kept for the SDKs' sake.
type Capabilities struct {
	IoTEdge bool `json:"iotEdge"`
}

// MaxDeviceIDLen bounds a hub device id (Azure). Ids that Cradle itself makes are shorter and lower case.
const MaxDeviceIDLen = 128

// CheckDeviceID accepts Azure's device ids: 1 to 128 of letters, digits and -:.+%_#*?!(),=@$'
// Ids are case-sensitive.
func CheckDeviceID(id cradle.DeviceID) error { return checkID("device", string(id)) }

// CheckModuleID accepts Azure's module ids, which are made like device ids.
func CheckModuleID(id ModuleID) error { return checkID("module", string(id)) }

func checkID(what, id string) error {
	if id == "" || len(id) > MaxDeviceIDLen {
		return cradle.Errorf(cradle.Invalid, "%s id must have 1 to %d characters, not %d", what, MaxDeviceIDLen, len(id))
	}
	for _, c := range id {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			continue
		}
		if !strings.ContainsRune("-:.+%_#*?!(),=@$'", c) {
			return cradle.Errorf(cradle.Invalid, "%s id %q: character %q is not allowed", what, id, c)
		}
	}
	return nil
}
