// Package tpmio carries TPM 2.0 commands to a TPM: a character device of the Linux kernel, or the
// Unix socket of a software TPM such as swtpm.
//
// It knows how long a command is and when the TPM asks for it again (Send); it knows nothing of
// what commands mean. A Conn has one command in flight; callers serialise. The bytes on the wire
// are the TPM's own (TPM 2.0 Part 1 §18): a header of tag, size, and code, big endian.
package tpmio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
)

// maxResponse bounds a response; the largest of the reference implementation is 4096 bytes.
const maxResponse = 8192

// Response codes that ask for the same command again (TPM 2.0 Part 2 §6.6.3).
const (
	rcYielded = 0x908
	rcTesting = 0x90A
	rcRetry   = 0x922
)

// retryFor bounds how long Send repeats a command that the TPM asks to have again. A self-test of
// a discrete TPM takes up to two seconds.
const retryFor = 20 * time.Second

// Conn is an open connection to one TPM.
type Conn struct {
	rw      io.ReadWriteCloser
	socket  net.Conn // nil for a device
	managed bool
	broken  error
}

// Open connects to the TPM at path. A missing path is NotFound, a device that another process
// holds is Busy. A socket accepts a second client and leaves it waiting, so that a busy software TPM
// is seen only at the first command: give that one a deadline.
func Open(ctx context.Context, path string) (*Conn, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, cradle.Errorf(cradle.NotFound, "no TPM at %s", path).
			WithHint("name a TPM device such as /dev/tpmrm0, or the Unix socket of a running swtpm")
	case errors.Is(err, fs.ErrPermission):
		return nil, denied(path)
	case err != nil:
		return nil, fmt.Errorf("looking for the TPM: %w", err)
	case info.Mode()&fs.ModeSocket != 0:
		return openSocket(ctx, path)
	case info.Mode()&fs.ModeCharDevice != 0:
		return openDevice(path)
	}
	return nil, cradle.Errorf(cradle.Invalid, "%s is neither a TPM device nor a Unix socket", path).
		WithHint("name a TPM device such as /dev/tpmrm0, or the Unix socket of a running swtpm")
}

func denied(path string) error {
	return cradle.Errorf(cradle.Forbidden, "no permission to use the TPM at %s", path).
		WithHint("run as root or join the group that owns %s (often tss)", path)
}

func openDevice(path string) (*Conn, error) {
	// Not os.OpenFile: that would switch the device to non-blocking mode, where read returns
	// nothing until the command is done.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return nil, Busy(path)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return nil, denied(path)
	case err != nil:
		return nil, fmt.Errorf("opening the TPM at %s: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	return &Conn{
		rw:      os.NewFile(uintptr(fd), path),
		managed: strings.HasPrefix(filepath.Base(real), "tpmrm"),
	}, nil
}

// Busy is the error for a TPM that another process holds.
func Busy(path string) error {
	return cradle.Errorf(cradle.Busy, "another process is using the TPM at %s", path).
		WithHint("one process at a time may own this TPM: stop the other one, or use /dev/tpmrm0 on a kernel that has it")
}

// dialPatience is how long a refused connection is tried again: swtpm makes its socket's
// path a moment before it listens.
const dialPatience = 2 * time.Second

