package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// programs are built once per test process, plain; with the race detector when a world asks for it.
var programs struct {
	sync.Mutex
	root  string
	built map[bool]string // folder by race
}

// Main runs a package's tests and removes what was built for them. Every package that makes worlds has
//
//	func TestMain(m *testing.M) { os.Exit(world.Main(m)) }
func Main(m *testing.M) int {
	defer func() {
		programs.Lock()
		defer programs.Unlock()
		if programs.root != "" {
			os.RemoveAll(programs.root)
		}
	}()
	return m.Run()
}

// Build returns the folder of the binaries cradle, cradle-oem and cradle-agent.
func Build(t testing.TB, race bool) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if dir := programs.built[race]; dir != "" {
		return dir
	}
	if programs.root == "" {
		root, err := os.MkdirTemp("", "cradle-bin-")
		if err != nil {
			t.Fatal(err)
		}
		programs.root, programs.built = root, map[bool]string{}
	}
	dir := filepath.Join(programs.root, fmt.Sprintf("race-%v", race))
	args := []string{"build", "-buildvcs=false", "-o", dir + "/"}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		args, env = append(args, "-race"), append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "./cmd/cradle", "./cmd/cradle-oem", "./cmd/cradle-agent")...)
	_, self, _, _ := runtime.Caller(0)
	cmd.Dir, cmd.Env = filepath.Join(filepath.Dir(self), "..", ".."), env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the programs: %v\n%s", err, out)
	}
	programs.built[race] = dir
	return dir
}
