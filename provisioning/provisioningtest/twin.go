package provisioningtest

import (
	"context"
	"encoding/json"
	"maps"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// TwinOf returns a copy of a device's twin, or nil.
func (h *Hub) TwinOf(id cradle.DeviceID) *Twin {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.twins[id]
	if t == nil {
		return nil
	}
	return &Twin{maps.Clone(t.Tags), maps.Clone(t.Desired)}
}

// EditTwin changes a twin behind the provisioning service's back.
func (h *Hub) EditTwin(id cradle.DeviceID, f func(*Twin)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.twins[id])
}

// Twin implements provisioning.Twins.
func (h *Hub) Twin(_ context.Context, id cradle.DeviceID) (*iothub.Twin, error) {
	if err := h.enter("twin", id); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wire(id)
}

func (h *Hub) wire(id cradle.DeviceID) (*iothub.Twin, error) {
	t := h.twins[id]
	if t == nil {
		return nil, cradle.Errorf(cradle.NotFound, "device %q not found", id)
	}
	out := &iothub.Twin{DeviceID: id, ETag: "twin"}
	desired := maps.Clone(t.Desired)
	desired["$version"], desired["$metadata"] = 7, map[string]any{}
	var err error
	if out.Tags, err = json.Marshal(t.Tags); err != nil {
		return nil, err
	}
	out.Properties.Desired, err = json.Marshal(desired)
	return out, err
}

// PatchTwin implements provisioning.Twins.
func (h *Hub) PatchTwin(_ context.Context, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error) {
	return h.write("patch", id, p, ifMatch)
}

// ReplaceTwin implements provisioning.Twins.
func (h *Hub) ReplaceTwin(_ context.Context, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error) {
	return h.write("replace", id, p, ifMatch)
}

func (h *Hub) write(method string, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error) {
	if err := h.enter(method, id); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.twins[id]
	if t == nil {
		return nil, cradle.Errorf(cradle.NotFound, "device %q not found", id)
	}
	if ifMatch != iothub.AnyETag {
		h.t.Errorf("twin of %q is written with If-Match %q", id, ifMatch)
	}
	for _, s := range []struct {
		raw json.RawMessage
		to  *map[string]any
	}{{p.Tags, &t.Tags}, {p.Properties.Desired, &t.Desired}} {
		var v map[string]any
		if len(s.raw) > 0 {
			if err := json.Unmarshal(s.raw, &v); err != nil {
				return nil, cradle.Errorf(cradle.Invalid, "twin: %v", err)
			}
		}
		for k := range v {
			if k[0] == '$' {
				return nil, cradle.Errorf(cradle.Invalid, "twin: key %q is the hub's own", k) // as Azure refuses it
			}
		}
		if method == "replace" {
			*s.to = map[string]any{}
		}
		maps.Copy(*s.to, v)
	}
	if err := h.leave(method, id); err != nil {
		return nil, err
	}
	return h.wire(id)
}
