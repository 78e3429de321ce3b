package hub

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Notices says which events besides telemetry a hub's stream has, as bits; stored. None unless an operator wants them, so
// that readers of telemetry are not surprised.
type Notices int

// The notices.
const (
	TwinChanges      Notices = 1 << iota // in the transaction of the change
	Lifecycle                            // devices and modules come and go; likewise
	ConnectionStates                     // soon after, unless the process stops first
)

// sources are the values of iothub.PropSource, in the order of the bits, with those of iothub-message-schema.
var sources = []struct{ name, schema string }{
	{"twinChangeEvents", "twinChangeNotification"},
	{"deviceLifecycleEvents", "deviceLifecycleNotification"},
	{"deviceConnectionStateEvents", "deviceConnectionStateNotification"},
}

// ParseNotices reads Azure's names of them; Invalid.
func ParseNotices(names []string) (Notices, error) {
	var n Notices
	for _, name := range names {
		i := slices.IndexFunc(sources, func(s struct{ name, schema string }) bool { return strings.EqualFold(s.name, name) })
		if i < 0 {
			return 0, cradle.Errorf(cradle.Invalid, "there are no events %.60q", name).
				WithHint("use twinChangeEvents, deviceLifecycleEvents, deviceConnectionStateEvents, or none; telemetry is always there")
		}
		n |= 1 << i
	}
	return n, nil
}

// Names is the inverse of ParseNotices.
func (n Notices) Names() []string {
	out := []string{}
	for i, s := range sources {
		if n&(1<<i) != 0 {
			out = append(out, s.name)
		}
	}
	return out
}

// Noticing keeps what a hub's stream is to have; the contract is Store's.
type Noticing interface {
	Notices(ctx context.Context, hub Name) (Notices, error)
	SetNotices(ctx context.Context, hub Name, n Notices) error
}

type cachedNotices struct {
	at time.Time
	n  Notices
}

// Notices returns what a hub's stream has besides telemetry. What another process has set is known within policyAge.
func (h *Hub) Notices(ctx context.Context, hub Name) (Notices, error) {
	h.mu.Lock()
	c, ok := h.notices[hub]
	h.mu.Unlock()
	if ok && h.now().Sub(c.at).Abs() < policyAge {
		return c.n, nil
	}
	n, err := h.store.Notices(ctx, hub)
	if err != nil {
		return 0, h.storeError("reading what a hub's stream is to have", err)
	}
	h.mu.Lock()
	h.notices[hub] = cachedNotices{h.now(), n}
	h.mu.Unlock()
	return n, nil
}

// SetNotices says what it is to have from now on.
func (h *Hub) SetNotices(ctx context.Context, hub Name, n Notices) error {
	if err := h.store.SetNotices(ctx, hub, n); err != nil {
		return h.storeError("storing what a hub's stream is to have", err)
	}
	h.mu.Lock()
	h.notices[hub] = cachedNotices{h.now(), n}
	h.mu.Unlock()
	return nil
}

// notice makes an event as Azure has it; what is one bit.
func (h *Hub) notice(k key, what Notices, op string, body any) (Event, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return Event{}, fmt.Errorf("event %s of %s: %w", op, k.device, err)
	}
	now := h.now().UTC().Truncate(time.Microsecond)
	bag := iothub.Bag{{Name: iothub.PropContentType, Value: "application/json"}, {Name: iothub.PropContentEncoding, Value: "utf-8"},
		{Name: iothub.PropCorrelationID, Value: rand.Text()}, {Name: iothub.PropUserID, Value: string(k.hub)},
		{Name: "hubName", Value: string(k.hub)}, {Name: "deviceId", Value: string(k.device)}, {Name: "opType", Value: op},
		{Name: "operationTimestamp", Value: now.Format(time.RFC3339Nano)}}
	if k.module != "" {
		bag = append(bag, iothub.Property{Name: "moduleId", Value: string(k.module)}, iothub.Property{Name: iothub.PropModule, Value: string(k.module)})
	}
	for i, s := range sources {
		if what == 1<<i {
			bag = append(bag, iothub.Property{Name: "iothub-message-schema", Value: s.schema}, iothub.Property{Name: iothub.PropSource, Value: s.name})
		}
	}
	return Event{Device: k.device, Enqueued: now, Properties: bag, Body: b}, nil
}

// lifecycleNotice is the event of an identity that came ("create") or went ("delete"), with the twin that it has or had; none
// when the hub does not want it.
func (h *Hub) lifecycleNotice(ctx context.Context, k key, verb, generation string) ([]Event, error) {
	n, err := h.Notices(ctx, k.hub)
	if err != nil || n&Lifecycle == 0 {
		return nil, err
	}
	t := emptyTwin()
	if verb == "delete" {
		if t, err = h.readTwin(ctx, k.hub, k.device, k.module); err != nil {
			return nil, err
		}
	}
	what := "DeviceIdentity"
	if k.module != "" {
		what = "ModuleIdentity"
	}
	body := twinNotice{DeviceID: k.device, ModuleID: k.module, ETag: t.etag(generation), Version: t.Version}
	if len(t.Tags.Values) > 0 {
		body.Tags = t.Tags.encode(false, false)
	}
	body.Properties.Desired, body.Properties.Reported = t.Desired.encode(true, true), t.Report.encode(true, true)
	e, err := h.notice(k, Lifecycle, verb+what, &body)
	return []Event{e}, err
}

