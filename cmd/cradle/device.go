package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// DeviceListCmd lists devices.
type DeviceListCmd struct {
	Operator
	Account string `help:"Account." required:""`
	Order   string `help:"Only devices of this order."`
	State   string `help:"Only devices in this state: made, accepted, active, suspended, revoked, retired."`
	Limit   int    `help:"At most so many." default:"0"`
}

// Run implements the verb.
func (c *DeviceListCmd) Run(ctx context.Context, out *cli.Out) error {
	a, _, err := c.client()
	if err != nil {
		return err
	}
	var all []admin.Device
	for after := ""; ; {
		q := url.Values{"account": {c.Account}, "order": {c.Order}, "state": {c.State}, "after": {after}, "limit": {"1000"}}
		var page []admin.Device
		if err := a.Call(ctx, http.MethodGet, "/devices?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		all = append(all, page...)
		if c.Limit > 0 && len(all) >= c.Limit {
			all = all[:c.Limit]
			break
		}
		if len(page) < 1000 {
			break
		}
		after = string(page[len(page)-1].ID)
	}
	return printRows(out, all, []string{"device", "serial", "state", "tier", "order", "lot"}, func(d *admin.Device) []string {
		return []string{string(d.ID), d.Serial, string(d.State), string(d.Tier), string(d.Order), string(d.Lot)}
	})
}

// DeviceShowCmd shows a device.
type DeviceShowCmd struct {
	Operator
	ID      string `arg:"" help:"Device."`
	Account string `help:"Account; default: the context's own, or the only one that has the device." `
	Chain   string `help:"Write the newest operational certificate (else LDevID, else IDevID) with its issuers as PEM." placeholder:"FILE" type:"path"`
}

// Run implements the verb.
func (c *DeviceShowCmd) Run(ctx context.Context, out *cli.Out) error {
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	account, err := accountOf(c.Account, cc, c.ID)
	if err != nil {
		return err
	}
	var d admin.Device
	if err := a.Call(ctx, http.MethodGet, devicePath(account, c.ID), nil, &d); err != nil {
		return err
	}
	if c.Chain != "" {
		if err := writeChain(c.Chain, &d); err != nil {
			return err
		}
	}
	return out.Print(&d, func(w io.Writer) {
		cli.Fields(w, "device", string(d.ID), "account", string(d.Account), "state", string(d.State), "reason", d.Reason, "serial", d.Serial,
			"tier", string(d.Tier), "TPM maker", string(d.Maker), "EK digest", d.EKDigest, "OEM", string(d.OEM), "order", string(d.Order), "lot", string(d.Lot), "came by", d.Origin, "made", when(d.Created))
		var rows [][]string
		for _, k := range d.Credentials {
			state := k.Slot
			if k.Revoked != nil {
				state = "revoked " + when(*k.Revoked)
			}
			if k.Hold {
				state = "on hold " + when(*k.Revoked)
			}
			rows = append(rows, []string{string(k.Profile), state, when(k.NotBefore), when(k.NotAfter), string(k.Serial)})
		}
		cli.Table(w, []string{"credential", "slot", "not before", "not after", "serial"}, rows)
		rows = nil
		for _, h := range d.History {
			rows = append(rows, []string{when(h.At), h.What, h.Detail})
		}
		cli.Table(w, []string{"history", "what", ""}, rows)
	})
}

func devicePath(account, id string) string {
	return "/accounts/" + url.PathEscape(account) + "/devices/" + url.PathEscape(id)
}

// accountOf finds the account of a device verb: the flag, the context's own, or what the device's name begins with.
func accountOf(flag string, cc *admin.Context, id string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if cc.Account != "" {
		return string(cc.Account), nil
	}
	if name, _, ok := strings.Cut(id, "-"); ok {
		return name, nil
	}
	return "", cli.Usagef("say whose device it is with --account")
}

func writeChain(file string, d *admin.Device) error {
	for _, p := range []cradle.Profile{cradle.Operational, cradle.LDevID, cradle.IDevID} {
		for _, k := range d.Credentials { // newest first
			if k.Profile == p {
				return durable.WriteFile(file, []byte(k.PEM+k.Chain), 0o644)
			}
		}
	}
	return cradle.Errorf(cradle.NotFound, "device %s has no certificate yet", d.ID)
}

// DeviceChangeCmd is suspend, release, revoke or retire.
type DeviceChangeCmd struct {
	Operator
	ID      string `arg:"" help:"Device."`
	Account string `help:"Account; default: the context's own."`
	Reason  string `help:"Why; goes into the record, the log and the status feed."`
	change  string
}

// Run implements the verb.
func (c *DeviceChangeCmd) Run(ctx context.Context, out *cli.Out) error {
	_, cc, err := c.client()
	if err != nil {
		return err
	}
	account, err := accountOf(c.Account, cc, c.ID)
	if err != nil {
		return err
	}
	return call(ctx, &c.Operator, out, http.MethodPost, devicePath(account, c.ID)+"/"+c.change, admin.ChangeState{Reason: c.Reason},
		func(w io.Writer, ch *admin.Changed) {
			fmt.Fprintf(w, "device %s is %s\n", ch.Device, ch.State)
			at := func(t *time.Time) string {
				if t == nil {
					return "not confirmed yet; see cradle status"
				}
				return when(*t)
			}
			cli.Fields(w, "EST since", when(ch.EST), "provisioning since", at(ch.Provisioning), "hub since", at(ch.Hub))
		})
}
