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
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// caCmds are the verbs about an account's CAs.
type caCmds struct {
	List    CAListCmd    `cmd:"" help:"List an account's CAs, and keys that wait for a certificate."`
	CSR     CACSRCmd     `cmd:"" name:"csr" help:"Write the request by which an external root certifies a CA."`
	Install CAInstallCmd `cmd:"" help:"Put in place what an external root signed."`
	Roll    CARollCmd    `cmd:"" help:"Give a CA a new key."`
	Cross   CACrossCmd   `cmd:"" help:"Cross-sign the account's root with those before it."`
}

// CAName says which CA of an account.
type CAName struct {
	Operator
	Name  string `arg:"" help:"Account."`
	CA    string `name:"ca" help:"Which CA: root, onboarding, operational, unproved, registration or idevid." required:"" enum:"root,onboarding,operational,unproved,registration,idevid"`
	Class string `help:"production or evaluation." required:"" enum:"production,evaluation"`
	OEM   string `name:"oem" help:"The OEM, of an idevid CA."`
}

func (c *CAName) role() admin.CARole {
	return admin.CARole{Kind: c.CA, Class: cradle.Class(c.Class), OEM: cradle.OEMID(c.OEM)}
}

func casPath(account, verb string) string {
	return "/accounts/" + url.PathEscape(account) + "/cas" + verb
}

func caRow(c *admin.CA) []string {
	end, where := "", c.Store
	if c.NotAfter != nil {
		end = when(*c.NotAfter)
	}
	if where == "" {
		where = "elsewhere"
	}
	return []string{string(c.Class), c.Kind, c.State, c.Name, c.Algorithm, where, end, c.Fingerprint}
}

var caHeadings = []string{"class", "CA", "state", "name", "key", "kept in", "ends", "SHA-256"}

// CAListCmd lists CAs.
type CAListCmd struct {
	Operator
	Name string `arg:"" help:"Account."`
}

// Run implements the verb.
func (c *CAListCmd) Run(ctx context.Context, out *cli.Out) error {
	return list(ctx, &c.Operator, out, casPath(c.Name, ""), caHeadings, caRow)
}

// CACSRCmd writes a request.
type CACSRCmd struct {
	CAName
	NewKey bool   `help:"For a new key, although the CA has one: the roll of a key below an external root."`
	Out    string `help:"File to write." required:"" placeholder:"FILE" type:"path"`
}

// Run implements the verb.
func (c *CACSRCmd) Run(ctx context.Context, out *cli.Out) error {
	a, _, err := c.client()
	if err != nil {
		return err
	}
	var r admin.CASigningRequest
	if err := a.Call(ctx, http.MethodPost, casPath(c.Name, "/csr"), admin.CARequest{CARole: c.role(), NewKey: c.NewKey}, &r); err != nil {
		return err
	}
	if err := durable.WriteFile(c.Out, []byte(r.PEM), 0o644); err != nil {
		return err
	}
	return out.Print(struct {
		admin.CASigningRequest
		File string `json:"file"`
	}{r, c.Out}, func(w io.Writer) {
		fmt.Fprintf(w, "wrote %s; have it signed as it stands (subject and extensions), then: cradle ca install %s CERTIFICATE... ROOT\n", c.Out, c.Name)
	})
}

// CAInstallCmd installs certificates.
type CAInstallCmd struct {
	Operator
	Name  string   `arg:"" help:"Account."`
	Files []string `arg:"" help:"PEM files: the CA's certificate, what stands between it and the root, the root." type:"existingfile"`
}

// Run implements the verb.
func (c *CAInstallCmd) Run(ctx context.Context, out *cli.Out) error {
	var text strings.Builder
	for _, f := range c.Files {
		b, err := os.ReadFile(f)
		if err != nil {
			return cradle.Errorf(cradle.NotFound, "%v", err)
		}
		text.Write(b)
		text.WriteByte('\n')
	}
	return call(ctx, &c.Operator, out, http.MethodPost, casPath(c.Name, "/install"), admin.InstallCAs{PEM: text.String()}, changed(out))
}

// changed prints what became of CAs; what to think of now goes to stderr.
func changed(out *cli.Out) func(w io.Writer, r *admin.ChangedCAs) {
	return func(w io.Writer, r *admin.ChangedCAs) {
		if len(r.CAs) > 0 {
			rows := make([][]string, len(r.CAs))
			for i := range r.CAs {
				rows[i] = caRow(&r.CAs[i])
			}
			cli.Table(w, caHeadings, rows)
		}
		for _, c := range r.Crosses {
			io.WriteString(w, c)
		}
		for _, m := range r.Warnings {
			out.Warnf("note: %s", m)
		}
	}
}

// CARollCmd rolls a key.
type CARollCmd struct{ CAName }

// Run implements the verb.
func (c *CARollCmd) Run(ctx context.Context, out *cli.Out) error {
	return call(ctx, &c.Operator, out, http.MethodPost, casPath(c.Name, "/roll"), c.role(), changed(out))
}

// CACrossCmd cross-signs roots.
type CACrossCmd struct {
	Operator
	Name  string `arg:"" help:"Account."`
	Class string `help:"production or evaluation." required:"" enum:"production,evaluation"`
}

// Run implements the verb.
func (c *CACrossCmd) Run(ctx context.Context, out *cli.Out) error {
	return call(ctx, &c.Operator, out, http.MethodPost, casPath(c.Name, "/cross"), admin.CrossRoots{Class: cradle.Class(c.Class)}, changed(out))
}
