package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// provisioningCmds are the verbs of the provisioning service's operator.
type provisioningCmds struct {
	Hub struct {
		Add         HubAddCmd         `cmd:"" help:"Link a hub: another Cradle hub, Azure IoT Hub, or an MQTT broker."`
		Set         HubSetCmd         `cmd:"" help:"Change a linked hub's weight, region, latencies or credentials."`
		List        HubListCmd        `cmd:"" help:"List linked hubs."`
		Maintenance HubMaintenanceCmd `cmd:"" help:"Keep new devices from a hub, or drain it."`
		Remove      HubRemoveCmd      `cmd:"" help:"Unlink a hub that has no devices any more."`
	} `cmd:"" help:"Hubs that devices can be assigned to."`
	Registration struct {
		Show RegistrationShowCmd `cmd:"" help:"Show a registration, and what each hub knows of it."`
	} `cmd:"" help:"Devices at the provisioning service."`
	WebhookKey WebhookKeyCmd `cmd:"" name:"webhook-key" help:"Show the key with which calls of an allocation webhook are signed."`
}

// ProvisioningService is what every verb has that calls a provisioning service.
type ProvisioningService struct {
	Operator
	File string `name:"service-connection-string-file" help:"File with the provisioning service's connection string; default: this installation's own." placeholder:"FILE" type:"existingfile"`
}

// service is a client of the provisioning service's own API.
func (p *ProvisioningService) service(ctx context.Context, out *cli.Out) (*dps.Service, error) {
	a, cc, err := p.client()
	if err != nil {
		return nil, err
	}
	if p.File != "" {
		cs, err := connectionString(out, p.File)
		if err != nil {
			return nil, err
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM([]byte(cc.Anchors))
		return &dps.Service{HTTP: &http.Client{Timeout: time.Minute, Transport: trustBoth(roots)}, Conn: cs}, nil
	}
	var k admin.ServiceKey
	if err := a.Call(ctx, http.MethodGet, "/service-key/dps", nil, &k); err != nil {
		return nil, err
	}
	cs, err := sas.ParseConnectionString(k.ConnectionString)
	if err != nil {
		return nil, err
	}
	return &dps.Service{HTTP: a.HTTP, Conn: cs}, nil
}

// HubSettings are what can be said of a linked hub when it is linked and later.
type HubSettings struct {
	Region     string         `help:"Region where the hub is, for allocation by latency." placeholder:"REGION"`
	Latency    map[string]int `help:"Milliseconds from a device's region, for example us=95; repeat it for each." placeholder:"REGION=MS"`
	Weight     *int           `help:"Share among devices that are spread by hash; default 1, 0 takes none." placeholder:"N"`
	Connection string         `name:"connection-string-file" help:"File with the hub's connection string (cradle, azure)." placeholder:"FILE" type:"existingfile"`
	User       string         `help:"The broker administrator's user name (mqtt)." default:"admin"`
	Password   string         `name:"password-file" help:"File with the broker administrator's password (mqtt)." placeholder:"FILE" type:"existingfile"`
	Anchors    string         `help:"File with the CA certificates that the hub's own must chain to; default: the system's." placeholder:"FILE" type:"existingfile"`
}

func (h *HubSettings) apply(out *cli.Out, l *dps.LinkedHub) error {
	l.Region = cmp.Or(h.Region, l.Region)
	if len(h.Latency) > 0 {
		l.Latency = h.Latency
	}
	if h.Weight != nil {
		l.Weight = *h.Weight
	}
	if h.Anchors != "" {
		b, err := os.ReadFile(h.Anchors)
		if err != nil {
			return err
		}
		l.Anchors = string(b)
	}
	switch {
	case h.Connection != "" && l.Kind == "mqtt" || h.Password != "" && l.Kind != "mqtt":
		return cli.Usagef("hubs of kind %s have a connection string, brokers a password", l.Kind)
	case h.Connection != "":
		b, err := secretFile(out, h.Connection)
		if err != nil {
			return err
		}
		l.Secret = strings.TrimSpace(string(b))
	case h.Password != "":
		b, err := secretFile(out, h.Password)
		if err != nil {
			return err
		}
		l.Secret = h.User + ":" + strings.TrimRight(string(b), "\r\n")
	}
	return nil
}

// HubAddCmd links a hub.
type HubAddCmd struct {
	ProvisioningService
	HubSettings
	Name    string `arg:"" help:"Name of the link: a-z, 0-9, '-' and '.'."`
	Kind    string `help:"cradle, azure or mqtt." default:"cradle" enum:"cradle,azure,mqtt"`
	Host    string `help:"Host or host:port that devices are told; default: the connection string's." placeholder:"HOST[:PORT]"`
	Control string `help:"host:port of the broker's listener for its administrator (mqtt)." placeholder:"HOST:PORT"`
}

// Run implements the verb.
func (c *HubAddCmd) Run(ctx context.Context, out *cli.Out) error {
	l := dps.LinkedHub{Name: c.Name, Kind: c.Kind, Host: strings.ToLower(c.Host), Control: c.Control, Weight: 1}
	if err := c.apply(out, &l); err != nil {
		return err
	}
	if l.Secret == "" {
		return cli.Usagef("give --connection-string-file, or for a broker --password-file")
	}
	if l.Kind != "mqtt" {
		cs, err := sas.ParseConnectionString(l.Secret)
		if err != nil {
			return err
		}
		l.Host = cmp.Or(l.Host, strings.ToLower(cs.HostName))
	} else if l.Host == "" || l.Control == "" {
		return cli.Usagef("a broker needs --host and --control")
	}
	return c.put(ctx, out, l, "")
}

func (p *ProvisioningService) put(ctx context.Context, out *cli.Out, l dps.LinkedHub, etag string) error {
	s, err := p.service(ctx, out)
	if err != nil {
		return err
	}
	stored, err := s.PutLinkedHub(ctx, l, etag)
	if err != nil {
		return err
	}
	return out.Print(stored, func(w io.Writer) {
		fmt.Fprintf(w, "hub %s (%s, %s) is linked, weight %d, %s\n", stored.Name, stored.Kind, stored.Host, stored.Weight, stored.State)
	})
}

// present reads a link to be changed.
func (p *ProvisioningService) present(ctx context.Context, out *cli.Out, name string) (*dps.LinkedHub, error) {
	s, err := p.service(ctx, out)
	if err != nil {
		return nil, err
	}
	all, err := s.LinkedHubs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if strings.EqualFold(all[i].Name, name) {
			return &all[i], nil
		}
	}
	return nil, cradle.Errorf(cradle.NotFound, "hub %q is not linked", name).WithHint("cradle provisioning hub list shows what is")
}

