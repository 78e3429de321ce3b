package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Operator is what every verb that calls the admin API has.
type Operator struct {
	Context string `help:"Context file: where the provider is, whom to trust, the token." placeholder:"FILE" type:"path"`
	Data    string `help:"Data folder of serve, whose context is used without --context." default:"cradle-data" type:"path"`
}

func (o *Operator) file() string {
	if o.Context != "" {
		return o.Context
	}
	return filepath.Join(o.Data, "context.json")
}

func (o *Operator) client() (*admin.Client, *admin.Context, error) {
	c, err := admin.ReadContext(o.file())
	if err != nil {
		return nil, nil, err
	}
	a, err := admin.NewClient(c, func(roots *x509.CertPool) http.RoundTripper {
		return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment}
	})
	return a, c, err
}

// get asks and prints.
func get[T any](ctx context.Context, o *Operator, out *cli.Out, path string, text func(io.Writer, *T)) error {
	return call(ctx, o, out, http.MethodGet, path, nil, text)
}

func call[T any](ctx context.Context, o *Operator, out *cli.Out, method, path string, in any, text func(io.Writer, *T)) error {
	c, _, err := o.client()
	if err != nil {
		return err
	}
	v := new(T)
	if err := c.Call(ctx, method, path, in, v); err != nil {
		return err
	}
	return out.Print(v, func(w io.Writer) { text(w, v) })
}

// list prints a JSON line for each row, or a table.
func list[T any](ctx context.Context, o *Operator, out *cli.Out, path string, headings []string, row func(*T) []string) error {
	c, _, err := o.client()
	if err != nil {
		return err
	}
	var rows []T
	if err := c.Call(ctx, http.MethodGet, path, nil, &rows); err != nil {
		return err
	}
	return printRows(out, rows, headings, row)
}

func printRows[T any](out *cli.Out, rows []T, headings []string, row func(*T) []string) error {
	if out.JSON {
		for i := range rows {
			if err := out.Print(&rows[i], nil); err != nil {
				return err
			}
		}
		return nil
	}
	cells := make([][]string, len(rows))
	for i := range rows {
		cells[i] = row(&rows[i])
	}
	return out.Print(nil, func(w io.Writer) { cli.Table(w, headings, cells) })
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	if t.Year() == 9999 {
		return "no end"
	}
	return t.UTC().Format(time.RFC3339)
}

// StatusCmd shows the services.
type StatusCmd struct{ Operator }

// Run implements the verb.
func (c *StatusCmd) Run(ctx context.Context, out *cli.Out) error {
	return get(ctx, &c.Operator, out, "/status", func(w io.Writer, s *admin.Status) {
		rows := make([][]string, len(s.Services))
		for i, v := range s.Services {
			health := "healthy"
			if !v.Healthy {
				health = "NOT healthy"
			}
			rows[i] = []string{v.Service, v.URL, health, v.Detail}
		}
		cli.Table(w, []string{"service", "url", "health", ""}, rows)
		cli.Fields(w, "est url", s.ESTURL, "dps host", s.DPSHost, "id scope", s.IDScope, "hubs", strings.Join(s.Hubs, " "),
			"listens on", strings.Join(s.Listen, " "))
		for _, cp := range s.Checkpoint {
			cli.Fields(w, "log "+cp.Log, fmt.Sprintf("%d leaves signed", cp.Size))
		}
	})
}

// AnchorsCmd writes what a TLS client must trust.
type AnchorsCmd struct {
	Operator
	Out string `help:"File to write; default: standard output." placeholder:"FILE" type:"path"`
}

// Run implements the verb.
func (c *AnchorsCmd) Run(ctx context.Context, out *cli.Out) error {
	cc, err := admin.ReadContext(c.file())
	if err != nil {
		return err
	}
	if c.Out == "" {
		return out.Print(map[string]string{"pem": cc.Anchors}, func(w io.Writer) { io.WriteString(w, cc.Anchors) })
	}
	if err := durable.WriteFile(c.Out, []byte(cc.Anchors), 0o644); err != nil {
		return err
	}
	return out.Print(map[string]string{"file": c.Out, "pem": cc.Anchors}, func(w io.Writer) { fmt.Fprintf(w, "wrote %s\n", c.Out) })
}

