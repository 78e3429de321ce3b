package main

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/verbs"
	"github.com/cradle-iot/cradle/oem"
	"github.com/cradle-iot/cradle/protocol/order"
)

type grammar struct {
	verbs.Globals

	Init        initCmd        `cmd:"" help:"Make the OEM's folder and keys."`
	Order       orderCmd       `cmd:"" help:"Orders of accounts."`
	Personalise personaliseCmd `cmd:"" help:"Make one unit: keys, certificates, settings."`
	Lot         lotCmd         `cmd:"" help:"Lots of made units."`
}

// folder is the flag that every verb has.
type folder struct {
	Dir string `help:"The OEM's folder. Default: oem." default:"oem" env:"CRADLE_OEM_DIR" placeholder:"DIR"`
}

func (f folder) station() *oem.Station {
	return &oem.Station{Dir: f.Dir, Tool: "cradle-oem " + verbs.Version()}
}

type initCmd struct{ folder }

func (c *initCmd) Run(out *cli.Out) error {
	pub, err := oem.Init(c.Dir)
	if err != nil {
		return err
	}
	file := filepath.Join(c.Dir, "oem.pub")
	v := struct {
		Dir      string `json:"dir"`
		Public   string `json:"public"`
		OrderKey string `json:"order_key_sha256"`
		LotKey   string `json:"lot_key_sha256"`
	}{c.Dir, file, order.KeyID(pub.Order), order.KeyID(pub.Lot)}
	return out.Print(v, func(w io.Writer) {
		cli.Fields(w, "public keys", file, "order key", v.OrderKey, "lot key", v.LotKey)
		fmt.Fprintf(w, "Give %s to the provider's operator, who runs: cradle oem add NAME --key oem.pub\n", file)
	})
}

type orderCmd struct {
	Accept acceptCmd `cmd:"" help:"Countersign an order and register the station with the provider."`
	Show   showCmd   `cmd:"" help:"Show an accepted order."`
}

type acceptCmd struct {
	folder
	File       string `arg:"" help:"The order as the account sent it (order.jws)." placeholder:"FILE" type:"existingfile"`
	AccountKey string `help:"PEM file with the account's order key; default: as in the account's first order." placeholder:"FILE" type:"existingfile"`
	Anchors    string `help:"PEM file with the anchors of the provider's TLS; default: those in the order." placeholder:"FILE" type:"existingfile"`
}

func (c *acceptCmd) Run(ctx context.Context, out *cli.Out) error {
	doc, err := input(c.File)
	if err != nil {
		return err
	}
	r := oem.AcceptRequest{Order: doc}
	if c.AccountKey != "" {
		if r.AccountKey, err = publicKey(c.AccountKey); err != nil {
			return err
		}
	}
	if c.Anchors != "" {
		b, err := input(c.Anchors)
		if err != nil {
			return err
		}
		r.Anchors = string(b)
	}
	a, err := c.station().AcceptOrder(ctx, r)
	if err != nil {
		return err
	}
	o := a.Order
	v := struct {
		ID           cradle.OrderID   `json:"id"`
		Account      cradle.AccountID `json:"account"`
		Quantity     int64            `json:"quantity"`
		Dir          string           `json:"dir"`
		AccountKey   string           `json:"account_key_sha256"`
		NewKey       bool             `json:"account_key_new"`
		Anchors      []string         `json:"services_anchors_sha256"`
		StationUntil time.Time        `json:"station_until"`
	}{o.ID, o.Account, o.Quantity, a.Dir, a.KeyID, a.NewKey, a.Services, a.Station.NotAfter.UTC()}
	return out.Print(v, func(w io.Writer) {
		cli.Fields(w, "order", string(o.ID), "account", string(o.Account), "model", o.Model, "units", fmt.Sprint(o.Quantity),
			"serials", serials(o), "account key", a.KeyID, "station until", stamp(a.Station.NotAfter), "folder", a.Dir)
		for _, f := range a.Services {
			cli.Fields(w, "services anchor", f)
		}
		if a.NewKey {
			fmt.Fprintf(w, "First order of %s here: compare its key with what the account tells you (SHA-256 above).\n", o.Account)
		}
	})
}

type showCmd struct {
	folder
	ID string `arg:"" help:"The order's id." placeholder:"ID"`
}

