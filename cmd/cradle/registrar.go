package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
)

// AccountRACmd makes, ends or lists credentials of registration authorities.
type AccountRACmd struct {
	Operator
	Name    string `arg:"" help:"Account."`
	RA      string `name:"name" help:"The registration authority. Devices that came by one belong to its name." default:"provisioning"`
	Profile string `help:"EST profile that it may ask for: operational or one of the account's own. Without it the credentials are listed."`
	Out     string `help:"Folder for its key (ra-key.pem, made here unless it is there) and certificate (ra.pem)." placeholder:"DIR" type:"path"`
	Own     bool   `help:"For this installation's own provisioning service and hubs: they keep the key and replace it in time."`
	Names   string `help:"Pattern of the device names it may ask for, for example gw-*. Default: any that is free." placeholder:"PATTERN"`
	Tier    string `help:"Tier of its devices. Default: software-key."`
	Days    int    `help:"Life of the credential." default:"365"`
	Replace bool   `help:"End its other credentials at this profile."`
	End     bool   `help:"End all its credentials at this profile; its devices keep their certificates."`
	Reason  string `help:"Why it is ended; goes into the log."`
}

// Run implements the verb.
func (c *AccountRACmd) Run(ctx context.Context, out *cli.Out) error {
	path := "/accounts/" + url.PathEscape(c.Name) + "/registrars"
	if c.Profile == "" {
		return list(ctx, &c.Operator, out, path, []string{"name", "profile", "serial", "until", "names", "tier", "state"}, func(r *admin.Registrar) []string {
			state := "let in"
			if r.Revoked != nil {
				state = "ended"
			} else if time.Now().After(r.NotAfter) {
				state = "expired"
			}
			return []string{r.Name, string(r.Profile), string(r.Serial), when(r.NotAfter), r.Names, string(r.Tier), state}
		})
	}
	in := admin.SetRegistrar{Profile: cradle.Profile(c.Profile), Name: c.RA, Names: c.Names, Tier: cradle.Tier(c.Tier), Days: c.Days, Own: c.Own, Replace: c.Replace, End: c.End, Reason: c.Reason}
	ways := 0
	for _, way := range []bool{c.Out != "", c.Own, c.End} {
		if way {
			ways++
		}
	}
	if ways != 1 {
		return cli.Usagef("--profile needs one of --out DIR, --own and --end")
	}
	if c.Out != "" {
		if err := durable.MkdirAll(c.Out, 0o700); err != nil {
			return cradle.Errorf(cradle.Invalid, "folder %s: %v", c.Out, err)
		}
		key, err := order.EnsureKey(filepath.Join(c.Out, "ra-key.pem"))
		if err != nil {
			return err
		}
		if in.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
			return err
		}
	}
	a, _, err := c.client()
	if err != nil {
		return err
	}
	var set admin.RegistrarSet
	if err := a.Call(ctx, http.MethodPost, path, in, &set); err != nil {
		return err
	}
	if c.Out != "" && set.Made != nil {
		if err := durable.WriteFile(filepath.Join(c.Out, "ra.pem"), []byte(set.Made.PEM+set.Made.Chain), 0o644); err != nil {
			return err
		}
	}
	return out.Print(&set, func(w io.Writer) {
		for _, e := range set.Ended {
			fmt.Fprintf(w, "registration authority %s at %s of %s: credential %s is ended\n", e.Name, e.Profile, e.Account, e.Serial)
		}
		if m := set.Made; m != nil {
			fmt.Fprintf(w, "registration authority %s at %s of %s\n", m.Name, m.Profile, m.Account)
			cli.Fields(w, "EST", m.URL, "serial", string(m.Serial), "until", when(m.NotAfter), "names", m.Names, "tier", string(m.Tier), "folder", c.Out)
		}
	})
}
