package docs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/test/world"
)

// TestCommands: every command of ours that a page shows, in a block or on an indented line, has such verbs
// and flags. It is parsed by the program itself, with --help behind it, and not run.
func TestCommands(t *testing.T) {
	bin := world.Build(t, false)
	line := regexp.MustCompile(`^(?:ExecStart=\S*/|bin/)?(cradle|cradle-oem|cradle-agent) ([^#>&|]*)`)
	file := regexp.MustCompile(`^[a-z][\w/-]*\.[a-z]+$`)
	seen := map[string]bool{}
	for _, page := range pages(t) {
		text := read(t, page)
		var lines []string
		for _, b := range blocks(text) {
			lines = append(lines, b.lines...)
		}
		for l := range strings.Lines(text) {
			if indented, ok := strings.CutPrefix(l, "    "); ok {
				lines = append(lines, indented)
			}
		}
		for _, l := range lines {
			m := line.FindStringSubmatch(strings.TrimSpace(l))
			if m == nil || seen[m[0]] {
				continue
			}
			seen[m[0]] = true
			dir := t.TempDir()
			for _, name := range strings.Fields(m[2]) { // the program looks whether files are there
				if file.MatchString(name) {
					name = filepath.Join(dir, name)
					if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o600)); err != nil {
						t.Fatal(err)
					}
				}
			}
			cmd := exec.Command("bash", "-c", m[1]+" "+strings.TrimSuffix(strings.TrimSpace(m[2]), " …")+" --help")
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s shows %q: %v\n%s", page, m[0], err, out)
			}
		}
	}
	if len(seen) < 20 {
		t.Errorf("found %d commands only: %v", len(seen), seen)
	}
}
