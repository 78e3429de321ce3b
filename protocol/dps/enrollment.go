package dps

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Terms are what individual enrolments and groups have alike. The last few fields are Cradle's own.
type Terms struct {
	Capabilities               *Capabilities     `json:"capabilities,omitempty"`
	IotHubHostName             string            `json:"iotHubHostName,omitempty"`
	InitialTwin                json.RawMessage   `json:"initialTwin,omitempty"`
	ETag                       string            `json:"etag,omitempty"`
	ProvisioningStatus         string            `json:"provisioningStatus,omitempty"` // enabled (default) or disabled
	ReprovisionPolicy          *ReprovisionRule  `json:"reprovisionPolicy,omitempty"`
	CreatedDateTimeUTC         Time              `json:"createdDateTimeUtc,omitzero"`
	LastUpdatedDateTimeUTC     Time              `json:"lastUpdatedDateTimeUtc,omitzero"`
	AllocationPolicy           string            `json:"allocationPolicy,omitempty"` // hashed (default), static, geoLatency, custom
	IotHubs                    []string          `json:"iotHubs,omitempty"`
	CustomAllocationDefinition *CustomAllocation `json:"customAllocationDefinition,omitempty"`
	CredentialPolicyName       string            `json:"credentialPolicyName,omitempty"` // since 2025-07-01-preview

	HubWeights map[string]int `json:"hubWeights,omitempty"` // by name or host of a hub
	Region     string         `json:"region,omitempty"`     // of the devices, for geoLatency
	RegionHint bool           `json:"regionHint,omitempty"` // "region" in a device's payload wins over Region
}

// CustomAllocation is the operator's own rule: a webhook, or (ours only) a CEL expression.
type CustomAllocation struct {
	WebhookURL string `json:"webhookUrl,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
	CEL        string `json:"cel,omitempty"`
	Fallback   string `json:"fallback,omitempty"` // ours only
}

// Capabilities of the devices of a group.
type Capabilities struct {
	IotEdge bool `json:"iotEdge"`
}

// ReprovisionRule says what happens when a known device registers again.
type ReprovisionRule struct {
	UpdateHubAssignment bool `json:"updateHubAssignment"`
	MigrateDeviceData   bool `json:"migrateDeviceData"`
}

// Enrollment is an individual enrolment of the service API.
type Enrollment struct {
	RegistrationID            string             `json:"registrationId"`
	DeviceID                  string             `json:"deviceId,omitempty"`
	RegistrationState         *RegistrationState `json:"registrationState,omitempty"` // read only
	Attestation               Attestation        `json:"attestation"`
	OptionalDeviceInformation json.RawMessage    `json:"optionalDeviceInformation,omitempty"`
	Account                   string             `json:"account,omitempty"` // ours only: whose status feed may block the device
	Terms
}

// TPM is a TPM's public keys, each the base64 of a TPM2B_PUBLIC. Null and "" are the same.
type TPM struct {
	EndorsementKey string `json:"endorsementKey,omitempty"`
	StorageRootKey string `json:"storageRootKey,omitempty"`
}

// SymmetricKey holds two keys in base64. Nobody but the attestation mechanism shows them.
type SymmetricKey struct {
	PrimaryKey   string `json:"primaryKey,omitempty"`
	SecondaryKey string `json:"secondaryKey,omitempty"`
}

// TPMUnits makes a group of the units that the credential provider made under an order, or that are in its lots. Azure
// has no such group.
type TPMUnits struct {
	Account string   `json:"account"`
	Order   string   `json:"order,omitempty"`
	Lots    []string `json:"lots,omitempty"`
}

// Base64 reads a field of a message; an empty one is nothing. Line breaks and missing padding are let pass.
func Base64(what, s string) ([]byte, error) {
	s = strings.TrimRight(strings.Join(strings.Fields(s), ""), "=")
	if s == "" {
		return nil, nil
	}
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s is not base64", what)
	}
	return b, nil
}

// Bulk is many changes of individual enrolments, or of groups, in one request.
type Bulk struct {
	Mode             string            `json:"mode"` // create, update, updateIfMatchETag, delete
	Enrollments      []Enrollment      `json:"enrollments,omitempty"`
	EnrollmentGroups []EnrollmentGroup `json:"enrollmentGroups,omitempty"`
}

// MaxBulk bounds the changes of one request (Azure).
const MaxBulk = 10

// BulkResult says which changes were not made.
type BulkResult struct {
	IsSuccessful bool        `json:"isSuccessful"`
	Errors       []BulkError `json:"errors"`
}

// BulkError is about one enrolment or group.
type BulkError struct {
	RegistrationID    string `json:"registrationId,omitempty"`
	EnrollmentGroupID string `json:"enrollmentGroupId,omitempty"`
	ErrorCode         int    `json:"errorCode"`
	ErrorStatus       string `json:"errorStatus"`
}
