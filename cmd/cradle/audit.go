package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// HubEventsCmd reads telemetry.
type HubEventsCmd struct {
	Operator
	Hub    string `help:"Hub." default:"hub-1"`
	From   string `help:"Cursor of the last event that you have; default: from the beginning." placeholder:"CURSOR"`
	Follow bool   `help:"Wait for more."`
	Limit  int    `help:"At most so many; 0: all." default:"0"`
	Device string `help:"Of this device alone." placeholder:"ID"`
	Module string `help:"Of modules of this name alone." placeholder:"ID"`
}

// Run prints JSON lines, with and without --json.
func (c *HubEventsCmd) Run(ctx context.Context, out *cli.Out) error {
	if _, err := strconv.ParseUint(c.From, 10, 63); c.From != "" && err != nil {
		return cli.Usagef("--from %.40q is no cursor: give that of an event, a number", c.From)
	}
	if c.Limit < 0 {
		return cli.Usagef("--limit %d is less than 0", c.Limit)
	}
	r, err := c.registry(ctx, c.Hub)
	if err != nil {
		return err
	}
	lines := &cli.Out{W: out.W, Err: out.Err, JSON: true}
	err = r.Events(ctx, iothub.EventQuery{From: iothub.Cursor(c.From), Follow: c.Follow, Limit: c.Limit,
		Device: cradle.DeviceID(c.Device), Module: iothub.ModuleID(c.Module)},
		func(e *iothub.Event) error { return lines.Print(e, nil) })
	if c.Follow && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// AuditExportCmd writes a log to a file.
type AuditExportCmd struct {
	logged
	Out string `help:"File to write." required:"" placeholder:"FILE" type:"path"`
}

// Run streams the export into a file that gets its name only when it is whole.
func (c *AuditExportCmd) Run(ctx context.Context, out *cli.Out) error {
	a, log, err := c.log(ctx)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(c.Out), ".audit-*")
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err).WithHint("choose a file in a folder you may write to with --out")
	}
	defer os.Remove(f.Name())
	n := &counter{w: f}
	err = a.Stream(ctx, "/audit/"+url.PathEscape(log), n)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), c.Out); err != nil {
		return err
	}
	return out.Print(map[string]any{"file": c.Out, "log": log, "bytes": n.n}, func(w io.Writer) {
		fmt.Fprintf(w, "log %s: %d bytes in %s; check it with: cradle audit verify %s\n", log, n.n, c.Out, c.Out)
	})
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// onlyAccount finds the account when the installation has one alone.
func onlyAccount(ctx context.Context, a *admin.Client) (string, error) {
	var st admin.Status
	if err := a.Call(ctx, http.MethodGet, "/status", nil, &st); err != nil {
		return "", err
	}
	var found []string
	for _, cp := range st.Checkpoint {
		if cp.Log != "provider" {
			found = append(found, cp.Log)
		}
	}
	if len(found) != 1 {
		return "", cli.Usagef("say whose log with --account; there are %d: %v", len(found), found)
	}
	return found[0], nil
}

// AuditVerifyCmd checks an export without any server.
type AuditVerifyCmd struct {
	File     string        `arg:"" help:"Export to check." type:"existingfile"`
	Key      string        `help:"Verifier key of the log, or a file with it; default: the one that the export names (which proves the export whole, not whose it is)." placeholder:"KEY"`
	Previous []string      `help:"Earlier export, or file with a checkpoint that you kept (cradle status --json has them): the log must still contain it." aliases:"checkpoint" type:"existingfile" placeholder:"FILE"`
	Seen     string        `help:"File of certificate fingerprints (SHA-256) that a hub has seen, one a line." type:"existingfile" placeholder:"FILE"`
	Witness  []string      `help:"Key of a witness, or a file with it, that must have cosigned a checkpoint lately." placeholder:"KEY"`
	Within   time.Duration `help:"How long ago a witness may have cosigned last." default:"24h"`
	Cosign   string        `help:"Be a witness: when nothing is wrong, cosign the newest checkpoint with this private key into --out. What --out holds from the last time must still be contained." type:"existingfile" placeholder:"FILE"`
	Out      string        `help:"File for the cosigned checkpoint; hand it in with: cradle audit cosign." type:"path" placeholder:"FILE"`
}

// Run prints each finding; any finding is exit status 1.
func (c *AuditVerifyCmd) Run(ctx context.Context, out *cli.Out) error {
	if (c.Cosign == "") != (c.Out == "") {
		return cli.Usagef("--cosign and --out go together")
	}
	if c.Cosign != "" && c.Key == "" {
		return cli.Usagef("--cosign needs --key: a witness knows whose log it is")
	}
	f, err := os.Open(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	defer f.Close()
	opts := ledger.Options{Key: textOrFile(c.Key), WitnessAge: c.Within}
	for _, w := range c.Witness {
		opts.Witnesses = append(opts.Witnesses, textOrFile(w))
	}
	previous := c.Previous
	if _, err := os.Stat(c.Out); err == nil && c.Out != "" {
		previous = append(previous, c.Out)
	}
	for _, file := range previous {
		b, err := newestIn(file)
		if err != nil {
			return err
		}
		opts.Checkpoints = append(opts.Checkpoints, b)
	}
	if c.Seen != "" {
		s, err := os.Open(c.Seen)
		if err != nil {
			return cradle.Errorf(cradle.NotFound, "%v", err)
		}
		defer s.Close()
		opts.Seen = s
	}
	findings, sum, err := ledger.Verify(f, opts)
	if err != nil {
		return err
	}
	if len(findings) == 0 && c.Cosign != "" {
		if err := cosignNewest(c.File, opts.Key, c.Cosign, c.Out); err != nil {
			return err
		}
	}
	if err := out.Print(map[string]any{"findings": append([]ledger.Finding{}, findings...), "summary": sum}, func(w io.Writer) {
		for _, x := range findings {
			fmt.Fprintf(w, "%s: %s: %s\n", x.Code, x.Subject, x.Detail)
		}
		fmt.Fprintf(w, "log %s: %d leaves, %d checkpoints, %d certificates, %d findings\n", sum.Origin, sum.Leaves, sum.Checkpoints, sum.Certificates, len(findings))
		for _, x := range sum.Witnessed {
			fmt.Fprintf(w, "witness %s: %d leaves on %s\n", x.Witness, x.Size, when(x.Time))
		}
		if len(findings) == 0 && c.Cosign != "" {
			fmt.Fprintf(w, "cosigned into %s\n", c.Out)
		}
	}); err != nil {
		return err
	}
	if len(findings) > 0 {
		return cradle.Errorf(cradle.Conflict, "%d findings in %s", len(findings), c.File).WithHint("the log and the records do not agree; keep this file as evidence")
	}
	return nil
}
