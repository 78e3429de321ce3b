package testenv

import (
	"testing"
	"time"
)

// Eventually waits for something that another goroutine does, for half a minute; what names it in the failure.
func Eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 3000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never happened: %s", what)
}
