package main

import (
	"context"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/natsrelay"
	"github.com/cradle-iot/cradle/internal/cli"
)

// EventsServe says what becomes of the hubs' events.
type EventsServe struct {
	EventsKeep keepTime `help:"How long events are kept, as 7d or 12h; 0: for ever." default:"7d" placeholder:"TIME"`
	EventsSize byteSize `help:"How much of events is kept for each hub, as 500MB or 10GB; 0: any." default:"10GB" placeholder:"SIZE"`
	NATS       string   `name:"nats" help:"NATS server with JetStream to which events are passed on." placeholder:"URL"`
	NATSCreds  string   `name:"nats-creds" help:"File with the credentials of the user at NATS." placeholder:"FILE" type:"existingfile"`
	NATSCA     string   `name:"nats-ca" help:"File with the roots to trust for NATS, beside the system's." placeholder:"FILE" type:"existingfile"`
}

// keepTime is a duration that may be written in days.
type keepTime time.Duration

// UnmarshalText reads "7d" or what time.ParseDuration reads.
func (a *keepTime) UnmarshalText(b []byte) error {
	s := string(b)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 15)
		if err != nil {
			return fmt.Errorf("%q is not a number of days", s)
		}
		*a = keepTime(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = fmt.Errorf("%q is negative", s)
	}
	*a = keepTime(d)
	return err
}

// byteSize is a number of bytes that may have a unit.
type byteSize int64

// UnmarshalText reads "10GB", "512MiB" or a plain number.
func (z *byteSize) UnmarshalText(b []byte) error {
	s := string(b)
	unit := strings.TrimLeft(s, "0123456789")
	n, err := strconv.ParseUint(strings.TrimSuffix(s, unit), 10, 62)
	factor, ok := map[string]uint64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}[strings.ToUpper(strings.TrimSpace(unit))]
	if err != nil || !ok || n > math.MaxInt64/factor {
		return fmt.Errorf("%q is not a size like 500MB or 10GB", s)
	}
	*z = byteSize(n * factor)
	return nil
}

// run trims the events and passes them on, as asked.
func (c *EventsServe) run(ctx context.Context, in *installation, replica string, run *errgroup.Group) error {
	keep := func() error {
		return in.hubs.Keep(ctx, hub.Retention{Age: time.Duration(c.EventsKeep), Size: int64(c.EventsSize)}, replica)
	}
	in.watch.events(in.hubs, firstHub)
	if c.NATS == "" {
		if c.NATSCreds != "" || c.NATSCA != "" {
			return cli.Usagef("--nats-creds and --nats-ca need --nats")
		}
		run.Go(keep)
		return nil
	}
	for u := range strings.SplitSeq(c.NATS, ",") {
		if p, err := url.Parse(strings.TrimSpace(u)); err == nil && p.User != nil {
			return cli.Usagef("--nats has a user in it: a secret does not belong on a command line, use --nats-creds")
		}
	}
	relay, err := natsrelay.New(natsrelay.Config{Hub: in.hubs, URL: c.NATS, Creds: c.NATSCreds, CA: c.NATSCA, Replica: replica, Keep: time.Duration(c.EventsKeep), Log: in.log})
	if err != nil {
		return err
	}
	run.Go(keep)
	run.Go(func() error { return relay.Run(ctx) })
	return nil
}

// events watches a hub's event stream.
func (w *watch) events(h *hub.Hub, name hub.Name) {
	read := func(fn func(*hub.StreamState, []hub.Relay) float64) func() float64 {
		return func() float64 {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			st, relays, err := h.StreamState(ctx, name)
			if err != nil {
				return math.NaN()
			}
			return fn(st, relays)
		}
	}
	w.gauge("cradle_hub_events_bytes", "What the hub's events take up.", read(func(st *hub.StreamState, _ []hub.Relay) float64 { return float64(st.Bytes) }), "hub", string(name))
	w.gauge("cradle_hub_events_oldest_seconds", "Age of the hub's oldest event; NaN without one.",
		read(func(st *hub.StreamState, _ []hub.Relay) float64 { return age(st.Oldest) }), "hub", string(name))
	w.gauge("cradle_hub_events_behind", "Events that the relay to NATS has not passed on; NaN without one.", read(func(st *hub.StreamState, relays []hub.Relay) float64 {
		for _, r := range relays {
			if r.Name == natsrelay.Name {
				return float64(st.Last - max(r.Cursor, st.First-1))
			}
		}
		return math.NaN()
	}), "hub", string(name))
	w.gauge("cradle_hub_events_lost", "Events that this process deleted, for their size, before the relay had passed them on.",
		func() float64 { return float64(h.Trimmed(name).Held) }, "hub", string(name))
}
