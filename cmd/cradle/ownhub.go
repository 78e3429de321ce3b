package main

import (
	"context"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// ownHub is a hub of this process as the provisioning service sees it: what it would ask another one by REST, it asks by
// calling. Requests to oneself would be a tenth of what a registration allocates.
type ownHub struct {
	*hub.Hub
	name hub.Name
}

func (h ownHub) GetDevice(ctx context.Context, id cradle.DeviceID) (*iothub.Device, error) {
	return h.Hub.GetDevice(ctx, h.name, id)
}

func (h ownHub) WriteDevice(ctx context.Context, d *iothub.Device, ifMatch string) error {
	_, err := h.Hub.PutDevice(ctx, h.name, d, ifMatch)
	return err
}

func (h ownHub) DeleteDevice(ctx context.Context, id cradle.DeviceID, ifMatch string) error {
	return h.Hub.DeleteDevice(ctx, h.name, id, ifMatch)
}

func (h ownHub) Twin(ctx context.Context, id cradle.DeviceID) (*iothub.Twin, error) {
	return h.Hub.Twin(ctx, h.name, id, "")
}

func (h ownHub) PatchTwin(ctx context.Context, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error) {
	return h.Hub.PatchTwin(ctx, h.name, id, "", p, ifMatch, false)
}

func (h ownHub) ReplaceTwin(ctx context.Context, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error) {
	return h.Hub.PatchTwin(ctx, h.name, id, "", p, ifMatch, true)
}
