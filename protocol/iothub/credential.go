package iothub

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// A device renews its certificate over MQTT (api-version 2025-08-01-preview): it publishes a CredentialRequest to
// CredentialTopic and hears 202, then 200 or an error, on topics below CredentialFilter.
const (
	CredentialFilter = "$iothub/credentials/res/#"
	credentialTopic  = "$iothub/credentials/POST/issueCertificate/"
)

// Bounds of a request for a certificate.
const (
	MaxCredentialRequest = 16 << 10 // bytes of the payload
	MaxCSR               = 8 << 10  // bytes of the CSR in base64
)

// CredentialRequest asks for a certificate.
type CredentialRequest struct {
	ID      cradle.DeviceID `json:"id"`
	CSR     []byte          `json:"csr"` // PKCS#10 DER
	Replace string          `json:"replace,omitempty"`
}

// AnyRequest in Replace stands for whichever request is active.
const AnyRequest = "*"

// CredentialAccepted is the 202: the request is on record.
type CredentialAccepted struct {
	CorrelationID    string    `json:"correlationId"`
	OperationExpires time.Time `json:"operationExpires"`
}

// CredentialIssued is the 200.
type CredentialIssued struct {
	CorrelationID string   `json:"correlationId"`
	Certificates  [][]byte `json:"certificates"` // DER, the leaf first, the root last
}

// CredentialError is every other answer; the topic's status is ErrorCode / 1000.
type CredentialError struct {
	ErrorCode     int             `json:"errorCode"`
	Message       string          `json:"message"`
	TrackingID    string          `json:"trackingId"`
	CorrelationID string          `json:"correlationId,omitempty"`
	Timestamp     time.Time       `json:"timestampUtc"`
	RetryAfter    int             `json:"retryAfter,omitempty"` // seconds
	Info          *CredentialInfo `json:"info"`
}

// CredentialInfo names the request that a CredentialError is about.
type CredentialInfo struct {
	RequestID        string     `json:"requestId"`
	OperationExpires *time.Time `json:"operationExpires,omitempty"`
	CorrelationID    string     `json:"correlationId,omitempty"`
}

// Error codes of requests for certificates.
const (
	CredentialBadRequest = 400004 // the payload
	CredentialBadJSON    = 400006
	CredentialBadCSR     = 400040
	CredentialForbidden  = 403001 // the device has no policy, or the provider refuses
	CredentialActive     = 409005 // another request is active
	CredentialNothing    = 412001 // there is no active request to replace
	CredentialThrottled  = 429002
	CredentialServer     = 500001
	CredentialBusy       = 503001
)

// CredentialTopic is where a device publishes a request under an id of its own.
func CredentialTopic(request string) string { return credentialTopic + "?$rid=" + request }

// CredentialResponse is the topic of an answer.
func CredentialResponse(status string, request string) string {
	return "$iothub/credentials/res/" + status + "/?$rid=" + request
}

// IsCredentialTopic reports whether a device that publishes to the topic is about its certificate.
func IsCredentialTopic(topic string) bool { return strings.HasPrefix(topic, "$iothub/credentials/") }

// ParseCredentialTopic returns the request id of a topic that a device publishes to. Errors are of kind Invalid.
func ParseCredentialTopic(topic string) (request string, err error) {
	rest, ok := strings.CutPrefix(topic, credentialTopic)
	if query, isQuery := strings.CutPrefix(rest, "?"); ok && isQuery {
		if q, err := url.ParseQuery(query); err == nil && CheckCredentialID(q.Get("$rid")) {
			return q.Get("$rid"), nil
		}
	}
	return "", cradle.Errorf(cradle.Invalid, "topic %.200q is not %s?$rid={request id}", topic, credentialTopic).
		WithHint("a request id has 1 to 36 letters, digits and inner '-'")
}

// CheckCredentialID reports whether s can be a request's id: 1 to 36 letters, digits and inner '-'.
func CheckCredentialID(s string) bool {
	if s == "" || len(s) > 36 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// ParseCredentialRequest reads a payload; whose device it is for and what the CSR holds is the hub's to look at. A refusal
// is one of the codes, with a text for the device's maker.
func ParseCredentialRequest(payload []byte) (*CredentialRequest, int, error) {
	refuse := func(code int, format string, args ...any) (*CredentialRequest, int, error) {
		return nil, code, cradle.Errorf(cradle.Invalid, format, args...)
	}
	if len(bytes.TrimSpace(payload)) == 0 {
		return refuse(CredentialBadRequest, "the payload is missing: send JSON with id and csr")
	}
	if len(payload) > MaxCredentialRequest {
		return refuse(CredentialBadRequest, "the payload has %d bytes, at most %d", len(payload), MaxCredentialRequest)
	}
	if !json.Valid(payload) {
		return refuse(CredentialBadJSON, "the payload is not JSON")
	}
	var raw struct {
		ID      *string `json:"id"`
		CSR     *string `json:"csr"`
		Replace *string `json:"replace"`
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&raw); err != nil {
		return refuse(CredentialBadRequest, "the payload is not an object of id, csr and perhaps replace, which are strings")
	}
	switch {
	case raw.ID == nil || *raw.ID == "":
		return refuse(CredentialBadRequest, "id is missing: it is the device id")
	case raw.CSR == nil || *raw.CSR == "":
		return refuse(CredentialBadRequest, "csr is missing: it is a PKCS#10 request in base64")
	case len(*raw.CSR) > MaxCSR:
		return refuse(CredentialBadRequest, "csr has %d characters, at most %d", len(*raw.CSR), MaxCSR)
	}
	out := &CredentialRequest{ID: cradle.DeviceID(*raw.ID)}
	var err error
	if out.CSR, err = base64.StdEncoding.DecodeString(*raw.CSR); err != nil {
		return refuse(CredentialBadRequest, "csr is not base64 of DER, without armour")
	}
	if raw.Replace != nil && *raw.Replace != "" {
		if out.Replace = *raw.Replace; out.Replace != AnyRequest && !CheckCredentialID(out.Replace) {
			return refuse(CredentialBadRequest, "replace is neither * nor a request id")
		}
	}
	return out, 0, nil
}
