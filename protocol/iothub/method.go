package iothub

import (
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Limits of direct methods (Azure).
const (
	MaxMethodPayload  = 128 << 10 // bytes, either way
	MaxMethodName     = 64
	MinMethodTimeout  = 5 // seconds
	MaxMethodTimeout  = 300
	defaultMethodTime = 30
)

// MethodCalls is the filter under which a device gets method calls.
const MethodCalls = "$iothub/methods/POST/#"

// Method is a call of a direct method.
type Method struct {
	MethodName               string          `json:"methodName"`
	Payload                  json.RawMessage `json:"payload,omitempty"`
	ResponseTimeoutInSeconds int             `json:"responseTimeoutInSeconds,omitempty"` // 5 to 300; 0 means 30
	ConnectTimeoutInSeconds  int             `json:"connectTimeoutInSeconds,omitempty"`  // how long to wait for the device to come; 0 to 300
}

// MethodResult is the device's answer.
type MethodResult struct {
	Status  int             `json:"status"`
	Payload json.RawMessage `json:"payload"`
}

// Check fills in defaults and checks limits; errors are Invalid, or TooLarge.
func (m *Method) Check() error {
	if m.MethodName == "" || len(m.MethodName) > MaxMethodName {
		return cradle.Errorf(cradle.Invalid, "methodName must have 1 to %d characters, not %d", MaxMethodName, len(m.MethodName))
	}
	for _, c := range m.MethodName {
		if c <= ' ' || c > '~' || strings.ContainsRune(`$()<>@,;:\"/[]?={}+#`, c) {
			return cradle.Errorf(cradle.Invalid, "methodName %q: character %q is not allowed", m.MethodName, c)
		}
	}
	if m.ResponseTimeoutInSeconds == 0 {
		m.ResponseTimeoutInSeconds = defaultMethodTime
	}
	if t := m.ResponseTimeoutInSeconds; t < MinMethodTimeout || t > MaxMethodTimeout {
		return cradle.Errorf(cradle.Invalid, "responseTimeoutInSeconds must be %d to %d, not %d", MinMethodTimeout, MaxMethodTimeout, t)
	}
	if t := m.ConnectTimeoutInSeconds; t < 0 || t > MaxMethodTimeout {
		return cradle.Errorf(cradle.Invalid, "connectTimeoutInSeconds must be 0 to %d, not %d", MaxMethodTimeout, t)
	}
	if len(m.Payload) == 0 {
		m.Payload = json.RawMessage("null")
	}
	if len(m.Payload) > MaxMethodPayload {
		return cradle.Errorf(cradle.TooLarge, "method payload of %d bytes, at most %d", len(m.Payload), MaxMethodPayload)
	}
	return nil
}

// MethodTopic is where the hub publishes a call.
func MethodTopic(name, rid string) string { return "$iothub/methods/POST/" + name + "/?$rid=" + rid }
