package provisioning

import (
	"math/rand/v2"
	"time"

	"github.com/cradle-iot/cradle"
)

// health of a hub: after a failure nobody but one probe at a time asks it again.
type health struct {
	failures int
	until    time.Time
	why      string // the last failure
}

func (o *outbox) troubled(hub string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.of(hub).failures > 0 || hub != "" && o.s.hub(hub) == nil
}

// of returns a hub's health; the lock is held.
func (o *outbox) of(hub string) *health {
	h := o.health[hub]
	if h == nil {
		h = new(health)
		o.health[hub] = h
	}
	return h
}

// closed reports whether a hub failed lately.
func (o *outbox) closed(hub string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.of(hub)
	return h.failures > 0 && o.s.now().Before(h.until)
}

func (o *outbox) well(hub string) {
	o.mu.Lock()
	h := o.of(hub)
	was := h.failures
	*h = health{}
	o.mu.Unlock()
	if was > 0 {
		o.s.log.Info("hub answers again", "hub", hub)
		o.wake()
	}
}

func (o *outbox) ill(hub string, err error) {
	o.mu.Lock()
	h := o.of(hub)
	if o.s.now().Before(h.until) {
		o.mu.Unlock()
		return // a call that began before the hub was found ill
	}
	h.failures++
	h.why = err.Error()
	h.until = o.s.now().Add(max(backoff(h.failures-1), cradle.RetryAfter(err)))
	first, until := h.failures == 1, h.until
	o.mu.Unlock()
	if first {
		o.s.log.Warn("hub takes no registrations; devices wait", "hub", hub, "err", err, "next_try", until)
	}
}

// backoff is 250 ms doubled n times, at most retryMax, jittered by up to a half.
func backoff(n int) time.Duration {
	d := min(retryMax, 250*time.Millisecond<<min(n, 16))
	return d/2 + rand.N(d/2)
}
