package world

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The parent-death signal is sent when the thread that made the child ends (prctl(2)): this one never does.
var spawn = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

// start starts cmd, which dies with the test however that ends.
func start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	done := make(chan error, 1)
	spawn() <- func() { done <- cmd.Start() }
	return <-done
}

// Result is what a command printed and how it ended.
type Result struct {
	Line           string // the command
	Stdout, Stderr string
	Code           int // exit status, -1 after a signal
}

// Process is a child that runs beside the test. Its stderr goes to a file.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	code int // after done; -1 after a signal
	sig  syscall.Signal
}

// StartProcess starts a child whose stdout goes to a writer and whose stderr is appended to a file.
func StartProcess(t testing.TB, cmd *exec.Cmd, log string) *Process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stderr = f
	if err := start(cmd); err != nil {
		t.Fatalf("starting %s: %v", filepath.Base(cmd.Path), err)
	}
	p := &Process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		cmd.Wait()
		p.code = cmd.ProcessState.ExitCode()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.sig = ws.Signal()
		}
		close(p.done)
	}()
	t.Cleanup(p.Kill)
	return p
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Killed reports whether the process has ended by SIGKILL.
func (p *Process) Killed() bool {
	select {
	case <-p.done:
		return p.sig == syscall.SIGKILL
	default:
		return false
	}
}

// Kill ends the process by SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Terminate sends SIGTERM and does not wait.
func (p *Process) Terminate() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

// Stop ends the process by SIGTERM, as an operator would, and returns its exit status.
func (p *Process) Stop() int {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Minute): // it hangs; the status -1 tells
		p.Kill()
	}
	return p.code
}

// Log returns what the process, and those before it on the same file, wrote to stderr.
func (p *Process) Log() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

// run runs a command to its end.
func run(t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	line := filepath.Base(cmd.Path) + " " + strings.Join(cmd.Args[1:], " ")
	if err := start(cmd); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	err := cmd.Wait()
	var x *exec.ExitError
	if err != nil && !errors.As(err, &x) {
		t.Fatalf("%s: %v", line, err)
	}
	return Result{Line: line, Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}
