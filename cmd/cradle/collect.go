package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// headroom is how much a server's heap may grow at least between two collections: a small heap is then collected
// seldom, which costs memory that is there and saves CPU. A large one, as that of thousands of idle connections, grows
// by half of what is in it.
const headroom = 128 << 20

// paceCollector sets GOGC after each collection by what is live then.
func paceCollector() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	last := 0
	var pace func(*sentinel)
	pace = func(s *sentinel) {
		metrics.Read(live)
		var sum uint64
		for _, x := range live {
			sum += x.Value.Uint64()
		}
		if p := gcPercent(sum); p != last {
			debug.SetGCPercent(p)
			last = p
		}
		runtime.SetFinalizer(s, pace) // the next collection finds it unreachable again
	}
	pace(&sentinel{})
}

// sentinel is an object that nothing refers to: it is finalized after each collection. The pointer keeps it from
// sharing its memory with other small objects.
type sentinel struct{ _ *sentinel }

// gcPercent is GOGC for that much that is live, stacks and globals included.
func gcPercent(live uint64) int {
	return int(100 * max(headroom, live/2) / max(live, 4<<20))
}