// ServiceKeyCmd shows a connection string.
type ServiceKeyCmd struct {
	Operator
	Service string `help:"Which service: dps or hub." required:"" enum:"dps,hub"`
	Policy  string `help:"Of dps, a policy with fewer rights than the owner's: enrollmentRead, enrollmentWrite, registrationStatusRead, registrationStatusWrite or serviceConfig." placeholder:"NAME"`
	Out     string `help:"Write it to this file (mode 0600) instead." placeholder:"FILE" type:"path"`
}

// Run implements the verb.
func (c *ServiceKeyCmd) Run(ctx context.Context, out *cli.Out) error {
	a, _, err := c.client()
	if err != nil {
		return err
	}
	var k admin.ServiceKey
	if err := a.Call(ctx, http.MethodGet, "/service-key/"+c.Service, nil, &k); err != nil {
		return err
	}
	if c.Policy != "" {
		if err := c.narrow(&k); err != nil {
			return err
		}
	}
	if c.Out != "" {
		if err := durable.WriteFile(c.Out, []byte(k.ConnectionString+"\n"), 0o600); err != nil {
			return err
		}
		return out.Print(map[string]string{"file": c.Out}, func(w io.Writer) { fmt.Fprintf(w, "wrote %s\n", c.Out) })
	}
	return out.Print(&k, func(w io.Writer) { fmt.Fprintln(w, k.ConnectionString) })
}

// narrow makes the owner's connection string that of a policy.
func (c *ServiceKeyCmd) narrow(k *admin.ServiceKey) error {
	if c.Service != "dps" {
		return cli.Usagef("--policy is for --service dps")
	}
	if _, err := dps.PolicyRights(c.Policy); err != nil {
		return err
	}
	cs, err := sas.ParseConnectionString(k.ConnectionString)
	if err != nil {
		return err
	}
	cs.KeyName, cs.Key = c.Policy, dps.PolicyKey(cs.Key, c.Policy)
	k.ConnectionString = cs.String()
	return nil
}

// AccountCreateCmd is act one.
type AccountCreateCmd struct {
	Operator
	Name                string `arg:"" help:"Account name: a-z, 0-9, '-'; at most 40 characters."`
	Out                 string `help:"Folder for context.json, order key, roots and CAs. Default: NAME in the data folder's accounts." placeholder:"DIR" type:"path"`
	OperationalValidity string `help:"Life of operational certificates, for example 24h." placeholder:"DURATION"`
	LDevIDValidity      string `name:"ldevid-validity" help:"Life of LDevIDs, for example 8760h." placeholder:"DURATION"`
	CAKey               string `name:"ca-key" help:"Kind of the account's CA keys: ec-p256, ec-p384, rsa-3072 or rsa-4096." default:"ec-p256"`
	Root                string `help:"own: roots are made here. external: the CAs wait for certificates from a root that is kept elsewhere (cradle ca csr, cradle ca install)." default:"own" enum:"own,external"`
}

// Run makes the order key here, on the builder's side, and registers its public half.
func (c *AccountCreateCmd) Run(ctx context.Context, out *cli.Out) error {
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	dir := c.Out
	pointer := filepath.Join(filepath.Dir(c.file()), "accounts", c.Name+".json")
	if dir == "" {
		dir = filepath.Join(filepath.Dir(c.file()), "accounts", c.Name)
	}
	if err := cradle.CheckID("account", c.Name); err != nil {
		return err
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return cradle.Errorf(cradle.Invalid, "folder %s: %v", dir, err)
	}
	keyFile := filepath.Join(dir, "order-key.pem")
	_, noKey := os.Stat(keyFile)
	key, err := order.EnsureKey(keyFile)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	var acc admin.Account
	if err := a.Call(ctx, http.MethodPost, "/accounts", admin.CreateAccount{Name: cradle.AccountID(c.Name), OrderKey: spki,
		OperationalValidity: c.OperationalValidity, LDevIDValidity: c.LDevIDValidity, CAKey: c.CAKey, ExternalRoot: c.Root == "external"}, &acc); err != nil {
		if k := cradle.KindOf(err); errors.Is(noKey, fs.ErrNotExist) && k != cradle.Busy && k != cradle.Internal { // refused: the key is nobody's
			_ = os.Remove(keyFile)
			_ = os.Remove(dir) // where it is empty
		}
		return err
	}
	write := map[string]string{}
	for _, ca := range acc.Authorities {
		write[fmt.Sprintf("%s-%s.pem", ca.Class, ca.Kind)] = ca.PEM
	}
	for name, pem := range write {
		if err := durable.WriteFile(filepath.Join(dir, name), []byte(pem), 0o644); err != nil {
			return err
		}
	}
	acc2 := admin.Context{URL: cc.URL, Anchors: cc.Anchors, Token: acc.Token, Account: acc.Name, OrderKey: "order-key.pem"}
	if err := durable.WriteFile(filepath.Join(dir, "context.json"), indent(acc2), 0o600); err != nil {
		return err
	}
	// So that later verbs of this data folder find the account's order key.
	if err := durable.MkdirAll(filepath.Dir(pointer), 0o700); err != nil {
		return err
	}
	folder := dir
	if rel, err := filepath.Rel(filepath.Dir(pointer), dir); err == nil && filepath.IsLocal(rel) { // moves with the data folder
		folder = rel
	}
	if err := durable.WriteFile(pointer, indent(map[string]string{"folder": folder}), 0o600); err != nil {
		return err
	}
	acc.Token = ""
	return out.Print(struct {
		*admin.Account
		Folder string `json:"folder"`
	}{&acc, dir}, func(w io.Writer) {
		fmt.Fprintf(w, "account %s: its context, order key and CA certificates are in %s\n", acc.Name, dir)
		printAccount(w, &acc)
		if c.Root == "external" {
			fmt.Fprintf(w, "nothing is issued until its CAs are certified: cradle ca list %s; cradle ca csr %s --ca CA --class CLASS --out FILE\n", acc.Name, acc.Name)
		}
	})
}