// twinNotice is the body of an event about a twin.
type twinNotice struct {
	DeviceID   cradle.DeviceID `json:"deviceId,omitempty"`
	ModuleID   iothub.ModuleID `json:"moduleId,omitempty"`
	ETag       string          `json:"etag,omitempty"`
	Version    int64           `json:"version"`
	Tags       json.RawMessage `json:"tags,omitempty"`
	Properties struct {
		Desired  json.RawMessage `json:"desired,omitempty"`
		Reported json.RawMessage `json:"reported,omitempty"`
	} `json:"properties"`
}

// twinChange is what a write of a twin does; nil sections stay as they are.
type twinChange struct {
	replace               bool
	tags, desired, report *sectionPatch
}

// twinNotice is the event of a change that leads to t; none when the hub does not want it.
func (h *Hub) twinNotice(ctx context.Context, k key, t *Twin, c *twinChange) ([]Event, error) {
	n, err := h.Notices(ctx, k.hub)
	if err != nil || n&TwinChanges == 0 {
		return nil, err
	}
	op, body := "updateTwin", twinNotice{Version: t.Version}
	if c.replace {
		op = "replaceTwin"
	}
	at := h.now().UTC().Format(time.RFC3339Nano)
	for _, part := range []struct {
		patch     *sectionPatch
		section   *Section
		versioned bool
		to        *json.RawMessage
	}{{c.tags, &t.Tags, false, &body.Tags}, {c.desired, &t.Desired, true, &body.Properties.Desired}, {c.report, &t.Report, true, &body.Properties.Reported}} {
		switch {
		case part.patch == nil:
			continue
		case part.patch.replace:
			*part.to = part.section.encode(part.versioned, part.versioned)
			continue
		}
		m := maps.Clone(part.patch.values)
		if part.versioned {
			m[keyVersion], m[keyMetadata] = part.section.Version, map[string]any{keyLastUpdated: at}
		}
		if *part.to, err = json.Marshal(m); err != nil {
			return nil, fmt.Errorf("event of a twin: %w", err)
		}
	}
	e, err := h.notice(k, TwinChanges, op, &body)
	return []Event{e}, err
}

// maxNews bounds the events about connections that wait for the store.
const maxNews = 10_000

// news are events about connections: whoever connects does not wait for them. A goroutine stores them, and there is none while
// there are none.
type news struct {
	mu      sync.Mutex
	queue   []connection
	writing bool
	lost    int
}

type connection struct {
	key   key
	at    time.Time
	comes bool
}

// connection puts a device's coming or going into the hub's stream, if that is to have it.
func (h *Hub) connection(k key, comes bool) {
	h.mu.Lock()
	c, known := h.notices[k.hub]
	h.mu.Unlock()
	if known && c.n&ConnectionStates == 0 && h.now().Sub(c.at).Abs() < policyAge {
		return
	}
	q := &h.news
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) >= maxNews {
		q.lost++
		return
	}
	q.queue = append(q.queue, connection{k, h.now(), comes})
	if !q.writing {
		q.writing = true
		go h.spread()
	}
}

// spread stores events about connections until there are no more, in their order.
func (h *Hub) spread() {
	q := &h.news
	for {
		q.mu.Lock()
		batch, lost := q.queue, q.lost
		q.queue, q.lost = nil, 0
		if len(batch) == 0 && lost == 0 {
			q.writing = false
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		if lost > 0 {
			h.log.Warn("events about connections were left out: more came than the store took", "events", lost)
		}
		byHub := map[Name][]Event{}
		ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
		for _, c := range batch {
			if n, err := h.Notices(ctx, c.key.hub); err != nil || n&ConnectionStates == 0 {
				continue
			}
			op := "device"
			if c.key.module != "" {
				op = "module"
			}
			if c.comes {
				op += "Connected"
			} else {
				op += "Disconnected"
			}
			e, err := h.notice(c.key, ConnectionStates, op, map[string]string{"sequenceNumber": fmt.Sprintf("%036X", c.at.UnixMicro())})
			if err == nil {
				byHub[c.key.hub] = append(byHub[c.key.hub], e)
			}
		}
		for name, es := range byHub {
			for es := range slices.Chunk(es, maxGroup) {
				if err := h.intake(name).append(ctx, es); err != nil {
					h.log.Warn("events about connections were not stored", "hub", name, "events", len(es), "err", err)
				}
			}
		}
		cancel()
	}
}
