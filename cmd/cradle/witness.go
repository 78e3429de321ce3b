package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// logged is what a verb about one log has.
type logged struct {
	Operator
	Account string `help:"Whose log; \"provider\" is the installation's own. Default: the context's account, or the only one."`
}

// log asks for the name of the log where it was not said.
func (l *logged) log(ctx context.Context) (*admin.Client, string, error) {
	a, cc, err := l.client()
	if err != nil {
		return nil, "", err
	}
	log := l.Account
	if log == "" {
		log = string(cc.Account)
	}
	if log == "" {
		log, err = onlyAccount(ctx, a)
	}
	return a, log, err
}

// WitnessInitCmd makes a witness's key, where the witness is.
type WitnessInitCmd struct {
	Name string `arg:"" help:"Name of the witness, for example witness.example.com/1."`
	Out  string `help:"File for the private key; it is not overwritten." required:"" type:"path" placeholder:"FILE"`
}

// Run implements the verb.
func (c *WitnessInitCmd) Run(ctx context.Context, out *cli.Out) error {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	vkey, err := ledger.WitnessKey(c.Name, public)
	if err != nil {
		return err
	}
	private, err := ledger.EncodeWitness(c.Name, key)
	if err != nil {
		return err
	}
	if err := durable.CreateFile(c.Out, []byte(private+"\n"), 0o600); errors.Is(err, fs.ErrExist) {
		return cradle.Errorf(cradle.Conflict, "%s exists already", c.Out).WithHint("choose another file with --out")
	} else if err != nil {
		return cradle.Errorf(cradle.Invalid, "%v", err)
	}
	return out.Print(map[string]string{"name": c.Name, "key": vkey, "file": c.Out}, func(w io.Writer) { fmt.Fprintln(w, vkey) })
}

// WitnessAddCmd takes a witness's cosignatures from now on.
type WitnessAddCmd struct {
	logged
	Key string `arg:"" help:"The witness's public key, or a file with it."`
}

// Run implements the verb.
func (c *WitnessAddCmd) Run(ctx context.Context, out *cli.Out) error {
	a, log, err := c.log(ctx)
	if err != nil {
		return err
	}
	var w admin.Witness
	if err := a.Call(ctx, http.MethodPost, "/audit/"+url.PathEscape(log)+"/witnesses", admin.AddWitness{Key: textOrFile(c.Key)}, &w); err != nil {
		return err
	}
	return out.Print(&w, func(o io.Writer) { fmt.Fprintf(o, "log %s takes cosignatures of %s\n", w.Log, w.Name) })
}

// WitnessListCmd lists a log's witnesses.
type WitnessListCmd struct{ logged }

// Run implements the verb.
func (c *WitnessListCmd) Run(ctx context.Context, out *cli.Out) error {
	_, log, err := c.log(ctx)
	if err != nil {
		return err
	}
	return list(ctx, &c.Operator, out, "/audit/"+url.PathEscape(log)+"/witnesses", []string{"witness", "since", "key"},
		func(w *admin.Witness) []string { return []string{w.Name, when(w.Added), w.Key} })
}

// WitnessRemoveCmd takes no further cosignatures of a witness.
type WitnessRemoveCmd struct {
	logged
	Name string `arg:"" help:"Name of the witness."`
}

// Run implements the verb.
func (c *WitnessRemoveCmd) Run(ctx context.Context, out *cli.Out) error {
	a, log, err := c.log(ctx)
	if err != nil {
		return err
	}
	if err := a.Call(ctx, http.MethodDelete, "/audit/"+url.PathEscape(log)+"/witnesses/"+url.PathEscape(c.Name), nil, nil); err != nil {
		return err
	}
	return out.Print(map[string]string{"log": log, "removed": c.Name}, func(w io.Writer) { fmt.Fprintf(w, "log %s takes no further cosignature of %s\n", log, c.Name) })
}

// AuditCosignCmd hands in a checkpoint that a witness cosigned.
type AuditCosignCmd struct {
	logged
	File string `arg:"" help:"Checkpoint with cosignatures, as audit verify --cosign wrote it." type:"existingfile"`
}

// Run implements the verb.
func (c *AuditCosignCmd) Run(ctx context.Context, out *cli.Out) error {
	a, log, err := c.log(ctx)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	var done admin.Cosignatures
	if err := a.Call(ctx, http.MethodPost, "/audit/"+url.PathEscape(log)+"/cosignatures", admin.Cosigned{Checkpoint: string(b)}, &done); err != nil {
		return err
	}
	return out.Print(&done, func(w io.Writer) {
		for _, s := range done.Added {
			fmt.Fprintf(w, "log %s: cosigned by %s on %s\n", done.Log, s.Witness, when(s.Time))
		}
		if len(done.Added) == 0 {
			fmt.Fprintf(w, "log %s: nothing new\n", done.Log)
		}
	})
}

// AuditPublishCmd opens a log's tiles to everybody, or closes them again.
type AuditPublishCmd struct {
	logged
	Off bool `help:"Close them again."`
}

// Run implements the verb.
func (c *AuditPublishCmd) Run(ctx context.Context, out *cli.Out) error {
	a, log, err := c.log(ctx)
	if err != nil {
		return err
	}
	var p admin.Published
	if err := a.Call(ctx, http.MethodPost, "/audit/"+url.PathEscape(log)+"/publish", admin.Publish{Public: !c.Off}, &p); err != nil {
		return err
	}
	return out.Print(&p, func(w io.Writer) {
		if p.Public {
			fmt.Fprintf(w, "anybody may read log %s at %s\n", p.Log, p.URL)
		} else {
			fmt.Fprintf(w, "log %s is read at %s with a token of its account alone\n", p.Log, p.URL)
		}
	})
}

// textOrFile is a flag's value, or the content of the file that it names.
func textOrFile(s string) string {
	if b, err := os.ReadFile(s); err == nil && s != "" {
		s = string(b)
	}
	return strings.TrimSpace(s)
}

// cosignNewest lets the witness of keyFile cosign the newest checkpoint of a verified export and writes it to file.
func cosignNewest(export, logKey, keyFile, file string) error {
	b, err := os.ReadFile(keyFile)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	name, key, err := ledger.DecodeWitness(string(b))
	if err != nil {
		return err
	}
	msg, err := newestIn(export)
	if err != nil {
		return err
	}
	if msg, err = ledger.Cosign(msg, logKey, name, key, time.Now()); err != nil {
		return err
	}
	return durable.WriteFile(file, msg, 0o644)
}

// newestIn is the newest checkpoint of an export, or the checkpoint that the file is.
func newestIn(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "%v", err)
	}
	defer f.Close()
	in := bufio.NewReader(f)
	if first, err := in.Peek(1); err == nil && first[0] == '{' {
		return ledger.Newest(in)
	}
	return io.ReadAll(io.LimitReader(in, 1<<20))
}
