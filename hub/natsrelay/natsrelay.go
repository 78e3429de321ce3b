// Package natsrelay passes the hubs' events on to NATS JetStream: one stream for each hub, the subject
// cradle.HUB.DEVICE or cradle.HUB.DEVICE.MODULE, the message the very line that readers of the event stream get, and
// the event's id as Nats-Msg-Id.
//
// What it promises is at least once, in order for each device: an event counts as passed on when JetStream has
// acknowledged it, and only then does the relay's place in the store move. After a crash of either side some events are
// sent again; JetStream leaves out those whose id came within its window (Duplicates), a consumer knows the rest by
// the id. Of several processes over one store one relays at a time, under a lease.
//
// NATS being away holds up nobody: events wait in the store, as long as retention lets them (hub.Retention).
//
// It trusts the NATS server with all telemetry; use TLS and credentials. It does not configure a stream that exists.
package natsrelay

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Name is the relay's name in the store.
const Name = "nats"

// Config of a Relay.
type Config struct {
	Hub     *hub.Hub
	URL     string        // of the NATS servers, comma-separated: nats://, tls://, ws://, wss://
	Creds   string        // file with the user's JWT and key; "": none
	CA      string        // file with the roots to trust beside the system's; "": none
	Replica string        // names this process among those with the same store
	Keep    time.Duration // how long a stream that the relay makes keeps messages; 0: for ever
	Lease   time.Duration // 0 means 20 s
	Log     *slog.Logger  // nil means slog.Default()
}

// Relay is the relay of all hubs.
type Relay struct {
	c   Config
	log *slog.Logger
}

// New makes it; nothing is started.
func New(c Config) (*Relay, error) {
	for u := range strings.SplitSeq(c.URL, ",") {
		p, err := url.Parse(strings.TrimSpace(u))
		if err != nil || p.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, p.Scheme) {
			return nil, cradle.Errorf(cradle.Invalid, "the address of NATS is not a URL").WithHint("it reads nats://HOST:4222 or tls://HOST:4222")
		}
	}
	c.Lease = cmp.Or(c.Lease, 20*time.Second)
	return &Relay{c: c, log: cmp.Or(c.Log, slog.Default())}, nil
}

// duplicates is how long a stream that the relay makes knows the ids of its messages.
const duplicates = 5 * time.Minute

// minPayload is what NATS must take: the longest line of an event.
const minPayload = 1 << 20

// ackTime is how long an acknowledgement may take.
const ackTime = 10 * time.Second

// Run relays until ctx ends. It returns an error only for a configuration that cannot work.
func (r *Relay) Run(ctx context.Context) error {
	opts := []nats.Option{nats.Name("cradle hub"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(min(time.Second, r.c.Lease/5)),
		nats.ReconnectBufSize(-1), // what was not sent is sent again by us, in its order
		nats.Timeout(5 * time.Second), nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.log.Warn("NATS", "err", err) }),
	}
	if r.c.Creds != "" {
		opts = append(opts, nats.UserCredentials(r.c.Creds))
	}
	if r.c.CA != "" {
		opts = append(opts, nats.RootCAs(r.c.CA))
	}
	nc, err := nats.Connect(r.c.URL, opts...)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "NATS: %v", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(ackTime), jetstream.WithPublishAsyncMaxPending(2*batch))
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "NATS: %v", err)
	}
	return r.hubs(ctx, nc, js)
}

// lookEvery is how late a hub is found that was made meanwhile.
const lookEvery = 30 * time.Second

// hubs runs a relay for each hub there is and for those to come.
func (r *Relay) hubs(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) error {
	known := map[hub.Name]bool{}
	g, ctx := errgroup.WithContext(ctx)
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		names, err := r.c.Hub.Names(ctx)
		wait := t.C
		if err != nil {
			wait = time.After(time.Second)
		}
		for _, name := range names {
			if !known[name] {
				known[name] = true
				g.Go(func() error { r.hub(ctx, nc, js, name); return nil })
			}
		}
		select {
		case <-wait:
		case <-ctx.Done():
		}
	}
	return g.Wait()
}

var errNotMine = errors.New("another process relays")

// Pauses after a failure.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 10 * time.Second
	sayAgain   = 10 * time.Minute // a failure that stays is logged again
)

