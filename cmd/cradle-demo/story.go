package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
)

// The names of the story.
const (
	account   = "acme"
	oemName   = "oakline"
	makerName = "demo-tpm-maker"
	orderID   = "order-1"
)

// mostProcesses is the largest number of agents that get a process each.
const mostProcesses = 200

// StoryCmd tells the story.
type StoryCmd struct {
	Devices int    `help:"How many devices." default:"20"`
	Dir     string `help:"Folder for everything. Made if missing; emptied if an earlier demo made it." default:"demo" placeholder:"DIR"`
	Exit    bool   `help:"End by itself: exit status 0 only if everything came true."`
	Listen  string `help:"Address of the services. Default: 127.0.0.1:8443, or a free port when that is taken." placeholder:"HOST:PORT"`
	Line    int    `help:"Units that the line personalises at the same time." default:"4"`

	AzureSDK string `name:"azure-sdk" help:"Folder of Microsoft's npm packages: with it, and Node.js, one more device runs their SDK." placeholder:"DIR"`
}

// story is the demo under way.
type story struct {
	cmd    *StoryCmd
	out    *cli.Out
	show   *screen
	dir    *folder
	fam    *family
	fail   context.CancelCauseFunc // ends the story with an error
	fleet  *fleet
	listen string
	serve  *process
	events *process
	sdk    *sdk
	maker  *tpmmaker.Maker

	tpms               []*swtpm.TPM
	made, personalised []time.Duration
	began, deadline    time.Time     // deadline is zero without --exit
	revokedAt          time.Time     // when the command was given
	revocation         time.Duration // until the hub dropped the revoked device
}

// Run tells the story and leaves nothing running.
func (c *StoryCmd) Run(ctx context.Context, out *cli.Out) (err error) {
	if c.Devices < 1 || c.Line < 1 {
		return cli.Usagef("--devices and --line must be at least 1")
	}
	s := &story{cmd: c, out: out, show: newScreen(out.W), fleet: newFleet(), sdk: newSDK()}
	if out.JSON {
		s.show = newScreen(out.Err) // the result alone goes to stdout
	}
	if s.fam, err = newFamily(); err != nil {
		return err
	}
	if err := s.possible(); err != nil {
		return err
	}
	dir, emptied, err := openFolder(c.Dir)
	if err != nil {
		return err
	}
	s.dir, s.began = dir, time.Now()
	if c.Exit {
		s.deadline = s.began.Add(10*time.Minute + time.Duration(c.Devices)*1500*time.Millisecond)
	}
	defer func() { err = errors.Join(err, dir.close()) }()

	asked := ctx // ends when a person ends the demo
	ctx, s.fail = context.WithCancelCause(ctx)
	defer s.fail(nil)
	s.show.say("%s: %d devices; everything is in the folder %s", s.show.bold("Cradle, from the factory line to telemetry"), c.Devices, c.Dir)
	if emptied {
		s.show.say("  (emptied the folder of an earlier demo)")
	}
	// Whatever happens, nothing stays.
	defer s.stop()
	arrived, err := s.tell(ctx)
	if asked.Err() != nil && arrived && !c.Exit {
		s.show.settle("")
		s.show.say("\nStopping. All files stay in %s; remove them with: rm -r %s", c.Dir, c.Dir)
		return nil
	}
	if err != nil {
		s.show.settle("")
		if cause := context.Cause(ctx); cause != nil && asked.Err() == nil {
			err = cause
		}
		return err
	}
	return nil
}

// tell goes through the chapters. arrived is true when the whole story has come true; without --exit
// the devices then go on until ctx ends.
func (s *story) tell(ctx context.Context) (arrived bool, err error) {
	for _, chapter := range []func(context.Context) error{s.services, s.acts, s.makeTPMs, s.line, s.powerOn, s.withSDK, s.revoke, s.renewals} {
		if err := chapter(ctx); err != nil {
			return false, err
		}
	}
	if s.cmd.Exit {
		for _, chapter := range []func(context.Context) error{s.readBack, s.audited} {
			if err := chapter(ctx); err != nil {
				return false, err
			}
		}
	}
	if err := s.conclude(); err != nil || s.cmd.Exit {
		return true, err
	}
	s.lookAround()
	return true, s.watch(ctx, "running; Ctrl-C ends it", func() (bool, func() string) { return false, nil })
}

// possible finds out before anything is made whether this machine can carry the demo.
func (s *story) possible() error {
	if _, err := exec.LookPath("swtpm"); err != nil {
		return cradle.Errorf(cradle.NotFound, "swtpm is not installed: the demo's devices need it for their TPMs").
			WithHint("install it: make deps, or as root apt-get install swtpm")
	}
	n := s.cmd.Devices
	limits := []struct {
		what, flag string
		id         int
		need       uint64
		skip       bool
	}{
		// The demo holds four files per agent and one per TPM, serve a few connections per device.
		{"open files", "-n", unix.RLIMIT_NOFILE, uint64(5*min(n, mostProcesses)+2*n) + 200, false},
		// Linux counts threads; root is exempt.
		{"processes", "-u", unix.RLIMIT_NPROC, uint64(12*min(n, mostProcesses)+n) + 200, os.Getuid() == 0},
	}
	for _, l := range limits {
		var have unix.Rlimit
		if err := unix.Getrlimit(l.id, &have); err != nil || l.skip {
			continue
		}
		if have.Max < l.need {
			return cradle.Errorf(cradle.Busy, "%d devices need a limit of about %d %s; this shell allows %d", n, l.need, l.what, have.Max).
				WithHint("use fewer devices, or raise the limit: ulimit %s %d (as root, or in /etc/security/limits.conf)", l.flag, l.need)
		}
	}
	return nil
}

