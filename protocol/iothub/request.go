package iothub

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Request is what a device publishes under "$iothub/": a path and, behind "/?", parameters.
type Request struct {
	Path string // "twin/GET", "methods/res/200", "credentials/POST/issueCertificate"; no slash at either end
	ID   string // $rid: the device's own for its requests, the hub's for answers to it
}

// MaxRequestID bounds $rid, in bytes as it stands in the topic.
const MaxRequestID = 256

// IsRequest reports whether a topic is one for ParseRequest.
func IsRequest(topic string) bool { return strings.HasPrefix(topic, "$iothub/") }

// ParseRequest splits "$iothub/{path}/?$rid={id}[&…]". The id is kept as sent, so that the answer carries the
// very same bytes. Errors are Invalid.
func ParseRequest(topic string) (Request, error) {
	bad := func(why string) (Request, error) {
		return Request{}, cradle.Errorf(cradle.Invalid, "topic %.200q %s", topic, why).WithHint("it reads $iothub/{path}/?$rid={id}")
	}
	rest, ok := strings.CutPrefix(topic, "$iothub/")
	path, query, ok2 := strings.Cut(rest, "/?")
	if !ok || !ok2 || path == "" || strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") {
		return bad("is not a request to the hub")
	}
	r := Request{Path: path}
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if n, err := url.PathUnescape(name); err != nil || n != "$rid" {
			continue
		}
		if r.ID != "" {
			return bad("has two $rid")
		}
		r.ID = value
	}
	if r.ID == "" || len(r.ID) > MaxRequestID {
		return bad("has no $rid of 1 to " + strconv.Itoa(MaxRequestID) + " bytes")
	}
	return r, nil
}

// String is the topic.
func (r Request) String() string { return "$iothub/" + r.Path + "/?$rid=" + r.ID }

// MethodStatus returns the status in an answer to a method call; false when the request is none.
func (r Request) MethodStatus() (int, bool) {
	s, ok := strings.CutPrefix(r.Path, "methods/res/")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil
}

// ResponseTopic is where the hub answers a request; area is "twin" or "credentials". version, when not 0, is the
// twin section's new one.
func ResponseTopic(area string, status int, rid string, version int64) string {
	t := "$iothub/" + area + "/res/" + strconv.Itoa(status) + "/?$rid=" + rid
	if version != 0 {
		t += "&$version=" + strconv.FormatInt(version, 10)
	}
	return t
}

// DesiredTopic is where the hub publishes a change of the desired properties.
func DesiredTopic(version int64) string {
	return desiredTopicPrefix + strconv.FormatInt(version, 10)
}
