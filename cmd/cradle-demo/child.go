package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
)

// family starts the demo's child processes. Each dies with the demo, however that ends, and is in a process group
// of its own, so that Ctrl-C in the terminal reaches the demo alone, which then ends them in order.
type family struct {
	bin   string // folder of the binaries
	shown string // the same, as a person in the working directory would type it
	start chan startReq
}

type startReq struct {
	cmd *exec.Cmd
	err chan error
}

// newFamily finds the binaries beside this one.
func newFamily() (*family, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	f := &family{bin: filepath.Dir(self), start: make(chan startReq)}
	for _, name := range []string{"cradle", "cradle-oem", "cradle-agent"} {
		if _, err := exec.LookPath(filepath.Join(f.bin, name)); err != nil {
			return nil, cradle.Errorf(cradle.NotFound, "%s is not beside cradle-demo in %s", name, f.bin).WithHint("build all of them with: make build")
		}
	}
	f.shown = f.bin
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, f.bin); err == nil && !strings.HasPrefix(rel, "../..") {
			f.shown = rel
		}
	}
	// The parent-death signal is sent when the thread that made the child ends (prctl(2)): this one never does.
	go func() {
		runtime.LockOSThread()
		for r := range f.start {
			r.err <- r.cmd.Start()
		}
	}()
	return f, nil
}

// line is a command as a person would type it.
func (f *family) line(program string, args ...string) string {
	words := []string{filepath.Join(f.shown, program)}
	if f.shown == "." {
		words[0] = "./" + program
	}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\"'$*?;&|<>(){}") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

func (f *family) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, program), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (f *family) begin(cmd *exec.Cmd) error {
	r := startReq{cmd, make(chan error, 1)}
	f.start <- r
	if err := <-r.err; err != nil {
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) {
			return cradle.Errorf(cradle.Busy, "starting %s: %v", filepath.Base(cmd.Path), err).
				WithHint("this machine allows no further process or file: fewer devices, or raise ulimit -n and ulimit -u")
		}
		return fmt.Errorf("starting %s: %w", filepath.Base(cmd.Path), err)
	}
	return nil
}

// run runs a command to its end and returns what it printed. A failed one becomes the error and hint that it printed.
func (f *family) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := f.command(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := f.begin(cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		return stdout.Bytes(), context.Cause(ctx)
	}
	if err != nil {
		return stdout.Bytes(), said(f.line(program, args...), stderr.String(), err)
	}
	return stdout.Bytes(), nil
}

// said makes an error of what a failed command said last.
func said(line, stderr string, err error) error {
	var text, hint string
	for l := range strings.Lines(stderr) {
		l = strings.TrimSpace(l)
		if h, ok := strings.CutPrefix(l, "hint: "); ok {
			hint = h
		} else if l != "" {
			text, hint = l, ""
		}
	}
	if text == "" {
		text = "ended: " + err.Error()
	}
	if program, rest, ok := strings.Cut(text, ": "); ok && strings.HasPrefix(program, "cradle") {
		text = rest // the line names it
	}
	e := cradle.Errorf(cradle.Internal, "%s: %s", line, text)
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}

// process is a child that runs beside the demo.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // after done
}

func (f *family) background(cmd *exec.Cmd) (*process, error) {
	if err := f.begin(cmd); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the process in order, after grace by force.
func (p *process) stop(grace time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
		return
	case <-t.C:
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// tail keeps the last lines that a process wrote, beside the file that has them all.
type tail struct {
	mu   sync.Mutex
	file *os.File
	last []byte
}

func newTail(file string) (*tail, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, writable(err)
	}
	return &tail{file: f}, nil
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if len(t.last) > 4096 {
		t.last = t.last[len(t.last)-4096:]
	}
	return t.file.Write(b)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.last)
}
