package iothub

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// Error is the body of a refused REST request. Message reads "ErrorCode:<code>;<text>".
type Error struct {
	Message          string `json:"Message"`
	ExceptionMessage string `json:"ExceptionMessage"` // "Tracking ID:<id>"
}

// Error codes as Azure names them; the SDKs recognise some of them.
const (
	CodeDeviceNotFound      = "DeviceNotFound"
	CodeDeviceAlreadyExists = "DeviceAlreadyExists"
	CodeModuleNotFound      = "ModuleNotFound"
	CodeModuleAlreadyExists = "ModuleAlreadyExistsOnDevice"
	CodePreconditionFailed  = "PreconditionFailed"
	CodeUnauthorized        = "IotHubUnauthorizedAccess"
	CodeArgumentInvalid     = "ArgumentInvalid"
	CodeNotFound            = "NotFound"
	CodeTooLarge            = "RequestEntityTooLarge"
	CodeServerBusy          = "ServiceUnavailable"
	CodeServerError         = "ServerError"
	CodeDeviceNotOnline     = "DeviceNotOnline"
	CodeGatewayTimeout      = "GatewayTimeout"
	CodeBadDeviceAnswer     = "BadDeviceResponse"
	CodeQueueFull           = "DeviceMaximumQueueDepthExceeded"
	CodeNameTaken           = "NameAlreadyExists"
	CodeLockLost            = "DeviceMessageLockLost"
)

// Code returns the code inside Message.
func (e *Error) Code() string {
	s, _, _ := strings.Cut(strings.TrimPrefix(e.Message, "ErrorCode:"), ";")
	return s
}

func readError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var e Error
	text := resp.Status
	if json.Unmarshal(b, &e) == nil && e.Message != "" {
		text = e.Message
	}
	kind := cradle.Internal
	switch s := resp.StatusCode; {
	case s == http.StatusUnauthorized:
		kind = cradle.Unauthorized
	case s == http.StatusForbidden:
		kind = cradle.Forbidden
	case s == http.StatusNotFound:
		kind = cradle.NotFound
	case s == http.StatusConflict || s == http.StatusPreconditionFailed:
		kind = cradle.Conflict
	case s == http.StatusRequestEntityTooLarge:
		kind = cradle.TooLarge
	case s == http.StatusTooManyRequests || s >= 500:
		kind = cradle.Busy
	case s >= 400:
		kind = cradle.Invalid
	}
	refused := cradle.Errorf(kind, "hub answers %d: %s", resp.StatusCode, text)
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		return refused.After(min(time.Duration(n)*time.Second, maxRetryAfter))
	}
	return refused
}

// maxRetryAfter bounds the pause that a hub may ask for.
const maxRetryAfter = time.Hour
