// Package provisioning tells devices where they belong: it holds individual enrolments and enrolment groups
// (who is believed, and how), registrations (which device was assigned to which hub) and the rule by
// which a device gets its hub. It knows no wire protocol; dpsserver speaks Azure's.
//
// A device proves itself by a certificate, a SAS token under a symmetric key, or its TPM (Authenticate; the
// decision itself is a pure function, pending.decide). Its individual enrolment decides alone; without one a
// group must admit it. The registration and the order to tell the hub are committed in
// one transaction; a worker (Run) then brings the hub's device registry in line, again and again until
// it has worked, so a hub that is down means "assigning" and a crash at any step is repeated, not lost.
// Several replicas share one store: deliveries are leased.
//
// The two-slot rule (DESIGN §4.7): registering only ever adds the next certificate's thumbprint to the
// hub's entry. Promotion is the hub's act, when the device has shown the key.
//
// A status feed blocks devices: checked on each request, persisted as a disabled registration, and
// carried to the hub's registry by the same outbox.
//
// A TPM group admits the units that the credential provider made under an order, by their endorsement keys; a
// unit whose lot is not accepted yet is registered and waits (Caller.Waits).
package provisioning

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/peerauth"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// Hub is a linked hub.
type Hub struct {
	Name    string // lower case; stored with registrations; never rename a hub in use
	Host    string // what devices are told: host, or host:port
	Region  string
	Latency map[string]int // see Link
	Weight  int            // share among hashed devices; in Config 0 means 1
	State   allocate.State

	Registry HubRegistry
	Twins    Twins // nil: it keeps none

	link Link
}

// Config of a Service. Store and at least one hub are needed; the rest has defaults.
type Config struct {
	Store Store
	// Hubs of this installation. What an operator sets of them (weight, region, maintenance) is stored and wins.
	Hubs []Hub
	// Open makes what a hub is spoken to by of the link that an operator stored; it does not call the hub. An error is
	// Invalid. Nil: no hubs can be linked beside Hubs.
	Open    func(Link) (Destination, error)
	Webhook Webhook          // nil: custom allocation is by expressions only
	Feed    Feed             // nil: no status feed is followed, no device is ever blocked
	Units   UnitSource       // nil: there are no TPM groups
	Owners  Owners           // nil: accounts, their orders and credential policies are believed to exist
	Issuer  Issuer           // nil: no certificates are issued for CSRs
	Now     func() time.Time // nil: the real clock
	Log     *slog.Logger     // nil: slog.Default()
	Lease   time.Duration    // how long a replica may take over a delivery before another one does; default 10 s, at least 1 s
	// Replica is a name that this process keeps over restarts and shares with no other one that runs.
	// With it a process that died takes up its own deliveries at once, and not when its leases have
	// ended. Empty: a random name.
	Replica string
}

// Service is the provisioning service. Its methods are safe for concurrent use.
type Service struct {
	store    Store
	builtin  []Hub // as configured
	open     func(Link) (Destination, error)
	webhook  Webhook
	linking  sync.Mutex // one reload at a time
	table    atomic.Pointer[hubTable]
	feed     Feed
	units    UnitSource
	owners   Owners
	issuer   Issuer
	now      func() time.Time
	log      *slog.Logger
	identity Identity

	expressions expressions

	groups  groupCache
	outbox  *outbox
	waiters waiters
	news    blockQueue
}

// New opens the service: it reads the installation's identity (the first start makes one) and the
// groups. Nothing runs until Run.
func New(ctx context.Context, c Config) (*Service, error) {
	if c.Store == nil || len(c.Hubs) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "provisioning needs a store and at least one hub")
	}
	s := &Service{store: c.Store, open: c.Open, webhook: c.Webhook, feed: c.Feed, units: c.Units, owners: c.Owners, issuer: c.Issuer, now: c.Now, log: c.Log}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	for i, h := range c.Hubs {
		if !linkName.MatchString(h.Name) || h.Host == "" || h.Registry == nil || slices.ContainsFunc(s.builtin, func(b Hub) bool { return b.Name == h.Name }) {
			return nil, cradle.Errorf(cradle.Invalid, "hub %d needs a name of its own, a host and a registry", i+1)
		}
		h.Weight = cmp.Or(h.Weight, 1)
		s.builtin = append(s.builtin, h)
	}
	s.groups.pool = peerauth.NewPool[*issuer](0)
	var scope [4]byte
	rand.Read(scope[:])
	fresh := Identity{IDScope: "0ne" + hex.EncodeToString(scope[:]), ServiceKey: sas.NewKey(), Created: s.time()}
	var err error
	if s.identity, err = s.store.Identity(ctx, fresh); err != nil {
		return nil, fmt.Errorf("reading the provisioning service's identity: %w", err)
	}
	if err := s.reloadLinks(ctx); err != nil {
		return nil, err
	}
	if err := s.reloadGroups(ctx, nil); err != nil {
		return nil, err
	}
	s.outbox = newOutbox(s, c.Replica, c.Lease)
	if c.Replica != "" {
		if err := s.store.Release(ctx, c.Replica); err != nil {
			return nil, fmt.Errorf("taking up deliveries of the last run: %w", err)
		}
	}
	return s, nil
}

// Identity of this installation.
func (s *Service) Identity() Identity { return s.identity }

// Hubs that are linked.
func (s *Service) Hubs() []Hub {
	order := s.table.Load().order
	out := make([]Hub, len(order))
	for i, h := range order {
		out[i] = *h
	}
	return out
}

// HubHost returns what devices are told of a hub; empty when it is not linked.
func (s *Service) HubHost(name string) string {
	if h := s.hub(name); h != nil {
		return h.Host
	}
	return ""
}

// Run delivers what the outbox holds, carries out what the status feed says, and keeps the groups
// current, until ctx ends. What was open is continued by the next Run.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.outbox.run(ctx) })
	wg.Go(func() { s.followFeed(ctx) })
	wg.Go(func() { every(ctx, groupRefresh, func() { s.refreshGroups(ctx) }) })
	wg.Go(func() { every(ctx, linkRefresh, func() { s.refreshLinks(ctx) }) })
	wg.Wait()
	return nil
}

// Pending counts deliveries that wait for a hub.
func (s *Service) Pending(ctx context.Context) (int, error) { return s.store.Pending(ctx) }

func every(ctx context.Context, d time.Duration, f func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f()
		}
	}
}

// time is now in the precision that stores keep.
func (s *Service) time() time.Time { return s.now().UTC().Truncate(time.Microsecond) }
