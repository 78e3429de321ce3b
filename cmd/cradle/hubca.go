package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// registry reaches a hub of the installation with the hub's own key, which the operator may see.
func (o *Operator) registry(ctx context.Context, hub string) (*iothub.Registry, error) {
	a, _, err := o.client()
	if err != nil {
		return nil, err
	}
	var k admin.ServiceKey
	if err := a.Call(ctx, http.MethodGet, "/service-key/hub", nil, &k); err != nil {
		return nil, err
	}
	var st admin.Status
	if err := a.Call(ctx, http.MethodGet, "/status", nil, &st); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(st.Services, func(s admin.Service) bool { return s.Service == hub }) {
		return nil, cradle.Errorf(cradle.NotFound, "no hub %q", hub).WithHint("cradle status lists them")
	}
	cs, err := sas.ParseConnectionString(k.ConnectionString)
	if err != nil {
		return nil, err
	}
	hc := *a.HTTP
	hc.Timeout = 0 // streams; ctx ends what takes too long
	return iothub.NewRegistry(&hc, cs), nil
}

// HubCAAddCmd makes a hub trust a CA.
type HubCAAddCmd struct {
	Operator
	Name string `arg:"" help:"Name for it."`
	File string `arg:"" help:"The CA's certificate, PEM." type:"existingfile"`
	Hub  string `help:"Hub." default:"hub-1"`
}

// Run implements the verb.
func (c *HubCAAddCmd) Run(ctx context.Context, out *cli.Out) error {
	b, err := os.ReadFile(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return cradle.Errorf(cradle.Invalid, "%s holds no certificate", c.File).WithHint("give a PEM file that begins with the CA's certificate")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return cradle.Errorf(cradle.Invalid, "%s holds more than one certificate", c.File).WithHint("give each CA a name of its own")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return cradle.Errorf(cradle.Invalid, "%s: %v", c.File, err)
	}
	r, err := c.registry(ctx, c.Hub)
	if err != nil {
		return err
	}
	a, err := r.AddAuthority(ctx, c.Name, block.Bytes)
	if err != nil {
		return err
	}
	return out.Print(a, func(w io.Writer) {
		fmt.Fprintf(w, "%s admits devices of type certificateAuthority by CA %s\n", c.Hub, a.Name)
		cli.Fields(w, "subject", a.Subject, "sha256", a.SHA256, "not after", when(a.NotAfter))
	})
}

// HubCAListCmd lists them.
type HubCAListCmd struct {
	Operator
	Hub string `help:"Hub." default:"hub-1"`
}

// Run implements the verb.
func (c *HubCAListCmd) Run(ctx context.Context, out *cli.Out) error {
	r, err := c.registry(ctx, c.Hub)
	if err != nil {
		return err
	}
	as, err := r.Authorities(ctx)
	if err != nil {
		return err
	}
	if out.JSON {
		for i := range as {
			if err := out.Print(&as[i], nil); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][]string, len(as))
	for i, a := range as {
		rows[i] = []string{a.Name, a.Subject, a.SHA256, when(a.NotAfter)}
	}
	cli.Table(out.W, []string{"name", "subject", "sha256", "not after"}, rows)
	return nil
}

// HubCARemoveCmd ends the trust in one.
type HubCARemoveCmd struct {
	Operator
	Name string `arg:"" help:"CA, as cradle hub ca list shows it."`
	Hub  string `help:"Hub." default:"hub-1"`
}

// Run implements the verb.
func (c *HubCARemoveCmd) Run(ctx context.Context, out *cli.Out) error {
	r, err := c.registry(ctx, c.Hub)
	if err != nil {
		return err
	}
	if err := r.RemoveAuthority(ctx, c.Name); err != nil {
		return err
	}
	return out.Print(map[string]string{"name": c.Name, "hub": c.Hub}, func(w io.Writer) {
		fmt.Fprintf(w, "%s trusts CA %s no more; devices that came by it are disconnected\n", c.Hub, c.Name)
	})
}
