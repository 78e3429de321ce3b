package provisioning

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// HubRegistry is a hub's device registry; *iothub.Registry is one. Errors have the kinds that its
// comment gives: NotFound, Conflict (exists, or If-Match does not hold), Invalid; every other one is
// taken for passing trouble and tried again.
type HubRegistry interface {
	GetDevice(ctx context.Context, id cradle.DeviceID) (*iothub.Device, error)
	WriteDevice(ctx context.Context, d *iothub.Device, ifMatch string) error
	DeleteDevice(ctx context.Context, id cradle.DeviceID, ifMatch string) error
}

// Twins are a hub's twins as its REST API has them; *iothub.Registry is one.
type Twins interface {
	Twin(ctx context.Context, id cradle.DeviceID) (*iothub.Twin, error)
	PatchTwin(ctx context.Context, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error)
	ReplaceTwin(ctx context.Context, id cradle.DeviceID, p *iothub.TwinPatch, ifMatch string) (*iothub.Twin, error)
}

// Destination is what a linked hub is spoken to by.
type Destination struct {
	Registry HubRegistry
	Twins    Twins // nil: it keeps none, as a plain broker
}

// LinkKind is what stands behind a link.
type LinkKind string

// The kinds.
const (
	LinkBuiltin LinkKind = "builtin" // a hub of this installation, by Config.Hubs
	LinkCradle  LinkKind = "cradle"  // another Cradle hub
	LinkAzure   LinkKind = "azure"   // Azure IoT Hub
	LinkMQTT    LinkKind = "mqtt"    // a broker with mutual TLS and Mosquitto's dynamic security
)

// Link is a hub that devices can be assigned to, as an operator declared it.
type Link struct {
	Name    string         `json:"-"` // a-z, 0-9, '-' and '.'; stored with registrations
	Kind    LinkKind       `json:"kind"`
	Host    string         `json:"host"` // what devices are told: host, or host:port
	Region  string         `json:"region,omitempty"`
	Latency map[string]int `json:"latency,omitempty"` // ms from a device's region to this hub
	Weight  int            `json:"weight"`            // share among hashed devices
	State   allocate.State `json:"state,omitempty"`
	Control string         `json:"control,omitempty"` // LinkMQTT: host:port of the broker's listener for its administrator
	Anchors string         `json:"anchors,omitempty"` // PEM that the hub's TLS certificate must chain to; empty: the system's
	Secret  Secret         `json:"-"`                 // connection string; LinkMQTT: "user:password" of the broker's administrator
	ETag    string         `json:"-"`
	Created time.Time      `json:"-"`
	Updated time.Time      `json:"-"`
}

// linkRefresh is how long another replica's change of links may go unnoticed.
const linkRefresh = 5 * time.Second

// hubTable is what is linked at one moment; it is never changed.
type hubTable struct {
	order  []*Hub // built-in ones as configured, then by name
	byName map[string]*Hub
	alloc  []allocate.Hub
}

func (t *hubTable) add(h *Hub) {
	t.order = append(t.order, h)
	t.byName[h.Name] = h
	t.alloc = append(t.alloc, allocate.Hub{Name: h.Name, Region: h.Region, Latency: h.Latency, Weight: h.Weight, State: h.State})
}

// hub returns a linked hub, or nil.
func (s *Service) hub(name string) *Hub { return s.table.Load().byName[name] }

func bareHost(h string) string {
	if host, _, err := net.SplitHostPort(h); err == nil {
		return host
	}
	return h
}

