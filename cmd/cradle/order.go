package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// OrderCreateCmd is act two.
type OrderCreateCmd struct {
	Operator
	Account string `help:"Account that orders." required:""`
	OEM     string `name:"oem" help:"OEM that makes." required:""`
	File    string `help:"The order's content, TOML: model, quantity, serials, tiers, tpm_makers ..." required:"" type:"existingfile" placeholder:"order.toml"`
	Out     string `help:"The signed order, to be given to the OEM." required:"" type:"path" placeholder:"order.jws"`
	Key     string `help:"The account's order key; default: the one that account create made." placeholder:"FILE" type:"existingfile"`
}

// Run completes the order from what the installation knows, signs it with the account's key and registers it.
func (c *OrderCreateCmd) Run(ctx context.Context, out *cli.Out) error {
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	if done, err := c.resume(ctx, a, out); done || err != nil {
		return err
	}
	text, err := os.ReadFile(c.File)
	if err != nil {
		return cradle.Errorf(cradle.NotFound, "%v", err)
	}
	o, err := order.ParseTOML(text)
	if err != nil {
		return err
	}
	var acc admin.Account
	if err := a.Call(ctx, http.MethodGet, "/accounts/"+url.PathEscape(c.Account), nil, &acc); err != nil {
		return err
	}
	var st admin.Status
	if err := a.Call(ctx, http.MethodGet, "/status", nil, &st); err != nil {
		return err
	}
	fill := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	for _, f := range []struct{ name, have, flag string }{{"account", string(o.Account), c.Account}, {"oem", string(o.OEM), c.OEM}} {
		if f.have != "" && f.have != f.flag {
			return cradle.Errorf(cradle.Invalid, "the order file says %s %q, the flag says %q", f.name, f.have, f.flag)
		}
	}
	o.Account, o.OEM = cradle.AccountID(c.Account), cradle.OEMID(c.OEM)
	o.Complete(time.Now())
	fill(&o.ProviderURL, cc.URL)
	fill(&o.ServicesAnchors, cc.Anchors)
	fill(&o.ProvisioningEndpoint, "https://"+st.DPSHost)
	fill(&o.IDScope, st.IDScope)
	for _, ca := range acc.Authorities {
		if ca.Kind == "root" && ca.Class == o.Class() {
			fill(&o.AccountAnchors, ca.PEM)
		}
	}
	signer, err := c.orderKey(cc, c.Key, c.Account)
	if err != nil {
		return err
	}
	jws, err := order.Sign(o, signer)
	if err != nil {
		return err
	}
	// From here on a registered order is never without its file: if we stop before it has its name, the next run
	// gives it to it.
	if err := durable.WriteFile(c.part(), append(jws, '\n'), 0o644); err != nil {
		return err
	}
	row, err := c.register(ctx, a, jws)
	if err != nil {
		return err
	}
	c.warn(ctx, a, o, out)
	return c.print(out, row)
}

// warn names TPM makers of the order that nobody imported yet. Who may not see them is not told.
func (c *OrderCreateCmd) warn(ctx context.Context, a *admin.Client, o *order.Order, out *cli.Out) {
	var known admin.TPMMakers
	if a.Call(ctx, http.MethodGet, "/tpm-makers", nil, &known) != nil {
		return
	}
	for _, m := range o.TPMMakers {
		if !slices.ContainsFunc(known.Makers, func(k admin.TPMMaker) bool { return k.Maker == m }) {
			out.Warnf("warning: no TPM maker %s is imported: its TPMs are refused until: cradle tpm-maker import FILE --maker %s", m, m)
		}
	}
}

func (c *OrderCreateCmd) part() string { return c.Out + ".part" }

// resume gives the file its name if an earlier run was cut off after its order was registered.
func (c *OrderCreateCmd) resume(ctx context.Context, a *admin.Client, out *cli.Out) (done bool, err error) {
	b, err := os.ReadFile(c.part())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, cradle.Errorf(cradle.Invalid, "%v", err)
	}
	var row admin.Order
	o, err := order.Peek(bytes.TrimSpace(b))
	if err == nil {
		err = a.Call(ctx, http.MethodGet, "/orders/"+url.PathEscape(string(o.ID)), nil, &row)
	}
	switch cradle.KindOf(err) {
	case cradle.NotFound, cradle.Invalid: // it did not come so far
		return false, os.Remove(c.part())
	}
	if err != nil {
		return false, err
	}
	if err := c.place(); err != nil {
		return false, err
	}
	out.Warnf("order %s was registered by an earlier run, which was cut off; run again for another", row.ID)
	return true, c.print(out, row)
}

