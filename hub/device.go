package hub

import (
	"cmp"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Name names a hub in the installation: canonical as cradle.CheckID has it.
type Name string

// DefaultName is the hub that the first start makes.
const DefaultName Name = "hub-1"

// Device is a registry entry.
type Device struct {
	ID            cradle.DeviceID
	Generation    string // differs between a device and one made later under the same id
	ETag          string // differs after every write
	Disabled      bool
	Reason        string    // why Disabled, as the registry's writer put it
	StatusChanged time.Time // when Disabled changed last
	Auth          Auth
	Primary       string // thumbprint, lower-case hex: SHA-256, or SHA-1 as Azure also takes; "" is free
	Secondary     string
	IoTEdge       bool
	Scope         string // an IoT Edge device's own, or that of another device's parent
	Parent        string // an IoT Edge device's parent's scope
	Policy        string // "<account>-<profile>" under which its certificate is renewed; empty: it is not
	Created       time.Time
	Updated       time.Time
}

// MaxReason bounds Device.Reason, in bytes (Azure: 128 characters).
const MaxReason = 512

// credential is a client certificate as the registry knows it.
type credential struct{ sha256, sha1 string }

func credentialOf(c *x509.Certificate) credential {
	a, b := sha256.Sum256(c.Raw), sha1.Sum(c.Raw)
	return credential{hex.EncodeToString(a[:]), hex.EncodeToString(b[:])}
}

func (c credential) is(slot string) bool { return slot != "" && (slot == c.sha256 || slot == c.sha1) }

// slot says where the credential is: 1 primary, 2 secondary, 0 nowhere.
func (c credential) slot(primary, secondary string) int {
	switch {
	case c.is(primary):
		return 1
	case c.is(secondary):
		return 2
	}
	return 0
}

// maxScope bounds Device.Scope and Parent, in bytes.
const maxScope = 256

// fromWire checks what a registry client sent and returns the entry without what the hub itself sets.
func fromWire(w *iothub.Device) (*Device, error) {
	if err := iothub.CheckDeviceID(w.DeviceID); err != nil {
		return nil, err
	}
	d := &Device{ID: w.DeviceID, Reason: w.StatusReason, IoTEdge: w.Capabilities.IoTEdge}
	switch w.Status {
	case "", iothub.Enabled:
	case iothub.Disabled:
		d.Disabled = true
	default:
		return nil, cradle.Errorf(cradle.Invalid, "status %.40q is neither enabled nor disabled", w.Status)
	}
	if len(d.Reason) > MaxReason || strings.IndexByte(d.Reason, 0) >= 0 {
		return nil, cradle.Errorf(cradle.Invalid, "statusReason must have at most %d bytes and no zero", MaxReason)
	}
	if err := d.scopes(w); err != nil {
		return nil, err
	}
	if err := d.setPolicy(w.CredentialPolicy); err != nil {
		return nil, err
	}
	var err error
	d.Auth, d.Primary, d.Secondary, err = authFromWire(&w.Authentication)
	return d, err
}

// scopes takes a device's place in IoT Edge's tree from what a client sent.
func (d *Device) scopes(w *iothub.Device) error {
	if len(w.ParentScopes) > 1 {
		return cradle.Errorf(cradle.Invalid, "a device has at most one parent scope, not %d", len(w.ParentScopes))
	}
	d.Scope = w.DeviceScope
	if len(w.ParentScopes) == 1 {
		d.Parent = w.ParentScopes[0]
	}
	for _, s := range []string{d.Scope, d.Parent} {
		if len(s) > maxScope || strings.IndexByte(s, 0) >= 0 {
			return cradle.Errorf(cradle.Invalid, "a scope must have at most %d bytes and no zero", maxScope)
		}
	}
	if !d.IoTEdge {
		d.Scope, d.Parent = cmp.Or(d.Scope, d.Parent), ""
	}
	return nil
}

// ownScope gives an IoT Edge device the scope that its children name: the one that it had, else a new one.
func (d *Device) ownScope(before string) {
	if d.IoTEdge {
		d.Scope = cmp.Or(before, fmt.Sprintf("ms-azure-iot-edge://%s-%d", d.ID, d.Updated.UnixMicro()))
	}
}

// wireZero is Azure's text for a time that never was.
const wireZero = "0001-01-01T00:00:00Z"

func wireTime(t time.Time) string {
	if t.IsZero() {
		return wireZero
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func (d *Device) wire(connected bool, since time.Time) *iothub.Device {
	w := &iothub.Device{
		DeviceID: d.ID, GenerationID: d.Generation, ETag: d.ETag,
		Status: iothub.Enabled, StatusReason: d.Reason, StatusUpdatedTime: wireTime(d.StatusChanged),
		ConnectionState: iothub.Disconnected, ConnectionStateUpdatedTime: wireTime(since), LastActivityTime: wireTime(since),
		Authentication: authWire(d.Auth, d.Primary, d.Secondary),
		Capabilities:   iothub.Capabilities{IoTEdge: d.IoTEdge},
		DeviceScope:    d.Scope,
	}
	switch {
	case d.Parent != "":
		w.ParentScopes = []string{d.Parent}
	case d.Scope != "" && !d.IoTEdge:
		w.ParentScopes = []string{d.Scope}
	}
	if d.Disabled {
		w.Status = iothub.Disabled
	}
	if d.Policy != "" {
		w.CredentialPolicy = &d.Policy
	}
	if connected {
		w.ConnectionState = iothub.Connected
	}
	return w
}
