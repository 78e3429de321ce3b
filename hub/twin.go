package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Twin is what the hub keeps of a device or module beside its identity.
type Twin struct {
	Version int64 // grows with every write; 1 is the empty twin, which is not stored
	Writes  int64 // of the service side
	Tags    Section
	Desired Section
	Report  Section // the reported properties
}

// Twins keeps the twins; the contract is Store's. They end with their device or module.
type Twins interface {
	// Twin reads one; nil when none is stored, which means the empty one. Whether there is such a device is not asked.
	Twin(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID) (*Twin, error)
	// PutTwin stores a twin in place of version was. NotFound when no such device or module of that generation
	// is registered, Conflict when another version is stored.
	PutTwin(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID, generation string, t *Twin, was int64, notes ...Event) error
}

func emptyTwin() *Twin {
	section := func() Section {
		return Section{Values: map[string]any{}, Meta: map[string]any{keyLastUpdated: wireZero}, Version: 1}
	}
	return &Twin{Version: 1, Tags: Section{Values: map[string]any{}, Version: 1}, Desired: section(), Report: section()}
}

// etag is of the tags and desired properties, as Azure has it; a device made anew has others.
func (t *Twin) etag(generation string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", generation, t.Writes))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// owner is the registered device or module that a twin is of.
type owner struct {
	device *Device
	module *Module // nil: the device itself
}

func (o owner) generation() string {
	if o.module != nil {
		return o.module.Generation
	}
	return o.device.Generation
}

// owner reads it; NotFound.
func (h *Hub) owner(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID) (o owner, err error) {
	if o.device, err = h.store.Device(ctx, hub, device); err == nil && module != "" {
		o.module, err = h.store.Module(ctx, hub, device, module)
	}
	return o, h.storeError("reading a device", err)
}

func (h *Hub) readTwin(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID) (*Twin, error) {
	t, err := h.store.Twin(ctx, hub, device, module)
	if err != nil {
		return nil, h.storeError("reading a twin", err)
	}
	if t == nil {
		t = emptyTwin()
	}
	return t, nil
}

// Twin reads a device's twin or, with a module, the module's; NotFound.
func (h *Hub) Twin(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID) (*iothub.Twin, error) {
	o, err := h.owner(ctx, hub, device, module)
	if err != nil {
		return nil, err
	}
	t, err := h.readTwin(ctx, hub, device, module)
	if err != nil {
		return nil, err
	}
	return h.wireTwin(hub, o, t), nil
}

// wireTwin is the twin as REST shows it; t may be nil, the empty one.
func (h *Hub) wireTwin(hub Name, o owner, t *Twin) *iothub.Twin {
	if t == nil {
		t = emptyTwin()
	}
	d := h.wire(hub, o.device)
	w := &iothub.Twin{
		DeviceID: d.DeviceID, ETag: t.etag(o.generation()), DeviceETag: d.ETag, Version: t.Version,
		Status: d.Status, StatusReason: d.StatusReason, StatusUpdateTime: d.StatusUpdatedTime,
		ConnectionState: d.ConnectionState, LastActivityTime: d.LastActivityTime, CloudToDeviceMessageCount: d.CloudToDeviceMessageCount,
		AuthenticationType: d.Authentication.Type, X509Thumbprint: &d.Authentication.X509Thumbprint, Capabilities: &d.Capabilities,
		Tags:       t.Tags.encode(false, false),
		Properties: iothub.TwinProperties{Desired: t.Desired.encode(true, true), Reported: t.Report.encode(true, true)},
	}
	if o.module != nil {
		m := h.wireModule(hub, o.module)
		w.ModuleID, w.DeviceETag, w.ConnectionState, w.LastActivityTime = m.ModuleID, m.ETag, m.ConnectionState, m.LastActivityTime
		w.AuthenticationType, w.X509Thumbprint, w.Capabilities = m.Authentication.Type, &m.Authentication.X509Thumbprint, nil
	}
	return w
}

// PatchTwin applies a service's change to a twin (replace: puts it in place of what is there) and tells the
// device of its new desired properties. ifMatch is the twin's ETag; "" and "*" mean any. NotFound; Conflict with Moved when
// the ETag does not hold; Invalid and TooLarge when the twin would be none.
func (h *Hub) PatchTwin(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID, p *iothub.TwinPatch, ifMatch string, replace bool) (*iothub.Twin, error) {
	tags, err := parsePatch("tags", p.Tags, replace)
	if err != nil {
		return nil, err
	}
	desired, err := parsePatch("desired properties", p.Properties.Desired, replace)
	if err != nil {
		return nil, err
	}
	k := key{hub, device, module}
	// Held until the device was told, so that it hears of changes in their order.
	unlock := h.locks.lock(k)
	defer unlock()
	var o owner
	var news map[string]any
	t, err := h.changeTwin(ctx, k, &twinChange{replace, tags, desired, nil}, func(t *Twin) (generation string, err error) {
		if o, err = h.owner(ctx, hub, device, module); err != nil {
			return "", err
		}
		if ifMatch != "" && ifMatch != iothub.AnyETag && ifMatch != t.etag(o.generation()) {
			return "", errETag
		}
		now := h.now()
		if tags != nil {
			if err := t.Tags.apply("tags", tags.values, tags.replace, iothub.MaxTags, now, false); err != nil {
				return "", err
			}
		}
		if desired != nil {
			news = desired.values
			before := t.Desired.Values
			if err := t.Desired.apply("desired properties", desired.values, desired.replace, iothub.MaxSection, now, true); err != nil {
				return "", err
			}
			if desired.replace { // a device only knows how to merge
				news = change(before, t.Desired.Values)
			}
		}
		t.Writes++
		return o.generation(), nil
	})
	if err != nil {
		return nil, err
	}
	if news != nil {
		h.tellDesired(k, t.Desired.Version, news)
	}
	return h.wireTwin(hub, o, t), nil
}

// sectionPatch is a patch of one section, or what replaces it.
type sectionPatch struct {
	values  map[string]any
	replace bool
}

// parsePatch reads a section of a TwinPatch; nil leaves the section alone.
func parsePatch(what string, b json.RawMessage, replace bool) (*sectionPatch, error) {
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0 && !replace:
		return nil, nil
	case len(b) == 0 || string(b) == "null": // RFC 7396: null deletes
		return &sectionPatch{map[string]any{}, true}, nil
	}
	m, err := iothub.ParseSection(what, b)
	return &sectionPatch{m, replace}, err
}

