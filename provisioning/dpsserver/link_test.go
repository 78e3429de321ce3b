package dpsserver_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// linkedServer can link hubs: every one of them is far.
func linkedServer(t *testing.T) (s *server, far *provisioningtest.Hub) {
	far = provisioningtest.NewHub(t)
	return newServerWith(t, func(c *provisioning.Config) {
		c.Open = func(l provisioning.Link) (provisioning.Destination, error) {
			if l.Secret == "" {
				return provisioning.Destination{}, cradle.Errorf(cradle.Invalid, "no connection string")
			}
			return provisioning.Destination{Registry: far, Twins: far}, nil
		}
	}, nil), far
}

// A hub's life with the service: linked, weighted, drained, removed. Its secret is never shown.
func TestLinkedHubs(t *testing.T) {
	s, far := linkedServer(t)
	svc, ctx := s.service(), t.Context()
	s.enrol()
	l, err := svc.PutLinkedHub(ctx, dps.LinkedHub{Name: "far", Kind: "azure", Host: "far.example", Region: "eu", Latency: map[string]int{"us": 90}, Weight: 1, Secret: "s3cret"}, "")
	if err != nil || l.ETag == "" || l.Secret != "" {
		t.Fatalf("%+v %v", l, err)
	}
	if _, err := svc.PutLinkedHub(ctx, *l, ""); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("linked twice: %v", err)
	}
	// The built-in hub takes nobody: everybody goes far.
	if _, err := svc.PutLinkedHub(ctx, dps.LinkedHub{Name: "hub-1", Kind: "builtin", Host: "localhost:8443", Weight: 1, State: "maintenance"}, "*"); err != nil {
		t.Fatal(err)
	}
	leaf := s.ca.Leaf("dev-1", nil)
	c := &dps.Client{HTTP: s.client(leaf), Endpoint: s.http.URL, IDScope: s.svc.Identity().IDScope}
	if a, err := c.Register(ctx, "dev-1"); err != nil || a.Hub != "far.example" {
		t.Fatalf("%+v %v", a, err)
	}
	ds, err := svc.Destinations(ctx, "DEV-1")
	if err != nil || len(ds) != 1 || ds[0].Hub != "far" || ds[0].Kind != "azure" || ds[0].Wants != "assigned" || ds[0].State != "told" || ds[0].Since.IsZero() {
		t.Fatalf("%+v %v", ds, err)
	}

	// It is out of reach when the device is revoked: that is shown until it has been told.
	far.Fail(cradle.Errorf(cradle.Unauthorized, "hub answers 401: key is wrong"))
	s.feed.Set("acme", "dev-1", cradle.Revoked)
	s.svc.OnBlock("acme", "dev-1", cradle.Revoked)
	testenv.Eventually(t, "the failure is shown", func() bool {
		ds, err = svc.Destinations(ctx, "dev-1")
		return err == nil && len(ds) == 1 && ds[0].Wants == "disabled" && ds[0].State == "pending" && ds[0].Attempts > 0 && strings.Contains(ds[0].Reason, "401")
	})
	all, err := svc.LinkedHubs(ctx)
	if err != nil || len(all) != 2 || all[0].Name != "hub-1" || all[0].State != "maintenance" || all[1].State != "open" || all[1].Waiting != 1 || !strings.Contains(all[1].Trouble, "401") || all[1].Latency["us"] != 90 {
		t.Errorf("%+v %v", all, err)
	}
	if b, err := json.Marshal(all); err != nil || bytes.Contains(b, []byte("s3cret")) {
		t.Errorf("%s %v", b, err)
	}
	far.Fail(nil)
	testenv.Eventually(t, "the hub was told", func() bool {
		ds, err = svc.Destinations(ctx, "dev-1")
		return err == nil && ds[0].Wants == "disabled" && ds[0].State == "told" && far.Device("dev-1").Status == "disabled"
	})

	// Removal is refused while it is in use.
	if err := svc.DeleteLinkedHub(ctx, "far"); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), "still takes devices") {
		t.Errorf("open: %v", err)
	}
	if l.Weight = 2; l.State != "open" {
		t.Errorf("as it was linked: state %q", l.State)
	}
	if l, err = svc.PutLinkedHub(ctx, *l, l.ETag); err != nil || l.State != "open" { // what was read is written back
		t.Fatalf("%+v %v", l, err)
	}
	l.State, l.Weight = "draining", 3
	if l, err = svc.PutLinkedHub(ctx, *l, l.ETag); err != nil || l.Weight != 3 {
		t.Fatalf("%+v %v", l, err)
	}
	if err := svc.DeleteLinkedHub(ctx, "far"); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), "assigned") {
		t.Errorf("in use: %v", err)
	}
	if err := s.svc.DeleteRegistration(ctx, "dev-1", ""); err != nil {
		t.Fatal(err)
	}
	if err := svc.DeleteLinkedHub(ctx, "far"); err != nil {
		t.Error(err)
	}
	if err := svc.DeleteLinkedHub(ctx, "far"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	if err := svc.DeleteLinkedHub(ctx, "hub-1"); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("built in: %v", err)
	}
}

