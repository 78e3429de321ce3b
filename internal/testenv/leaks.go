package testenv

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Leakless runs the tests, waits for the goroutines that they started, and ends the process; one that does not end is a failure. It
// is for TestMain.
func Leakless(m *testing.M) {
	code := m.Run()
	for end := time.Now().Add(time.Minute); code == 0; { // goleak itself waits for a second
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