// report applies a device's merge patch to its reported properties and returns their new version.
func (h *Hub) report(ctx context.Context, k key, generation string, patch []byte) (int64, error) {
	m, err := iothub.ParseSection("reported properties", patch)
	if err != nil {
		return 0, err
	}
	unlock := h.locks.lock(k)
	defer unlock()
	t, err := h.changeTwin(ctx, k, &twinChange{report: &sectionPatch{values: m}}, func(t *Twin) (string, error) {
		return generation, t.Report.apply("reported properties", m, false, iothub.MaxSection, h.now(), false)
	})
	if err != nil {
		return 0, err
	}
	return t.Report.Version, nil
}

// changeTwin reads, changes and stores a twin; fn is called anew when another process was faster; did is
// what it does. It returns the twin as stored.
func (h *Hub) changeTwin(ctx context.Context, k key, did *twinChange, fn func(*Twin) (generation string, err error)) (*Twin, error) {
	for range casRetries {
		t, err := h.readTwin(ctx, k.hub, k.device, k.module)
		if err != nil {
			return nil, err
		}
		was := t.Version
		generation, err := fn(t)
		if err != nil {
			return nil, err
		}
		t.Version++
		notes, err := h.twinNotice(ctx, k, t, did)
		if err != nil {
			return nil, err
		}
		err = h.store.PutTwin(ctx, k.hub, k.device, k.module, generation, t, was, notes...)
		if cradle.KindOf(err) == cradle.Conflict {
			continue
		}
		if err != nil {
			return nil, h.storeError("storing a twin", err)
		}
		h.intake(k.hub).noted(notes)
		return t, nil
	}
	return nil, cradle.Errorf(cradle.Busy, "the twin keeps changing").WithHint("try again").After(time.Second)
}
