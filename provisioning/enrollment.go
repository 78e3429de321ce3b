package provisioning

import (
	"encoding/json"
	"time"

	"github.com/cradle-iot/cradle"
)

// Enrollment admits one device, by its registration id.
type Enrollment struct {
	ID      RegistrationID
	ETag    string
	Device  cradle.DeviceID  // at the hub; empty: the registration id
	Account cradle.AccountID // whose status feed may block it; empty: none
	Attestation
	Terms
	Info    json.RawMessage // optionalDeviceInformation, stored only
	Created time.Time
	Updated time.Time
}

// DeviceID at the hub.
func (e *Enrollment) DeviceID() cradle.DeviceID {
	if e.Device != "" {
		return e.Device
	}
	return cradle.DeviceID(e.ID)
}