// HubSetCmd changes a link.
type HubSetCmd struct {
	ProvisioningService
	HubSettings
	Name string `arg:"" help:"Name of the link."`
}

// Run implements the verb.
func (c *HubSetCmd) Run(ctx context.Context, out *cli.Out) error {
	if c.Region == "" && len(c.Latency) == 0 && c.Weight == nil && c.Connection == "" && c.Password == "" && c.Anchors == "" {
		return cli.Usagef("say what is to change: --region, --latency, --weight, --anchors, --connection-string-file or --password-file")
	}
	l, err := c.present(ctx, out, c.Name)
	if err != nil {
		return err
	}
	if err := c.apply(out, l); err != nil {
		return err
	}
	return c.put(ctx, out, *l, cmp.Or(l.ETag, "*"))
}

// HubListCmd lists links.
type HubListCmd struct{ ProvisioningService }

// Run implements the verb.
func (c *HubListCmd) Run(ctx context.Context, out *cli.Out) error {
	s, err := c.service(ctx, out)
	if err != nil {
		return err
	}
	all, err := s.LinkedHubs(ctx)
	if err != nil {
		return err
	}
	return printRows(out, all, []string{"hub", "kind", "host", "region", "weight", "state", "waiting", "trouble"}, func(l *dps.LinkedHub) []string {
		return []string{l.Name, l.Kind, l.Host, l.Region, strconv.Itoa(l.Weight), l.State, strconv.Itoa(l.Waiting), l.Trouble}
	})
}

// HubMaintenanceCmd keeps devices from a hub.
type HubMaintenanceCmd struct {
	ProvisioningService
	Name  string `arg:"" help:"Name of the link."`
	On    bool   `help:"Assign no further devices to it." xor:"state"`
	Off   bool   `help:"Assign devices to it again." xor:"state"`
	Drain bool   `help:"With --on: devices that it has move to another hub when they register again, if their enrolment lets them."`
}

