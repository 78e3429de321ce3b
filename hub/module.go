package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Module is a module identity: a part of a device with credentials of its own.
type Module struct {
	Device     cradle.DeviceID
	ID         iothub.ModuleID
	Generation string // differs between a module and one made later under the same id
	ETag       string // differs after every write
	ManagedBy  string
	Auth       Auth
	Primary    string // thumbprints, as of a Device
	Secondary  string
	Created    time.Time
	Updated    time.Time
}

// Limits of modules.
const (
	MaxModules   = 50  // of one device (Azure)
	maxManagedBy = 128 // bytes
)

// Modules keeps the module identities; the contract is Store's. They end with their device.
type Modules interface {
	// Module reads one; NotFound.
	Module(ctx context.Context, hub Name, device cradle.DeviceID, id iothub.ModuleID) (*Module, error)
	// Modules lists a device's in byte order of their ids; none when there is no such device.
	Modules(ctx context.Context, hub Name, device cradle.DeviceID) ([]Module, error)
	// InsertModule stores a new one; Conflict when it exists, NotFound without its device, TooLarge when the
	// device has MaxModules.
	InsertModule(ctx context.Context, hub Name, m *Module, notes ...Event) error
	// UpdateModule replaces the one whose ETag is given; NotFound, Conflict.
	UpdateModule(ctx context.Context, hub Name, m *Module, etag string) error
	// DeleteModule removes the one whose ETag is given; NotFound, Conflict.
	DeleteModule(ctx context.Context, hub Name, device cradle.DeviceID, id iothub.ModuleID, etag string, notes ...Event) error
}

// errNoModule marks NotFound of a module whose device may well exist.
var errNoModule = errors.New("no such module")

// ModuleNotFound is the error for a module that is not there.
func ModuleNotFound(device cradle.DeviceID, id iothub.ModuleID) error {
	e := cradle.Errorf(cradle.NotFound, "device %.128q has no module %.128q", device, id)
	e.Err = errNoModule
	return e
}

// NoModule reports whether NotFound means the module, rather than its device.
func NoModule(err error) bool { return errors.Is(err, errNoModule) }

func moduleFromWire(w *iothub.Module) (*Module, error) {
	if err := iothub.CheckDeviceID(w.DeviceID); err != nil {
		return nil, err
	}
	if err := iothub.CheckModuleID(w.ModuleID); err != nil {
		return nil, err
	}
	m := &Module{Device: w.DeviceID, ID: w.ModuleID, ManagedBy: w.ManagedBy}
	if len(m.ManagedBy) > maxManagedBy || strings.IndexByte(m.ManagedBy, 0) >= 0 {
		return nil, cradle.Errorf(cradle.Invalid, "managedBy must have at most %d bytes and no zero", maxManagedBy)
	}
	var err error
	m.Auth, m.Primary, m.Secondary, err = authFromWire(&w.Authentication)
	return m, err
}

func (h *Hub) wireModule(hub Name, m *Module) *iothub.Module {
	w := &iothub.Module{ModuleID: m.ID, ManagedBy: m.ManagedBy, DeviceID: m.Device, GenerationID: m.Generation, ETag: m.ETag,
		ConnectionState: iothub.Disconnected, Authentication: authWire(m.Auth, m.Primary, m.Secondary)}
	var since time.Time
	if s := h.sessions.get(key{hub, m.Device, m.ID}); s != nil {
		w.ConnectionState, since = iothub.Connected, s.since
	}
	w.ConnectionStateUpdatedTime, w.LastActivityTime = wireTime(since), wireTime(since)
	return w
}

// GetModule reads a module, with the connection state that this process knows.
func (h *Hub) GetModule(ctx context.Context, hub Name, device cradle.DeviceID, id iothub.ModuleID) (*iothub.Module, error) {
	m, err := h.store.Module(ctx, hub, device, id)
	if err != nil {
		return nil, h.storeError("reading a module", err)
	}
	return h.wireModule(hub, m), nil
}

