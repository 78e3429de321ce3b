package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// ProfileShowCmd prints profiles.
type ProfileShowCmd struct {
	Operator
	Name    string `arg:"" help:"Account."`
	Profile string `help:"Only this profile." placeholder:"PROFILE"`
}

// Run implements the verb. What it prints is what profile set reads.
func (c *ProfileShowCmd) Run(ctx context.Context, out *cli.Out) error {
	a, _, err := c.client()
	if err != nil {
		return err
	}
	var acc admin.Account
	if err := a.Call(ctx, http.MethodGet, "/accounts/"+url.PathEscape(c.Name), nil, &acc); err != nil {
		return err
	}
	var shown []admin.Profile
	for _, p := range acc.Profiles {
		if c.Profile == "" || c.Profile == string(p.Profile) {
			shown = append(shown, p)
		}
	}
	if len(shown) == 0 {
		return cradle.Errorf(cradle.NotFound, "account %q has no profile %q", c.Name, c.Profile).WithHint("cradle account show %s", c.Name)
	}
	if out.JSON {
		return printRows(out, shown, nil, nil)
	}
	return out.Print(nil, func(w io.Writer) {
		for i, p := range shown {
			if i > 0 {
				fmt.Fprintln(w)
			}
			io.WriteString(w, profileTable(p))
		}
	})
}

// profileTable puts a profile's TOML into a table of its name.
func profileTable(p admin.Profile) string {
	text := "[" + string(p.Profile) + "]\n" + p.TOML
	text = strings.ReplaceAll(text, "\n[[", "\n[["+string(p.Profile)+".")
	return strings.ReplaceAll(text, "\n[wishes]", "\n["+string(p.Profile)+".wishes]")
}

// ProfileSetCmd changes profiles, or adds one.
type ProfileSetCmd struct {
	Operator
	Name   string `arg:"" help:"Account."`
	File   string `help:"TOML file with a table for each profile, as show prints them. A key left out has its default; profiles not in the file stay as they are." required:"" placeholder:"FILE"`
	DryRun bool   `help:"Say what would change, and change nothing."`
}

// Run implements the verb.
func (c *ProfileSetCmd) Run(ctx context.Context, out *cli.Out) error {
	b, err := os.ReadFile(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	return call(ctx, &c.Operator, out, http.MethodPost, "/accounts/"+url.PathEscape(c.Name)+"/profiles", admin.SetProfiles{TOML: string(b), DryRun: c.DryRun},
		func(w io.Writer, ch *admin.ProfileChanges) {
			if len(ch.Changes) == 0 {
				fmt.Fprintf(w, "account %s: nothing to change\n", ch.Account)
				return
			}
			var rows [][]string
			for _, d := range ch.Changes {
				rows = append(rows, []string{string(d.Profile), d.Field, dash(d.Old), dash(d.New)})
			}
			cli.Table(w, []string{"profile", "field", "was", "is"}, rows)
			if ch.DryRun {
				fmt.Fprintln(w, "a dry run: nothing was changed")
			}
		})
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
