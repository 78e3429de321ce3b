package device

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/est"
)

// Pauses after failures: exponential, with full jitter above the first. A refusal is somebody's decision and is
// asked about again slowly, but for ever: the lot may be accepted, the device released.
const (
	firstPause        = time.Second
	longestPause      = 2 * time.Minute
	firstRefusalPause = 5 * time.Second
	longestRefusal    = 15 * time.Minute
	longestAsked      = time.Hour // of what a server's Retry-After is followed
)

// backoff counts the failures of one kind of act.
type backoff struct {
	failures int
	until    time.Time // monotonic; not before this
}

func (b *backoff) ready() bool { return !time.Now().Before(b.until) }

func (b *backoff) reset() { *b = backoff{} }

// fail notes a failure and returns the pause.
func (b *backoff) fail(err error) time.Duration {
	first, longest := firstPause, longestPause
	if refused(err) {
		first, longest = firstRefusalPause, longestRefusal
	}
	bound := min(first<<min(b.failures, 16), longest)
	pause := first/2 + rand.N(bound)
	if asked := min(retryAfter(err), longestAsked); asked > 0 {
		pause = max(pause, asked+rand.N(asked/4+time.Second)) // a fleet told the same number must not come back as one
	}
	b.failures++
	b.until = time.Now().Add(pause)
	return pause
}

// refused reports whether a server understood and said no, so that asking again soon is of no use.
func refused(err error) bool {
	var c *mqtt.ConnackError
	if errors.As(err, &c) {
		return c.Code != mqtt.ServerUnavailable
	}
	switch cradle.KindOf(err) {
	case cradle.Internal, cradle.Busy, cradle.Pending:
		return false
	}
	return true
}

func retryAfter(err error) time.Duration {
	var s *est.StatusError
	if errors.As(err, &s) {
		return s.RetryAfter
	}
	return dps.RetryAfter(err)
}
