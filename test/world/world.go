// Package world is the whole system for a test: the real programs as child processes on loopback, real
// software TPMs, SQLite in a folder or PostgreSQL by its URL.
//
// A World goes through the story by the very commands that people use: New starts `cradle serve`, Acts does the
// builder's three acts, Make has TPMs made and personalised and the lot closed, Agent and Devices power
// devices on. The server may be killed and started again at any time; it keeps its address. Check holds the
// promises of DESIGN §5 against what is in the store and in the devices. Nothing outlives the test.
//
// A failure ends the test (t.Fatal) with the end of the server's log.
package world

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// The names of the story.
const (
	Account = "acme"
	OEM     = "oakline"
	Maker   = "sim-maker"
	Order   = "order-1"
)

// Options choose a world. The zero value is one over SQLite with the defaults of production.
type Options struct {
	DB                  string        // PostgreSQL URL; empty: SQLite in the data folder
	Race                bool          // binaries with the race detector
	Data                string        // data folder; empty: in the test's own
	OperationalValidity time.Duration // 0: the default
	TelemetryInterval   time.Duration // 0: 500 ms
	RenewalFraction     float64       // 0: the default
	Quantity            int           // of the order; 0: 1000
	AutoAccept          *bool         // of the order; nil: the default
	Addr                string        // host:port of the server; empty: a free port of loopback
	Serve               []string      // further arguments of cradle serve
}

// World is an installation with its OEM and devices.
type World struct {
	T     testing.TB
	Dir   string // everything is in here
	Data  string // of serve
	Bin   string // the programs
	Addr  string // host:port
	Maker *tpmmaker.Maker
	Units []*Unit

	opts  Options
	serve *Process
}

// New makes the folders and starts the server. Skips when swtpm is missing.
func New(t testing.TB, o Options) *World {
	t.Helper()
	testenv.Require(t, "swtpm")
	w := &World{T: t, Dir: t.TempDir(), Bin: Build(t, o.Race), Addr: o.Addr, opts: o}
	w.Data = o.Data
	if w.Data == "" {
		w.Data = w.path("data")
	}
	if w.Addr == "" {
		w.Addr = testenv.Address(t)
	}
	t.Cleanup(func() {
		if t.Failed() && w.serve != nil {
			t.Logf("end of the server's log:\n%s", tail(w.serve.Log(), 40))
		}
	})
	w.Start()
	return w
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

func (w *World) path(elem ...string) string {
	return filepath.Join(append([]string{w.Dir}, elem...)...)
}

// Path names a file in the world's folder.
func (w *World) Path(elem ...string) string { return w.path(elem...) }

// ServeArgs are the arguments with which the world runs cradle.
func (w *World) ServeArgs() []string {
	args := []string{"serve", "--json", "--data", w.Data, "--listen", w.Addr}
	if w.opts.DB != "" {
		args = append(args, "--db", w.opts.DB)
	}
	return append(args, w.opts.Serve...)
}

// Start starts the server and waits until it is ready. env is added to its environment.
func (w *World) Start(env ...string) *Process {
	w.T.Helper()
	p, ready := w.Launch(env...)
	select {
	case <-ready:
	case <-p.done:
		w.T.Fatalf("cradle serve ended with %d:\n%s", p.code, tail(p.Log(), 20))
	case <-time.After(testenv.Patience):
		w.T.Fatalf("cradle serve does not become ready:\n%s", tail(p.Log(), 40))
	}
	return p
}

// Launch starts the server and does not wait; ready is closed when it says so.
func (w *World) Launch(env ...string) (*Process, <-chan struct{}) {
	w.T.Helper()
	cmd := exec.Command(filepath.Join(w.Bin, "cradle"), w.ServeArgs()...)
	cmd.Env = append(os.Environ(), env...)
	r, out, err := os.Pipe()
	if err != nil {
		w.T.Fatal(err)
	}
	cmd.Stdout = out
	p := StartProcess(w.T, cmd, w.path("serve.log"))
	out.Close()
	ready := make(chan struct{})
	go func() {
		defer r.Close()
		sc := bufio.NewScanner(r)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			var e struct{ Event string }
			if json.Unmarshal(sc.Bytes(), &e) == nil && e.Event == "ready" {
				close(ready)
			}
		}
	}()
	w.serve = p
	return p, ready
}

// Server is the process that was started last.
func (w *World) Server() *Process { return w.serve }

// URL is the base of every service.
func (w *World) URL() string {
	return "https://localhost:" + w.Addr[strings.LastIndexByte(w.Addr, ':')+1:]
}

// Command makes a command of ours.
func (w *World) Command(program string, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(w.Bin, program), args...)
}

// Run runs a command of ours and returns how it ended. Verbs of cradle that need it get the data folder.
func (w *World) Run(program string, args ...string) Result {
	w.T.Helper()
	return run(w.T, w.Command(program, args...))
}

// Cradle runs an operator's verb on the world's data folder with --json.
func (w *World) Cradle(args ...string) Result {
	w.T.Helper()
	return w.Run("cradle", append(args, "--data", w.Data, "--json")...)
}

