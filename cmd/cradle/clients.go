package main

import (
	"bytes"
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

// AccountBasicCmd sets, disables or lists users of HTTP Basic.
type AccountBasicCmd struct {
	Operator
	Name         string `arg:"" help:"Account."`
	Profile      string `help:"EST profile that takes the password: ldevid, operational or one of the account's own."`
	User         string `help:"User to set. Without it the users are listed."`
	PasswordFile string `help:"File whose first line is the password, 12 bytes or more." placeholder:"FILE" type:"existingfile"`
	Names        string `help:"Pattern of the device names it may ask for, for example gw-*. Default: any that is free." placeholder:"PATTERN"`
	Tier         string `help:"Tier of its devices. Default: software-key."`
	Disable      bool   `help:"End the user; its devices go on renewing with their certificates."`
}

// Run implements the verb.
func (c *AccountBasicCmd) Run(ctx context.Context, out *cli.Out) error {
	path := "/accounts/" + url.PathEscape(c.Name) + "/basic"
	if c.User == "" {
		return list(ctx, &c.Operator, out, path, []string{"profile", "user", "names", "tier", "state"}, func(u *admin.BasicUser) []string {
			return []string{string(u.Profile), u.User, u.Names, string(u.Tier), standing(u.Disabled)}
		})
	}
	in := admin.SetBasicUser{Profile: cradle.Profile(c.Profile), User: c.User, Names: c.Names, Tier: cradle.Tier(c.Tier), Disable: c.Disable}
	if c.Profile == "" {
		return cli.Usagef("--user needs --profile")
	}
	if !c.Disable {
		if c.PasswordFile == "" {
			return cli.Usagef("--user needs --password-file FILE or --disable")
		}
		b, err := secretFile(out, c.PasswordFile)
		if err != nil {
			return err
		}
		b, _, _ = bytes.Cut(b, []byte("\n"))
		in.Password = strings.TrimSuffix(string(b), "\r")
	}
	return call(ctx, &c.Operator, out, http.MethodPost, path, in, func(w io.Writer, u *admin.BasicUser) {
		fmt.Fprintf(w, "user %s at %s of %s: %s\n", u.User, u.Profile, u.Account, standing(u.Disabled))
		cli.Fields(w, "names", u.Names, "tier", string(u.Tier))
	})
}

func standing(disabled bool) string {
	if disabled {
		return "disabled"
	}
	return "let in"
}

// AccountTrustCACmd registers, ends or lists other CAs of clients.
type AccountTrustCACmd struct {
	Operator
	Name     string `arg:"" help:"Account."`
	File     string `arg:"" optional:"" help:"PEM file of CA certificates: roots, and intermediates that clients do not send. Without it the CAs are listed." type:"existingfile"`
	Profile  string `help:"EST profile that lets the CA's units in: ldevid, operational or one of the account's own."`
	Manifest string `help:"File of the units: on each line a device name, sn:SERIAL or sha256:HEX, and perhaps the device name it gets." placeholder:"FILE" type:"existingfile"`
	OEM      string `name:"oem" help:"Let the units of this OEM's accepted lots in, by the serialNumber in their certificates' subject."`
	Names    string `help:"Pattern of the names that a unit without one may ask for. Default: any that is free." placeholder:"PATTERN"`
	Tier     string `help:"Tier of its devices. Default: software-key."`
	Remove   string `help:"End the trust in the CA of this id." placeholder:"ID"`
}

// Run implements the verb.
func (c *AccountTrustCACmd) Run(ctx context.Context, out *cli.Out) error {
	path := "/accounts/" + url.PathEscape(c.Name) + "/client-cas"
	show := func(w io.Writer, v *admin.ClientCA) {
		fmt.Fprintf(w, "CA %s at %s of %s: %s\n", v.ID, v.Profile, v.Account, standing(v.Disabled))
		cli.Fields(w, "units", fmt.Sprint(v.Units), "OEM", string(v.OEM), "names", v.Names, "tier", string(v.Tier), "certificates", strings.Join(v.Certificates, " "))
	}
	switch {
	case c.Remove != "":
		return call(ctx, &c.Operator, out, http.MethodDelete, path+"/"+url.PathEscape(c.Remove), nil, show)
	case c.File == "":
		return list(ctx, &c.Operator, out, path, []string{"id", "profile", "OEM", "names", "tier", "state"}, func(v *admin.ClientCA) []string {
			return []string{v.ID, string(v.Profile), string(v.OEM), v.Names, string(v.Tier), standing(v.Disabled)}
		})
	case c.Profile == "":
		return cli.Usagef("a CA needs --profile")
	}
	in := admin.SetClientCA{Profile: cradle.Profile(c.Profile), OEM: cradle.OEMID(c.OEM), Names: c.Names, Tier: cradle.Tier(c.Tier)}
	for file, to := range map[string]*string{c.File: &in.PEM, c.Manifest: &in.Manifest} {
		if file == "" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return cradle.Errorf(cradle.NotFound, "%v", err)
		}
		*to = string(b)
	}
	return call(ctx, &c.Operator, out, http.MethodPost, path, in, show)
}

// AccountKEKCmd registers, ends or lists key-encryption keys of serverkeygen.
type AccountKEKCmd struct {
	Operator
	Name    string `arg:"" help:"Account."`
	ID      string `name:"id" help:"What clients name the key by (DecryptKeyIdentifier), in hexadecimal. Without it the keys are listed." placeholder:"HEX"`
	KeyFile string `help:"File of the key: 16, 24 or 32 bytes, as they are." placeholder:"FILE" type:"existingfile"`
	Remove  bool   `help:"End the key."`
}

// Run implements the verb.
func (c *AccountKEKCmd) Run(ctx context.Context, out *cli.Out) error {
	path := "/accounts/" + url.PathEscape(c.Name) + "/keks"
	if c.ID == "" {
		return list(ctx, &c.Operator, out, path, []string{"id"}, func(k *admin.KEK) []string { return []string{k.ID} })
	}
	in := admin.SetKEK{ID: c.ID}
	switch {
	case c.Remove == (c.KeyFile != ""):
		return cli.Usagef("--id needs --key-file FILE or --remove")
	case c.KeyFile != "":
		b, err := secretFile(out, c.KeyFile)
		if err != nil {
			return err
		}
		if in.Key = b; len(b) == 0 {
			return cradle.Errorf(cradle.Invalid, "%s is empty", c.KeyFile)
		}
	}
	return call(ctx, &c.Operator, out, http.MethodPost, path, in, func(w io.Writer, k *admin.KEK) {
		fmt.Fprintf(w, "key %s of %s\n", k.ID, k.Account)
	})
}

// DeviceHealCmd lifts a quarantine.
type DeviceHealCmd struct {
	Operator
	ID      string `arg:"" help:"Device."`
	Account string `help:"Account; default: the context's own."`
	Reason  string `help:"Why; goes into the log."`
}

// Run implements the verb.
func (c *DeviceHealCmd) Run(ctx context.Context, out *cli.Out) error {
	_, cc, err := c.client()
	if err != nil {
		return err
	}
	account, err := accountOf(c.Account, cc, c.ID)
	if err != nil {
		return err
	}
	return call(ctx, &c.Operator, out, http.MethodPost, devicePath(account, c.ID)+"/heal", admin.ChangeState{Reason: c.Reason}, func(w io.Writer, h *admin.Healed) {
		fmt.Fprintf(w, "device %s: %d lineages left quarantine\n", h.Device, h.Healed)
	})
}
