package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// RevokeCmd is revoke or release.
type RevokeCmd struct {
	Operator
	Account  string `help:"Account; default: the context's own."`
	Serial   string `help:"One certificate, by its serial number in hexadecimal." placeholder:"HEX"`
	Device   string `help:"One device." placeholder:"ID"`
	Order    string `help:"All devices of an order." placeholder:"ID"`
	Lot      string `help:"All devices of a lot." placeholder:"ID"`
	OEM      string `name:"oem" help:"All devices of an OEM." placeholder:"NAME"`
	EKIssuer string `name:"ek-issuer" help:"All devices whose EK certificate has this issuer on its path: SHA-256 of its certificate or public key, or its PEM file." placeholder:"SHA-256"`
	Maker    string `help:"All devices with this maker's TPM." placeholder:"NAME"`
	Reason   string `help:"A reason of RFC 5280: keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn, unspecified; certificateHold suspends, and is the only one that can be released." default:"unspecified"`
	Comment  string `help:"More words; they go into the record, the log and the status feed."`
	Yes      bool   `help:"Of a set: do it. Without it the devices are counted and nothing is changed."`
	release  bool
}

// Run implements the verb.
func (c *RevokeCmd) Run(ctx context.Context, out *cli.Out) error {
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	account := cmp.Or(c.Account, string(cc.Account))
	if account == "" {
		return cli.Usagef("say whose it is with --account")
	}
	given := 0
	for _, s := range []string{c.Serial, c.Device, c.Order, c.Lot, c.OEM, c.EKIssuer, c.Maker} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return cli.Usagef("say what with one of --serial, --device, --order, --lot, --oem, --ek-issuer and --maker, not %d", given)
	}
	issuer, err := fingerprintOf(c.EKIssuer)
	if err != nil {
		return err
	}
	reason, err := cradle.ParseReason(c.Reason)
	if err != nil {
		return err
	}
	in := admin.Revoke{Change: "revoke", Serial: cradle.CertSerial(c.Serial), Device: cradle.DeviceID(c.Device), Order: cradle.OrderID(c.Order), Lot: cradle.LotID(c.Lot),
		OEM: cradle.OEMID(c.OEM), EKIssuer: issuer, Maker: cradle.MakerID(c.Maker), Reason: reason.String(), Preview: !c.Yes}
	switch {
	case c.release:
		in.Change, in.Reason = "release", ""
	case reason == cradle.CertificateHold:
		in.Change = "suspend"
	}
	if c.Comment != "" {
		in.Reason = reason.String() + ": " + c.Comment
	}
	var r admin.Revocation
	path := "/accounts/" + url.PathEscape(account) + "/revocations"
	if err := a.Call(ctx, http.MethodPost, path, in, &r); err != nil {
		return err
	}
	for r.State == "running" {
		fmt.Fprintf(out.Err, "%s: %d of %d devices\n", r.Change, r.Changed, r.Total)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if err := a.Call(ctx, http.MethodGet, path+"/"+url.PathEscape(r.ID), nil, &r); err != nil {
			return err
		}
	}
	return out.Print(&r, func(w io.Writer) { printRevocation(w, &r) })
}

func printRevocation(w io.Writer, r *admin.Revocation) {
	if r.State == "preview" {
		fmt.Fprintf(w, "%s %s has %d devices; nothing was changed. To %s them add --yes\n", r.Selector, r.Value, r.Total, r.Change)
		return
	}
	at := func(t *time.Time) string {
		if t == nil {
			return "not confirmed yet; see cradle status"
		}
		return when(*t)
	}
	done := map[string]string{"revoke": "revoked", "suspend": "suspended", "release": "released"}[r.Change]
	fmt.Fprintf(w, "%s %s: %d %s, %d were so already or cannot be\n", r.Selector, r.Value, r.Changed, done, r.Total-r.Changed)
	cli.Fields(w, "EST since", at(r.EST), "provisioning since", at(r.Provisioning), "hub since", at(r.Hub))
}

// MakerListCmd lists TPM makers.
type MakerListCmd struct{ Operator }

// Run implements the verb.
func (c *MakerListCmd) Run(ctx context.Context, out *cli.Out) error {
	return get(ctx, &c.Operator, out, "/tpm-makers", func(w io.Writer, m *admin.TPMMakers) {
		var rows [][]string
		for _, k := range m.Makers {
			for _, a := range k.Anchors {
				trust := ""
				if a.Distrusted {
					trust = "DISTRUSTED"
				}
				rows = append(rows, []string{string(k.Maker), string(a.Tier), strconv.FormatInt(k.Devices, 10), a.Fingerprint, when(a.NotAfter), trust, a.Subject})
			}
		}
		cli.Table(w, []string{"maker", "tier", "devices", "certificate SHA-256", "ends", "", "subject"}, rows)
		rows = nil
		for _, k := range m.Distrusted {
			rows = append(rows, []string{k.Kind, k.Digest, when(k.At), k.Reason})
		}
		if len(rows) > 0 {
			cli.Table(w, []string{"distrusted", "key SHA-256", "since", "reason"}, rows)
		}
	})
}

// MakerTrustCmd is distrust, or trust, which takes it back.
type MakerTrustCmd struct {
	Operator
	Maker       string `help:"A TPM maker: all its certificates." placeholder:"NAME"`
	Certificate string `help:"One issuer of EK certificates, imported or not: SHA-256 of its certificate or public key, or its PEM file." placeholder:"SHA-256"`
	EK          string `name:"ek" help:"One endorsement key: its digest, as cradle device show prints it." placeholder:"SHA-256"`
	Reason      string `help:"Why; goes into the record and the log."`
	Yes         bool   `help:"Of distrust: do it, and revoke the devices. Without it they are listed and nothing is changed."`
	trust       bool
}

// Run implements the verb.
func (c *MakerTrustCmd) Run(ctx context.Context, out *cli.Out) error {
	cert, err := fingerprintOf(c.Certificate)
	if err != nil {
		return err
	}
	in := admin.Distrust{Maker: cradle.MakerID(c.Maker), Certificate: cert, EK: c.EK, Reason: c.Reason, Confirm: c.Yes}
	if c.trust {
		return call(ctx, &c.Operator, out, http.MethodPost, "/tpm-makers/trust", in, func(w io.Writer, f *admin.Concern) {
			fmt.Fprintf(w, "trusted again, for devices to come: %d keys; devices that were revoked stay so\n", len(f.Keys))
		})
	}
	return call(ctx, &c.Operator, out, http.MethodPost, "/tpm-makers/distrust", in, func(w io.Writer, f *admin.Concern) {
		var rows [][]string
		for _, d := range f.Devices {
			rows = append(rows, []string{string(d.Account), string(d.Device)})
		}
		if len(rows) > 0 {
			cli.Table(w, []string{"account", "device"}, rows)
		}
		var total int64
		for _, n := range f.Accounts {
			total += n
		}
		fmt.Fprintf(w, "%d devices in %d accounts rest on it\n", total, len(f.Accounts))
		if !f.Confirmed {
			fmt.Fprintln(w, "nothing was changed; to distrust it and revoke them add --yes")
			return
		}
		fmt.Fprintln(w, "it is distrusted: no device with such a TPM is made any more")
		slices.SortFunc(f.Jobs, func(a, b admin.Revocation) int { return cmp.Compare(a.Account, b.Account) })
		for _, j := range f.Jobs {
			fmt.Fprintf(w, "account %s: %d revoked, %s\n", j.Account, j.Changed, j.State)
		}
	})
}
