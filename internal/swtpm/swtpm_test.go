package swtpm_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmio"
)

// The test binary is also the other process: a client that is killed, a parent that dies.
func TestMain(m *testing.M) {
	switch os.Getenv("SWTPM_TEST_ROLE") {
	case "client":
		conn, err := tpmio.Open(context.Background(), os.Args[1])
		if err == nil {
			err = random(conn)
		}
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		println("connected")
		select {}
	case "parent":
		t, err := swtpm.Start(context.Background(), os.Args[1], swtpm.Options{Detached: os.Args[2] == "detached"})
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		println(t.PID())
		select {}
	}
	os.Exit(m.Run())
}

// other starts this binary in a role and returns its first line of output.
func other(t *testing.T, role string, args ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "SWTPM_TEST_ROLE="+role)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line := make([]byte, 200)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(string(line[:n]))
}

func random(conn *tpmio.Conn) error {
	_, err := (tpm2.GetRandom{BytesRequested: 8}).Execute(conn.With(context.Background()))
	return err
}

func start(t *testing.T, dir string) *swtpm.TPM {
	t.Helper()
	testenv.Require(t, "swtpm")
	tpm, err := swtpm.Start(t.Context(), dir, swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Stop() })
	return tpm
}

func use(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	conn, err := tpmio.Open(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := (tpm2.GetRandom{BytesRequested: 8}).Execute(conn.With(ctx)); err != nil {
		t.Fatal(err)
	}
}

func TestClientsOneAfterTheOther(t *testing.T) {
	tpm := start(t, t.TempDir())
	for range 3 {
		use(t, tpm.Socket())
	}
	client, line := other(t, "client", tpm.Socket())
	if line != "connected" {
		t.Fatal(line)
	}
	client.Process.Kill()
	client.Wait()
	use(t, tpm.Socket())
}

func TestSecondClientWaits(t *testing.T) {
	tpm := start(t, t.TempDir())
	first, err := tpmio.Open(t.Context(), tpm.Socket())
	if err != nil {
		t.Fatal(err)
	}
	if err := random(first); err != nil {
		t.Fatal(err)
	}
	second, err := tpmio.Open(t.Context(), tpm.Socket())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = (tpm2.GetRandom{BytesRequested: 8}).Execute(second.With(ctx))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("command of a second client: %v", err)
	}
	if second.Broken() == nil {
		t.Error("a connection with an answer outstanding must not be used again")
	}
	second.Close()
	first.Close()
	use(t, tpm.Socket()) // the abandoned command harms nobody
}

func TestRestartKeepsState(t *testing.T) {
	// A folder whose path is longer than a socket address may be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 25), "tpm")
	tpm := start(t, dir)
	before := ekName(t, tpm.Socket())
	if err := tpm.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := ekName(t, tpm.Socket()); after != before {
		t.Error("another endorsement key after a restart")
	}
	tpm.Kill()
	if err := tpm.Restart(t.Context()); err != nil {
		t.Fatal("after a kill:", err)
	}
	if after := ekName(t, tpm.Socket()); after != before {
		t.Error("another endorsement key after a kill")
	}
}

func TestClone(t *testing.T) {
	tpm := start(t, t.TempDir())
	before := ekName(t, tpm.Socket())
	to := filepath.Join(t.TempDir(), "clone")
	if err := swtpm.Clone(tpm.Dir(), to); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("cloning a running TPM: %v", err)
	}
	tpm.Stop()
	if err := swtpm.Clone(tpm.Dir(), to); err != nil {
		t.Fatal(err)
	}
	clone := start(t, to)
	if after := ekName(t, clone.Socket()); after != before {
		t.Error("the clone has another endorsement key")
	}
}

func ekName(t *testing.T, socket string) string {
	t.Helper()
	conn, err := tpmio.Open(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tpm := conn.With(t.Context())
	made, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}).Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	(tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(tpm)
	return string(made.Name.Buffer)
}

func TestStartTwice(t *testing.T) {
	tpm := start(t, t.TempDir())
	_, err := swtpm.Start(t.Context(), tpm.Dir(), swtpm.Options{})
	if cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("second start on one folder: %v", err)
	}
	use(t, tpm.Socket())
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{})
	var told *cradle.Error
	if !errors.As(err, &told) || told.Kind != cradle.NotFound || told.Hint == "" {
		t.Errorf("without swtpm: %v", err)
	}
}

func TestUnusableState(t *testing.T) {
	testenv.Require(t, "swtpm")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tpm2-00.permall"), []byte("not a TPM's state"), 0o600); err != nil {
		t.Fatal(err)
	}
	if tpm, err := swtpm.Start(t.Context(), dir, swtpm.Options{}); err == nil {
		tpm.Stop()
		t.Error("started on a damaged state")
	}
}

func TestLifeWithParent(t *testing.T) {
	testenv.Require(t, "swtpm")
	for mode, survives := range map[string]bool{"attached": false, "detached": true} {
		dir := t.TempDir()
		parent, line := other(t, "parent", dir, mode)
		pid, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(line)
		}
		parent.Process.Kill()
		parent.Wait()
		if !survives {
			waitGone(t, pid)
			continue
		}
		use(t, swtpm.Socket(dir))
		if err := swtpm.Stop(dir); err != nil {
			t.Fatal(err)
		}
		waitGone(t, pid)
		if err := swtpm.Stop(dir); err != nil {
			t.Errorf("stopping again: %v", err)
		}
	}
}

// waitGone waits until a process that is not our child has ended; the test's own deadline bounds it.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for syscall.Kill(pid, 0) == nil {
		if status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && strings.Contains(string(status), ") Z ") {
			return // nobody reaps it in this container
		}
		time.Sleep(5 * time.Millisecond)
	}
}