// No two hubs are known by one name, and what cannot be a hub is refused.
func TestLinkedHubsRefused(t *testing.T) {
	s, _ := linkedServer(t)
	svc, ctx := s.service(), t.Context()
	good := dps.LinkedHub{Name: "far", Kind: "azure", Host: "far.example", Weight: 1, Secret: "x"}
	if _, err := svc.PutLinkedHub(ctx, good, "*"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("a change of what is not linked: %v", err)
	}
	if _, err := svc.PutLinkedHub(ctx, good, ""); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*dps.LinkedHub)
		kind   cradle.Kind
	}{
		"another's name for a host": {func(l *dps.LinkedHub) { l.Host = "far" }, cradle.Conflict},
		"another's host":            {func(l *dps.LinkedHub) { l.Host = "far.example" }, cradle.Conflict},
		"another's host for a name": {func(l *dps.LinkedHub) { l.Name = "far.example" }, cradle.Conflict},
		"the built-in's host":       {func(l *dps.LinkedHub) { l.Name = "localhost" }, cradle.Conflict},
		"the built-in's name":       {func(l *dps.LinkedHub) { l.Name = "hub-1" }, cradle.Conflict},
		"upper case":                {func(l *dps.LinkedHub) { l.Host = "Other.example" }, cradle.Invalid},
		"no host":                   {func(l *dps.LinkedHub) { l.Host = "" }, cradle.Invalid},
		"a URL for a host":          {func(l *dps.LinkedHub) { l.Host = "https://h" }, cradle.Invalid},
		"credentials in a host":     {func(l *dps.LinkedHub) { l.Host = "u@h" }, cradle.Invalid},
		"a name of the outbox":      {func(l *dps.LinkedHub) { l.Name = "!webhook" }, cradle.Invalid},
		"no secret":                 {func(l *dps.LinkedHub) { l.Secret = "" }, cradle.Invalid},
		"weight":                    {func(l *dps.LinkedHub) { l.Weight = -1 }, cradle.Invalid},
		"state":                     {func(l *dps.LinkedHub) { l.State = "closed" }, cradle.Invalid},
		"region":                    {func(l *dps.LinkedHub) { l.Region = "E U" }, cradle.Invalid},
		"latency":                   {func(l *dps.LinkedHub) { l.Latency = map[string]int{"eu": -1} }, cradle.Invalid},
	} {
		l := good
		l.Name, l.Host = "other", "other.example"
		c.change(&l)
		if _, err := svc.PutLinkedHub(ctx, l, ""); cradle.KindOf(err) != c.kind {
			t.Errorf("%s: %v (%v), want %v", name, err, cradle.KindOf(err), c.kind)
		}
	}
	if _, err := svc.PutLinkedHub(ctx, good, "stale"); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("stale ETag: %v", err)
	}
	nobody := &dps.Service{HTTP: svc.HTTP, Conn: svc.Conn}
	conn := *svc.Conn
	conn.Key = []byte("wrong")
	nobody.Conn = &conn
	if _, err := nobody.LinkedHubs(ctx); cradle.KindOf(err) != cradle.Unauthorized {
		t.Errorf("without the key: %v", err)
	}
	key, err := svc.WebhookKey(ctx, "https://h/api")
	other, err2 := svc.WebhookKey(ctx, "https://h/api2")
	if err != nil || err2 != nil || len(key) != 32 || bytes.Equal(key, other) {
		t.Errorf("webhook keys %x %x, %v %v", key, other, err, err2)
	}
	if _, err := svc.WebhookKey(ctx, "http://h/"); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("webhook without TLS: %v", err)
	}
	if _, err := svc.Destinations(ctx, "nobody"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("no registration: %v", err)
	}
}