func (c *showCmd) Run(out *cli.Out) error {
	v, err := c.station().Show(cradle.OrderID(c.ID))
	if err != nil {
		return err
	}
	o := v.Order
	var until *time.Time
	if !v.StationUntil.IsZero() {
		until = &v.StationUntil
	}
	j := struct {
		*order.Order
		Digest       string         `json:"digest"`
		AccountKeyID string         `json:"account_key_sha256"`
		StationUntil *time.Time     `json:"station_until,omitempty"`
		Made         int            `json:"units_made"`
		InLots       int            `json:"units_in_lots"`
		Lots         []cradle.LotID `json:"lots"`
	}{o, v.Digest, v.AccountKeyID, until, v.Made, v.InLots, append([]cradle.LotID{}, v.Lots...)}
	return out.Print(j, func(w io.Writer) {
		station := "not registered yet"
		if until != nil {
			station = stamp(*until)
		}
		cli.Fields(w, "order", string(o.ID), "account", string(o.Account), "oem", string(o.OEM), "model", o.Model, "class", string(o.Class()),
			"units", fmt.Sprint(o.Quantity), "serials", serials(o), "from", stamp(o.NotBefore), "until", stamp(o.NotAfter),
			"tiers", fmt.Sprint(o.Tiers), "TPM makers", fmt.Sprint(o.TPMMakers), "EK types", fmt.Sprint(o.EKTypes), "naming", o.Naming,
			"provider", o.ProviderURL, "account key", v.AccountKeyID, "station until", station,
			"made here", fmt.Sprint(v.Made), "in lots", fmt.Sprint(v.InLots))
	})
}

type personaliseCmd struct {
	folder
	Order  string `required:"" help:"The order's id." placeholder:"ID"`
	Serial string `required:"" help:"The unit's serial number, of the order's range." placeholder:"S"`
	TPM    string `required:"" name:"tpm" help:"The unit's TPM: device node or Unix socket." placeholder:"PATH"`
	Unit   string `required:"" help:"The unit's folder, which the device agent will use." placeholder:"DIR"`
}

func (c *personaliseCmd) Run(ctx context.Context, out *cli.Out) error {
	u, err := c.station().Personalise(ctx, oem.UnitRequest{Order: cradle.OrderID(c.Order), Serial: c.Serial, TPM: c.TPM, Dir: c.Unit})
	if err != nil {
		return err
	}
	v := struct {
		*oem.Unit
		Folder string `json:"unit"`
	}{u, c.Unit}
	return out.Print(v, func(w io.Writer) {
		cli.Fields(w, "device", string(u.Device), "serial", u.Serial, "EK", u.EKType+" "+u.EK, "IDevID", u.IDevID, "IAK", u.IAK, "folder", c.Unit)
	})
}

type lotCmd struct {
	Close closeCmd `cmd:"" help:"Close a lot of all units made since the last one and hand it in."`
}

type closeCmd struct {
	folder
	Order string `required:"" help:"The order's id." placeholder:"ID"`
	Out   string `required:"" help:"Folder for report.jws and custody.jws." placeholder:"DIR"`
}

func (c *closeCmd) Run(ctx context.Context, out *cli.Out) error {
	l, err := c.station().CloseLot(ctx, cradle.OrderID(c.Order), c.Out)
	if err != nil {
		return err
	}
	return out.Print(l, func(w io.Writer) {
		cli.Fields(w, "lot", string(l.ID), "units", fmt.Sprint(l.Units), "state", l.State, "report", l.Report, "custody", l.Custody)
		for _, r := range l.Reasons {
			cli.Fields(w, "waits because", r)
		}
		if l.Remaining > 0 {
			fmt.Fprintf(w, "%d further units are in no lot yet: run this again.\n", l.Remaining)
		}
	})
}

func input(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "%w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, order.MaxBody+1))
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%w", err)
	}
	if len(b) > order.MaxBody {
		return nil, cradle.Errorf(cradle.TooLarge, "%s has more than %d bytes", file, order.MaxBody)
	}
	return b, nil
}

func publicKey(file string) (*ecdsa.PublicKey, error) {
	b, err := input(file)
	if err != nil {
		return nil, err
	}
	k, err := order.DecodePublic(b)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s: %w", file, err)
	}
	return k, nil
}

func serials(o *order.Order) string {
	return o.SerialPrefix + o.SerialFirst + " to " + o.SerialPrefix + o.SerialLast
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