func (c *OrderCreateCmd) place() error {
	if err := os.Rename(c.part(), c.Out); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(c.Out))
}

// register hands the order in and gives its file its name; a refusal takes the file away. While the outcome is not
// known the file stays.
func (c *OrderCreateCmd) register(ctx context.Context, a *admin.Client, jws []byte) (row admin.Order, err error) {
	if err := a.Call(ctx, http.MethodPost, "/orders", admin.CreateOrder{JWS: jws}, &row); err != nil {
		switch cradle.KindOf(err) {
		case cradle.Busy, cradle.Internal:
			return row, err
		}
		return row, errors.Join(err, os.Remove(c.part()))
	}
	return row, c.place()
}

func (c *OrderCreateCmd) print(out *cli.Out, row admin.Order) error {
	return out.Print(struct {
		admin.Order
		File string `json:"file"`
	}{row, c.Out}, func(w io.Writer) {
		fmt.Fprintf(w, "order %s: %d units by %s, signed; give %s to the OEM, who runs: cradle-oem order accept %s\n", row.ID, row.Quantity, row.OEM, c.Out, c.Out)
	})
}

// orderKey finds an account's order key: by flag, by the account's context, or where account create left it.
func (o *Operator) orderKey(cc *admin.Context, flag, account string) (*ecdsa.PrivateKey, error) {
	file := flag
	if file == "" {
		file = cc.OrderKey
	}
	if file == "" {
		var p struct{ Folder string }
		accounts := filepath.Join(filepath.Dir(o.file()), "accounts")
		if err := readJSON(filepath.Join(accounts, account+".json"), &p); err != nil {
			return nil, cradle.Errorf(cradle.NotFound, "the order key of account %s is not known here", account).
				WithHint("give it with --key FILE, or the account's own context with --context")
		}
		if !filepath.IsAbs(p.Folder) {
			p.Folder = filepath.Join(accounts, p.Folder)
		}
		file = filepath.Join(p.Folder, "order-key.pem")
	}
	return order.LoadKey(file)
}

// LotAcceptCmd accepts a lot that waits.
type LotAcceptCmd struct {
	Operator
	ID      string `arg:"" help:"Lot."`
	Account string `help:"Account whose lot it is; default: whichever." placeholder:"NAME"`
	Key     string `help:"The account's order key; default: the one that account create made." placeholder:"FILE" type:"existingfile"`
}

// Run signs the hand-over as its receiver, with the account's order key.
func (c *LotAcceptCmd) Run(ctx context.Context, out *cli.Out) error {
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	var l admin.Lot
	path := "/lots/" + url.PathEscape(c.ID)
	if err := a.Call(ctx, http.MethodGet, path, nil, &l); err != nil {
		return err
	}
	if c.Account != "" && c.Account != string(l.Account) {
		return cradle.Errorf(cradle.NotFound, "account %s has no lot %q", c.Account, c.ID).WithHint("cradle lot list --account %s", c.Account)
	}
	in := admin.AcceptLot{Custody: l.Custody}
	if l.State != order.LotAccepted {
		key, err := c.orderKey(cc, c.Key, string(l.Account))
		if err != nil {
			return err
		}
		if in.Custody, err = custody.Receive(l.Custody, key); err != nil {
			return err
		}
	}
	return call(ctx, &c.Operator, out, http.MethodPost, path+"/accept", in,
		func(w io.Writer, l *admin.Lot) { fmt.Fprintf(w, "lot %s is %s: %d units\n", l.ID, l.State, l.Units) })
}

// OrderShowCmd shows an order.
type OrderShowCmd struct {
	Operator
	ID string `arg:"" help:"Order."`
}

func printOrder(w io.Writer, o *admin.Order) {
	cli.Fields(w, "order", string(o.ID), "account", string(o.Account), "OEM", string(o.OEM), "state", o.State, "reason", o.Reason,
		"used", fmt.Sprintf("%d of %d", o.Used, o.Quantity), "created", when(o.Created))
	for _, d := range o.Devices {
		fmt.Fprintf(w, "affected: %s\n", d)
	}
}

// Run implements the verb.
func (c *OrderShowCmd) Run(ctx context.Context, out *cli.Out) error {
	return get(ctx, &c.Operator, out, "/orders/"+url.PathEscape(c.ID), printOrder)
}

// OrderWithdrawCmd ends an order.
type OrderWithdrawCmd struct {
	Operator
	ID     string `arg:"" help:"Order."`
	Reason string `help:"Why." required:""`
}

