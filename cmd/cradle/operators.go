package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// OperatorAddCmd makes a token for somebody.
type OperatorAddCmd struct {
	Operator
	Name    string `arg:"" help:"Whose token it is: a-z, 0-9, '-', '.', '_'."`
	Role    string `help:"owner, operator, auditor or oem-line." required:"" enum:"owner,operator,auditor,oem-line"`
	Account string `help:"For this account alone. Default: the whole installation, or the account of your own token."`
	Expires string `help:"When the token ends: a day as 2027-01-31, or a time from now as 720h. Default: never." placeholder:"WHEN"`
	Out     string `help:"Context file to write, mode 0600: give it to whom it is for." required:"" type:"path" placeholder:"context.json"`
}

// Run implements the verb.
func (c *OperatorAddCmd) Run(ctx context.Context, out *cli.Out) error {
	in := admin.AddOperator{Name: c.Name, Role: admin.Role(c.Role), Account: cradle.AccountID(c.Account)}
	if c.Expires != "" {
		t, err := expiry(c.Expires, time.Now())
		if err != nil {
			return err
		}
		in.Expires = &t
	}
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	var o admin.OperatorInfo
	if err := a.Call(ctx, http.MethodPost, "/operators", in, &o); err != nil {
		return err
	}
	if err := durable.WriteFile(c.Out, indent(admin.Context{URL: cc.URL, Anchors: cc.Anchors, Token: o.Token, Account: o.Account}), 0o600); err != nil {
		return cradle.Errorf(cradle.Invalid, "the token is made, but not written: %v", err).WithHint("cradle operator remove %s, then add again", o.Name)
	}
	o.Token = ""
	return out.Print(struct {
		admin.OperatorInfo
		File string `json:"file"`
	}{o, c.Out}, func(w io.Writer) { fmt.Fprintf(w, "%s may act as %s; the token is in %s\n", o.Name, o.Role, c.Out) })
}

// expiry reads a day (its end, UTC) or a time from now.
func expiry(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(d), nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return t, cli.Usagef("--expires %q: write a day as 2027-01-31, or a time from now as 720h", s)
	}
	return t.AddDate(0, 0, 1), nil
}

// OperatorListCmd lists operators.
type OperatorListCmd struct {
	Operator
	Account string `help:"Of this account alone."`
}

// Run implements the verb.
func (c *OperatorListCmd) Run(ctx context.Context, out *cli.Out) error {
	return list(ctx, &c.Operator, out, "/operators?account="+url.QueryEscape(c.Account), []string{"name", "role", "account", "created", "expires", "last used"},
		func(o *admin.OperatorInfo) []string {
			return []string{o.Name, string(o.Role), string(o.Account), when(o.Created), whenSet(o.Expires), whenSet(o.LastUsed)}
		})
}

func whenSet(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return when(*t)
}

// OperatorRemoveCmd ends a token.
type OperatorRemoveCmd struct {
	Operator
	Name    string `arg:"" help:"Whose token ends."`
	Account string `help:"The operator's account, if it is of one."`
}

// Run implements the verb.
func (c *OperatorRemoveCmd) Run(ctx context.Context, out *cli.Out) error {
	a, _, err := c.client()
	if err != nil {
		return err
	}
	if err := a.Call(ctx, http.MethodDelete, "/operators/"+url.PathEscape(c.Name)+"?account="+url.QueryEscape(c.Account), nil, nil); err != nil {
		return err
	}
	return out.Print(map[string]string{"removed": c.Name, "account": c.Account}, func(w io.Writer) { fmt.Fprintf(w, "%s is no operator any more\n", c.Name) })
}
