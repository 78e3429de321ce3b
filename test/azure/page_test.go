package azure_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPage runs the programs of docs/azure-sdk.md as they stand there, each in a process of its own.
func (s suite) TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/azure-sdk.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	programs := regexp.MustCompile("(?ms)^```js (\\S+)\n(.*?)^```$").FindAllSubmatch(page, -1)
	if len(programs) != 3 {
		t.Fatalf("%d programs on the page", len(programs))
	}
	for _, p := range programs {
		if err := os.WriteFile(filepath.Join(dir, string(p[1])), p[2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.MustCradle("service-key", "show", "--service", "dps", "--out", filepath.Join(dir, "dps.txt"))
	s.MustCradle("service-key", "show", "--service", "hub", "--out", filepath.Join(dir, "hub.txt"))
	command := func(program string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "node", program)
		cmd.Dir, cmd.Env = dir, append(nodeEnv(t, s.anchors), "PROVISIONING_HOST="+s.host, "ID_SCOPE="+s.idScope)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	}
	run := func(program, want string) {
		t.Helper()
		out, err := command(program).CombinedOutput()
		if err != nil || string(out) != want {
			t.Fatalf("%s: %v, want %q:\n%s", program, err, want, out)
		}
	}
	run("enrol.js", "enrolled pump-1\n")

	device := command("device.js")
	device.Stderr = os.Stderr
	r, err := device.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := device.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(r); in.Scan(); {
			lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		_ = device.Process.Kill()
		_ = device.Wait()
	})
	said := func(want string) {
		t.Helper()
		var got []string
		for {
			select {
			case l, ok := <-lines:
				if l == want {
					return
				}
				if got = append(got, l); !ok {
					t.Fatalf("device.js ended without %q: %s", want, strings.Join(got, "\n"))
				}
			case <-time.After(time.Minute):
				t.Fatalf("device.js does not say %q: %s", want, strings.Join(got, "\n"))
			}
		}
	}
	said("assigned to " + s.host)
	said("running")
	run("backend.js", "pump-1 reports true\nanswer 200 {\"stopped\":true}\n")
	said("interval is 10 s")
	if got := s.events(t, "pump-1"); len(got) != 1 || string(got[0].Body) != `{"pressure":2.5}` {
		t.Errorf("the hub has %+v", got)
	}
	var twin twin
	s.must(t, &twin, "hub.getTwin", with{"connection": s.hub, "id": "pump-1"})
	if twin.Tags["site"] != "north" {
		t.Errorf("the initial twin has not come: %+v", twin)
	}
}
