package iothub

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
)

// Cursor is an opaque place in a hub's event stream; empty is the beginning of what is kept.
type Cursor string

// Event is one line of the event stream.
type Event struct {
	Cursor   Cursor            `json:"cursor"`
	ID       string            `json:"id,omitempty"` // the same for good, in every stream that the event comes by
	Device   cradle.DeviceID   `json:"device"`
	Sequence *int64            `json:"sequence,omitempty"` // property PropSequence, when it is a whole number
	Enqueued time.Time         `json:"enqueued"`           // the hub's clock
	Props    map[string]string `json:"properties,omitempty"`
	System   map[string]string `json:"system,omitempty"` // message_id, correlation_id, content_type, content_encoding, or the raw name
	// Body is the message itself when its content type is JSON and it is well-formed UTF-8 JSON, else a JSON
	// string of its base64, and then BodyEncoding is "base64".
	Body         json.RawMessage `json:"body"`
	BodyEncoding string          `json:"body_encoding,omitempty"`
}

var systemNames = map[string]string{
	PropMessageID: "message_id", PropCorrelationID: "correlation_id",
	PropContentType: "content_type", PropContentEncoding: "content_encoding",
}

// NewEvent makes the line of a stored message.
func NewEvent(c Cursor, device cradle.DeviceID, at time.Time, bag Bag, body []byte) *Event {
	e := &Event{Cursor: c, Device: device, Enqueued: at.UTC()}
	isJSON := false
	for _, p := range bag {
		if !p.System() && p.Name != PropSource {
			if e.Props == nil {
				e.Props = map[string]string{}
			}
			e.Props[p.Name] = p.Value
			continue
		}
		if e.System == nil {
			e.System = map[string]string{}
		}
		name := systemNames[p.Name]
		if name == "" {
			name = p.Name
		}
		e.System[name] = p.Value
		if p.Name == PropContentType {
			t, _, _ := strings.Cut(strings.ToLower(p.Value), ";")
			isJSON = strings.TrimSpace(t) == "application/json"
		}
	}
	if s, ok := e.Props[PropSequence]; ok {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			e.Sequence = &n
		}
	}
	if isJSON && utf8.Valid(body) && json.Valid(body) {
		e.Body = body
	} else {
		e.Body, _ = json.Marshal(base64.StdEncoding.EncodeToString(body))
		e.BodyEncoding = "base64"
	}
	return e
}

// Bytes returns the message as the device sent it; of a JSON body only white space may differ.
func (e *Event) Bytes() ([]byte, error) {
	if e.BodyEncoding == "" {
		return e.Body, nil
	}
	var s string
	if err := json.Unmarshal(e.Body, &s); err != nil || e.BodyEncoding != "base64" {
		return nil, cradle.Errorf(cradle.Invalid, "event %s: body encoding %q", e.Cursor, e.BodyEncoding)
	}
	return base64.StdEncoding.DecodeString(s)
}

// EventQuery says what to read.
type EventQuery struct {
	From   Cursor          // events behind this one
	Limit  int             // stop after so many; 0 means all there are
	Follow bool            // then go on with what comes, until ctx ends
	Device cradle.DeviceID // of this device alone; empty: of all
	Module ModuleID        // of a module of this name alone
}

// maxLine bounds one line of the event stream: the largest body in base64, and its properties.
const maxLine = 1 << 20

// Events calls fn with each event in order; an error of fn ends the reading and is returned. It needs a policy with
// service rights, and, to follow, an http.Client without Timeout. After an error go on from the last Cursor seen.
func (r *Registry) Events(ctx context.Context, q EventQuery, fn func(*Event) error) error {
	v := url.Values{}
	if q.From != "" {
		v.Set("from", string(q.From))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Device != "" {
		v.Set("device", string(q.Device))
	}
	if q.Module != "" {
		v.Set("module", string(q.Module))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	resp, err := r.request(ctx, http.MethodGet, "/events", v, "", nil)
	if err != nil {
		return fmt.Errorf("reading hub events: %w", err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		if len(sc.Bytes()) == 0 {
			continue // sign of life
		}
		e := new(Event)
		if err := json.Unmarshal(sc.Bytes(), e); err != nil {
			return cradle.Errorf(cradle.Busy, "reading hub events: %v", err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("reading hub events: %w", busy(err))
	}
	if q.Follow { // a stream that was given up may also look as if it had ended
		return ctx.Err()
	}
	return nil
}

// EventSources are what a hub's stream has besides telemetry: any of twinChangeEvents, deviceLifecycleEvents and
// deviceConnectionStateEvents.
type EventSources struct {
	Sources []string `json:"sources"`
}

// EventSources reads what the hub's stream has.
func (r *Registry) EventSources(ctx context.Context) ([]string, error) {
	var s EventSources
	if _, err := r.do(ctx, http.MethodGet, "/settings/events", nil, "", nil, &s); err != nil {
		return nil, fmt.Errorf("reading the sources of events: %w", err)
	}
	return s.Sources, nil
}

// SetEventSources says what it is to have from now on, and returns that.
func (r *Registry) SetEventSources(ctx context.Context, sources []string) ([]string, error) {
	var s EventSources
	if _, err := r.do(ctx, http.MethodPut, "/settings/events", nil, "", &EventSources{Sources: sources}, &s); err != nil {
		return nil, fmt.Errorf("setting the sources of events: %w", err)
	}
	return s.Sources, nil
}
