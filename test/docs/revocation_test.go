package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// TestRevocationPage runs the commands of docs/operating/revocation.md as they stand, in one shell, for a device that was made by the
// real programs. What the page shows as output must be printed.
func TestRevocationPage(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "swtpm", "openssl", "curl", "bash")
	addr := testenv.Address(t)
	w := world.New(t, world.Options{Serve: []string{"--status-listen", addr, "--status-url", "http://" + addr}})
	w.Acts()
	unit := w.Make(1)[0]
	agent := w.Agent(w.Units)
	w.AwaitConnected(2*time.Minute, unit)
	if code := agent.Stop(); code != 0 {
		t.Fatalf("the agent ended with %d:\n%s", code, agent.Log())
	}
	dir := t.TempDir()
	if err := os.Symlink(w.Data, filepath.Join(dir, "cradle-data")); err != nil {
		t.Fatal(err)
	}
	page := strings.NewReplacer("acme-sn-0001", string(unit.ID), "ord-1", world.Order, "--maker demo", "--maker "+world.Maker).Replace(read(t, "docs/operating/revocation.md"))
	const end = "@@ end of block"
	script := "set -euo pipefail\n"
	var want [][]string
	for _, b := range blocks(page) {
		switch {
		case b.lang == "sh" && b.arg == "":
			script += b.text() + "echo '" + end + "'\n"
			want = append(want, nil)
		case b.lang == "text" && len(want) > 0:
			want[len(want)-1] = b.lines
		}
	}
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+w.Bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	parts := strings.Split(string(out), end+"\n")
	if err != nil {
		t.Fatalf("block %d of the page: %v\n%s", len(parts), err, parts[len(parts)-1])
	}
	for i, lines := range want {
		for _, l := range lines {
			if !strings.Contains("\n"+parts[i], "\n"+l) {
				t.Errorf("block %d: the page shows %q; printed was\n%s", i+1, l, parts[i])
			}
		}
	}
	for i, text := range map[int]string{4: "nothing was changed", 5: "nothing was changed"} {
		if i >= len(parts) || !strings.Contains(parts[i], text) {
			t.Errorf("block %d does not say %q:\n%s", i+1, text, parts[i])
		}
	}
}
