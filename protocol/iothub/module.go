package iothub

import "github.com/cradle-iot/cradle"

// ModuleID names a module of a device; empty means the device itself where both are possible.
type ModuleID string

// Modules that every IoT Edge device has.
const (
	EdgeAgent ModuleID = "$edgeAgent"
	EdgeHub   ModuleID = "$edgeHub"
)

// Module is a module identity as REST carries it: a part of a device with credentials of its own. The hub
// sets GenerationID, ETag, the connection state and its times; what a client sends in them is ignored.
type Module struct {
	ModuleID                   ModuleID        `json:"moduleId"`
	ManagedBy                  string          `json:"managedBy,omitempty"` // who looks after it, for example "IoTEdge"
	DeviceID                   cradle.DeviceID `json:"deviceId"`
	GenerationID               string          `json:"generationId,omitempty"`
	ETag                       string          `json:"etag,omitempty"`
	ConnectionState            string          `json:"connectionState,omitempty"`
	ConnectionStateUpdatedTime string          `json:"connectionStateUpdatedTime,omitempty"`
	LastActivityTime           string          `json:"lastActivityTime,omitempty"`
	CloudToDeviceMessageCount  Count           `json:"cloudToDeviceMessageCount"`
	Authentication             Authentication  `json:"authentication"`
}
