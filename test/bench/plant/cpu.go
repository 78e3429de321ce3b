package plant

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the time that processes have taken on processors, user and system.
type CPU struct {
	Server   time.Duration
	Database time.Duration // PostgreSQL's processes; within Server for SQLite
}

// Total of both.
func (c CPU) Total() time.Duration { return c.Server + c.Database }

// Sub is the time taken between two readings.
func (c CPU) Sub(d CPU) CPU { return CPU{c.Server - d.Server, c.Database - d.Database} }

// CPU reads the installation's time so far. Of PostgreSQL processes that have ended, the main one knows.
func (p *Plant) CPU() (CPU, error) {
	var c CPU
	var err error
	if p.serve == nil {
		return c, fmt.Errorf("internal error: the server does not run")
	}
	if c.Server, err = ProcessCPU(p.serve.Process.Pid); err != nil {
		return c, err
	}
	if p.pg == nil {
		return c, nil
	}
	for i, pid := range p.pg.Pids() {
		var t time.Duration
		if i > 0 {
			t, err = ProcessCPU(pid)
		} else if t, err = cpuOf(pid, true); err != nil {
			return c, err
		}
		if err == nil { // a child that ended meanwhile counts with the main one
			c.Database += t
		}
	}
	return c, nil
}

// tick is what /proc counts in: USER_HZ, 100 per second on all our platforms.
const tick = 10 * time.Millisecond

// cpuOf reads utime and stime, and with ended those of children that were waited for (proc_pid_stat(5)).
func cpuOf(pid int, ended bool) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(b, ended)
}

func parseStat(b []byte, ended bool) (time.Duration, error) {
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name may hold anything; f[0] is field 3
	last := 15
	if ended {
		last = 17
	}
	if len(f) < last-2 {
		return 0, fmt.Errorf("process status %q", b)
	}
	var sum time.Duration
	for _, s := range f[14-3 : last-2] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process status %q", b)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// DatabaseCPU is the time that each of PostgreSQL's processes has taken so far, by pid; in nanoseconds where the
// kernel counts them (/proc/PID/schedstat), and nothing for SQLite. The server need not run.
func (p *Plant) DatabaseCPU() map[int]time.Duration {
	out := map[int]time.Duration{}
	if p.pg == nil {
		return out
	}
	for _, pid := range p.pg.Pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if f := strings.Fields(string(b)); err == nil && len(f) == 3 {
			if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				out[pid] = time.Duration(n)
				continue
			}
		}
		if t, err := cpuOf(pid, false); err == nil { // not if it ended meanwhile
			out[pid] = t
		}
	}
	return out
}

// ProcessCPU is the time that all threads of a process have taken, by its CPU clock (clock_getcpuclockid(3)).
func ProcessCPU(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED: nanoseconds, user and system
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}
