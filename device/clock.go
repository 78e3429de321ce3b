package device

import (
	"sync"
	"time"
)

// clock is the time as far as it is known. A statement, once there, counts with the monotonic time that
// has passed since; before, the system clock counts where it is later than the floor.
type clock struct {
	wall func() time.Time

	mu     sync.Mutex
	floor  time.Time // somebody trusted vouched that it is at least this late
	stated time.Time // zero until there is a statement
	at     time.Time // monotonic, when the statement came
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
	if t.Before(c.floor) {
		return c.floor
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
	if t.After(c.floor) {
		c.floor = t.UTC()
	}
}

// state takes a statement that was verified just now.
func (c *clock) state(t time.Time) {
	c.raise(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stated, c.at = t.UTC(), time.Now()
}

func (c *clock) lowest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}