// find accepts a name, a host:port, or a host without its port if only one hub has it.
func (t *hubTable) find(name string) *Hub {
	name = strings.ToLower(name)
	if h := t.byName[name]; h != nil {
		return h
	}
	var found []*Hub
	for _, h := range t.order {
		if strings.EqualFold(name, h.Name) || strings.EqualFold(name, h.Host) {
			return h
		}
		if strings.EqualFold(name, bareHost(h.Host)) {
			found = append(found, h)
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return nil
}

// findHub is hubTable.find of what is linked now.
func (s *Service) findHub(name string) *Hub { return s.table.Load().find(name) }

func (s *Service) hubNames() []string {
	var out []string
	for _, h := range s.table.Load().order {
		out = append(out, h.Name)
	}
	return out
}

// reloadLinks brings the table in line with the store. A link that cannot be opened stays linked, and its
// deliveries wait with the reason.
func (s *Service) reloadLinks(ctx context.Context) error {
	s.linking.Lock()
	defer s.linking.Unlock()
	links, err := s.store.Links(ctx)
	if err != nil {
		return fmt.Errorf("reading linked hubs: %w", err)
	}
	stored := map[string]Link{}
	for _, l := range links {
		stored[l.Name] = l
	}
	old := s.table.Load()
	next := &hubTable{byName: map[string]*Hub{}}
	for _, h := range s.builtin {
		if l, ok := stored[h.Name]; ok {
			h.Region, h.Latency, h.Weight, h.State, h.link = l.Region, l.Latency, l.Weight, l.State, l
			h.link.Kind, h.link.Host = LinkBuiltin, h.Host // what was stored may be of another address
			delete(stored, h.Name)
		} else {
			h.link = Link{Name: h.Name, Kind: LinkBuiltin, Host: h.Host, Region: h.Region, Latency: h.Latency, Weight: h.Weight, State: h.State}
		}
		next.add(&h)
	}
	for _, name := range slices.Sorted(maps.Keys(stored)) {
		l := stored[name]
		if old != nil && old.byName[name] != nil && old.byName[name].link.ETag == l.ETag {
			next.add(old.byName[name])
			continue
		}
		h := &Hub{Name: l.Name, Host: l.Host, Region: l.Region, Latency: l.Latency, Weight: l.Weight, State: l.State, link: l}
		err := error(cradle.Errorf(cradle.Busy, "this process cannot speak to hubs of kind %q", l.Kind))
		if s.open != nil && l.Kind != LinkBuiltin {
			var d Destination
			d, err = s.open(l)
			h.Registry, h.Twins = d.Registry, d.Twins
		}
		if err != nil {
			s.log.Warn("linked hub cannot be opened; its devices wait", "hub", l.Name, "err", err)
			h.Registry = unopened{err}
		}
		next.add(h)
	}
	s.table.Store(next)
	return nil
}

func (s *Service) refreshLinks(ctx context.Context) {
	if err := s.reloadLinks(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("linked hubs are not refreshed", "err", err)
	}
}

// unopened is a hub that a link describes wrongly.
type unopened struct{ err error }

func (u unopened) fail() error { return cradle.Errorf(cradle.Busy, "hub is not usable: %v", u.err) }

func (u unopened) GetDevice(context.Context, cradle.DeviceID) (*iothub.Device, error) {
	return nil, u.fail()
}
func (u unopened) WriteDevice(context.Context, *iothub.Device, string) error   { return u.fail() }
func (u unopened) DeleteDevice(context.Context, cradle.DeviceID, string) error { return u.fail() }

// Links returns what is linked, built-in hubs first.
func (s *Service) Links(ctx context.Context) ([]Link, error) {
	if err := s.reloadLinks(ctx); err != nil {
		return nil, err
	}
	var out []Link
	for _, h := range s.table.Load().order {
		out = append(out, h.link)
	}
	return out, nil
}

var (
	linkName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	region   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// Link links a hub, or replaces the link of that name (its kind stays). ifMatch is as for PutGroup. A name or
// host by which another hub is known is a Conflict: no answer of a webhook may mean two hubs.
func (s *Service) Link(ctx context.Context, l Link, ifMatch string) (Link, error) {
	if err := s.checkLink(ctx, l); err != nil {
		return Link{}, err
	}
	now, etag := s.time(), newETag()
	l, err := s.store.PutLink(ctx, l.Name, func(cur *Link) (Link, error) {
		next := l
		next.ETag, next.Created, next.Updated = etag, now, now
		switch {
		case cur == nil && (ifMatch == "" || ifMatch == "*" && l.Kind == LinkBuiltin): // one of our own needs no row
			return next, nil
		case cur == nil:
			return Link{}, errAbsent(ifMatch, "hub %q is not linked", l.Name)
		case ifMatch == "":
			return Link{}, cradle.Errorf(cradle.Conflict, "hub %q is linked already", l.Name).WithHint("remove it first, or give the link another name")
		case cur.Kind != l.Kind:
			return Link{}, cradle.Errorf(cradle.Conflict, "hub %q is of kind %s, not %s", l.Name, cur.Kind, l.Kind).WithHint("link it by another name")
		}
		if err := checkETag(ifMatch, cur.ETag); err != nil {
			return Link{}, err
		}
		if next.Secret == "" {
			next.Secret = cur.Secret
		}
		next.Created = cur.Created
		return next, nil
	})
	if err != nil {
		return Link{}, err
	}
	s.refreshLinks(ctx)
	s.outbox.wake()
	return l, nil
}

func (s *Service) checkLink(ctx context.Context, l Link) error {
	bad := func(format string, args ...any) error {
		return cradle.Errorf(cradle.Invalid, "hub %.70q: "+format, append([]any{l.Name}, args...)...)
	}
	if !linkName.MatchString(l.Name) {
		return bad("a name has 1 to 63 of a-z, 0-9, and inner '-' and '.'")
	}
	if err := checkHost(l.Host); err != nil {
		return bad("%v", err)
	}
	if l.Region != "" && !region.MatchString(l.Region) {
		return bad("region %.40q: use up to 32 of a-z, 0-9 and inner '-'", l.Region)
	}
	if len(l.Latency) > 256 {
		return bad("latencies of %d regions; at most 256", len(l.Latency))
	}
	for r, ms := range l.Latency {
		if !region.MatchString(r) || ms < 0 || ms > 1_000_000 {
			return bad("latency %.40q=%d: use region=milliseconds", r, ms)
		}
	}
	switch {
	case l.Weight < 0 || l.Weight > 1_000_000:
		return bad("weight %d: use 0 to 1000000", l.Weight)
	case l.State != allocate.Open && l.State != allocate.Maintenance && l.State != allocate.Draining:
		return bad("state %.40q: use open, maintenance or draining", l.State)
	}
	if err := s.reloadLinks(ctx); err != nil {
		return err
	}
	t := s.table.Load()
	for _, h := range t.order {
		if h.Name == l.Name {
			if builtin := slices.ContainsFunc(s.builtin, func(b Hub) bool { return b.Name == l.Name }); builtin != (l.Kind == LinkBuiltin) {
				return cradle.Errorf(cradle.Conflict, "hub %q is one of this installation's own", l.Name).WithHint("choose another name")
			}
			continue
		}
		known := []string{h.Name, h.Host, bareHost(h.Host)}
		if slices.Contains(known, l.Name) || slices.Contains([]string{h.Name, h.Host}, l.Host) || bareHost(l.Host) == h.Name {
			return cradle.Errorf(cradle.Conflict, "hub %q (%s) would be taken for hub %q (%s)", l.Name, l.Host, h.Name, h.Host).
				WithHint("every hub needs a name and an address of its own")
		}
	}
	if l.Kind == LinkBuiltin {
		if t.byName[l.Name] == nil {
			return cradle.Errorf(cradle.NotFound, "this installation has no hub %q", l.Name)
		}
		return nil
	}
	if s.open == nil {
		return bad("this service cannot speak to hubs of kind %q", l.Kind)
	}
	if l.Secret == "" && t.byName[l.Name] != nil {
		l.Secret = t.byName[l.Name].link.Secret
	}
	if _, err := s.open(l); err != nil {
		return err
	}
	return nil
}

// checkHost accepts host or host:port in lower case, and nothing that a URL would read in another way.
func checkHost(h string) error {
	u, err := url.Parse("https://" + h)
	if h == "" || len(h) > 255 || err != nil || u.Host != h || u.Hostname() == "" || h != strings.ToLower(h) || strings.ContainsAny(h, " \t/@?#%\\") {
		return cradle.Errorf(cradle.Invalid, "%.100q is not a host or host:port in lower case", h)
	}
	return nil
}

// SetState takes a hub out for maintenance, drains it or opens it again; it returns the link.
func (s *Service) SetState(ctx context.Context, name string, state allocate.State) (Link, error) {
	if err := s.reloadLinks(ctx); err != nil {
		return Link{}, err
	}
	h := s.hub(strings.ToLower(name))
	if h == nil {
		return Link{}, s.notLinked(name)
	}
	l := h.link
	l.State = state
	return s.Link(ctx, l, "*")
}

func (s *Service) notLinked(name string) error {
	return cradle.Errorf(cradle.NotFound, "hub %.70q is not linked to this service", name).
		WithHint("linked are: %s", strings.Join(s.hubNames(), ", "))
}

// Unlink removes a link. It is a Conflict while the hub takes devices, or while a device is assigned to it or the
// outbox holds something for it.
func (s *Service) Unlink(ctx context.Context, name, ifMatch string) error {
	if err := s.reloadLinks(ctx); err != nil {
		return err
	}
	name = strings.ToLower(name)
	switch h := s.hub(name); {
	case h == nil:
		return s.notLinked(name)
	case h.link.Kind == LinkBuiltin:
		return cradle.Errorf(cradle.Conflict, "hub %q is this installation's own", name).WithHint("take it out for maintenance instead")
	}
	groups, err := s.store.Groups(ctx)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if slices.Contains(g.Hubs, name) {
			return cradle.Errorf(cradle.Conflict, "enrolment group %q names hub %q", g.ID, name).WithHint("give the group other hubs first")
		}
	}
	err = s.store.DeleteLink(ctx, name, func(l Link, inUse bool) error {
		switch {
		case ifMatch != "" && ifMatch != "*" && ifMatch != l.ETag:
			return checkETag(ifMatch, l.ETag)
		case l.State == allocate.Open:
			return cradle.Errorf(cradle.Conflict, "hub %q still takes devices", name).
				WithHint("drain it first: cradle provisioning hub maintenance %s --on --drain", name)
		case inUse:
			return cradle.Errorf(cradle.Conflict, "devices are still assigned to hub %q, or wait to be taken off it", name).
				WithHint("drain it, and wait until its devices have registered again")
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.refreshLinks(ctx)
	return nil
}
