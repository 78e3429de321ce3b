package testenv

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// NATS is a NATS server with JetStream on loopback, in a folder of its own; it keeps its port and its folder over Kill
// and Start.
type NATS struct {
	URL string

	t    testing.TB
	addr string
	dir  string
	log  Buffer
	cmd  *exec.Cmd
}

// StartNATS starts one and stops it at the end of the test.
func StartNATS(t testing.TB) *NATS {
	t.Helper()
	bin := "nats-server"
	if _, err := exec.LookPath(bin); err != nil {
		if bin = "/usr/sbin/nats-server"; !executable(bin) { // not in everybody's path
			missing(t, "nats-server is not installed: run make deps")
		}
	}
	s := &NATS{t: t, addr: Address(t), dir: t.TempDir()}
	s.URL = "nats://" + s.addr
	s.cmd = exec.Command(bin)
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

func executable(file string) bool {
	st, err := os.Stat(file)
	return err == nil && st.Mode()&0o111 != 0
}

// Start starts it again, after Kill, and waits until it answers.
func (s *NATS) Start() {
	s.t.Helper()
	host, port, _ := net.SplitHostPort(s.addr)
	s.cmd = exec.Command(s.cmd.Path, "-a", host, "-p", port, "-js", "-sd", s.dir)
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	Eventually(s.t, "nats-server answers", func() bool { return s.answers() == nil }, &s.log)
}

func (s *NATS) answers() error {
	c, err := net.DialTimeout("tcp", s.addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "INFO ") {
		err = fmt.Errorf("it says %q", line)
	}
	return err
}

// Kill ends it at once, as a crash would.
func (s *NATS) Kill() {
	if s.cmd.Process != nil && s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait() // says that it was killed
	}
}
