package sqldb

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// killEnv is for fault tests: with CRADLE_KILL_AT_COMMIT=WHEN:N in its environment a process kills itself
// (SIGKILL) at the Nth commit of its stores that holds the writing of an open HTTP request. WHEN is
//
//	before   everything is written, the commit not begun
//	during   while the commit is under way
//	after    the commit is durable, nobody has been answered
const killEnv = "CRADLE_KILL_AT_COMMIT"

// killer counts the commits of the whole process. Its methods do nothing when it was not asked for.
type killer struct {
	when string
	nth  int64
	seen atomic.Int64
}

var theKiller = sync.OnceValues(func() (*killer, error) { return newKiller(os.Getenv(killEnv)) })

func newKiller(spec string) (*killer, error) {
	if spec == "" {
		return &killer{}, nil
	}
	when, n, _ := strings.Cut(spec, ":")
	nth, err := strconv.ParseInt(n, 10, 64)
	if err != nil || nth < 1 || when != "before" && when != "during" && when != "after" {
		return nil, fmt.Errorf("%s=%s is not before:N, during:N or after:N", killEnv, spec)
	}
	return &killer{when: when, nth: nth}, nil
}

// commit carries out a commit, and the killing if this is the one.
func (k *killer) commit(jobs []*job, do func() error) error {
	if k.nth == 0 || !forRequest(jobs) || k.seen.Add(1) != k.nth {
		return do()
	}
	switch k.when {
	case "before":
		kill()
	case "during":
		go kill()
	}
	err := do()
	kill()
	return err
}

// forRequest reports whether one of the jobs writes for an HTTP request, whose client then waits.
func forRequest(jobs []*job) bool {
	for _, j := range jobs {
		if j.ctx.Value(http.ServerContextKey) != nil {
			return true
		}
	}
	return false
}

// kill does not return.
func kill() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal is here
}
