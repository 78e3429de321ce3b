package hubload

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/cradle-iot/cradle/test/bench/fleet"
)

// IdleArg begins the command line of the process that holds connections.
const IdleArg = "idle-devices"

// idleJob is what that process reads.
type idleJob struct {
	Addr    string
	Roots   [][]byte
	Key     []byte
	Issuer  []byte
	Clients []fleet.Client
}

// Idle is a process that holds connections to the hub over which nothing is said.
type Idle struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// StartIdle connects the first n devices from another process, this program run with IdleArg, and returns when all
// of them are connected. roots are in DER.
func (s *Server) StartIdle(roots [][]byte, n int) (*Idle, error) {
	key, err := x509.MarshalECPrivateKey(s.Clients.Key)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	i := &Idle{cmd: exec.Command(exe, IdleArg)}
	i.cmd.Stderr = os.Stderr
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if i.in, err = i.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	i.out = bufio.NewReader(out)
	if err := i.cmd.Start(); err != nil {
		return nil, err
	}
	err = json.NewEncoder(i.in).Encode(idleJob{s.Addr, roots, key, s.Clients.Issuer, s.Clients.List[:n]})
	if err == nil {
		err = i.answer("connected")
	}
	if err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

func (i *Idle) answer(want string) error {
	line, err := i.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("the process of idle devices ended: %w", err)
	}
	if line = strings.TrimSpace(line); line != want {
		return fmt.Errorf("idle devices: %s", line)
	}
	return nil
}

// Alive has each of the connections send one message and waits for all acknowledgements: they are still there.
func (i *Idle) Alive() error {
	if _, err := io.WriteString(i.in, "alive\n"); err != nil {
		return err
	}
	return i.answer("alive")
}

// Close ends the process, and with it the connections.
func (i *Idle) Close() {
	_ = i.in.Close()
	_ = i.cmd.Process.Kill()
	_ = i.cmd.Wait()
}

// RunIdle is that process.
func RunIdle(ctx context.Context, in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	var job idleJob
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &job); err != nil {
		return err
	}
	if err := RaiseFileLimit(len(job.Clients) + 100); err != nil {
		return err
	}
	s := &Server{Addr: job.Addr, Roots: x509.NewCertPool(), Clients: &fleet.Clients{Issuer: job.Issuer, List: job.Clients}}
	for _, der := range job.Roots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		s.Roots.AddCert(c)
	}
	if s.Clients.Key, err = x509.ParseECPrivateKey(job.Key); err != nil {
		return err
	}
	d, err := s.Devices(ctx, len(job.Clients))
	if err != nil {
		fmt.Fprintln(out, err)
		return err
	}
	fmt.Fprintln(out, "connected")
	for {
		if _, err := r.ReadString('\n'); err != nil { // the parent is done
			return nil
		}
		if err := d.Once(ctx); err != nil {
			fmt.Fprintln(out, err)
			continue
		}
		fmt.Fprintln(out, "alive")
	}
}

// RaiseFileLimit raises the process's limit of open files to n, as far as it may.
func RaiseFileLimit(n int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if l.Cur >= uint64(n) {
		return nil
	}
	l.Cur = max(uint64(n), l.Cur)
	if l.Max < l.Cur {
		l.Max = l.Cur // needs the right to
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("%d open files: %w", n, err)
	}
	return nil
}

// Resident is the memory of a process that is in use and in RAM (VmRSS, proc_pid_status(5)), in bytes.
func Resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