// run shows a command, runs it and shows its outcome.
func (s *story) run(ctx context.Context, lines int, program string, args ...string) error {
	s.show.command(s.fam.line(program, args...))
	text, err := s.fam.run(ctx, program, args...)
	if err != nil {
		return err
	}
	s.show.outcome(string(text), lines)
	return nil
}

func (s *story) data() string { return s.dir.path("data") }

// acts are the builder's three acts, and what operator and OEM do for them.
func (s *story) acts(ctx context.Context) error {
	validity, fraction := s.lifetimes()
	s.show.chapter("Act one: an account")
	if err := s.run(ctx, 1, "cradle", "account", "create", account, "--operational-validity", short(validity), "--data", s.data()); err != nil {
		return err
	}
	s.show.say("      (operational certificates live only %s here, so that renewals can be watched)", short(validity))

	s.show.chapter("Act two: an order to a device maker")
	if err := s.run(ctx, 1, "cradle-oem", "init", "--dir", s.dir.path("oem")); err != nil {
		return err
	}
	if err := s.run(ctx, 1, "cradle", "oem", "add", oemName, "--key", s.dir.path("oem", "oem.pub"), "--data", s.data()); err != nil {
		return err
	}
	var err error
	if s.maker, err = tpmmaker.NewMaker(s.dir.path("tpm-maker")); err != nil {
		return writable(err)
	}
	if err := s.dir.write("tpm-maker.pem", string(s.maker.CABundle())); err != nil {
		return writable(err)
	}
	if err := s.run(ctx, 1, "cradle", "tpm-maker", "import", s.dir.path("tpm-maker.pem"), "--maker", makerName, "--tier", string(cradle.Simulator), "--data", s.data()); err != nil {
		return err
	}
	if err := s.dir.write("order.toml", s.order(fraction)); err != nil {
		return writable(err)
	}
	if err := s.run(ctx, 1, "cradle", "order", "create", "--account", account, "--oem", oemName, "--file", s.dir.path("order.toml"),
		"--out", s.dir.path("order.jws"), "--data", s.data()); err != nil {
		return err
	}
	if err := s.run(ctx, 5, "cradle-oem", "order", "accept", s.dir.path("order.jws"), "--dir", s.dir.path("oem")); err != nil {
		return err
	}

	s.show.chapter("Act three: the attestation certificate at the provisioning service")
	return s.run(ctx, 2, "cradle", "attestation", "register", "--account", account, "--data", s.data())
}

// stop ends everything, devices first.
func (s *story) stop() {
	s.show.settle("")
	s.sdk.stop()
	s.fleet.stop()
	if s.events != nil {
		s.events.stop(5 * time.Second)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, t := range s.tpms {
		if t == nil {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			_ = t.Stop()
			<-slots
		})
	}
	wg.Wait()
	if s.serve != nil {
		s.serve.stop(20 * time.Second)
	}
}

// conclude shows how long things took.
func (s *story) conclude() error {
	rows := s.fleet.rows(s.made, s.personalised)
	s.show.chapter("How long it took")
	var b strings.Builder
	printTable(&b, rows)
	for l := range strings.Lines(b.String()) {
		s.show.say("  %s", strings.TrimRight(l, "\n"))
	}
	s.sdk.sayRow(s.show.say)
	if s.cmd.Exit {
		s.show.say("\n%s", s.show.bold(fmt.Sprintf("Everything came true, in %s.", took(s.began))))
	}
	if s.out.JSON && s.cmd.Exit {
		return s.out.Print(map[string]any{"devices": s.cmd.Devices, "stages": rows, "hub_dropped_revoked_after_s": s.revocation.Seconds()},
			func(io.Writer) {})
	}
	return nil
}

func (s *story) lookAround() {
	d := s.fleet.devices[0]
	s.show.chapter("Look around, from another terminal in this folder")
	s.show.command(s.fam.line("cradle", "device", "list", "--account", account, "--data", s.data()))
	s.show.command(s.fam.line("cradle", "device", "show", string(d.id), "--data", s.data()))
	s.show.command(s.fam.line("cradle", "hub", "events", "--follow", "--data", s.data()))
	s.show.command(s.fam.line("cradle-agent", "status", "--config", d.config))
	s.show.say("")
}

// counter counts from several goroutines.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

// short writes a duration of whole minutes without its seconds.
func short(d time.Duration) string { return strings.TrimSuffix(d.String(), "0s") }

func took(since time.Time) string { return fmt.Sprintf("%.1f s", time.Since(since).Seconds()) }

// errEnded says that a process which the demo needs ended by itself.
func errEnded(what, text string, err error) error {
	if err == nil {
		err = errors.New("it ended by itself")
	}
	var x *exec.ExitError
	if errors.As(err, &x) {
		if ws, ok := x.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			text = ""
		}
	}
	return said(what, text, err)
}