// ListModules reads all modules of a device; NotFound when there is no such device.
func (h *Hub) ListModules(ctx context.Context, hub Name, device cradle.DeviceID) ([]iothub.Module, error) {
	ms, err := h.store.Modules(ctx, hub, device)
	if err == nil && len(ms) == 0 {
		_, err = h.store.Device(ctx, hub, device)
	}
	if err != nil {
		return nil, h.storeError("listing modules", err)
	}
	out := make([]iothub.Module, len(ms))
	for i := range ms {
		out[i] = *h.wireModule(hub, &ms[i])
	}
	return out, nil
}

// edgeModules are those that every IoT Edge device is born with.
func edgeModules(device cradle.DeviceID, now time.Time) []Module {
	var out []Module
	for _, id := range []iothub.ModuleID{iothub.EdgeAgent, iothub.EdgeHub} {
		m := Module{Device: device, ID: id, ManagedBy: "IoTEdge", Generation: rand.Text(), ETag: rand.Text(), Auth: Auth{Type: iothub.SAS}, Created: now, Updated: now}
		m.Auth.keys(Auth{})
		out = append(out, m)
	}
	return out
}

// PutModule creates a module (ifMatch empty; Conflict when it exists) or replaces it (ifMatch an ETag or
// "*"). A connection that it no longer admits is closed before PutModule returns.
func (h *Hub) PutModule(ctx context.Context, hub Name, w *iothub.Module, ifMatch string) (*iothub.Module, error) {
	m, err := moduleFromWire(w)
	if err != nil {
		return nil, err
	}
	m.Updated, m.ETag = h.now(), rand.Text()
	if ifMatch == "" {
		m.Generation, m.Created = rand.Text(), m.Updated
		m.Auth.keys(Auth{})
		notes, err := h.lifecycleNotice(ctx, key{hub, m.Device, m.ID}, "create", m.Generation)
		if err != nil {
			return nil, err
		}
		if err := h.store.InsertModule(ctx, hub, m, notes...); err != nil {
			return nil, h.storeError("creating a module", err)
		}
		h.intake(hub).noted(notes)
		return h.wireModule(hub, m), nil
	}
	given := m.Auth
	for range casRetries {
		old, err := h.store.Module(ctx, hub, m.Device, m.ID)
		if err != nil {
			return nil, h.storeError("reading a module", err)
		}
		if ifMatch != iothub.AnyETag && ifMatch != old.ETag {
			return nil, errETag
		}
		m.Generation, m.Created = old.Generation, old.Created
		m.Auth = given
		m.Auth.keys(old.Auth)
		err = h.store.UpdateModule(ctx, hub, m, old.ETag)
		if cradle.KindOf(err) == cradle.Conflict {
			continue // the next reading decides
		}
		if err != nil {
			return nil, h.storeError("updating a module", err)
		}
		h.sessions.moduleChanged(key{hub, m.Device, m.ID}, m)
		h.entryWritten(key{hub, m.Device, m.ID})
		return h.wireModule(hub, m), nil
	}
	return nil, errETag
}

// DeleteModule removes a module (ifMatch an ETag or "*"; empty means "*") and closes its connection.
func (h *Hub) DeleteModule(ctx context.Context, hub Name, device cradle.DeviceID, id iothub.ModuleID, ifMatch string) error {
	for range casRetries {
		old, err := h.store.Module(ctx, hub, device, id)
		if err != nil {
			return h.storeError("reading a module", err)
		}
		if ifMatch != "" && ifMatch != iothub.AnyETag && ifMatch != old.ETag {
			return errETag
		}
		notes, err := h.lifecycleNotice(ctx, key{hub, device, id}, "delete", old.Generation)
		if err != nil {
			return err
		}
		err = h.store.DeleteModule(ctx, hub, device, id, old.ETag, notes...)
		if cradle.KindOf(err) == cradle.Conflict {
			continue
		}
		if err != nil {
			return h.storeError("deleting a module", err)
		}
		h.intake(hub).noted(notes)
		h.sessions.moduleChanged(key{hub, device, id}, nil)
		h.entryWritten(key{hub, device, id})
		return nil
	}
	return errETag
}
