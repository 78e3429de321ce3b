package hub

import (
	"context"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Sessions keeps what devices subscribed to between connections; the contract is Store's. They end with their device
// or module.
type Sessions interface {
	// KeptSession reads one; false when none is kept.
	KeptSession(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID) (Subscriptions, bool, error)
	// KeepSession stores one; NotFound when no such device or module of that generation is registered.
	KeepSession(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID, generation string, s Subscriptions) error
	// ForgetSession removes one, if there is one.
	ForgetSession(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID) error
}
