package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// ApprovalListCmd lists enrolments that wait.
type ApprovalListCmd struct {
	Operator
	Account string `help:"Account." required:""`
	State   string `help:"Only those that are waiting, approved, denied or used."`
}

// Run implements the verb.
func (c *ApprovalListCmd) Run(ctx context.Context, out *cli.Out) error {
	q := url.Values{"account": {c.Account}, "state": {c.State}}
	return list(ctx, &c.Operator, out, "/approvals?"+q.Encode(), []string{"id", "state", "device", "profile", "client", "asked", "key (SHA-256)", "reason"},
		func(a *admin.Approval) []string {
			return []string{a.ID, a.State, string(a.Device), string(a.Profile), a.Client, when(a.Asked), a.SPKI, a.Reason}
		})
}

// ApprovalDecideCmd is approve or deny.
type ApprovalDecideCmd struct {
	Operator
	ID     string `arg:"" help:"Approval, as cradle approval list shows it."`
	Reason string `help:"Why; goes into the log. Of a denial the client is told."`
	verb   string
}

// Run implements the verb.
func (c *ApprovalDecideCmd) Run(ctx context.Context, out *cli.Out) error {
	return call(ctx, &c.Operator, out, http.MethodPost, "/approvals/"+url.PathEscape(c.ID)+"/"+c.verb, admin.Decide{Reason: c.Reason}, func(w io.Writer, a *admin.Approval) {
		fmt.Fprintf(w, "enrolment of %s at %s: %s\n", a.Device, a.Profile, a.State)
	})
}
