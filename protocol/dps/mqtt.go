package dps

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
)

// ResponseFilter is the one topic filter of the device API over MQTT.
const ResponseFilter = "$dps/registrations/res/#"

// Topics of the device API over MQTT, up to their query.
const (
	registerTopic = "$dps/registrations/PUT/iotdps-register/"
	pollTopic     = "$dps/registrations/GET/iotdps-get-operationstatus/"
)

// maxRID bounds a request id in bytes; clients send a UUID.
const maxRID = 256

// UserName is the MQTT user name of a device.
func UserName(scope, registrationID, apiVersion string) string {
	return scope + "/registrations/" + registrationID + "/api-version=" + apiVersion
}

// IsUserName reports whether an MQTT user name is meant for a provisioning service and not for a hub.
func IsUserName(s string) bool {
	_, rest, _ := strings.Cut(s, "/")
	id, ok := strings.CutPrefix(rest, "registrations/")
	return ok && id != "" && id[0] != '?' // a device of that name at a hub
}

// ParseUserName splits "{idScope}/registrations/{registrationId}/api-version=…&ClientVersion=…", the second part of the
// query optional. apiVersion is empty when it is not there. Errors are of kind Invalid.
func ParseUserName(s string) (scope, registrationID, apiVersion string, err error) {
	part := strings.SplitN(s, "/", 4)
	if len(part) < 3 || part[0] == "" || part[1] != "registrations" || part[2] == "" {
		return "", "", "", cradle.Errorf(cradle.Invalid, "user name %.200q is not {idScope}/registrations/{registrationId}/api-version=…", s)
	}
	if registrationID, err = url.PathUnescape(part[2]); err != nil {
		return "", "", "", cradle.Errorf(cradle.Invalid, "registration id %.140q in the user name is not percent-encoded well", part[2])
	}
	if len(part) == 4 {
		apiVersion = parameter(strings.TrimPrefix(part[3], "?"), "api-version")
	}
	return part[0], registrationID, apiVersion, nil
}

// ClientVersion is what an MQTT user name says of the device's software, "name/version"; empty: nothing.
func ClientVersion(userName string) string {
	part := strings.SplitN(userName, "/", 4)
	if len(part) < 4 {
		return ""
	}
	v, err := url.PathUnescape(parameter(strings.TrimPrefix(part[3], "?"), "ClientVersion"))
	if err != nil {
		return ""
	}
	return v
}

// Request is what a topic of the device API over MQTT asks for.
type Request struct {
	Poll      bool   // else register
	RID       string // request id as sent, to be repeated in the answer
	Operation string // of a poll
}

// ParseTopic reads the topic of a request. Errors are of kind Invalid (then RID is set as far as it was found), or
// NotFound for a topic that is none of these.
func ParseTopic(topic string) (Request, error) {
	path, query, _ := strings.Cut(topic, "?")
	if !strings.HasSuffix(path, "/") {
		path += "/"
	}
	r := Request{RID: parameter(query, "$rid")}
	switch path {
	case registerTopic:
	case pollTopic:
		r.Poll, r.Operation = true, parameter(query, "operationId")
	default:
		return r, cradle.Errorf(cradle.NotFound, "topic %.200q is none of the provisioning service", topic)
	}
	if len(r.RID) > maxRID {
		r.RID = ""
	}
	if r.RID == "" {
		return r, cradle.Errorf(cradle.Invalid, "topic %.200q has no request id of at most %d bytes ($rid)", topic, maxRID)
	}
	if operation, err := url.PathUnescape(r.Operation); err == nil {
		r.Operation = operation
	}
	if r.Poll && r.Operation == "" {
		return r, cradle.Errorf(cradle.Invalid, "topic %.200q has no operationId", topic)
	}
	return r, nil
}

// Topic is the inverse of ParseTopic.
func (r Request) Topic() string {
	if r.Poll {
		return pollTopic + "?$rid=" + r.RID + "&operationId=" + strings.ReplaceAll(url.QueryEscape(r.Operation), "+", "%20")
	}
	return registerTopic + "?$rid=" + r.RID
}

// ResponseTopic is where the answer to a request is published. retryAfter is in seconds; empty: not said.
func ResponseTopic(status int, rid, retryAfter string) string {
	t := "$dps/registrations/res/" + strconv.Itoa(status) + "/?$rid=" + rid
	if retryAfter != "" {
		t += "&retry-after=" + retryAfter
	}
	return t
}

// parameter finds a value in a query by the name as it stands there; the value is not decoded.
func parameter(query, name string) string {
	for p := range strings.SplitSeq(query, "&") {
		if v, ok := strings.CutPrefix(p, name+"="); ok {
			return v
		}
	}
	return ""
}
