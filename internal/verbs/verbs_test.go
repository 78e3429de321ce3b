package verbs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/verbs"
)

type grammar struct {
	verbs.Globals
	Order struct {
		Show showCmd `cmd:"" help:"Show it."`
		End  endCmd  `cmd:"" help:"End it."`
	} `cmd:"" help:"Orders."`
}

type showCmd struct {
	ID string `arg:"" help:"Which."`
	N  int    `help:"A number."`
	F  string `help:"A file." type:"existingfile"`
}

type endCmd struct {
	Reason string `help:"Why." required:""`
	Key    string `help:"A file." required:"" placeholder:"FILE"`
}

// Run implements the verb.
func (*endCmd) Run() error { return nil }

func (c *showCmd) Run(ctx context.Context, out *cli.Out) error {
	switch c.ID {
	case "missing":
		return fmt.Errorf("showing: %w", cradle.Errorf(cradle.NotFound, "no order\n%q", c.ID).WithHint("list\nthem"))
	case "broken":
		return errors.New("it broke")
	case "usage":
		return cli.Usagef("two of a kind")
	}
	return out.Print(map[string]any{"id": c.ID, "n": c.N}, func(w io.Writer) { cli.Fields(w, "id", c.ID, "empty", "") })
}

// The command contract: results on stdout, one line and a hint on stderr, status 0, 1, 2.
func TestContract(t *testing.T) {
	for _, c := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"order show x", 0, "id:  x\n", ""},
		{"order show x --json --n 3", 0, `{"id":"x","n":3}` + "\n", ""},
		{"--json order show <x>", 0, `{"id":"<x>","n":0}` + "\n", ""},
		{"order show missing", 1, "", "prog: showing: no order \"missing\"\nhint: list them\n"},
		{"order show broken", 1, "", "prog: it broke\nhint: prog order show --help\n"},
		{"order show usage", 2, "", "prog: two of a kind\nhint: prog order show --help\n"},
		{"order show", 2, "", "prog: expected \"<id>\"\nhint: prog order show --help\n"},
		{"order show x --n=y", 2, "", "prog: --n: expected a valid 64 bit int but got \"y\"\nhint: prog order show --help\n"},
		{"order show x --f=/nowhere/f", 2, "", "prog: /nowhere/f: no such file or directory\nhint: prog order show --help\n"},
		{"order show x --bogus", 2, "", "prog: unknown flag --bogus\nhint: prog order show --help\n"},
		{"order end", 2, "", "prog: missing flags: --key=FILE, --reason=REASON\nhint: prog order end --help\n"},
		{"", 2, "", "prog: expected \"order\"\nhint: prog --help\n"},
		{"--version", 0, "prog " + verbs.Version() + "\n", ""},
	} {
		var stdout, stderr bytes.Buffer
		p := verbs.Program{Name: "prog", Grammar: &grammar{}, Stdout: &stdout, Stderr: &stderr}
		status := p.Run(t.Context(), strings.Fields(c.args))
		if status != c.status || stdout.String() != c.stdout || stderr.String() != c.stderr {
			t.Errorf("%q: got %d %q %q, want %d %q %q", c.args, status, stdout.String(), stderr.String(), c.status, c.stdout, c.stderr)
		}
	}
	var stdout bytes.Buffer
	p := verbs.Program{Name: "prog", Description: "A program.", Grammar: &grammar{}, Stdout: &stdout, Stderr: io.Discard}
	if status := p.Run(t.Context(), []string{"order", "show", "--help"}); status != 0 || !strings.Contains(stdout.String(), "Show it.") {
		t.Errorf("--help: %d %q", status, stdout.String())
	}
}
