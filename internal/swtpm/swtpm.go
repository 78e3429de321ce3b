// Package swtpm runs software TPMs: real swtpm processes (Debian package swtpm), one per folder of
// state, each behind a Unix socket that any one process at a time may open by path.
//
// A TPM started here dies with the process that started it, however that one ends, unless it is
// started Detached; a detached one is found again by its folder (Stop). Copying the folder of
// a stopped TPM makes a perfect clone of it. A software TPM proves nothing about hardware: it is
// for tests, the demo and a reader's first steps.
package swtpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/tpmio"
)

// Names inside a TPM's folder.
const (
	socketName = "sock"
	pidName    = "pid"
	logName    = "log"
)

// Options say how a TPM is run; the zero value is a TPM that dies with its starter.
type Options struct {
	// Detached lets the TPM live on when the starting process ends. End it with Stop.
	Detached bool
}

// TPM is a running software TPM.
type TPM struct {
	dir  string
	opts Options
	pid  int
	done chan struct{} // closed when the process has ended
}

func removeSockets(dir string) {
	os.Remove(Socket(dir))
	os.Remove(Socket(dir) + ".ctrl")
}

// Socket returns the path at which the TPM of a folder is opened.
func Socket(dir string) string { return filepath.Join(dir, socketName) }

// Start runs the TPM whose state is in dir, which is made when it is missing: an empty folder becomes
// a factory-new TPM without an EK certificate. It returns when the TPM answers. Errors: NotFound when
// swtpm is not installed, Conflict when the folder's TPM already runs.
func Start(ctx context.Context, dir string, opts Options) (*TPM, error) {
	binary, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "swtpm is not installed").
			WithHint("install it: apt-get install swtpm")
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of a software TPM: %w", err)
	}
	if pid, ok := running(dir); ok {
		return nil, cradle.Errorf(cradle.Conflict, "the software TPM in %s already runs as process %d", dir, pid).
			WithHint("stop that process first: one swtpm per folder")
	}
	t := &TPM{dir: dir, opts: opts}
	if err := t.start(ctx, binary); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *TPM) start(ctx context.Context, binary string) error {
	// A path left by a killed process would let a client dial the dead socket.
	removeSockets(t.dir)
	logFile, err := os.OpenFile(filepath.Join(t.dir, logName), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("making the log of a software TPM: %w", err)
	}
	defer logFile.Close()
	// Relative names, run inside the folder: sockaddr_un holds 107 bytes, and tests have long ones.
	cmd := exec.Command(binary, "socket", "--tpm2", "--tpmstate", "dir=.",
		"--server", "type=unixio,path="+socketName+",mode=0600",
		"--ctrl", "type=unixio,path="+socketName+".ctrl,mode=0600", // tpm2-tools insist on it
		"--flags", "not-need-init,startup-clear", "--pid", "file="+pidName)
	cmd.Dir = t.dir
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// A group of its own: Ctrl-C in a terminal is for the starter, which ends the TPM after its users.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if t.opts.Detached {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := spawn(cmd); err != nil {
		return fmt.Errorf("starting swtpm: %w", err)
	}
	t.pid, t.done = cmd.Process.Pid, make(chan struct{})
	done := t.done
	go func() {
		cmd.Wait()
		close(done)
	}()
	if err := t.ready(ctx); err != nil {
		cmd.Process.Kill()
		<-done
		return err
	}
	return nil
}

