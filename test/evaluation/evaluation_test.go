package evaluation_test

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// block is a fenced piece of the page that a reader types.
type block struct {
	name string // what stands after "sh": a terminal of its own, or empty
	text string
}

// blocks finds the fenced blocks whose language is sh.
func blocks(t *testing.T, page string) (out []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	open := false
	for l := range strings.Lines(string(text)) {
		l = strings.TrimRight(l, "\n")
		switch {
		case strings.HasPrefix(l, "```sh"):
			out, open = append(out, block{name: strings.TrimSpace(strings.TrimPrefix(l, "```sh"))}), true
		case strings.HasPrefix(l, "```"):
			open = false
		case open:
			out[len(out)-1].text += l + "\n"
		}
	}
	return out
}

// terminal is a program that goes on running, and its output.
type terminal struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed and replaced when there is more
	done chan struct{}
}

func (m *terminal) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.more)
	m.more = make(chan struct{})
	return m.text.Write(b)
}

// wait waits until every one of the words was printed.
func (m *terminal) wait(t *testing.T, words ...string) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		m.mu.Lock()
		text, more := m.text.String(), m.more
		m.mu.Unlock()
		missing := ""
		for _, w := range words {
			if !strings.Contains(text, w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-more:
		case <-m.done:
			t.Fatalf("it ended and had not printed %q:\n%s", missing, text)
		case <-limit:
			t.Fatalf("it does not print %q:\n%s", missing, text)
		}
	}
}

// root is the repository.
const root = "../.."

// build does what "make build" does, into the folder bin of dir.
func build(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "bin")+"/", "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
}

// TestPage does what docs/evaluation.md says, in a folder that has the repository's bin and nothing else.
func TestPage(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "swtpm")
	testenv.Require(t, "openssl")
	work := t.TempDir()
	build(t, work)
	_, port, _ := net.SplitHostPort(testenv.Address(t))
	t.Cleanup(func() { _ = swtpm.Stop(filepath.Join(work, "desk", "tpm")) })

	terminals := map[string]*terminal{}
	ready := map[string][]string{"services": {"ready https://"}, "device": {"connected to the hub"}}
	outputs := map[string]string{}
	for _, b := range blocks(t, filepath.Join(root, "docs", "evaluation.md")) {
		if strings.TrimSpace(b.text) == "make build" {
			continue
		}
		if b.name != "" {
			words, ok := ready[b.name]
			if !ok {
				t.Fatalf("the page has a terminal %q, of which the test knows nothing", b.name)
			}
			if b.name == "services" { // the page uses the default port, which may be taken here
				b.text = strings.TrimRight(b.text, "\n") + " --listen 127.0.0.1:" + port + "\n"
			}
			m := start(t, work, b.text)
			m.wait(t, words...)
			terminals[b.name] = m
			continue
		}
		if strings.Contains(b.text, "hub events") {
			arrived(t, work)
		}
		cmd := exec.Command("bash", "-e", "-c", b.text)
		cmd.Dir = work
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", b.text, err, out)
		}
		outputs[b.text] = string(out)
		if strings.Contains(b.text, "device revoke") {
			terminals["device"].wait(t, "connection to the hub", "what=provisioning refused=true")
		}
	}
	if len(terminals) != len(ready) {
		t.Errorf("the page has the terminals %v, want %v", terminals, ready)
	}
	check(t, outputs, "hub events", `"sequence":1,`, "connected", "acme-0001", "operational")
	check(t, outputs, "openssl verify", "OK")
	check(t, outputs, "audit verify", " 0 findings")
}

// check looks for words in the output of the block that holds a command.
func check(t *testing.T, outputs map[string]string, command string, words ...string) {
	t.Helper()
	for text, out := range outputs {
		if !strings.Contains(text, command) {
			continue
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%s\nprinted no %q:\n%s", text, w, out)
			}
		}
		return
	}
	t.Errorf("the page has no command %q", command)
}

// start runs a command that goes on; it is ended with the test.
func start(t *testing.T, dir, text string) *terminal {
	t.Helper()
	m := &terminal{more: make(chan struct{}), done: make(chan struct{})}
	cmd := exec.Command("bash", "-c", "exec "+strings.TrimSpace(text))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, m, m
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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
	return m
}

// arrived waits until the hub has as many messages as the page asks for.
func arrived(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("bin/cradle", "hub", "events", "--follow", "--data", "desk/data")
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	in := bufio.NewScanner(out)
	for n := 1; n <= 3; n++ {
		if !in.Scan() {
			t.Fatalf("the hub's events ended: %v", in.Err())
		}
		var e struct {
			Device   string
			Sequence int
		}
		if err := json.Unmarshal(in.Bytes(), &e); err != nil || e.Device != "acme-0001" || e.Sequence != n {
			t.Fatalf("event %d of the hub: %s (%v)", n, in.Text(), err)
		}
	}
}
