package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Go's runtime has a thread of its own (sysmon) that looks every 20 us for others that are stuck in a system call, while
// there is work and for some milliseconds after. Timers are 50 us late by default (PR_SET_TIMERSLACK), so it wakes 13,000
// times a second: 5 to 8 % of a busy server's CPU, and most of one that has little to do. Nothing here needs to be woken so
// exactly: what waits for time waits for milliseconds.
const (
	timerSlack   = 500 * time.Microsecond
	defaultSlack = 50 * time.Microsecond // the kernel's
	slackIsSet   = "CRADLE_TIMER_SLACK"  // in the environment between the two starts, so that there is no third
)

// coarseTimers lets the kernel wake this process up to timerSlack late. A thread has that from the one that started it,
// and the runtime's own threads run before any line of ours: only a program that is executed anew has it in all of them. So
// this begins the process again, once, with the same arguments and process id, and returns in the second run, or when it
// cannot be done. It must be called before anything was opened. Who started us with another slack than the default
// (TimerSlackNSec= of systemd) has chosen.
func coarseTimers() {
	if _, again := os.LookupEnv(slackIsSet); again {
		os.Unsetenv(slackIsSet)
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread() // whose slack the new program gets
	defer runtime.UnlockOSThread()
	now, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || now != int(defaultSlack) || unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = syscall.Exec(program, os.Args, append(os.Environ(), slackIsSet+"=1"))
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(defaultSlack), 0, 0, 0) // not allowed here: go on as all is
}