// ready waits until the TPM answers a command.
func (t *TPM) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := tpmio.Open(ctx, Socket(t.dir))
		if err == nil {
			_, err = (tpm2.GetCapability{
				Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: 1,
			}).Execute(conn.With(ctx))
			conn.Close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-t.done:
			text, _ := os.ReadFile(filepath.Join(t.dir, logName))
			return fmt.Errorf("swtpm in %s ended at once: %s", t.dir, lastLine(text))
		case <-ctx.Done():
			return fmt.Errorf("waiting for swtpm in %s: %w", t.dir, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// Socket returns the path at which this TPM is opened.
func (t *TPM) Socket() string { return Socket(t.dir) }

// Dir returns the folder of the TPM's state.
func (t *TPM) Dir() string { return t.dir }

// PID returns the process id.
func (t *TPM) PID() int { return t.pid }

// Done is closed when the process has ended.
func (t *TPM) Done() <-chan struct{} { return t.done }

// Stop shuts the TPM down in order and ends its process. Stopping a stopped TPM does nothing.
func (t *TPM) Stop() error {
	select {
	case <-t.done:
		return nil
	default:
	}
	shutdown(t.dir)
	syscall.Kill(t.pid, syscall.SIGTERM)
	select {
	case <-t.done:
	case <-time.After(5 * time.Second):
		syscall.Kill(t.pid, syscall.SIGKILL)
		<-t.done
	}
	removeSockets(t.dir)
	return nil
}

// Kill ends the process without a word, as a power cut would. The socket's path stays.
func (t *TPM) Kill() {
	syscall.Kill(t.pid, syscall.SIGKILL)
	<-t.done
}

// Restart stops the TPM if it runs and starts it on the same state: what a device sees at a reboot.
func (t *TPM) Restart(ctx context.Context) error {
	if err := t.Stop(); err != nil {
		return err
	}
	binary, err := exec.LookPath("swtpm")
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "swtpm is not installed").WithHint("install it: apt-get install swtpm")
	}
	return t.start(ctx, binary)
}

// Stop ends the TPM that runs on dir, whichever process started it. None running is no error.
func Stop(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	pid, ok := running(dir)
	if !ok {
		return nil
	}
	shutdown(dir)
	sig := syscall.SIGTERM
	for i := range 600 {
		if i == 500 {
			sig = syscall.SIGKILL
		}
		if i%500 == 0 {
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stopping swtpm %d: %w", pid, err)
			}
		}
		if now, ok := running(dir); !ok || now != pid {
			removeSockets(dir)
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("swtpm %d in %s does not end", pid, dir)
}

// shutdown sends TPM2_Shutdown(CLEAR), as a kernel does before it cuts the power: without it
// the TPM counts a start after use of a protected key as a failed attempt, and locks after a few.
// It gives up when another client holds the TPM.
func shutdown(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	conn, err := tpmio.Open(ctx, Socket(dir))
	if err != nil {
		return
	}
	defer conn.Close()
	(tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(conn.With(ctx))
}

// running returns the process that serves dir. A process id alone may have been given to another
// program since: that one does not run swtpm inside dir.
func running(dir string) (pid int, ok bool) {
	text, err := os.ReadFile(filepath.Join(dir, pidName))
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(args, []byte("swtpm")) {
		return 0, false
	}
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return 0, false
	}
	own, err := os.Stat(dir)
	return pid, err == nil && os.SameFile(cwd, own)
}

// Clone copies the state of the stopped TPM in from to the folder to: a TPM with the same seeds, keys
// and NV content, as an attacker who can read a virtual TPM's files would make it.
func Clone(from, to string) error {
	if pid, ok := running(from); ok {
		return cradle.Errorf(cradle.Conflict, "the software TPM in %s runs as process %d", from, pid).
			WithHint("stop it before copying its state")
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("making the folder of a software TPM: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(from, "tpm2-*"))
	if err != nil || len(names) == 0 {
		return cradle.Errorf(cradle.NotFound, "no TPM state in %s", from)
	}
	for _, name := range names {
		if err := copyFile(name, filepath.Join(to, filepath.Base(name))); err != nil {
			return fmt.Errorf("copying TPM state: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// The parent-death signal is sent when the OS thread that made the child ends, not the process
// (prctl(2), PR_SET_PDEATHSIG), and Go ends threads as it likes. So one goroutine, which never ends
// and never leaves its thread, makes every child.
var (
	spawnOnce sync.Once
	spawnReqs chan spawnReq
)

type spawnReq struct {
	cmd *exec.Cmd
	err chan error
}

func spawn(cmd *exec.Cmd) error {
	spawnOnce.Do(func() {
		spawnReqs = make(chan spawnReq)
		go func() {
			runtime.LockOSThread()
			for r := range spawnReqs {
				r.err <- r.cmd.Start()
			}
		}()
	})
	r := spawnReq{cmd, make(chan error, 1)}
	spawnReqs <- r
	return <-r.err
}
