// Cradle-agent is the daemon in a device: it onboards with the credentials that the line made in the TPM, connects
// to its hub, sends numbered telemetry and renews its certificates for years.
//
//	cradle-agent run --config agent.toml [--config …] [--verbose] [--json]
//	cradle-agent status --config agent.toml [--json]
//	cradle-agent --version
//
// run needs nothing but the files that the line wrote (agent.toml and what it names), the TPM and a network. It logs
// to stderr, with --json as JSON lines, and ends cleanly on SIGTERM or SIGINT. With several --config it is several devices in one
// process. It waits for whatever may mend itself; it exits with 1 only for what needs a person.
//
// status prints stage, credentials, next renewal, hub and last error of one device, whether its agent
// is running or not.
//
// Exit status: 0 done, 1 failed, 2 wrong usage.
//
// For fault tests: with CRADLE_AGENT_KILL_AT=STEP:N in its environment run kills itself (SIGKILL) when it
// comes to the Nth kill point named STEP, as "journal/issued:written:1"; the name "step" counts them all
// ("step:17"). The points are around every write of the journal: see device.Options.KillPoint.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/protocol/settings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil:
		return
	}
	fmt.Fprintf(os.Stderr, "cradle-agent: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	hint := "cradle-agent --help"
	if e := new(*cradle.Error); errors.As(err, e) {
		hint = cmp.Or((*e).Hint, hint)
	}
	fmt.Fprintf(os.Stderr, "hint: %s\n", hint)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("usage: cradle-agent run --config FILE [--config FILE ...] [--verbose] [--json] | cradle-agent status --config FILE [--json]")

const help = `Usage: cradle-agent run --config FILE [--config FILE ...] [--verbose] [--json]
       cradle-agent status --config FILE [--json]
       cradle-agent --version

run     Onboard the device that the line made, connect it to its hub, send telemetry and renew its
        certificates. Ends on SIGTERM or Ctrl-C, logs to stderr.
status  Print stage, credentials, next renewal, hub and last error of one device.

Flags:
  --config FILE  agent.toml of a device, as the line wrote it. It says which TPM, which services and
                 where the state is kept. With run, several are several devices in one process.
  --verbose      Log more.
  --json         run: log JSON lines. status: print one JSON object.

Example:
  cradle-agent run --config /etc/cradle/agent.toml

Exit status: 0 done, 1 failed, 2 wrong usage.
`

// version is what this program was built from.
func version() string {
	v := "(devel)"
	if b, ok := debug.ReadBuildInfo(); ok {
		v = cmp.Or(b.Main.Version, v)
	}
	if builtAt != "" {
		v += ", of " + builtAt
	}
	return v
}

type files []string

func (f *files) String() string     { return strings.Join(*f, " ") }
func (f *files) Set(s string) error { *f = append(*f, s); return nil }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	fs := flag.NewFlagSet("cradle-agent "+args[0], flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line, by main
	var configs files
	fs.Var(&configs, "config", "agent.toml of a device, as the line wrote it")
	asJSON, verbose := new(bool), new(bool)
	switch args[0] {
	case "run":
		fs.BoolVar(verbose, "verbose", false, "log more")
		fs.BoolVar(asJSON, "json", false, "log JSON lines")
	case "status":
		fs.BoolVar(asJSON, "json", false, "print one JSON object")
	case "-h", "--help", "help":
		_, err := io.WriteString(stdout, help)
		return err
	case "--version", "version":
		_, err := fmt.Fprintln(stdout, "cradle-agent "+version())
		return err
	default:
		return fmt.Errorf("unknown command %q; %w", args[0], errUsage)
	}
	if err := fs.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		_, err := io.WriteString(stdout, help)
		return err
	} else if err != nil {
		return fmt.Errorf("%w; %w", err, errUsage)
	}
	if len(configs) == 0 || fs.NArg() > 0 || args[0] == "status" && len(configs) != 1 {
		return errUsage
	}
	if args[0] == "status" {
		s, err := settings.Load(configs[0])
		if err != nil {
			return err
		}
		return status(s, *asJSON, stdout)
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(stderr, options)
	if *asJSON {
		handler = slog.NewJSONHandler(stderr, options)
	}
	return runDevices(ctx, configs, slog.New(handler))
}

func runDevices(ctx context.Context, configs []string, log *slog.Logger) error {
	var sets []*settings.Agent
	for _, file := range configs {
		s, err := settings.Load(file)
		if err != nil {
			return err
		}
		sets = append(sets, s)
	}
	kill, err := killPoint(os.Getenv("CRADLE_AGENT_KILL_AT"))
	if err != nil {
		return err
	}
	debug.SetGCPercent(30) // a device idles for years: memory is dearer than the processor
	tidy := &tidier{}
	var wg sync.WaitGroup
	errs := make([]error, len(sets))
	for i, s := range sets {
		wg.Go(func() {
			errs[i] = device.Run(ctx, s, device.Options{OpenTPM: device.OpenTPM(s.TPM), Log: log, Built: built(), KillPoint: kill, OnStage: tidy.stage})
			if errs[i] != nil && len(sets) > 1 {
				log.Error("device ended", "device", string(s.Device), "err", errs[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tidier gives the memory of onboarding and renewing back to the system, once things are quiet.
type tidier struct{ waiting atomic.Bool }

func (t *tidier) stage(s device.Stage) {
	if s != device.StageConnected || !t.waiting.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(2*time.Second, func() {
		t.waiting.Store(false)
		debug.FreeOSMemory()
	})
}

// builtAt is the RFC 3339 time of the commit that this program was built from; the Makefile sets it
// (-ldflags -X main.builtAt=...).
var builtAt string

// built is a lower bound of the time: no certificate that this program meets is older news than itself. Zero
// when the build did not say.
func built() time.Time {
	t, _ := time.Parse(time.RFC3339, builtAt)
	return t
}

func killPoint(spec string) (func(string) error, error) {
	if spec == "" {
		return nil, nil
	}
	i := strings.LastIndexByte(spec, ':')
	n, err := strconv.ParseInt(spec[i+1:], 10, 64)
	if i <= 0 || err != nil || n < 1 {
		return nil, cradle.Errorf(cradle.Invalid, "CRADLE_AGENT_KILL_AT=%s is not STEP:N", spec)
	}
	name := spec[:i]
	var seen atomic.Int64
	return func(step string) error {
		if (name == "step" || name == step) && seen.Add(1) == n {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until the signal is here
		}
		return nil
	}, nil
}

func status(s *settings.Agent, asJSON bool, w io.Writer) error {
	r, err := device.Status(s)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	show := func(t time.Time) string {
		switch {
		case t.IsZero():
			return "-"
		case t.Year() == 9999:
			return "never"
		}
		return t.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(w, "device        %s (account %s)\n", r.Device, r.Account)
	state := "not running"
	if r.Running {
		state = "running, clock " + r.ClockTrust
	}
	fmt.Fprintf(w, "stage         %s (%s)\n", r.Stage, state)
	fmt.Fprintf(w, "hub           %s\n", or(r.Hub, "-"))
	fmt.Fprintf(w, "next renewal  %s\n", show(r.NextRenewal))
	fmt.Fprintf(w, "telemetry     next number %d, %d not acknowledged\n", r.NextSeq, r.Unacked)
	for _, c := range r.Credentials {
		fmt.Fprintf(w, "%-13s %s, serial %s, from %s to %s\n", c.Name, c.State, or(c.Serial, "-"), show(c.NotBefore), show(c.NotAfter))
	}
	if p := r.LastError; p != nil {
		fmt.Fprintf(w, "last error    %s: %s (%s, retry %s)\n", p.What, p.Error, show(p.At), show(p.Retry))
		if p.Hint != "" {
			fmt.Fprintf(w, "hint          %s\n", p.Hint)
		}
	}
	return nil
}

func or(s, t string) string {
	if s == "" {
		return t
	}
	return s
}