// Must is Run; anything but exit status 0 ends the test.
func (w *World) Must(program string, args ...string) string {
	w.T.Helper()
	return w.must(w.Run(program, args...))
}

// MustCradle is Cradle; anything but exit status 0 ends the test.
func (w *World) MustCradle(args ...string) string {
	w.T.Helper()
	return w.must(w.Cradle(args...))
}

func (w *World) must(r Result) string {
	w.T.Helper()
	if r.Code != 0 {
		w.T.Fatalf("%s: exit %d\n%s%s", r.Line, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Tool runs another program, say openssl, and returns what it printed; Code tells how it went.
func (w *World) Tool(env []string, name string, args ...string) Result {
	w.T.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	return run(w.T, cmd)
}

// Decode reads the JSON that a verb printed.
func Decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not the JSON of a %T: %v\n%s", v, err, text)
	}
	return v
}

// Lines reads JSON lines.
func Lines[T any](t testing.TB, text string) []T {
	t.Helper()
	var out []T
	for l := range strings.Lines(text) {
		out = append(out, Decode[T](t, l))
	}
	return out
}

// Write makes a file in the world's folder and returns its path.
func (w *World) Write(name, text string) string {
	w.T.Helper()
	file := w.path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		w.T.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.T.Fatal(err)
	}
	return file
}

// Acts does the builder's three acts, and the operator's and the OEM's part in them.
func (w *World) Acts() {
	w.T.Helper()
	create := []string{"account", "create", Account}
	if v := w.opts.OperationalValidity; v > 0 {
		create = append(create, "--operational-validity", v.String())
	}
	w.MustCradle(create...)
	w.Must("cradle-oem", "init", "--dir", w.path("oem"))
	w.MustCradle("oem", "add", OEM, "--key", w.path("oem", "oem.pub"))
	w.NewMaker()
	w.MustCradle("tpm-maker", "import", w.path("tpm-maker.pem"), "--maker", Maker, "--tier", string(cradle.Simulator))
	w.MustCradle("order", "create", "--account", Account, "--oem", OEM, "--file", w.Write("order.toml", w.OrderFile(Order, "sn-")), "--out", w.path("order.jws"))
	w.Must("cradle-oem", "order", "accept", w.path("order.jws"), "--dir", w.path("oem"))
	w.MustCradle("attestation", "register", "--account", Account)
}

// NewMaker makes the TPM maker and writes tpm-maker.pem.
func (w *World) NewMaker() {
	w.T.Helper()
	var err error
	if w.Maker, err = tpmmaker.NewMaker(w.path("tpm-maker")); err != nil {
		w.T.Fatal(err)
	}
	w.Write("tpm-maker.pem", string(w.Maker.CABundle()))
}

// OrderFile is the text of an order file.
func (w *World) OrderFile(id, prefix string) string {
	o := w.opts
	n := o.Quantity
	if n == 0 {
		n = 1000
	}
	interval := o.TelemetryInterval
	if interval == 0 {
		interval = 500 * time.Millisecond
	}
	var b strings.Builder
	fmt.Fprintf(&b, "id = %q\nmodel = \"Sensor\"\nquantity = %d\nserial_prefix = %q\nserial_first = \"0001\"\nserial_last = \"%04d\"\n", id, n, prefix, n)
	fmt.Fprintf(&b, "tiers = [%q]\ntpm_makers = [%q]\n", cradle.Simulator, Maker)
	if o.AutoAccept != nil {
		fmt.Fprintf(&b, "auto_accept = %v\n", *o.AutoAccept)
	}
	fmt.Fprintf(&b, "[agent]\ntelemetry_interval = %q\n", interval)
	if o.RenewalFraction > 0 {
		fmt.Fprintf(&b, "renewal_fraction = %v\n", o.RenewalFraction)
	}
	return b.String()
}

// Admin is a client of the admin API, for what would take too many commands.
func (w *World) Admin() *admin.Client {
	w.T.Helper()
	c, err := admin.ReadContext(filepath.Join(w.Data, "context.json"))
	if err != nil {
		w.T.Fatal(err)
	}
	a, err := admin.NewClient(c, func(roots *x509.CertPool) http.RoundTripper {
		return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	})
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(a.HTTP.CloseIdleConnections)
	return a
}

// Anchors is the pool of what a TLS client must trust.
func (w *World) Anchors() *x509.CertPool {
	w.T.Helper()
	c, err := admin.ReadContext(filepath.Join(w.Data, "context.json"))
	if err != nil {
		w.T.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(c.Anchors))
	return pool
}

// Wait asks until ok says yes; after a generous time the test ends with what is still missing.
func (w *World) Wait(what string, limit time.Duration, ok func() (bool, string)) {
	w.T.Helper()
	deadline := time.Now().Add(limit)
	for {
		yes, missing := ok()
		if yes {
			return
		}
		if time.Now().After(deadline) {
			w.T.Fatalf("waited %v for %s: %s", limit, what, missing)
		}
		select {
		case <-w.T.Context().Done():
			w.T.Fatalf("waiting for %s: the test ends: %s", what, missing)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
