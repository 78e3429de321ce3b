package testenv

import (
	"fmt"
	"testing"
	"time"
)

// Patience is how long tests wait for what another goroutine or process does: long enough for a machine that has much else
// to do. It ends what will never happen, and is no statement about speed.
const Patience = 2 * time.Minute

// Eventually waits for something that another goroutine does, for Patience; what names it in the failure, which shows the logs.
func Eventually(t testing.TB, what string, f func() bool, logs ...fmt.Stringer) {
	t.Helper()
	for end := time.Now().Add(Patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			for _, l := range logs {
				t.Log(l)
			}
			t.Fatalf("never happened: %s", what)
		}
	}
}
