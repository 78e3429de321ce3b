package provisioning_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// world is a provisioning service with a hub, a feed and one registered CA.
type world struct {
	t    *testing.T
	url  string
	hub  *provisioningtest.Hub
	feed *provisioningtest.Feed
	ca   *provisioningtest.CA
}

func newWorld(t *testing.T, url string) *world {
	return &world{t, url, provisioningtest.NewHub(t), provisioningtest.NewFeed(), provisioningtest.NewCA(t, "acme", "acme operational")}
}

// replica is one process of the service.
type replica struct {
	*provisioning.Service
	t     *testing.T
	store *provisioningdb.DB
	stop  func()
	once  sync.Once
}

// start opens a replica; run says whether its worker runs.
func (w *world) start(run bool, change func(*provisioning.Config)) *replica {
	w.t.Helper()
	store, err := provisioningdb.Open(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	c := provisioning.Config{Store: store, Feed: w.feed, Hubs: []provisioning.Hub{{Name: "hub-1", Host: "localhost:8443", Registry: w.hub}}, Lease: time.Second}
	if change != nil {
		change(&c)
	}
	svc, err := provisioning.New(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	r := &replica{Service: svc, t: w.t, store: store}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if run {
			svc.Run(ctx)
		}
	}()
	r.stop = func() {
		r.once.Do(func() {
			cancel()
			<-done
			store.Close()
		})
	}
	w.t.Cleanup(r.stop)
	return r
}

func (w *world) enrol(r *replica) {
	w.t.Helper()
	if _, err := r.PutGroup(w.t.Context(), provisioning.GroupRequest{ID: "acme-devices", Attestation: provisioning.SignedBy(w.ca.Cert, nil), Terms: provisioning.Terms{Enabled: true}}); err != nil {
		w.t.Fatal(err)
	}
}

// shown are a device's credentials when it connects with one certificate.
func shown(id string, leaf *x509.Certificate) provisioning.Credentials {
	c := provisioning.Credentials{RegistrationID: id}
	if leaf != nil {
		c.Chain = []*x509.Certificate{leaf}
	}
	return c
}

func (r *replica) register(id string, leaf *x509.Certificate) (provisioning.Registration, *provisioning.Caller, error) {
	c, err := r.Authenticate(r.t.Context(), shown(id, leaf))
	if err != nil {
		return provisioning.Registration{}, nil, err
	}
	reg, err := r.Register(r.t.Context(), c, provisioning.Ask{})
	return reg, c, err
}

// arrive registers and waits for the decision.
func (r *replica) arrive(id string, leaf *x509.Certificate) provisioning.Registration {
	r.t.Helper()
	reg, c, err := r.register(id, leaf)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.await(c, reg.Operation)
}

func (r *replica) await(c *provisioning.Caller, op string) provisioning.Registration {
	r.t.Helper()
	for range 600 {
		reg, err := r.Operation(r.t.Context(), c, op, 100*time.Millisecond)
		if err != nil {
			r.t.Fatal(err)
		}
		if reg.Status != provisioning.Assigning {
			return reg
		}
		time.Sleep(20 * time.Millisecond) // while the hub is in trouble polls are not held
	}
	r.t.Fatal("registration is still assigning after a minute")
	panic("unreachable")
}

func print(c tls.Certificate) string {
	return provisioning.Thumbprint(sha256.Sum256(c.Leaf.Raw)).String()
}

func slots(d *iothub.Device) [2]string {
	x := d.Authentication.X509Thumbprint
	return [2]string{x.PrimaryThumbprint, x.SecondaryThumbprint}
}
