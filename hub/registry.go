package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// errETag is every failed precondition.
var errETag = cradle.Errorf(cradle.Conflict, "the device was changed meanwhile: If-Match does not hold").
	WithHint("read the device and try again")

// Moved reports whether a Conflict means that If-Match did not hold, rather than that the device exists.
func Moved(err error) bool { return errors.Is(err, errETag) }

// GetDevice reads an entry, with the connection state that this process knows.
func (h *Hub) GetDevice(ctx context.Context, hub Name, id cradle.DeviceID) (*iothub.Device, error) {
	d, err := h.store.Device(ctx, hub, id)
	if err != nil {
		return nil, h.storeError("reading a device", err)
	}
	return h.wire(hub, d), nil
}

func (h *Hub) wire(hub Name, d *Device) *iothub.Device {
	s := h.sessions.get(key{hub: hub, device: d.ID})
	if s == nil {
		return d.wire(false, time.Time{})
	}
	return d.wire(true, s.since)
}

// ListDevices reads entries with ids after the given one.
func (h *Hub) ListDevices(ctx context.Context, hub Name, after cradle.DeviceID, limit int) ([]iothub.Device, error) {
	ds, err := h.store.Devices(ctx, hub, after, limit)
	if err != nil {
		return nil, h.storeError("listing devices", err)
	}
	out := make([]iothub.Device, len(ds))
	for i := range ds {
		out[i] = *h.wire(hub, &ds[i])
	}
	return out, nil
}

// retries of a compare-and-swap under If-Match "*", before the caller is told to come back.
const casRetries = 10

// PutDevice creates an entry (ifMatch empty; Conflict when it exists), or replaces it (ifMatch an ETag or "*").
// A connection that the entry no longer admits is closed before PutDevice returns.
func (h *Hub) PutDevice(ctx context.Context, hub Name, w *iothub.Device, ifMatch string) (*iothub.Device, error) {
	d, err := fromWire(w)
	if err != nil {
		return nil, err
	}
	d.Updated, d.ETag = h.now(), rand.Text()
	if ifMatch == "" {
		d.Generation, d.Created, d.StatusChanged = rand.Text(), d.Updated, d.Updated
		d.Auth.keys(Auth{})
		d.ownScope("")
		var ms []Module
		if d.IoTEdge {
			ms = edgeModules(d.ID, d.Updated)
		}
		notes, err := h.lifecycleNotice(ctx, key{hub: hub, device: d.ID}, "create", d.Generation)
		for i := 0; i < len(ms) && err == nil && len(notes) > 0; i++ {
			var more []Event
			more, err = h.lifecycleNotice(ctx, key{hub, d.ID, ms[i].ID}, "create", ms[i].Generation)
			notes = append(notes, more...)
		}
		if err != nil {
			return nil, err
		}
		if err := h.store.InsertDevice(ctx, hub, d, ms, notes...); err != nil {
			return nil, h.storeError("creating a device", err)
		}
		h.intake(hub).noted(notes)
		return h.wire(hub, d), nil
	}
	given, scope := d.Auth, d.Scope
	for range casRetries {
		old, err := h.store.Device(ctx, hub, d.ID)
		if err != nil {
			return nil, h.storeError("reading a device", err)
		}
		if ifMatch != iothub.AnyETag && ifMatch != old.ETag {
			return nil, errETag
		}
		d.Generation, d.Created, d.StatusChanged = old.Generation, old.Created, old.StatusChanged
		d.Auth, d.Scope = given, scope
		if w.CredentialPolicy == nil {
			d.Policy = old.Policy
		}
		d.Auth.keys(old.Auth)
		if old.IoTEdge {
			d.ownScope(old.Scope)
		} else {
			d.ownScope("")
		}
		if old.Disabled != d.Disabled {
			d.StatusChanged = d.Updated
		}
		err = h.store.UpdateDevice(ctx, hub, d, old.ETag)
		if cradle.KindOf(err) == cradle.Conflict {
			continue // the next reading decides
		}
		if err != nil {
			return nil, h.storeError("updating a device", err)
		}
		h.sessions.changed(key{hub: hub, device: d.ID}, d)
		h.entryWritten(key{hub: hub, device: d.ID})
		return h.wire(hub, d), nil
	}
	return nil, errETag
}

// DeleteDevice removes an entry (ifMatch an ETag or "*"; empty means "*") and closes its connection.
func (h *Hub) DeleteDevice(ctx context.Context, hub Name, id cradle.DeviceID, ifMatch string) error {
	for range casRetries {
		old, err := h.store.Device(ctx, hub, id)
		if err != nil {
			return h.storeError("reading a device", err)
		}
		if ifMatch != "" && ifMatch != iothub.AnyETag && ifMatch != old.ETag {
			return errETag
		}
		notes, err := h.lifecycleNotice(ctx, key{hub: hub, device: id}, "delete", old.Generation)
		if err != nil {
			return err
		}
		err = h.store.DeleteDevice(ctx, hub, id, old.ETag, notes...)
		if cradle.KindOf(err) == cradle.Conflict {
			continue
		}
		if err != nil {
			return h.storeError("deleting a device", err)
		}
		h.intake(hub).noted(notes)
		h.sessions.changed(key{hub: hub, device: id}, nil)
		h.entryWritten(key{hub: hub, device: id})
		return nil
	}
	return errETag
}
