package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a PostgreSQL server in a folder of its own under /tmp, reached through a socket there that
// only this user (and root) can open. Durability is on, as in production.
//
// A watchdog process holds the other end of a pipe: when this process ends, however it ends, it
// stops the server and removes the folder.
type Server struct {
	dir      string
	bin      string
	cred     *syscall.Credential // of user postgres when we are root, whom PostgreSQL refuses
	watchdog io.Closer
	watching *exec.Cmd

	mu     sync.Mutex
	cmd    *exec.Cmd // nil while stopped
	exited chan struct{}
}

// postgresBin returns the folder with initdb and postgres of the newest version, "" if there is none.
func postgresBin() string {
	best, version := "", -1
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	for _, f := range found {
		bin := filepath.Dir(f)
		if v, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && v > version {
			best, version = bin, v
		}
	}
	if best == "" {
		if f, err := exec.LookPath("initdb"); err == nil {
			best = filepath.Dir(f)
		}
	}
	return best
}

// watch waits until its standard input ends, then stops the server of folder $1 and removes the folder.
const watch = `
cat >/dev/null
p=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
ours() { [ -n "$p" ] && [ "$(readlink /proc/$p/cwd)" = "$1/data" ]; }
ours "$1" && kill -QUIT "$p"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do ours "$1" || break; sleep 0.1; done
ours "$1" && kill -KILL "$p"
for i in 1 2 3 4 5; do rm -rf "$1" 2>/dev/null && break; sleep 0.2; done
`

// StartPostgres makes and starts a server. For use outside of tests, call Close.
func StartPostgres() (_ *Server, err error) {
	s := &Server{bin: postgresBin()}
	if s.bin == "" {
		return nil, errors.New("PostgreSQL is not installed")
	}
	// Not os.TempDir: a socket's path has at most 107 bytes, and user postgres must reach it.
	if s.dir, err = os.MkdirTemp("/tmp", "cradle-pg-"); err != nil {
		return nil, err
	}
	if err := s.startWatchdog(); err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if os.Geteuid() == 0 {
		if s.cred, err = credential("postgres"); err != nil {
			return nil, err
		}
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return nil, err
		}
	}
	init := s.command("initdb", "-D", s.dir+"/data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
		"--locale=C", "--no-sync", "--no-instructions")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	return s, s.Start()
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	// A session of its own: Ctrl-C in the terminal is for the test, which then ends it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setsid: true}
	return cmd
}

func (s *Server) startWatchdog() error {
	cmd := exec.Command("/bin/sh", "-c", watch, "sh", s.dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.watchdog, s.watching = in, cmd
	return nil
}

// Start starts the server and returns when it answers. It does nothing when it runs.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return nil
	}
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("postgres", "-D", s.dir+"/data", "-k", s.dir, "-c", "listen_addresses=",
		"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=200",
		"-c", "shared_buffers=128MB", "-c", "max_wal_senders=0", "-c", "wal_level=minimal")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := pgx.Connect(ctx, s.url("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-exited:
			s.cmd = nil
			text, _ := os.ReadFile(s.dir + "/log")
			return fmt.Errorf("the server ended: %s", bytes.TrimSpace(text))
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop shuts the server down in order; clients are cut off. It does nothing when it is stopped.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

// Kill ends the server at once, all its processes, as a power cut of the database machine would.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	pids := s.pids()
	s.cmd.Process.Signal(sig)
	if sig == syscall.SIGKILL {
		for _, pid := range pids {
			syscall.Kill(pid, sig)
		}
	}
	<-s.exited
	for _, pid := range pids { // the children of a killed server end a moment later
		for syscall.Kill(pid, 0) == nil && parent(pid) == 1 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	s.cmd = nil
}

// parent returns the parent of a process, 0 if it has ended.
func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 2 || f[0] == "Z" {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

// Pids returns the server's processes, the main one first; for CPU accounting. Connections come and go.
func (s *Server) Pids() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pids()
}

func (s *Server) pids() []int {
	if s.cmd == nil {
		return nil
	}
	pid := s.cmd.Process.Pid
	pids := []int{pid}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// Close stops the server and removes its folder.
func (s *Server) Close() {
	s.Stop()
	s.watchdog.Close()
	s.watching.Wait()
}

func (s *Server) url(database string) string {
	q := url.Values{"host": {s.dir}, "user": {"postgres"}, "sslmode": {"disable"}}
	return "postgres:///" + database + "?" + q.Encode()
}

var databases atomic.Int64

// NewDatabase makes an empty database and returns its URL.
func (s *Server) NewDatabase() (string, error) {
	name := fmt.Sprintf("db%d", databases.Add(1))
	return s.url(name), s.exec("CREATE DATABASE " + name + " TEMPLATE template0")
}

// Database makes an empty database, dropped at the end of the test, and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	u, err := s.NewDatabase()
	if err != nil {
		t.Fatalf("making a database: %v", err)
	}
	t.Cleanup(func() {
		name, _, _ := strings.Cut(strings.TrimPrefix(u, "postgres:///"), "?")
		if len(s.Pids()) > 0 {
			s.exec("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)")
		}
	})
	return u
}

func (s *Server) exec(query string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, query)
	return err
}
