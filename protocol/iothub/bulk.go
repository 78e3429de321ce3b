package iothub

import (
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
)

// MaxBulk bounds the entries of one bulk request (Azure).
const MaxBulk = 100

// What a BulkDevice asks for; see ParseImportMode.
const (
	ImportCreate              = "create"
	ImportUpdate              = "update"
	ImportUpdateIfMatch       = "updateIfMatchETag"
	ImportDelete              = "delete"
	ImportDeleteIfMatch       = "deleteIfMatchETag"
	ImportCreateOrUpdate      = "createOrUpdate"
	ImportCreateOrUpdateMatch = "createOrUpdateIfMatchETag"
	ImportUpdateTwin          = "updateTwin"
	ImportUpdateTwinIfMatch   = "updateTwinIfMatchETag"
)

// ParseImportMode returns the mode as the constants have it: SDKs differ in the case of its letters. Empty means
// ImportCreateOrUpdate, as with Azure. Errors are Invalid.
func ParseImportMode(s string) (string, error) {
	if s == "" {
		return ImportCreateOrUpdate, nil
	}
	for _, m := range []string{ImportCreate, ImportUpdate, ImportUpdateIfMatch, ImportDelete, ImportDeleteIfMatch, ImportCreateOrUpdate,
		ImportCreateOrUpdateMatch, ImportUpdateTwin, ImportUpdateTwinIfMatch} {
		if strings.EqualFold(s, m) {
			return m, nil
		}
	}
	return "", cradle.Errorf(cradle.Invalid, "importMode %.40q is not known", s)
}

// BulkDevice is one entry of a bulk request: a device, or with ModuleID a module of one.
type BulkDevice struct {
	ID             cradle.DeviceID `json:"id"`
	ModuleID       ModuleID        `json:"moduleId,omitempty"`
	ImportMode     string          `json:"importMode,omitempty"`
	ETag           string          `json:"eTag,omitempty"` // for the modes with IfMatch
	Status         string          `json:"status,omitempty"`
	StatusReason   string          `json:"statusReason,omitempty"`
	Authentication Authentication  `json:"authentication"`
	Capabilities   Capabilities    `json:"capabilities"`
	DeviceScope    string          `json:"deviceScope,omitempty"`
	ParentScopes   []string        `json:"parentScopes,omitempty"`
	ManagedBy      string          `json:"managedBy,omitempty"`
	TwinETag       string          `json:"twinETag,omitempty"`
	Tags           json.RawMessage `json:"tags,omitempty"` // of the twin, as its desired properties
	Properties     struct {
		Desired json.RawMessage `json:"desired,omitempty"`
	} `json:"properties"`
}

// Device is the entry as a single request carries it.
func (b *BulkDevice) Device() *Device {
	return &Device{DeviceID: b.ID, Status: b.Status, StatusReason: b.StatusReason, Authentication: b.Authentication, Capabilities: b.Capabilities,
		DeviceScope: b.DeviceScope, ParentScopes: b.ParentScopes}
}

// Module is the entry as a single request carries it.
func (b *BulkDevice) Module() *Module {
	return &Module{DeviceID: b.ID, ModuleID: b.ModuleID, ManagedBy: b.ManagedBy, Authentication: b.Authentication}
}

// BulkResult is the answer: what was refused; all else is done.
type BulkResult struct {
	IsSuccessful bool        `json:"isSuccessful"`
	Errors       []BulkError `json:"errors"`
	Warnings     []BulkError `json:"warnings"`
}

// BulkError says why one entry was refused.
type BulkError struct {
	DeviceID    cradle.DeviceID `json:"deviceId"`
	ModuleID    ModuleID        `json:"moduleId,omitempty"`
	ErrorCode   string          `json:"errorCode"` // Code…
	ErrorStatus string          `json:"errorStatus"`
}

// RegistryStatistics counts a hub's entries.
type RegistryStatistics struct {
	TotalDeviceCount    int64 `json:"totalDeviceCount"`
	EnabledDeviceCount  int64 `json:"enabledDeviceCount"`
	DisabledDeviceCount int64 `json:"disabledDeviceCount"`
}

// ServiceStatistics counts connections.
type ServiceStatistics struct {
	ConnectedDeviceCount int64 `json:"connectedDeviceCount"`
}
