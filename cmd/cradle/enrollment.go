package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// provisioningService is the client of this installation's service API, with the key that the admin API gives out.
func (o *Operator) provisioningService(ctx context.Context) (*dps.Service, error) {
	a, _, err := o.client()
	if err != nil {
		return nil, err
	}
	cs, err := o.ownerOf(ctx, a, "dps")
	if err != nil {
		return nil, err
	}
	return &dps.Service{HTTP: a.HTTP, Conn: cs}, nil
}

func (o *Operator) ownerOf(ctx context.Context, a *admin.Client, service string) (*sas.ConnectionString, error) {
	var k admin.ServiceKey
	if err := a.Call(ctx, http.MethodGet, "/service-key/"+service, nil, &k); err != nil {
		return nil, err
	}
	return sas.ParseConnectionString(k.ConnectionString)
}

// EnrollmentListCmd lists individual enrolments.
type EnrollmentListCmd struct{ Operator }

// Run implements the verb.
func (c *EnrollmentListCmd) Run(ctx context.Context, out *cli.Out) error {
	svc, err := c.provisioningService(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for next := ""; ; {
		var es []dps.Enrollment
		if es, next, err = svc.Enrollments(ctx, next); err != nil {
			return err
		}
		for i := range es {
			e := &es[i]
			if out.JSON {
				if err := out.Print(flat(e), nil); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{e.RegistrationID, e.DeviceID, e.Attestation.Type, e.ProvisioningStatus, e.AllocationPolicy, when(e.CreatedDateTimeUTC.Time)})
		}
		if next == "" {
			break
		}
	}
	if out.JSON {
		return nil
	}
	return out.Print(nil, func(w io.Writer) {
		cli.Table(w, []string{"registration", "device", "attestation", "status", "allocation", "created"}, rows)
	})
}

// enrollmentRow is an enrolment as the verbs print it.
type enrollmentRow struct {
	RegistrationID string    `json:"registration_id"`
	DeviceID       string    `json:"device_id,omitempty"`
	Attestation    string    `json:"attestation"`
	Status         string    `json:"status"`
	Allocation     string    `json:"allocation,omitempty"`
	Hubs           []string  `json:"hubs,omitempty"`
	Account        string    `json:"account,omitempty"`
	Created        time.Time `json:"created"`
	Updated        time.Time `json:"updated"`
	ETag           string    `json:"etag"`
	Registration   string    `json:"registration,omitempty"` // where its registration is
	Hub            string    `json:"hub,omitempty"`          // that was assigned
}

func flat(e *dps.Enrollment) *enrollmentRow {
	r := &enrollmentRow{RegistrationID: e.RegistrationID, DeviceID: e.DeviceID, Attestation: e.Attestation.Type, Status: e.ProvisioningStatus,
		Allocation: e.AllocationPolicy, Hubs: e.IotHubs, Account: e.Account, Created: e.CreatedDateTimeUTC.Time, Updated: e.LastUpdatedDateTimeUTC.Time, ETag: e.ETag}
	if s := e.RegistrationState; s != nil {
		r.Registration, r.Hub = string(s.Status), s.AssignedHub
	}
	return r
}

// EnrollmentShowCmd shows an individual enrolment.
type EnrollmentShowCmd struct {
	Operator
	ID string `arg:"" help:"Registration id."`
}

// Run implements the verb.
func (c *EnrollmentShowCmd) Run(ctx context.Context, out *cli.Out) error {
	svc, err := c.provisioningService(ctx)
	if err != nil {
		return err
	}
	e, err := svc.Enrollment(ctx, c.ID)
	if err != nil {
		return err
	}
	r := flat(e)
	return out.Print(r, func(w io.Writer) {
		cli.Fields(w, "registration", r.RegistrationID, "device", r.DeviceID, "attestation", r.Attestation, "status", r.Status, "allocation", r.Allocation,
			"account", r.Account, "created", when(r.Created), "updated", when(r.Updated), "etag", r.ETag, "registered", r.Registration, "hub", r.Hub)
	})
}

// EnrollmentDeleteCmd deletes an individual enrolment.
type EnrollmentDeleteCmd struct {
	Operator
	ID   string `arg:"" help:"Registration id."`
	ETag string `name:"etag" help:"Only this version." placeholder:"ETAG"`
}

// Run implements the verb.
func (c *EnrollmentDeleteCmd) Run(ctx context.Context, out *cli.Out) error {
	svc, err := c.provisioningService(ctx)
	if err != nil {
		return err
	}
	if err := svc.DeleteEnrollment(ctx, c.ID, c.ETag); err != nil {
		return err
	}
	return out.Print(map[string]string{"registration_id": c.ID}, func(w io.Writer) {
		fmt.Fprintf(w, "individual enrolment %s is deleted; its registration and its entry at the hub stay\n", c.ID)
	})
}

// EnrollmentUnitsCmd makes a group of the units of an order.
type EnrollmentUnitsCmd struct {
	Operator
	ID      string   `arg:"" help:"Id of the group."`
	Account string   `help:"Account whose units they are." required:""`
	Order   string   `help:"Every unit of this order, as soon as its lot is accepted." placeholder:"ID"`
	Lot     []string `help:"Only units of these lots." placeholder:"ID"`
	Disable bool     `help:"Make it, or leave it, disabled."`
}

// Run implements the verb.
func (c *EnrollmentUnitsCmd) Run(ctx context.Context, out *cli.Out) error {
	if c.Order == "" && len(c.Lot) == 0 {
		return cli.Usagef("give --order, or --lot")
	}
	svc, err := c.provisioningService(ctx)
	if err != nil {
		return err
	}
	g := dps.EnrollmentGroup{EnrollmentGroupID: c.ID, Attestation: dps.Attestation{Type: "tpm", TPMUnits: &dps.TPMUnits{Account: c.Account, Order: c.Order, Lots: c.Lot}}}
	switch present, err := svc.Group(ctx, c.ID); {
	case err == nil:
		if err := holdsUnits(present, c.Account); err != nil {
			return err
		}
		g.Terms = present.Terms
	case cradle.KindOf(err) != cradle.NotFound:
		return err
	}
	g.ProvisioningStatus = "enabled"
	if c.Disable {
		g.ProvisioningStatus = "disabled"
	}
	stored, err := svc.PutGroup(ctx, g)
	if err != nil {
		return err
	}
	return out.Print(map[string]any{"group": stored.EnrollmentGroupID, "account": c.Account, "order": c.Order, "lots": c.Lot, "status": stored.ProvisioningStatus, "etag": stored.ETag}, func(w io.Writer) {
		var of []string
		if c.Order != "" {
			of = append(of, "order "+c.Order)
		}
		if len(c.Lot) > 0 {
			of = append(of, "lot "+strings.Join(c.Lot, ", "))
		}
		fmt.Fprintf(w, "enrolment group %s admits the units of %s of account %s by their TPMs (%s)\n", stored.EnrollmentGroupID, strings.Join(of, ", "), c.Account, stored.ProvisioningStatus)
	})
}

// holdsUnits refuses to make a group of units out of another one, whose keys or certificates would be lost.
func holdsUnits(g *dps.EnrollmentGroup, account string) error {
	if u := g.Attestation.TPMUnits; u == nil || u.Account != account {
		return cradle.Errorf(cradle.Conflict, "enrolment group %s is there already, and is not one of units of account %s", g.EnrollmentGroupID, account).
			WithHint("choose another id, or delete that group first")
	}
	return nil
}

// ServiceTokenCmd makes a bearer token for a service API.
type ServiceTokenCmd struct {
	Operator
	Service string        `help:"Which service." default:"dps" enum:"dps"`
	Rights  []string      `help:"What it allows: enrollmentRead, enrollmentWrite, registrationStatusRead, registrationStatusWrite, serviceConfig (everything). Writing includes reading." required:""`
	TTL     time.Duration `name:"ttl" help:"How long it lives; it cannot be withdrawn before. At most 2160h." default:"1h"`
	Name    string        `help:"Who or what it is for; appears in refusals." placeholder:"TEXT"`
	Out     string        `help:"Write it to this file (mode 0600) instead." placeholder:"FILE" type:"path"`
}

// Run implements the verb. The token is made here, with the key of the service's owner: it goes into requests as
// "Authorization: Bearer TOKEN".
func (c *ServiceTokenCmd) Run(ctx context.Context, out *cli.Out) error {
	a, _, err := c.client()
	if err != nil {
		return err
	}
	b := dps.Bearer{Name: c.Name}
	for _, s := range c.Rights {
		r, err := dps.ParseRight(s)
		if err != nil {
			return err
		}
		b.Rights = append(b.Rights, r)
	}
	cs, err := c.ownerOf(ctx, a, c.Service)
	if err != nil {
		return err
	}
	now := time.Now()
	b.Expiry = now.Add(c.TTL)
	token, err := b.Mint(cs.Key, now)
	if err != nil {
		return err
	}
	if c.Out != "" {
		if err := durable.WriteFile(c.Out, []byte(token+"\n"), 0o600); err != nil {
			return err
		}
		return out.Print(map[string]any{"file": c.Out, "rights": b.Rights, "expiry": b.Expiry.UTC().Truncate(time.Second)}, func(w io.Writer) { fmt.Fprintf(w, "wrote %s\n", c.Out) })
	}
	return out.Print(map[string]any{"token": token, "rights": b.Rights, "expiry": b.Expiry.UTC().Truncate(time.Second)}, func(w io.Writer) { fmt.Fprintln(w, token) })
}