// Run implements the verb.
func (c *OrderWithdrawCmd) Run(ctx context.Context, out *cli.Out) error {
	return call(ctx, &c.Operator, out, http.MethodPost, "/orders/"+url.PathEscape(c.ID)+"/withdraw", admin.ChangeState{Reason: c.Reason}, printOrder)
}

// AttestationRegisterCmd is act three.
type AttestationRegisterCmd struct {
	Operator
	Account  string `help:"Account whose operational CAs are registered." required:""`
	File     string `name:"service-connection-string-file" help:"File with the provisioning service's connection string; default: this installation's own. Any Azure DPS has one." placeholder:"FILE" type:"existingfile"`
	Group    string `help:"Id of the enrolment group; default ACCOUNT-CLASS." placeholder:"ID"`
	Class    string `help:"Which operational CA: production, evaluation, or both." default:"both" enum:"production,evaluation,both"`
	Unproved bool   `help:"Also the CA of devices that enrol without evidence, as groups of their own: ID-unproved."`
	Alone    bool   `help:"After a key roll: the newest CA alone, when the last certificate of the one before it has ended. Default: both."`
}

// Run registers the operational CA of each class as an enrolment group, by the service API that Azure DPS has too. After a roll the
// CA before it stays beside it, since what that has signed is still in use.
func (c *AttestationRegisterCmd) Run(ctx context.Context, out *cli.Out) error {
	a, cc, err := c.client()
	if err != nil {
		return err
	}
	var acc admin.Account
	if err := a.Call(ctx, http.MethodGet, "/accounts/"+url.PathEscape(c.Account), nil, &acc); err != nil {
		return err
	}
	var cas []admin.CA
	if err := a.Call(ctx, http.MethodGet, casPath(c.Account, ""), nil, &cas); err != nil {
		return err
	}
	var cs *sas.ConnectionString
	hc := &http.Client{Timeout: time.Minute}
	if c.File != "" {
		if cs, err = connectionString(out, c.File); err != nil {
			return err
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM([]byte(cc.Anchors))
		hc.Transport = trustBoth(roots)
	} else {
		var k admin.ServiceKey
		if err := a.Call(ctx, http.MethodGet, "/service-key/dps", nil, &k); err != nil {
			return err
		}
		if cs, err = sas.ParseConnectionString(k.ConnectionString); err != nil {
			return err
		}
		hc = a.HTTP
	}
	svc := &dps.Service{HTTP: hc, Conn: cs}
	for _, ca := range acc.Authorities {
		unproved := c.Unproved && ca.Kind == "unproved"
		if ca.Kind != "operational" && !unproved || c.Class != "both" && string(ca.Class) != c.Class {
			continue
		}
		id := c.Group
		if id == "" || c.Class == "both" {
			id = string(acc.Name) + "-" + string(ca.Class)
		}
		if unproved {
			id += "-unproved"
		}
		cert, err := (&dps.X509Certificate{Certificate: ca.PEM}).Parse()
		if err != nil {
			return err
		}
		var before *x509.Certificate
		var previous string
		if !c.Alone {
			if before, previous, err = predecessor(cas, ca); err != nil {
				return err
			}
		}
		g, err := svc.EnsureGroup(ctx, id, cert, before)
		if err != nil {
			return err
		}
		told, more := map[string]any{"id": g.EnrollmentGroupID, "class": ca.Class, "host": cs.HostName, "certificate": ca.Fingerprint}, ""
		if before != nil {
			told["previous"], more = previous, ", and the one before it"
		}
		if err := out.Print(told, func(w io.Writer) {
			fmt.Fprintf(w, "enrolment group %s at %s believes the %s %s CA of %s%s\n", g.EnrollmentGroupID, cs.HostName, ca.Class, ca.Kind, acc.Name, more)
		}); err != nil {
			return err
		}
	}
	return nil
}

// predecessor is the CA whose key that of now has replaced last, nil without one or when it has ended.
func predecessor(all []admin.CA, now admin.Authority) (newest *x509.Certificate, fingerprint string, err error) {
	for _, c := range all {
		if c.Kind != now.Kind || c.Class != now.Class || c.State != "superseded" || c.Fingerprint == now.Fingerprint {
			continue
		}
		cert, err := (&dps.X509Certificate{Certificate: c.PEM}).Parse()
		if err != nil {
			return nil, "", err
		}
		if time.Now().Before(cert.NotAfter) && (newest == nil || cert.NotBefore.After(newest.NotBefore)) {
			newest, fingerprint = cert, c.Fingerprint
		}
	}
	return newest, fingerprint, nil
}

// trustBoth makes a transport for a provisioning service that may be ours or somebody's on the public
// internet: the system's roots and our services CA.
func trustBoth(roots *x509.CertPool) http.RoundTripper {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment}
}
