package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/meter"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/permit"
	"github.com/cradle-iot/cradle/provider/shed"
	"github.com/cradle-iot/cradle/provisioning"
)

// ServeCmd runs the services.
type ServeCmd struct {
	Data   string   `help:"Folder for keys, context.json and (without --db) the databases. Made if missing." default:"cradle-data" type:"path"`
	Listen string   `help:"Address of the one TLS port: EST, admin, provisioning, hub (HTTPS, MQTT, MQTT over WebSocket). Port 0 picks a free one." default:"127.0.0.1:8443"`
	Also   []string `name:"also-listen" aliases:"mqtt-listen" help:"Further addresses that serve the same, for example 0.0.0.0:8883, where MQTT clients look. May be given several times." placeholder:"HOST:PORT"`
	Role   []string `help:"Which services run in this process: provider,provisioning,hub, or signer alone." default:"provider,provisioning,hub" enum:"provider,provisioning,hub,signer"`
	DB     string   `help:"PostgreSQL URL; one schema per service. Default: embedded SQLite in the data folder." placeholder:"URL"`
	Region string   `help:"Data region of the accounts made here." default:"local"`
	Host   string   `help:"Public name of this installation; the services are est.HOST, dps.HOST, HUB.HOST beside it." default:"localhost"`
	Keystores
	SignerServe
	StatusServe
	EventsServe
	ESTDefault cradle.AccountID  `name:"est-default-account" help:"Account whose EST answers paths without a label under this installation's own name, for clients that know neither labels nor server names." placeholder:"NAME"`
	Limits     map[string]string `name:"limit" help:"Rate of requests that is taken: address, certificate, line, account, registration or operator, as certificate=0.5:30 (each second, and at once) or address=off." placeholder:"NAME=RATE"`
	LogLevel   string            `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
	LogFormat  string            `help:"text or json." default:"text" enum:"text,json"`
	Metrics    string            `name:"metrics-listen" help:"Address at which Prometheus metrics, /healthz and /readyz are served, without TLS: for monitoring alone." placeholder:"HOST:PORT"`
	Pprof      string            `help:"Address at which this process's profiles are served." hidden:"" placeholder:"HOST:PORT"`
}

// firstHub is made by the first start.
const firstHub hub.Name = "hub-1"

// installation is what serve has running.
type installation struct {
	cmd    *ServeCmd
	log    *slog.Logger
	url    string // https://host:port
	host   string // host:port, and without the port when that is HTTPS's own
	hub    string // the hubs' host, as devices and back ends are told it
	port   string
	listen []string // addresses served, that of --listen first
	prov   *provider.Provider
	signer *permit.Client // nil: this process holds the issuing keys
	dps    *provisioning.Service
	hubs   *hub.Hub
	follow *status.Follower
	ra     *ownRA
	certs  http.Handler // CRLs and OCSP
	gate   *shed.Gate
	watch  watch
	close  []func() error
}

// Run serves until ctx ends.
func (c *ServeCmd) Run(ctx context.Context, out *cli.Out) (err error) {
	coarseTimers()
	if c.Pprof == "" {
		runtime.MemProfileRate = 0 // nobody asks what was allocated where
	}
	paceCollector()
	in, err := c.begin(out)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range slices.Backward(in.close) {
			err = errors.Join(err, f())
		}
	}()
	if err := in.lock(); err != nil {
		return err
	}
	listeners, err := in.openPorts(ctx)
	if err != nil {
		return err
	}
	in.host, in.hub = c.names(in.port, listeners[1:])
	in.url = "https://" + in.host
	run, ctx := errgroup.WithContext(ctx)
	build := in.build
	if c.Role[0] == signerRole {
		build = in.buildSigner
	}
	srv, err := build(ctx, run)
	if err != nil {
		return err
	}
	if c.StatusListen != "" {
		status, err := serveStatus(ctx, c.StatusListen, in.certs)
		if err != nil {
			return err
		}
		run.Go(status)
	}
	if c.Pprof != "" {
		profiles, err := servePprof(ctx, c.Pprof)
		if err != nil {
			return err
		}
		run.Go(profiles)
	}
	in.watch.front(srv)
	ready := map[string]any{"event": "ready", "url": in.url}
	if c.Metrics != "" {
		figures, url, err := in.watch.listen(ctx, c.Metrics)
		if err != nil {
			return err
		}
		run.Go(figures)
		ready["metrics"] = url
		in.log.Info("metrics and health are served", "metrics", url)
	}
	// The ports are open, and who connects waits. Before the status feed was read once every device would be refused, and those
	// that were connected to the process before this one come at once; a feed that does not come keeps nobody else out.
	for i := 0; i < 60 && in.follow != nil && !in.follow.Fresh(time.Now()) && ctx.Err() == nil; i++ {
		time.Sleep(50 * time.Millisecond)
	}
	run.Go(func() error { return srv.Run(ctx, listeners...) })
	st := in.status(ctx)
	if err := durable.WriteFile(filepath.Join(c.Data, "endpoints.json"), indent(st), 0o644); err != nil {
		return err
	}
	ready["status"] = st
	if err := out.Print(ready, func(w io.Writer) {
		if in.follow == nil {
			fmt.Fprintf(w, "ready %s (signer); context: %s; credentials of front ends: %s\n", in.url, filepath.Join(c.Data, "context.json"), filepath.Join(c.Data, "fronts"))
			return
		}
		fmt.Fprintf(w, "ready %s (EST, admin API, provisioning %s, hubs %s); context: %s\n", in.url, st.IDScope, strings.Join(st.Hubs, ", "),
			filepath.Join(c.Data, "context.json"))
	}); err != nil {
		return err
	}
	return run.Wait()
}

// begin checks what was asked for and starts the log.
func (c *ServeCmd) begin(out *cli.Out) (*installation, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, cli.Usagef("log level: %v", err)
	}
	if err := c.roles(); err != nil {
		return nil, err
	}
	if err := c.words(); err != nil {
		return nil, err
	}
	if u, err := url.Parse(c.DB); err == nil && u.User != nil {
		if _, given := u.User.Password(); given {
			fmt.Fprintln(out.Err, "warning: --db holds a password, and others on this machine can read arguments; put it into ~/.pgpass")
		}
	}
	limits := shed.Defaults()
	for name, value := range c.Limits {
		if err := limits.Set(name, value); err != nil {
			return nil, cli.Usagef("--limit: %v", err)
		}
	}
	var lines slog.Handler = slog.NewTextHandler(out.Err, &slog.HandlerOptions{Level: level})
	if c.LogFormat == "json" {
		lines = slog.NewJSONHandler(out.Err, &slog.HandlerOptions{Level: level})
	}
	in := &installation{cmd: c, log: slog.New(lines), gate: shed.New(limits, nil)}
	if c.Metrics != "" {
		in.watch.meter = meter.New()
	}
	return in, nil
}

// openPorts opens --listen and what is to listen beside it.
func (in *installation) openPorts(ctx context.Context) (listeners []net.Listener, err error) {
	for _, a := range append([]string{in.cmd.Listen}, in.cmd.Also...) {
		l, err := front.Listen(ctx, a)
		if err != nil {
			return nil, err
		}
		in.close = append(in.close, func() error { _ = l.Close(); return nil }) // which the server that took it has done
		listeners = append(listeners, l)
		in.listen = append(in.listen, l.Addr().String())
	}
	_, in.port, err = net.SplitHostPort(in.listen[0])
	return listeners, err
}

var (
	hostName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	regionName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)
)

// words checks what goes into orders, devices and the names of logs, where it stays for ever.
func (c *ServeCmd) words() error {
	switch {
	case !hostName.MatchString(c.Host) && net.ParseIP(c.Host) == nil:
		return cli.Usagef("--host %q: give a DNS name, without scheme and port", c.Host)
	case !regionName.MatchString(c.Region):
		return cli.Usagef("--region %q: use 1 to 64 letters, digits and inner '-', '.', '_'", c.Region)
	case strings.Contains(c.DB, "://") && sqldb.EngineOf(c.DB) != sqldb.PostgreSQL:
		scheme, _, _ := strings.Cut(c.DB, "://")
		return cli.Usagef("--db %s://...: only PostgreSQL URLs are taken, as postgres://role@host:port/database", scheme)
	}
	return nil
}

// names are the host of the services and that of the hubs for a port. Clients of Azure want them without a port, and find
// HTTPS at 443 and MQTT at 8883 by themselves; a hub without a listener at 8883 keeps the port, which serves MQTT too.
func (c *ServeCmd) names(port string, others []net.Listener) (host, hub string) {
	full := net.JoinHostPort(c.Host, port)
	if port != "443" {
		return full, full
	}
	for _, l := range others {
		if _, p, err := net.SplitHostPort(l.Addr().String()); err == nil && p == "8883" {
			return c.Host, c.Host
		}
	}
	return c.Host, full
}

func indent(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return append(b, '\n')
}
