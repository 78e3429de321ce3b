package docs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

func TestMain(m *testing.M) { os.Exit(world.Main(m)) }

// TestArchitecturePage makes one device with the real programs and then runs the commands of
// docs/architecture.md as they stand, in one shell. What the page shows as output must be printed.
func TestArchitecturePage(t *testing.T) {
	testenv.Require(t, "swtpm", "openssl", "tpm2_readpublic", "tpm2_nvread", "bash")
	w := world.New(t, world.Options{})
	w.Acts()
	unit := w.Make(1)[0]
	agent := w.Agent(w.Units)
	w.AwaitConnected(2*time.Minute, unit)
	if code := agent.Stop(); code != 0 {
		t.Fatalf("the agent ended with %d:\n%s", code, agent.Log())
	}
	if err := unit.TPM.Stop(); err != nil {
		t.Fatal(err)
	}

	// The page's folder: demo and bin.
	dir := t.TempDir()
	for name, to := range map[string]string{"demo": w.Dir, "bin": w.Bin} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // what the page started, if it did not come to its end
		b, _ := os.ReadFile(filepath.Join(unit.TPM.Dir(), "pid"))
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.Contains(args, []byte("swtpm")) {
			syscall.Kill(pid, syscall.SIGTERM)
		}
	})

	// The demo numbers its units with more digits than the world does.
	page := strings.ReplaceAll(read(t, "docs/architecture.md"), "sn-000001", unit.Serial)
	const end = "@@ end of block"
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	var want [][]string // by sh block: the lines of the text block that follows, if one does
	for _, b := range blocks(page) {
		switch {
		case b.lang == "sh" && b.arg == "":
			script.WriteString(b.text() + "echo '" + end + "'\n")
			want = append(want, nil)
		case b.lang == "text" && len(want) > 0:
			want[len(want)-1] = b.lines
		}
	}
	if len(want) < 5 {
		t.Fatalf("the page has %d blocks of commands", len(want))
	}
	cmd := exec.Command("bash", "-c", script.String())
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	parts := strings.Split(string(out), end+"\n")
	if err != nil {
		t.Fatalf("block %d of the page: %v\n%s", len(parts), err, parts[len(parts)-1])
	}
	for i, lines := range want {
		got := map[string]bool{}
		for l := range strings.Lines(parts[i]) {
			got[strings.TrimRight(l, "\n ")] = true
		}
		for _, l := range lines {
			if !got[l] {
				t.Errorf("block %d: the page shows %q; printed was\n%s", i+1, l, parts[i])
			}
		}
	}
}
