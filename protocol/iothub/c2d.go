package iothub

import (
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// Limits of messages to devices (Azure).
const (
	MaxC2D        = 64 << 10       // bytes of a body
	MaxPending    = 50             // messages that wait for one device
	MaxDeliveries = 10             // of one message; then it is given up
	C2DLife       = time.Hour      // of a message that names no expiry
	MaxC2DLife    = 48 * time.Hour // of any
	C2DLock       = time.Minute    // that a message is held for who received it over HTTP
)

// Further system properties of messages, by their names in MQTT topics.
const (
	PropUserID       = "$.uid"
	PropTo           = "$.to"
	PropExpiry       = "$.exp"
	PropModule       = "$.cmid" // module that sent it; set by the hub
	PropSender       = "$.cdid"
	PropAck          = "iothub-ack"            // none, positive, negative or full: of which outcomes the sender wants feedback
	PropSource       = "iothub-message-source" // of events that are no telemetry; set by the hub
	HeaderTo         = "iothub-to"
	HeaderMessageID  = "iothub-messageid"
	HeaderSequence   = "iothub-sequencenumber"
	HeaderDeliveries = "iothub-deliverycount"
	HeaderEnqueued   = "iothub-enqueuedtime"
	HeaderExpiry     = "iothub-expiry"
)

// Purged is the answer to DELETE /devices/{id}/commands.
type Purged struct {
	DeviceID            cradle.DeviceID `json:"deviceId"`
	TotalMessagesPurged int             `json:"totalMessagesPurged"`
}

// FeedbackType is the content type of an array of FeedbackRecord.
const FeedbackType = "application/vnd.microsoft.iothub.feedback.json"

// FeedbackRecord says what became of one message to a device.
type FeedbackRecord struct {
	OriginalMessageID  string          `json:"originalMessageId"`
	Description        string          `json:"description"` // Success, Expired, DeliveryCountExceeded, Rejected or Purged
	StatusCode         string          `json:"statusCode"`  // the same
	DeviceID           cradle.DeviceID `json:"deviceId"`
	DeviceGenerationID string          `json:"deviceGenerationId"`
	EnqueuedTimeUTC    time.Time       `json:"enqueuedTimeUtc"` // when it happened
}

// DeviceboundTopic is where the hub publishes messages to a device, up to the property bag.
func DeviceboundTopic(id cradle.DeviceID) string {
	return "devices/" + string(id) + "/messages/devicebound/"
}

// DeviceboundFilter is the device's subscription for them.
func DeviceboundFilter(id cradle.DeviceID) string { return DeviceboundTopic(id) + "#" }

// ParseTo returns the device of "/devices/{id}/messages/devicebound", the value of iothub-to. Errors are Invalid.
func ParseTo(s string) (cradle.DeviceID, error) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(s, "/"), "devices/")
	id, ok2 := strings.CutSuffix(rest, "/messages/devicebound")
	if !ok || !ok2 {
		return "", cradle.Errorf(cradle.Invalid, "%s %.200q is not /devices/{id}/messages/devicebound", HeaderTo, s)
	}
	return cradle.DeviceID(id), CheckDeviceID(cradle.DeviceID(id))
}
