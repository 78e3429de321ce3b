package hub

import (
	"context"
	"sync"
	"time"

	"github.com/cradle-iot/cradle/protocol/iothub"
)

// statisticsAge is how old an answer of Statistics may be: counting reads the whole registry.
const statisticsAge = 5 * time.Second

// counted remembers the last count of a hub's devices. Its lock is held while they are counted, so that they are
// counted once for all who ask meanwhile.
type counted struct {
	mu    sync.Mutex
	at    time.Time
	total iothub.RegistryStatistics
}

// Statistics counts the hub's devices; up to statisticsAge old.
func (h *Hub) Statistics(ctx context.Context, hub Name) (*iothub.RegistryStatistics, error) {
	h.mu.Lock()
	c := h.counts[hub]
	if c == nil {
		c = new(counted)
	}
	h.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || h.now().Sub(c.at).Abs() >= statisticsAge {
		total, disabled, err := h.store.CountDevices(ctx, hub)
		if err != nil {
			return nil, h.storeError("counting devices", err)
		}
		c.at = h.now()
		c.total = iothub.RegistryStatistics{TotalDeviceCount: total, EnabledDeviceCount: total - disabled, DisabledDeviceCount: disabled}
		h.mu.Lock()
		h.counts[hub] = c // only of hubs that exist
		h.mu.Unlock()
	}
	out := c.total
	return &out, nil
}

// ConnectedTo counts the devices of a hub that are connected to this process.
func (h *Hub) ConnectedTo(hub Name) int64 {
	var n int64
	for i := range h.sessions.shards {
		sh := &h.sessions.shards[i]
		sh.mu.Lock()
		for k := range sh.sessions {
			if k.hub == hub && k.module == "" {
				n++
			}
		}
		sh.mu.Unlock()
	}
	return n
}
