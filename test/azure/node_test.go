package azure_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// with is what a script is given.
type with = map[string]any

// failure is an error as an application sees it.
type failure struct {
	Name    string // class of the error
	Message string
	Status  int    // of the answer, 0 if there is none
	Body    string // of the answer
	Stack   string
}

func (f *failure) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s (status %d) %s", f.Name, f.Message, f.Status, f.Body))
}

// says reports whether the error or the answer's body holds a text.
func (f *failure) says(text string) bool { return strings.Contains(f.Message+"\n"+f.Body, text) }

// modules is the folder of the npm packages, which scripts/node-modules.sh fetches.
func modules(t *testing.T) string {
	t.Helper()
	lock, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "cradle", "node", fmt.Sprintf("%x", sha256.Sum256(lock))[:16])
	if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
		t.Fatalf("Microsoft's SDKs are not there (make deps fetches them): %v", err)
	}
	return filepath.Join(dir, "node_modules")
}

// nodeEnv is the environment in which Node.js finds the packages and trusts the server, as the pages tell people to set it.
func nodeEnv(t *testing.T, anchors string) []string {
	return append(os.Environ(), "NODE_PATH="+modules(t), "NODE_EXTRA_CA_CERTS="+anchors, "NODE_NO_WARNINGS=1")
}

// node is one process that runs scripts.
type node struct {
	in   io.WriteCloser
	mu   sync.Mutex
	wait map[int64]chan outcome
	dead error
}

type outcome struct {
	Value json.RawMessage
	Error *failure
}

type nodes []*node

func startNodes(t *testing.T, n int, anchors string) (out nodes) {
	t.Helper()
	for range n {
		out = append(out, startNode(t, anchors))
	}
	return out
}

func startNode(t *testing.T, anchors string) *node {
	t.Helper()
	cmd := exec.Command("node", "run.js")
	cmd.Env = nodeEnv(t, anchors)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &node{in: in, wait: map[int64]chan outcome{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, 16<<20)
		for sc.Scan() {
			var a struct {
				ID int64
				outcome
			}
			if err := json.Unmarshal(sc.Bytes(), &a); err != nil {
				fmt.Fprintln(os.Stderr, "node:", sc.Text())
				continue
			}
			p.mu.Lock()
			c := p.wait[a.ID]
			delete(p.wait, a.ID)
			p.mu.Unlock()
			if c != nil {
				c <- a.outcome
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dead = fmt.Errorf("node ended: %v", sc.Err())
		for _, c := range p.wait {
			c <- outcome{Error: &failure{Name: "node", Message: p.dead.Error()}}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return p
}

var calls atomic.Int64

// start begins a script; what it returns gives its outcome.
func (p *node) start(script string, given with) <-chan outcome {
	c := make(chan outcome, 1)
	id := calls.Add(1)
	line, err := json.Marshal(map[string]any{"id": id, "script": script, "with": given})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		err = p.dead
	}
	if err == nil {
		p.wait[id] = c
		_, err = p.in.Write(append(line, '\n'))
	}
	if err != nil {
		delete(p.wait, id)
		c <- outcome{Error: &failure{Name: "node", Message: err.Error()}}
	}
	return c
}

// begin starts a script in one of the processes.
func (n nodes) begin(script string, given with) <-chan outcome {
	return n[calls.Load()%int64(len(n))].start(script, given)
}

// await waits for a script that begin started and decodes what it returned into to, unless that is nil.
func await(t *testing.T, script string, c <-chan outcome, to any) *failure {
	t.Helper()
	select {
	case o := <-c:
		if o.Error != nil {
			return o.Error
		}
		if to != nil {
			if err := json.Unmarshal(o.Value, to); err != nil {
				t.Fatalf("%s returned %s: %v", script, o.Value, err)
			}
		}
		return nil
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", script)
		return nil
	}
}

// must runs a script that must succeed.
func (p *place) must(t *testing.T, to any, script string, given with) {
	t.Helper()
	if err := await(t, script, p.node.begin(script, given), to); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, err.Stack)
	}
}

// refused runs a script that must fail, and returns the error that the application sees.
func (p *place) refused(t *testing.T, script string, given with) *failure {
	t.Helper()
	var v any
	err := await(t, script, p.node.begin(script, given), &v)
	if err == nil {
		t.Fatalf("%s with %v was not refused: %v", script, given, v)
	}
	return err
}