func printAccount(w io.Writer, a *admin.Account) {
	cli.Fields(w, "account", string(a.Name), "region", a.Region, "EST host", a.ESTHost)
	var rows [][]string
	for _, l := range a.Labels {
		for _, p := range a.Profiles {
			if p.Profile == l.Profile {
				rows = append(rows, []string{string(l.Profile), l.Label, l.URL, p.Validity, p.Evidence, strings.Join(p.Keys, " ")})
			}
		}
	}
	cli.Table(w, []string{"profile", "label", "url", "validity", "evidence", "keys"}, rows)
	rows = nil
	for _, c := range a.Authorities {
		rows = append(rows, []string{string(c.Class), c.Kind, c.Fingerprint})
	}
	cli.Table(w, []string{"class", "CA", "SHA-256"}, rows)
}

// AccountShowCmd shows an account.
type AccountShowCmd struct {
	Operator
	Name string `arg:"" help:"Account."`
}

// Run implements the verb.
func (c *AccountShowCmd) Run(ctx context.Context, out *cli.Out) error {
	return get(ctx, &c.Operator, out, "/accounts/"+url.PathEscape(c.Name), printAccount)
}

// OEMAddCmd registers a device maker.
type OEMAddCmd struct {
	Operator
	Name string `arg:"" help:"The OEM's name."`
	Key  string `help:"The OEM's public keys, oem.pub." required:"" type:"existingfile" placeholder:"FILE"`
}

// Run implements the verb.
func (c *OEMAddCmd) Run(ctx context.Context, out *cli.Out) error {
	b, err := os.ReadFile(c.Key)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	return call(ctx, &c.Operator, out, http.MethodPost, "/oems", admin.CreateOEM{Name: cradle.OEMID(c.Name), Public: string(b)},
		func(w io.Writer, o *admin.OEM) {
			fmt.Fprintf(w, "OEM %s is registered; its IDevID CAs:\n", o.Name)
			for _, a := range o.Authorities {
				if a.Kind == "oem-root" {
					fmt.Fprintf(w, "# %s, SHA-256 %s\n%s", a.Class, a.Fingerprint, a.PEM)
				}
			}
		})
}

// LotListCmd lists lots.
type LotListCmd struct {
	Operator
	Account string `help:"Account." required:""`
}

// Run implements the verb.
func (c *LotListCmd) Run(ctx context.Context, out *cli.Out) error {
	return list(ctx, &c.Operator, out, "/lots?account="+url.QueryEscape(c.Account), []string{"lot", "order", "state", "units", "closed", "findings"},
		func(l *admin.Lot) []string {
			return []string{string(l.ID), string(l.Order), l.State, strconv.FormatInt(l.Units, 10), when(l.Closed), strings.Join(l.Findings, "; ")}
		})
}

// readJSON reads a small JSON file.
func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
