// Package dps is the wire of Azure's Device Provisioning Service: the messages of its device API and
// of the part of its service API that registers signing certificates, and a client for each. The
// clients work against Azure's own service as against ours; the servers are elsewhere.
//
// Device API: PUT /{idScope}/registrations/{registrationId}/register answers 202 with an operation,
// which is polled at …/operations/{operationId} until its status is assigned or failed. The device
// proves itself by its TLS client certificate. Errors are JSON objects (Error) on any status of 300
// and above.
//
// The package imports only the standard library and our own small packages, so that a device agent
// stays small.
package dps

import (
	"encoding/json"
	"fmt"
	"time"
)

// API versions that the clients ask for.
const (
	DeviceAPIVersion  = "2021-06-01"
	ServiceAPIVersion = "2021-10-01"
)

// FirstAPIVersion is the oldest version a server accepts; versions are dates and compare as strings.
const FirstAPIVersion = "2019-03-31"

// MaxBody bounds a message in bytes (the real service's quota is 96 KB).
const MaxBody = 96 << 10

// Policy is the name of the service key that may do everything in the service API.
const Policy = "provisioningserviceowner"

// Status of a registration.
type Status string

// The statuses.
const (
	Unassigned Status = "unassigned"
	Assigning  Status = "assigning"
	Assigned   Status = "assigned"
	Failed     Status = "failed"
	Disabled   Status = "disabled"
)

// DeviceRegistration is the body of register and of the status lookup.
type DeviceRegistration struct {
	RegistrationID string          `json:"registrationId,omitempty"`
	Payload        json.RawMessage `json:"payload,omitempty"`
	TPM            *TPM            `json:"tpm,omitempty"`
	CSR            string          `json:"csr,omitempty"` // base64 of PKCS#10 DER, no armour
}

// OperationStatus answers register and the polls.
type OperationStatus struct {
	OperationID       string             `json:"operationId"`
	Status            Status             `json:"status"`
	RegistrationState *RegistrationState `json:"registrationState,omitempty"`
}

// RegistrationState is what is known of a registration. RegistrationID is in every one.
type RegistrationState struct {
	X509                   *X509State      `json:"x509,omitempty"`
	TPM                    *TPMState       `json:"tpm,omitempty"`
	SymmetricKey           *X509State      `json:"symmetricKey,omitempty"`
	RegistrationID         string          `json:"registrationId"`
	CreatedDateTimeUTC     Time            `json:"createdDateTimeUtc,omitzero"`
	AssignedHub            string          `json:"assignedHub,omitempty"` // host, or host:port
	DeviceID               string          `json:"deviceId,omitempty"`
	Status                 Status          `json:"status"`
	Substatus              string          `json:"substatus,omitempty"`
	ErrorCode              int             `json:"errorCode,omitempty"`
	ErrorMessage           string          `json:"errorMessage,omitempty"`
	LastUpdatedDateTimeUTC Time            `json:"lastUpdatedDateTimeUtc,omitzero"`
	ETag                   string          `json:"etag,omitempty"`
	Payload                json.RawMessage `json:"payload,omitempty"`
	IssuedCertificateChain [][]byte        `json:"issuedCertificateChain,omitempty"` // DER, leaf first; of a poll alone
}

// TPMState carries the device's key for the hub, for its TPM to take in.
type TPMState struct {
	AuthenticationKey []byte `json:"authenticationKey"`
}

// Challenge is the body of the 401 that a TPM's first call gets.
type Challenge struct {
	Message           string `json:"message"`
	AuthenticationKey []byte `json:"authenticationKey"`
	KeyName           string `json:"keyName"`
}

// X509State says by which group a certificate, or a symmetric key, was accepted.
type X509State struct {
	EnrollmentGroupID string `json:"enrollmentGroupId,omitempty"`
}

// Time is written as Azure writes it: UTC with seven decimals.
type Time struct{ time.Time }

// MarshalJSON writes for example "2026-01-02T03:04:05.0000000Z".
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(t.UTC().Format(`"2006-01-02T15:04:05.0000000Z"`)), nil
}

// UnmarshalJSON reads RFC 3339 with any number of decimals.
func (t *Time) UnmarshalJSON(b []byte) error { return t.Time.UnmarshalJSON(b) }

// HeaderPrefer is of a register call that may be answered with its outcome, "wait=" and seconds (RFC 7240 §4.3). Without it
// the service answers as Azure's does, with an operation to poll.
const HeaderPrefer = "Prefer"

// HeaderErrorCode repeats the error code of the body.
const HeaderErrorCode = "x-ms-error-code"

// Error is the body of every refusal.
type Error struct {
	ErrorCode    int    `json:"errorCode"` // the HTTP status and three digits more
	TrackingID   string `json:"trackingId,omitempty"`
	Message      string `json:"message"` // which check failed and how to mend it
	TimestampUTC Time   `json:"timestampUtc,omitzero"`

	HTTPStatus int           `json:"-"`
	RetryAfter time.Duration `json:"-"` // what the service asked for; 0 when it did not
}

func (e *Error) Error() string {
	s := fmt.Sprintf("provisioning service refused with %d", e.HTTPStatus)
	if e.ErrorCode != 0 {
		s += fmt.Sprintf(" (%d)", e.ErrorCode)
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.TrackingID != "" {
		s += " [tracking id " + e.TrackingID + "]"
	}
	return s
}