func openSocket(ctx context.Context, path string) (*Conn, error) {
	addr, done, err := shortAddress(path)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of %s: %w", path, err)
	}
	defer done()
	var d net.Dialer
	for deadline := time.Now().Add(dialPatience); ; {
		c, err := d.DialContext(ctx, "unix", addr)
		switch {
		case err == nil:
			return &Conn{rw: c, socket: c}, nil
		case errors.Is(err, syscall.EAGAIN):
			return nil, Busy(path) // the listen queue is full
		case errors.Is(err, fs.ErrPermission):
			return nil, denied(path)
		case !errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("connecting to the TPM at %s: %w", path, err)
		case time.Now().After(deadline):
			return nil, cradle.Errorf(cradle.NotFound, "no TPM answers at %s", path).
				WithHint("start the software TPM (swtpm) that serves this socket")
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to the TPM at %s: %w", path, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// shortAddress names a socket whose path is too long for sockaddr_un (107 bytes) through an open
// folder of this process.
func shortAddress(path string) (addr string, done func(), err error) {
	if len(path) < 108 {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

// Managed reports whether a resource manager stands between this connection and the TPM
// (/dev/tpmrm0): then handles of other clients are not seen, and slots never run out.
func (c *Conn) Managed() bool { return c.managed }

// Broken returns why the connection can no longer be used, or nil. A command cut short by its
// context breaks it, since the answer may still come.
func (c *Conn) Broken() error { return c.broken }

// Close ends the connection.
func (c *Conn) Close() error { return c.rw.Close() }

// With returns a transport (go-tpm's transport.TPM) whose commands end when ctx does. On a
// device the command in flight is waited for: the kernel offers no way to leave it.
func (c *Conn) With(ctx context.Context) Bound { return Bound{c, ctx} }

// Bound is a connection for the length of one operation.
type Bound struct {
	c   *Conn
	ctx context.Context
}

// Send runs one command, again as long as the TPM asks for that, and returns the response.
func (b Bound) Send(command []byte) ([]byte, error) {
	wait := time.Millisecond
	for deadline := time.Now().Add(retryFor); ; wait = min(2*wait, 250*time.Millisecond) {
		response, err := b.once(command)
		if err != nil {
			return nil, err
		}
		switch binary.BigEndian.Uint32(response[6:]) {
		case rcRetry, rcTesting, rcYielded:
			if time.Now().After(deadline) {
				return response, nil
			}
		default:
			return response, nil
		}
		select {
		case <-b.ctx.Done():
			return nil, fmt.Errorf("waiting for the TPM to be ready: %w", context.Cause(b.ctx))
		case <-time.After(wait):
		}
	}
}

func (b Bound) once(command []byte) ([]byte, error) {
	c := b.c
	if b.ctx.Err() != nil {
		return nil, fmt.Errorf("before a TPM command: %w", context.Cause(b.ctx))
	}
	if c.broken != nil {
		return nil, fmt.Errorf("the connection to the TPM has ended: %w", c.broken)
	}
	if c.socket != nil {
		stop := context.AfterFunc(b.ctx, func() { c.socket.SetDeadline(time.Unix(1, 0)) })
		defer func() {
			if !stop() && c.broken == nil { // the deadline may be set at any moment from now
				c.broken = context.Cause(b.ctx)
			}
		}()
	}
	response, err := c.exchange(command)
	if err != nil {
		c.broken = err
		if b.ctx.Err() != nil {
			err = context.Cause(b.ctx)
		}
		return nil, fmt.Errorf("talking to the TPM: %w", err)
	}
	return response, nil
}

func (c *Conn) exchange(command []byte) ([]byte, error) {
	if _, err := c.rw.Write(command); err != nil {
		return nil, err
	}
	if c.socket == nil {
		// The kernel gives a whole response to one read.
		buf := make([]byte, maxResponse)
		n, err := c.rw.Read(buf)
		if err != nil {
			return nil, err
		}
		if n < 10 || binary.BigEndian.Uint32(buf[2:]) != uint32(n) {
			return nil, fmt.Errorf("response of %d bytes is not a TPM response", n)
		}
		return buf[:n], nil
	}
	header := make([]byte, 10)
	if _, err := io.ReadFull(c.rw, header); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < 10 || size > maxResponse {
		return nil, fmt.Errorf("response says it has %d bytes", size)
	}
	response := append(header, make([]byte, size-10)...)
	if _, err := io.ReadFull(c.rw, response[10:]); err != nil {
		return nil, err
	}
	return response, nil
}
