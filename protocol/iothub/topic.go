package iothub

import (
	"net/url"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
)

// UserName is the MQTT user name of a device; host is the hub's as provisioning assigned it.
func UserName(host string, id cradle.DeviceID) string {
	return host + "/" + string(id) + "/?api-version=" + APIVersion
}

// ParseUserName splits "{host}/{deviceId}/?api-version=…"; the question mark and what follows may be
// written without the slash before it, as old clients do. Errors are of kind Invalid.
func ParseUserName(s string) (host string, id cradle.DeviceID, query url.Values, err error) {
	host, rest, ok := strings.Cut(s, "/")
	path, q, hasQuery := strings.Cut(rest, "?")
	path = strings.TrimSuffix(path, "/")
	if i := strings.IndexByte(path, '/'); i >= 0 && !hasQuery { // {host}/{id}/api-version=…
		path, q = path[:i], path[i+1:]
	}
	if !ok || host == "" || path == "" {
		return "", "", nil, cradle.Errorf(cradle.Invalid, "user name %.100q is not {hub}/{deviceId}/?api-version=…", s)
	}
	query, err = url.ParseQuery(q)
	if err != nil || query.Get("api-version") == "" {
		return "", "", nil, cradle.Errorf(cradle.Invalid, "user name %.100q has no api-version", s)
	}
	return host, cradle.DeviceID(path), query, nil
}

// EventsTopic is where a device publishes telemetry, up to the property bag.
func EventsTopic(id cradle.DeviceID) string { return "devices/" + string(id) + "/messages/events/" }

// TelemetryTopic is the whole topic of one message.
func TelemetryTopic(id cradle.DeviceID, bag Bag) string { return EventsTopic(id) + bag.Encode() }

// ParseTelemetryTopic returns the device and the properties of a device's telemetry topic. Errors are of kind Invalid.
func ParseTelemetryTopic(topic string) (cradle.DeviceID, Bag, error) {
	id, module, b, err := ParseEventsTopic(topic)
	if err == nil && module != "" {
		err = badEventsTopic(topic)
	}
	return id, b, err
}

func badEventsTopic(topic string) error {
	return cradle.Errorf(cradle.Invalid, "topic %.200q is not devices/{id}/messages/events/", topic)
}

// ParseEventsTopic returns the device, the module (empty: the device itself) and the properties of
// "devices/{id}[/modules/{module}]/messages/events/{bag}". Errors are of kind Invalid.
func ParseEventsTopic(topic string) (id cradle.DeviceID, module ModuleID, bag Bag, err error) {
	rest, ok := strings.CutPrefix(topic, "devices/")
	device, rest, ok2 := strings.Cut(rest, "/")
	if m, isModule := strings.CutPrefix(rest, "modules/"); isModule {
		var name string
		if name, rest, ok = strings.Cut(m, "/"); name == "" {
			ok = false
		}
		module = ModuleID(name)
	}
	props, ok3 := strings.CutPrefix(rest, "messages/events")
	if !ok || !ok2 || !ok3 || device == "" || props != "" && props[0] != '/' {
		return "", "", nil, badEventsTopic(topic)
	}
	bag, err = ParseBag(strings.TrimSuffix(strings.TrimPrefix(props, "/"), "/"))
	return cradle.DeviceID(device), module, bag, err
}

// ParseClientID splits "{device}" or "{device}/{module}", as MQTT client ids and user names have it. Errors are
// of kind Invalid.
func ParseClientID(s string) (cradle.DeviceID, ModuleID, error) {
	device, module, isModule := strings.Cut(s, "/")
	if err := CheckDeviceID(cradle.DeviceID(device)); err != nil {
		return "", "", err
	}
	if isModule {
		if err := CheckModuleID(ModuleID(module)); err != nil {
			return "", "", err
		}
	}
	return cradle.DeviceID(device), ModuleID(module), nil
}

// Property is one name and value.
type Property struct{ Name, Value string }

// Bag is the properties of one message, in the order sent. Names that begin with "$." are the system's.
type Bag []Property

// System property names.
const (
	PropMessageID       = "$.mid"
	PropCorrelationID   = "$.cid"
	PropContentType     = "$.ct"
	PropContentEncoding = "$.ce"
	PropCreated         = "$.ctime"
	// PropSequence is an application property: the sender's own count of its messages, by which a
	// reader of the event stream finds gaps and repeats. The hub carries it, it does not check it.
	PropSequence = "seq"
)

// MaxProperties bounds a bag.
const MaxProperties = 100

// ParseBag decodes "name=value&name=value", both percent-encoded; a name without '=' has an empty
// value. Errors are of kind Invalid.
func ParseBag(s string) (Bag, error) {
	if s == "" {
		return nil, nil
	}
	n := strings.Count(s, "&") + 1
	if n > MaxProperties {
		return nil, cradle.Errorf(cradle.Invalid, "message has %d properties, at most %d", n, MaxProperties)
	}
	b := make(Bag, 0, n)
	for part := range strings.SplitSeq(strings.TrimPrefix(s, "?"), "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		n, err1 := url.PathUnescape(name)
		v, err2 := url.PathUnescape(value)
		if err1 != nil || err2 != nil || n == "" {
			return nil, cradle.Errorf(cradle.Invalid, "property %.100q is not percent-encoded well", part)
		}
		if strings.IndexByte(n, 0) >= 0 || strings.IndexByte(v, 0) >= 0 || strings.ToValidUTF8(n+v, "") != n+v {
			return nil, cradle.Errorf(cradle.Invalid, "property %.100q is not UTF-8", part)
		}
		b = append(b, Property{n, v})
	}
	return b, nil
}

// Encode is the inverse of ParseBag.
func (b Bag) Encode() string {
	var s strings.Builder
	for i, p := range b {
		if i > 0 {
			s.WriteByte('&')
		}
		s.WriteString(escape(p.Name))
		s.WriteByte('=')
		s.WriteString(escape(p.Value))
	}
	return s.String()
}

// Get returns the last value of a name.
func (b Bag) Get(name string) (string, bool) {
	for _, p := range slices.Backward(b) {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// System reports whether the name is a system property's.
func (p Property) System() bool { return strings.HasPrefix(p.Name, "$.") }

// escape also encodes '+', '#' and '/', which MQTT forbids in topics or gives a meaning.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
