package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const slackChild = "CRADLE_TEST_SLACK"

// TestCoarseTimers starts this test in a process of its own, which begins again and then says what it has.
func TestCoarseTimers(t *testing.T) {
	slack := func() int {
		n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if os.Getenv(slackChild) != "" {
		_, again := os.LookupEnv(slackIsSet)
		coarseTimers()
		fmt.Fprintf(os.Stderr, "second %v, pid %d, slack %d, args %d, left %q", again, os.Getpid(), slack(), len(os.Args), os.Getenv(slackIsSet))
		os.Exit(0)
	}
	for _, c := range []struct {
		name   string
		before int
		second bool
		want   int
	}{
		{"default", int(defaultSlack), true, int(timerSlack)},
		{"chosen", int(2 * defaultSlack), false, int(2 * defaultSlack)},
	} {
		t.Run(c.name, func(t *testing.T) {
			program, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "-test.run=^TestCoarseTimers$")
			cmd.Env = append(os.Environ(), slackChild+"=1")
			out := make(chan string)
			go func() { // on a thread that is thrown away with its slack
				runtime.LockOSThread()
				if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.before), 0, 0, 0); err != nil {
					t.Error(err)
				}
				b, err := cmd.CombinedOutput()
				if err != nil {
					t.Error(err)
				}
				out <- string(b)
			}()
			got := <-out
			if want := fmt.Sprintf("second %v, pid %d, slack %d, args 2, left %q", c.second, cmd.Process.Pid, c.want, ""); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
}
