package device

import (
	"sync"
	"time"
)

// clock is the time as far as it is known. A statement, once there, counts with the monotonic time that
// has passed since; before, the system clock counts where it is later than the floor and what has passed
// since that was raised.
type clock struct {
	wall func() time.Time

	mu     sync.Mutex
	floor  time.Time // somebody trusted vouched that it was at least this late,
	raised time.Time // monotonic: then
	stated time.Time // zero until there is a statement
	at     time.Time // monotonic: when the statement came
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.stated
	if t.IsZero() {
		t = c.wall().Round(0)
	} else {
		t = t.Add(time.Since(c.at))
	}
	if low := c.lowestLocked(); t.Before(low) {
		return low
	}
	return t.UTC()
}

// vouched reports whether now rests on a statement.
func (c *clock) vouched() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.stated.IsZero()
}

// raise moves the floor up, never down.
func (c *clock) raise(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.lowestLocked()) {
		c.floor, c.raised = t.UTC(), time.Now()
	}
}

// state takes a statement that was verified just now.
func (c *clock) state(t time.Time) {
	c.raise(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stated, c.at = t.UTC(), time.Now()
}

// lowest is the floor and what has passed since it was raised: a time that is surely reached.
func (c *clock) lowest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lowestLocked()
}

func (c *clock) lowestLocked() time.Time {
	if c.raised.IsZero() {
		return c.floor
	}
	return c.floor.Add(time.Since(c.raised))
}
