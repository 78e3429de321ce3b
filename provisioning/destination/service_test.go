package destination_test

import (
	"context"
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/destination"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// From registration to revocation at a real broker: the device is told that it is assigned only when the broker lets it
// work, and is cut off there when its owner revokes it.
func TestMosquittoByTheService(t *testing.T) {
	m := startMosquitto(t)
	db, err := provisioningdb.Open(t.Context(), t.TempDir()+"/p.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	feed, own := provisioningtest.NewFeed(), provisioningtest.NewHub(t)
	svc, err := provisioning.New(t.Context(), provisioning.Config{Store: db, Feed: feed, Open: destination.Open, Log: slog.New(slog.DiscardHandler),
		Hubs: []provisioning.Hub{{Name: "hub-1", Host: "localhost:8443", Registry: own, Twins: own}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); svc.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	if _, err := svc.Link(t.Context(), m.link(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.PutGroup(t.Context(), provisioning.GroupRequest{ID: "floor", Attestation: provisioning.SignedBy(m.account.Cert, nil),
		Terms: provisioning.Terms{Enabled: true, Hubs: []string{m.devices}, InitialTwin: []byte(`{"tags":{"a":1}}`)}}); err != nil {
		t.Fatal(err)
	}
	leaf := m.account.Leaf("dev-1", nil)
	c, err := svc.Authenticate(t.Context(), provisioning.Credentials{RegistrationID: "dev-1", Chain: []*x509.Certificate{leaf.Leaf}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := svc.Register(t.Context(), c, provisioning.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "it is assigned", func() bool {
		r, err = svc.Operation(t.Context(), c, r.Operation, 50*time.Millisecond)
		return err == nil && r.Status == provisioning.Assigned
	})
	if svc.HubHost(r.Hub) != m.devices {
		t.Fatalf("assigned to %q", r.Hub)
	}
	dev, _, ended, err := m.connect(&leaf, "dev-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Subscribe(t.Context(), "devices/dev-1/messages/devicebound/#", 1); err != nil {
		t.Fatal(err)
	}
	feed.Set("acme", "dev-1", cradle.Revoked)
	svc.OnBlock("acme", "dev-1", cradle.Revoked)
	<-ended
	testenv.Eventually(t, "the broker's word is shown", func() bool {
		known, err := svc.Known(t.Context(), "dev-1")
		return err == nil && len(known) == 1 && known[0].Kind == provisioning.LinkMQTT && known[0].Wants == "disabled" && known[0].State == "told"
	})
	if dev, _, _, err = m.connect(&leaf, "dev-1"); err == nil && dev.Subscribe(t.Context(), "devices/dev-1/messages/devicebound/#", 1) == nil {
		t.Error("a revoked device may subscribe")
	}
}
