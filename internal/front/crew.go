package front

import (
	"context"
	"time"
)

// crew are the goroutines that do handshakes. One that is done waits a moment for the next connection, so that under
// load stacks are not grown anew for each: a handshake needs some 32 KB.
type crew struct {
	work chan *admitted // unbuffered: taken only by one that waits
}

// crewWait is how long one waits without work.
const crewWait = 2 * time.Second

// take has do run for a, by one that waits or a new one. It does not
// block. Those that wait go when ctx ends.
func (c *crew) take(ctx context.Context, a *admitted, do func(*admitted)) {
	select {
	case c.work <- a:
	default:
		go c.serve(ctx, a, do)
	}
}

func (c *crew) serve(ctx context.Context, a *admitted, do func(*admitted)) {
	t := time.NewTimer(crewWait)
	defer t.Stop()
	for {
		do(a)
		t.Reset(crewWait)
		select {
		case a = <-c.work:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