// Run implements the verb.
func (c *HubMaintenanceCmd) Run(ctx context.Context, out *cli.Out) error {
	if c.On == c.Off || c.Drain && c.Off {
		return cli.Usagef("say --on, --on --drain, or --off")
	}
	l, err := c.present(ctx, out, c.Name)
	if err != nil {
		return err
	}
	switch l.State = "open"; {
	case c.Drain:
		l.State = "draining"
	case c.On:
		l.State = "maintenance"
	}
	return c.put(ctx, out, *l, cmp.Or(l.ETag, "*"))
}

// HubRemoveCmd unlinks a hub.
type HubRemoveCmd struct {
	ProvisioningService
	Name string `arg:"" help:"Name of the link."`
}

// Run implements the verb.
func (c *HubRemoveCmd) Run(ctx context.Context, out *cli.Out) error {
	s, err := c.service(ctx, out)
	if err != nil {
		return err
	}
	if err := s.DeleteLinkedHub(ctx, c.Name); err != nil {
		return err
	}
	return out.Print(map[string]string{"removed": c.Name}, func(w io.Writer) { fmt.Fprintf(w, "hub %s is linked no more\n", c.Name) })
}

// RegistrationShowCmd shows a registration.
type RegistrationShowCmd struct {
	ProvisioningService
	ID string `arg:"" help:"Registration id."`
}

// Run implements the verb.
func (c *RegistrationShowCmd) Run(ctx context.Context, out *cli.Out) error {
	s, err := c.service(ctx, out)
	if err != nil {
		return err
	}
	r, err := s.Registration(ctx, c.ID)
	if err != nil {
		return err
	}
	ds, err := s.Destinations(ctx, c.ID)
	if err != nil {
		return err
	}
	type destination struct {
		Hub      string    `json:"hub"`
		Kind     string    `json:"kind"`
		Host     string    `json:"host"`
		Wants    string    `json:"wants"`
		State    string    `json:"state"`
		Since    time.Time `json:"since"`
		Attempts int       `json:"attempts"`
		Reason   string    `json:"reason,omitempty"`
	}
	shown := struct {
		ID           string        `json:"id"`
		Status       dps.Status    `json:"status"`
		Substatus    string        `json:"substatus,omitempty"`
		AssignedHub  string        `json:"assigned_hub,omitempty"`
		DeviceID     string        `json:"device_id,omitempty"`
		Error        string        `json:"error,omitempty"`
		Created      time.Time     `json:"created"`
		Updated      time.Time     `json:"updated"`
		Destinations []destination `json:"destinations"`
	}{r.RegistrationID, r.Status, r.Substatus, r.AssignedHub, r.DeviceID, r.ErrorMessage, r.CreatedDateTimeUTC.Time, r.LastUpdatedDateTimeUTC.Time, []destination{}}
	for _, d := range ds {
		shown.Destinations = append(shown.Destinations, destination{d.Hub, d.Kind, d.Host, d.Wants, d.State, d.Since.Time, d.Attempts, d.Reason})
	}
	return out.Print(shown, func(w io.Writer) {
		cli.Fields(w, "registration", shown.ID, "status", string(shown.Status), "substatus", shown.Substatus, "hub", shown.AssignedHub, "device", shown.DeviceID,
			"error", shown.Error, "created", when(shown.Created), "changed", when(shown.Updated))
		var rows [][]string
		for _, d := range shown.Destinations {
			rows = append(rows, []string{cmp.Or(d.Hub, "(webhook)"), d.Kind, d.Wants, d.State, when(d.Since), strconv.Itoa(d.Attempts), d.Reason})
		}
		cli.Table(w, []string{"hub", "kind", "wants", "state", "since", "failed", "reason"}, rows)
	})
}

// WebhookKeyCmd shows a webhook's key.
type WebhookKeyCmd struct {
	ProvisioningService
	URL string `arg:"" help:"The webhook's URL, exactly as in the enrolment."`
}

// Run implements the verb.
func (c *WebhookKeyCmd) Run(ctx context.Context, out *cli.Out) error {
	s, err := c.service(ctx, out)
	if err != nil {
		return err
	}
	key, err := s.WebhookKey(ctx, c.URL)
	if err != nil {
		return err
	}
	return out.Print(map[string]string{"url": c.URL, "key": base64.StdEncoding.EncodeToString(key)}, func(w io.Writer) {
		fmt.Fprintln(w, base64.StdEncoding.EncodeToString(key))
	})
}
