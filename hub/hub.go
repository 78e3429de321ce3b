package hub

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Status is what the hubs need to know of the provider's status feed; protocol/status.Follower has it.
type Status interface {
	// Blocked reports whether the device may not work, and its state.
	Blocked(cradle.AccountID, cradle.DeviceID) (cradle.DeviceState, bool)
	// CertBlocked reports whether one certificate, by SHA-256 of its DER, may not be used.
	CertBlocked([32]byte) bool
	// Fresh reports whether the knowledge is young enough to admit anybody.
	Fresh(now time.Time) bool
}

// Config of the hubs.
type Config struct {
	Store  Store
	Status Status           // nil: no feed is followed; only for hubs whose devices have foreign certificates
	Now    func() time.Time // nil means time.Now
	Log    *slog.Logger     // nil means slog.Default()
	Issuer Issuer           // nil: certificates are not renewed here
}

// Hub is all hubs of one installation, as one process sees them. Its methods are safe for concurrent use.
type Hub struct {
	store  Store
	status Status
	now    func() time.Time
	log    *slog.Logger
	issuer Issuer

	sessions table
	locks    keyLocks      // of a device's twin and kept session, so that it hears of changes in their order
	rid      atomic.Uint64 // the last method call's id
	news     news
	talk     talk
	// otherNames: a device came with a certificate that has another name than it has in the registry.
	otherNames atomic.Bool

	mu       sync.Mutex
	policies map[Name]cachedPolicies
	notices  map[Name]cachedNotices
	intakes  map[Name]*intake
	counts   map[Name]*counted
	trims    map[Name]Trimmed // since the start

	counting chan struct{} // holds one of maxCounting places
	names    map[Name]bool // known hubs; hubs are never removed
	namesAt  time.Time     // when names was read
	cas      map[Name]cachedCAs
	casRead  int // grows when CAs change
}

// New makes it; nothing is started.
func New(c Config) *Hub {
	h := &Hub{store: c.Store, status: c.Status, now: c.Now, log: cmp.Or(c.Log, slog.Default()), issuer: c.Issuer,
		policies: map[Name]cachedPolicies{}, notices: map[Name]cachedNotices{}, intakes: map[Name]*intake{}, cas: map[Name]cachedCAs{}, counts: map[Name]*counted{}, trims: map[Name]Trimmed{}, counting: make(chan struct{}, maxCounting)}
	if h.now == nil {
		h.now = time.Now
	}
	h.talk.self = crand.Text()
	h.sessions.init(func(s *Session) { h.connection(s.key, false) })
	h.rid.Store(rand.Uint64() >> 16) // a late answer to a call before a restart meets none
	return h
}

// Create makes a hub with fresh keys; Conflict when it exists.
func (h *Hub) Create(ctx context.Context, name Name) error {
	if err := cradle.CheckID("hub", string(name)); err != nil {
		return err
	}
	var ps []Policy
	for _, p := range builtin {
		p.Primary, p.Secondary = sas.NewKey(), sas.NewKey()
		ps = append(ps, p)
	}
	return h.store.CreateHub(ctx, name, ps, h.now())
}

// Ensure makes the hub unless it exists.
func (h *Hub) Ensure(ctx context.Context, name Name) error {
	err := h.Create(ctx, name)
	if cradle.KindOf(err) == cradle.Conflict {
		return nil
	}
	return err
}

// Names lists the hubs in order.
func (h *Hub) Names(ctx context.Context) ([]Name, error) { return h.store.Hubs(ctx) }

// Resolve finds the hub that a host name means: the hub whose name is the whole host name or its first
// label, port aside; else the given default. A hub made by another process is known within policyAge.
func (h *Hub) Resolve(ctx context.Context, host string, def Name) (Name, error) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(host)
	label, _, _ := strings.Cut(host, ".")
	h.mu.Lock()
	names, age := h.names, h.now().Sub(h.namesAt).Abs()
	h.mu.Unlock()
	if names == nil || age >= policyAge && !names[Name(host)] && !names[Name(label)] {
		list, err := h.store.Hubs(ctx)
		if err != nil {
			return "", h.storeError("listing hubs", err)
		}
		names = map[Name]bool{}
		for _, n := range list {
			names[n] = true
		}
		h.mu.Lock()
		h.names, h.namesAt = names, h.now()
		h.mu.Unlock()
	}
	switch {
	case names[Name(host)]:
		return Name(host), nil
	case names[Name(label)]:
		return Name(label), nil
	}
	return def, nil
}

// ConnectionString returns the connection string of a policy; host is where the hub's REST API is reached.
func (h *Hub) ConnectionString(ctx context.Context, name Name, host, policy string) (*sas.ConnectionString, error) {
	ps, err := h.store.Policies(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		if p.Name == policy {
			return &sas.ConnectionString{HostName: host, KeyName: p.Name, Key: p.Primary}, nil
		}
	}
	return nil, cradle.Errorf(cradle.NotFound, "hub %s has no policy %q", name, policy)
}

// policyAge is how long this process believes what it read of a hub's keys.
const policyAge = 5 * time.Second

type cachedPolicies struct {
	at   time.Time
	list []Policy
}

// Authorize checks the SAS token of a request for a resource of the hub: "<host>/<path>" for any of the
// names by which the hub may be known. Errors are Unauthorized or Forbidden; NotFound when there is no
// such hub.
func (h *Hub) Authorize(ctx context.Context, name Name, token string, need Rights, hosts []string, path string) error {
	t, err := sas.Parse(token)
	if err != nil {
		return err
	}
	ps, err := h.knownPolicies(ctx, name)
	if err != nil {
		return err
	}
	covered := false
	for _, host := range hosts {
		covered = covered || t.Covers(host+path)
	}
	if !covered {
		return cradle.Errorf(cradle.Unauthorized, "SAS token is for %.200q, not for %s%s", t.Resource, hosts[0], path)
	}
	for _, p := range ps {
		if p.Name != t.KeyName {
			continue
		}
		err := t.Verify(p.Primary, h.now())
		if err != nil {
			if err2 := t.Verify(p.Secondary, h.now()); err2 != nil {
				return err
			}
		}
		if p.Rights&need != need {
			return cradle.Errorf(cradle.Forbidden, "policy %q of hub %s does not allow this", p.Name, name).
				WithHint("policy %q allows everything", Owner)
		}
		return nil
	}
	return cradle.Errorf(cradle.Unauthorized, "hub %s has no policy %.100q", name, t.KeyName)
}

func (h *Hub) knownPolicies(ctx context.Context, name Name) ([]Policy, error) {
	h.mu.Lock()
	c, ok := h.policies[name]
	h.mu.Unlock()
	if ok && h.now().Sub(c.at).Abs() < policyAge {
		return c.list, nil
	}
	ps, err := h.store.Policies(ctx, name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.policies[name] = cachedPolicies{h.now(), ps}
	h.mu.Unlock()
	return ps, nil
}

// storeError gives errors of the store without a kind the kind Busy: to a device or a caller they mean
// "not now", and their text stays here.
func (h *Hub) storeError(what string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if k := cradle.KindOf(err); k != cradle.Internal && k != cradle.Busy {
		return err
	}
	h.log.Error("hub store", "doing", what, "err", err)
	return &cradle.Error{Kind: cradle.Busy, Detail: "the hub's store does not answer", Hint: "try again later", Err: err}
}
