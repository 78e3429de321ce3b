package iothub

import (
	"encoding/json"

	"github.com/cradle-iot/cradle"
)

// Limits of twins, as Azure documents them. A section's size counts keys and strings in bytes of UTF-8 without
// control characters, numbers as 8 and booleans as 4.
const (
	MaxTags       = 8 << 10  // size of the tags
	MaxSection    = 32 << 10 // size of the desired, and of the reported properties
	MaxTwinDepth  = 10       // of objects and arrays in a section
	MaxTwinKey    = 1 << 10  // bytes of a key
	MaxTwinString = 4 << 10  // bytes of a string value
)

// Twin is a device's or module's twin as REST carries it. Of what a service sends, tags and desired properties
// count and the rest is ignored; If-Match travels in the header.
type Twin struct {
	DeviceID                  cradle.DeviceID `json:"deviceId"`
	ModuleID                  ModuleID        `json:"moduleId,omitempty"`
	ETag                      string          `json:"etag,omitempty"` // changes with tags and desired properties
	DeviceETag                string          `json:"deviceEtag,omitempty"`
	Status                    string          `json:"status,omitempty"`
	StatusReason              string          `json:"statusReason,omitempty"`
	StatusUpdateTime          string          `json:"statusUpdateTime,omitempty"`
	ConnectionState           string          `json:"connectionState,omitempty"`
	LastActivityTime          string          `json:"lastActivityTime,omitempty"`
	CloudToDeviceMessageCount Count           `json:"cloudToDeviceMessageCount"`
	AuthenticationType        string          `json:"authenticationType,omitempty"`
	X509Thumbprint            *X509Thumbprint `json:"x509Thumbprint,omitempty"`
	ModelID                   string          `json:"modelId"`
	Version                   int64           `json:"version,omitempty"` // grows with every write
	Tags                      json.RawMessage `json:"tags,omitempty"`    // a JSON object
	Properties                TwinProperties  `json:"properties"`
	Capabilities              *Capabilities   `json:"capabilities,omitempty"`
}

// TwinProperties are JSON objects with $version; REST adds $metadata.
type TwinProperties struct {
	Desired  json.RawMessage `json:"desired,omitempty"`
	Reported json.RawMessage `json:"reported,omitempty"`
}

// TwinPatch is a service's change of a twin: RFC 7396 merge patches of tags and desired properties, or what is to
// replace them. Nil leaves a section alone; when replacing, nil empties it.
type TwinPatch struct {
	Tags       json.RawMessage `json:"tags,omitempty"`
	Properties struct {
		Desired json.RawMessage `json:"desired,omitempty"`
	} `json:"properties"`
}

// Topics of twins over MQTT. Requests and answers carry "$rid" behind them: ParseRequest, ResponseTopic.
const (
	TwinGet            = "twin/GET"                       // request path: the twin
	TwinReport         = "twin/PATCH/properties/reported" // request path: a merge patch of the reported properties
	TwinAnswers        = "$iothub/twin/res/#"             // filter of the answers
	DesiredChanges     = "$iothub/twin/PATCH/properties/desired/#"
	desiredTopicPrefix = "$iothub/twin/PATCH/properties/desired/?$version="
)
