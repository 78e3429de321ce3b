// Package verbs runs a program of verbs: it parses the command line with kong into a grammar
// struct, runs the chosen verb and renders its outcome by the rules of package cli.
//
// A verb is a struct with a method Run that may take a context.Context, a *cli.Out and whatever the program binds.
// A grammar embeds Globals at its top, which gives every verb --json and --version.
package verbs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/cradle-iot/cradle/internal/cli"
)

// Globals are the flags of every verb.
type Globals struct {
	JSON    jsonFlag    `name:"json" help:"Print results as JSON."`
	Version versionFlag `help:"Print the version and exit."`
}

type jsonFlag bool

// AfterApply tells the output.
func (j jsonFlag) AfterApply(out *cli.Out) error {
	out.JSON = bool(j)
	return nil
}

type versionFlag bool

// BeforeReset prints the version instead of running a verb.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	fmt.Fprintf(app.Stdout, "%s %s\n", app.Model.Name, Version())
	app.Exit(cli.Done)
	return nil
}

// Version is the version that the build recorded.
func Version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}

// Program describes a command.
type Program struct {
	Name        string
	Description string
	Grammar     any // pointer to the grammar struct
	Stdout      io.Writer
	Stderr      io.Writer
	Bind        []any // further values for Run methods
}

// exited carries the status out of kong, which would end the process (--help, --version).
type exited int

// Run parses args (without the program's name), runs the verb and returns the exit status.
func (p Program) Run(ctx context.Context, args []string) (status int) {
	defer func() {
		if r := recover(); r != nil {
			code, ok := r.(exited)
			if !ok {
				panic(r)
			}
			status = int(code)
		}
	}()
	out := &cli.Out{W: p.Stdout, Err: p.Stderr}
	parser, err := kong.New(p.Grammar,
		kong.Name(p.Name),
		kong.Description(p.Description),
		kong.Writers(p.Stdout, p.Stderr),
		kong.Exit(func(code int) { panic(exited(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(append([]any{out}, p.Bind...)...),
	)
	if err != nil {
		panic("internal error: command grammar: " + err.Error())
	}
	placeholders(parser.Model.Node)
	k, err := parser.Parse(args)
	if err != nil {
		var pe *kong.ParseError
		if errors.As(err, &pe) {
			err = &cli.UsageError{Err: named(pe)}
			defer p.help(pe.Context)
		}
		return cli.Fail(p.Stderr, p.Name, err)
	}
	err = k.Run()
	if err != nil && cli.Hint(err) == "" && !errors.Is(err, context.Canceled) {
		defer p.help(k)
	}
	return cli.Fail(p.Stderr, p.Name, err)
}

// placeholders names the value of a text flag after the flag, where the grammar has no better word: --account=ACCOUNT
// instead of --account=STRING, in help and in errors.
func placeholders(n *kong.Node) {
	for _, f := range n.Flags {
		if f.PlaceHolder == "" && !f.HasDefault && f.Tag.TypeName == "string" {
			f.PlaceHolder = strings.ToUpper(f.Name)
		}
	}
	for _, child := range n.Children {
		placeholders(child)
	}
}

// named is an error about a file by its name: the parser puts "<file>" or a flag before it, and the system call.
func named(err error) error {
	if path := new(fs.PathError); errors.As(err, &path) {
		return fmt.Errorf("%s: %w", path.Path, path.Err)
	}
	return err
}

// help is the hint of an error that has none of its own.
func (p Program) help(k *kong.Context) {
	fmt.Fprintf(p.Stderr, "hint: %s --help\n", strings.TrimSpace(p.Name+" "+command(k)))
}

// command is the verb, as far as it was understood.
func command(k *kong.Context) string {
	var words []string
	for _, e := range k.Path {
		if e.Command != nil {
			words = append(words, e.Command.Name)
		}
	}
	return strings.Join(words, " ")
}