// hub relays one hub's events until ctx ends.
func (r *Relay) hub(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, name hub.Name) {
	pause, said, failing := firstPause, time.Time{}, false
	for ctx.Err() == nil {
		err := r.follow(ctx, nc, js, name, func() {
			pause, said = firstPause, time.Time{}
			if failing {
				r.log.Info("events pass to NATS again", "hub", name)
			}
			failing = false
		})
		wait := pause
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotMine):
			wait = r.c.Lease / 2
		default:
			pause = min(2*pause, lastPause, r.c.Lease/2)
			if failing = true; time.Since(said) > sayAgain {
				said = time.Now()
				r.log.Warn("events do not pass to NATS; they wait in the store", "hub", name, "err", err)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// batch is how many events are sent before their acknowledgements are awaited.
const batch = 256

// follow takes the lease and relays until something fails. passed is called after each success.
func (r *Relay) follow(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, name hub.Name, passed func()) error {
	l := &lease{r: r, name: "relay/" + Name + "/" + string(name)}
	if err := l.hold(ctx); err != nil {
		return err
	}
	defer l.release(ctx)
	at, err := r.c.Hub.Relayed(ctx, name, Name)
	if err != nil {
		return err
	}
	// Storing the place says also that there is a relay, for which retention waits.
	if err := r.c.Hub.SetRelayed(ctx, name, Name, at); err != nil {
		return err
	}
	stored := time.Now()
	if err := r.stream(ctx, nc, js, name); err != nil {
		return err
	}
	r.log.Debug("events pass to NATS", "hub", name, "after", at, "server", nc.ConnectedUrlRedacted())
	return r.c.Hub.Follow(ctx, name, at, func(es []hub.Event) error {
		if len(es) == 0 && time.Since(stored) > time.Minute {
			stored = time.Now()
			if err := r.c.Hub.SetRelayed(ctx, name, Name, at); err != nil {
				return err
			}
		}
		for len(es) > 0 {
			if err := l.hold(ctx); err != nil {
				return err
			}
			n := min(batch, len(es))
			if err := r.publish(ctx, js, name, es[:n]); err != nil {
				return err
			}
			// If we stop here the batch is sent again, with the same ids.
			at, stored = es[n-1].Cursor, time.Now()
			if err := r.c.Hub.SetRelayed(ctx, name, Name, at); err != nil {
				return err
			}
			es = es[n:]
		}
		passed()
		return l.hold(ctx)
	})
}

// lease is the right to relay a hub.
type lease struct {
	r     *Relay
	name  string
	since time.Time
}

// hold takes the lease, or keeps it when a third of its time is over.
func (l *lease) hold(ctx context.Context) error {
	if !l.since.IsZero() && time.Since(l.since) < l.r.c.Lease/3 {
		return nil
	}
	at := time.Now()
	mine, err := l.r.c.Hub.Lease(ctx, l.name, l.r.c.Replica, l.r.c.Lease)
	if err == nil && !mine {
		err = errNotMine
	}
	l.since = at
	return err
}

// release lets another process go on at once; when that fails it goes on when the lease ends.
func (l *lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := l.r.c.Hub.Lease(ctx, l.name, l.r.c.Replica, 0); err != nil {
		l.r.log.Debug("lease not released", "lease", l.name, "err", err)
	}
}

// token makes a name one token of a subject. What NATS gives a meaning is written as "~" and two hexadecimal digits;
// ids of hubs, devices and modules have no "~".
func token(s string) string {
	return strings.NewReplacer("~", "~7E", ".", "~2E", "*", "~2A", ">", "~3E", " ", "~20").Replace(s)
}

// StreamName is the name of a hub's stream.
func StreamName(name hub.Name) string { return "cradle-" + token(string(name)) }

// Subject is that of a device's messages or, with a module, of the module's.
func Subject(name hub.Name, device cradle.DeviceID, module iothub.ModuleID) string {
	s := "cradle." + token(string(name)) + "." + token(string(device))
	if module != "" {
		s += "." + token(string(module))
	}
	return s
}

// covers reports whether every subject of one pattern is of the other too.
func covers(wide, narrow string) bool {
	w, n := strings.Split(wide, "."), strings.Split(narrow, ".")
	for i, t := range w {
		switch {
		case t == ">":
			return i < len(n)
		case i >= len(n) || n[i] == ">" || t != "*" && t != n[i]:
			return false
		}
	}
	return len(w) == len(n)
}

// stream makes sure that there is one that takes the hub's subjects.
func (r *Relay) stream(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, name hub.Name) error {
	if !nc.IsConnected() {
		return errors.Join(errors.New("not connected to NATS"), nc.LastError())
	}
	if n := nc.MaxPayload(); n < minPayload {
		return cradle.Errorf(cradle.Invalid, "NATS takes messages of %d bytes, events may have %d", n, minPayload).WithHint("raise max_payload in the server's configuration")
	}
	ctx, cancel := context.WithTimeout(ctx, ackTime)
	defer cancel()
	subjects := "cradle." + token(string(name)) + ".>"
	s, err := js.Stream(ctx, StreamName(name))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: StreamName(name), Description: "events of Cradle's hub " + string(name),
			Subjects: []string{subjects}, Storage: jetstream.FileStorage, Duplicates: min(duplicates, cmp.Or(r.c.Keep, duplicates)), MaxAge: r.c.Keep})
		return err
	} else if err != nil {
		return err
	}
	for _, have := range s.CachedInfo().Config.Subjects {
		if covers(have, subjects) {
			return nil
		}
	}
	return cradle.Errorf(cradle.Conflict, "stream %s of NATS is there, but does not take %s", StreamName(name), subjects)
}
