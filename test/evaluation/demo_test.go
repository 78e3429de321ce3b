package evaluation_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
)

// TestDemoLeavesNothing ends the demo in the middle, by Ctrl-C and by SIGKILL: no process may be left, nor a
// file outside its folder; and the next demo takes the folder over.
func TestDemoLeavesNothing(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "swtpm", "node")
	work := t.TempDir()
	build(t, work)
	modules, err := exec.Command("../../scripts/node-modules.sh").Output()
	if err != nil {
		t.Fatalf("Microsoft's SDKs: %v", err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, out := demo(t, work, "--devices", "3", "--dir", "demo", "--azure-sdk", strings.TrimSpace(string(modules)))
			out.wait(t, "azure-sdk-1 registered")
			if running(t, work) < 8 { // serve, 3 agents, 3 TPMs, the device with Microsoft's SDK
				t.Fatalf("only %d processes work in the folder", running(t, work))
			}
			second := exec.Command("bin/cradle-demo", "--devices", "3", "--dir", "demo")
			second.Dir = work
			if text, err := second.CombinedOutput(); err == nil || !strings.Contains(string(text), "another demo runs") {
				t.Errorf("a second demo in the folder: %v\n%s", err, text)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			<-out.done
			for limit := time.Now().Add(time.Minute); running(t, work) > 0; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(limit) { // signals take a moment
					t.Fatalf("%d processes are left", running(t, work))
				}
			}
			left, err := os.ReadDir(work)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range left {
				if e.Name() != "bin" && e.Name() != "demo" {
					t.Errorf("left outside the folder: %s", e.Name())
				}
			}
		})
	}
}

func TestDemoRefusals(t *testing.T) {
	testenv.Require(t, "swtpm")
	work := t.TempDir()
	build(t, work)
	if err := os.MkdirAll(filepath.Join(work, "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(work, "mine", "thesis.txt")
	if err := os.WriteFile(keep, []byte("years of work"), 0o644); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		name, script, want string
		status             int
	}{
		{"foreign folder", "bin/cradle-demo --dir mine", "content that the demo did not make", 1},
		{"no swtpm", "PATH=/none bin/cradle-demo --dir d", "swtpm is not installed", 1},
		{"file limit", "ulimit -n 100; bin/cradle-demo --dir d --devices 200", "ulimit -n", 1},
		{"port taken", "bin/cradle-demo --dir d --devices 2 --listen " + taken.Addr().String(), "taken", 1},
		{"no devices", "bin/cradle-demo --devices 0", "at least 1", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("bash", "-c", c.script)
			cmd.Dir = work
			out, err := cmd.CombinedOutput()
			if err == nil || cmd.ProcessState.ExitCode() != c.status || !strings.Contains(string(out), c.want) || !strings.Contains(string(out), "hint: ") && c.status == 1 {
				t.Errorf("%v, want status %d, %q and a hint:\n%s", err, c.status, c.want, out)
			}
		})
	}
	if text, err := os.ReadFile(keep); err != nil || string(text) != "years of work" {
		t.Errorf("the foreign folder's file: %q, %v", text, err)
	}
}

// demo starts the demo in dir.
func demo(t *testing.T, dir string, args ...string) (*exec.Cmd, *terminal) {
	t.Helper()
	m := &terminal{more: make(chan struct{}), done: make(chan struct{})}
	cmd := exec.Command("bin/cradle-demo", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, m, m
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(m.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-m.done
	})
	return cmd, m
}

// running counts the processes whose program, arguments or working directory is in dir.
func running(t *testing.T, dir string) (n int) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		exe, _ := os.Readlink(filepath.Join(p, "exe"))
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		args, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		if strings.HasPrefix(exe, dir) || strings.HasPrefix(cwd, dir) || bytes.Contains(args, []byte(dir)) {
			n++
		}
	}
	return n
}
