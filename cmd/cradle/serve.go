package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/meter"
	"github.com/cradle-iot/cradle/internal/verbs"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/adminserver"
	"github.com/cradle-iot/cradle/provider/estserver"
	"github.com/cradle-iot/cradle/provider/permit"
	"github.com/cradle-iot/cradle/provider/providerdb"
	"github.com/cradle-iot/cradle/provider/shed"
	certstatus "github.com/cradle-iot/cradle/provider/status"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/destination"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
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
	within *within // to the hub
	close  []func() error
}

// Run serves until ctx ends.
func (c *ServeCmd) Run(ctx context.Context, out *cli.Out) (err error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return cli.Usagef("log level: %v", err)
	}
	paceCollector()
	if err := c.roles(); err != nil {
		return err
	}
	limits := shed.Defaults()
	for name, value := range c.Limits {
		if err := limits.Set(name, value); err != nil {
			return cli.Usagef("--limit: %v", err)
		}
	}
	var lines slog.Handler = slog.NewTextHandler(out.Err, &slog.HandlerOptions{Level: level})
	if c.LogFormat == "json" {
		lines = slog.NewJSONHandler(out.Err, &slog.HandlerOptions{Level: level})
	}
	in := &installation{cmd: c, log: slog.New(lines), gate: shed.New(limits, nil), within: newWithin()}
	if c.Metrics != "" {
		in.watch.meter = meter.New()
	}
	defer func() {
		for _, f := range slices.Backward(in.close) {
			err = errors.Join(err, f())
		}
	}()
	if err := in.lock(); err != nil {
		return err
	}
	var listeners []net.Listener
	for _, a := range append([]string{c.Listen}, c.Also...) {
		l, err := front.Listen(ctx, a)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		listeners = append(listeners, l)
		in.listen = append(in.listen, l.Addr().String())
	}
	_, in.port, err = net.SplitHostPort(in.listen[0])
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
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	if c.StatusListen != "" {
		status, err := serveStatus(ctx, c.StatusListen, in.certs)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		run.Go(status)
	}
	if c.Pprof != "" {
		profiles, err := servePprof(ctx, c.Pprof)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		run.Go(profiles)
	}
	in.watch.front(srv)
	ready := map[string]any{"event": "ready", "url": in.url}
	if c.Metrics != "" {
		figures, url, err := in.watch.listen(ctx, c.Metrics)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		run.Go(figures)
		ready["metrics"] = url
		in.log.Info("metrics and health are served", "metrics", url)
	}
	run.Go(func() error { return srv.Run(ctx, listeners...) })
	for i := 0; i < 100 && in.follow != nil && !in.follow.Fresh(time.Now()) && ctx.Err() == nil; i++ { // ready means: devices are admitted
		time.Sleep(50 * time.Millisecond)
	}
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

// lock keeps a second process from the same data folder.
func (in *installation) lock() error {
	if err := os.MkdirAll(in.cmd.Data, 0o700); err != nil {
		return cradle.Errorf(cradle.Invalid, "data folder: %v", err).WithHint("choose a folder you may write to with --data")
	}
	f, err := os.OpenFile(filepath.Join(in.cmd.Data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "data folder: %v", err).WithHint("choose a folder you may write to with --data")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(cradle.Errorf(cradle.Conflict, "another cradle serve runs on %s", in.cmd.Data).
			WithHint("stop it, or choose another folder with --data"), f.Close())
	}
	in.close = append(in.close, f.Close)
	return nil
}

// store names a custodian's database: a file of its own, or a schema of its own.
func (in *installation) store(name string) string {
	return cmp.Or(in.cmd.DB, filepath.Join(in.cmd.Data, name+".db"))
}

// replica names this process among those that share the stores. It is the data folder's, which is
// locked, so what an earlier process had under way before a crash is its own again at once.
func (in *installation) replica() (string, error) {
	file := filepath.Join(in.cmd.Data, "replica")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		id := make([]byte, 8)
		rand.Read(id)
		b = []byte(hex.EncodeToString(id))
		err = durable.WriteFile(file, b, 0o600)
	}
	return strings.TrimSpace(string(b)), err
}

func (in *installation) build(ctx context.Context, run *errgroup.Group) (*front.Server, error) {
	replica, err := in.replica()
	if err != nil {
		return nil, err
	}
	vault, err := filekey.OpenVault(filepath.Join(in.cmd.Data, "key-encryption-key"))
	if err != nil {
		return nil, err
	}
	keys, err := in.cmd.Keystores.open(vault)
	if err != nil {
		return nil, err
	}
	var signer provider.Signer // nil: this process
	if in.signer, err = in.cmd.remoteSigner(); err != nil {
		return nil, err
	} else if in.signer != nil {
		signer = in.signer
	}
	pdb, err := providerdb.Open(ctx, in.store("provider"))
	if err != nil {
		return nil, fmt.Errorf("provider's store: %w", err)
	}
	in.close = append(in.close, pdb.Close)
	in.watch.store("provider", pdb.Stats)
	statusURL, err := in.cmd.statusURL(in.url)
	if err != nil {
		return nil, err
	}
	if in.prov, err = provider.New(ctx, provider.Config{Store: pdb, Vault: vault, Keys: keys, Signer: signer, Replica: replica, Region: in.cmd.Region, Origin: in.cmd.Host, Log: in.log,
		StatusURL: statusURL}); err != nil {
		return nil, err
	}
	if err := in.prov.Recover(ctx); err != nil {
		return nil, err
	}
	hdb, err := hubdb.Open(ctx, in.store("hub"))
	if err != nil {
		return nil, fmt.Errorf("hub's store: %w", err)
	}
	in.close = append(in.close, hdb.Close)
	in.watch.store("hub", hdb.Stats)
	ddb, err := provisioningdb.Open(ctx, in.store("provisioning"))
	if err != nil {
		return nil, fmt.Errorf("provisioning's store: %w", err)
	}
	in.close = append(in.close, ddb.Seal(vault).Close)
	in.watch.store("provisioning", ddb.Stats)

	in.follow = status.NewFollower(in.prov, in.prov.FeedKey(), in.log, func(e status.Event) {
		in.dps.OnBlock(e.Account, e.Device, e.State)
		in.hubs.StatusChanged(e.Account, e.Device)
	})
	in.ra = &ownRA{prov: in.prov, dir: filepath.Join(in.cmd.Data, "ra"), url: in.url, client: in.loopback, now: time.Now, log: in.log}
	in.hubs = hub.New(hub.Config{Store: hdb, Status: in.follow, Issuer: renewals{in.ra}, Log: in.log})
	if err := in.hubs.Ensure(ctx, firstHub); err != nil {
		return nil, err
	}
	cs, err := in.hubs.ConnectionString(ctx, firstHub, in.hub, "iothubowner")
	if err != nil {
		return nil, err
	}
	ownHub := iothub.NewRegistry(in.within.client(), cs)
	if in.dps, err = provisioning.New(ctx, provisioning.Config{Store: ddb, Feed: in.follow, Units: units{in.prov}, Issuer: in.ra, Log: in.log, Replica: replica, Open: destination.Open,
		Webhook: &dps.Webhook{}, Hubs: []provisioning.Hub{{Name: string(firstHub), Host: in.hub, Registry: ownHub, Twins: ownHub}}}); err != nil {
		return nil, err
	}
	tokens, err := in.prov.Token(ctx, "admin")
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(filepath.Join(in.cmd.Data, "context.json"), indent(admin.Context{URL: in.url,
		Anchors: admin.PEM(in.prov.Services().Raw), Token: adminserver.Token(tokens, "")}), 0o600); err != nil {
		return nil, err
	}
	in.watch.provider(in.prov)
	in.watch.feed(in.follow.Newest, in.follow.Fresh)
	run.Go(func() error { return in.prov.Run(ctx) })
	run.Go(func() error { return in.follow.Run(ctx) })
	if err := in.cmd.EventsServe.run(ctx, in, replica, run); err != nil {
		return nil, err
	}
	run.Go(func() error { return in.dps.Run(ctx) })
	return in.front(tokens)
}

// front puts every service behind the one port.
func (in *installation) front(tokens []byte) (*front.Server, error) {
	c := in.cmd
	adm := adminserver.New(adminserver.Config{Provider: in.prov, Key: tokens, Log: in.log, Gate: in.gate, Count: in.watch.count(), Status: in.status, ServiceKey: in.serviceKey, Followed: in.followed, OwnRegistrar: in.ra.add,
		Public: adminserver.Public{URL: in.url, ESTHost: func(a cradle.AccountID) string { return estHost(c.Host, a) }}})
	est := estserver.New(estserver.Config{Provider: estProvider{p: in.prov, host: c.Host, defaultAccount: c.ESTDefault}, Log: in.log, Count: in.watch.count(), Gate: in.gate})
	devices := in.deviceRoutes()
	in.within.serve(devices.hub.HTTP)
	estRoute := front.Route{HTTP: est}
	paths := front.Paths{{Pattern: "/.well-known/est/", Handler: est}, {Pattern: "/admin/v1/", Handler: adm}, {Pattern: "/oem/v1/", Handler: adm},
		{Pattern: "/status/v1/", Handler: adm}, {Pattern: "/time/v1", Handler: adm}, {Pattern: admin.TilesPrefix + "/", Handler: adm}}
	in.certs = certstatus.New(certstatus.Config{Source: in.prov, Log: in.log, Admit: in.gate.Address})
	for _, pattern := range certstatus.Paths {
		paths = append(paths, front.Path{Pattern: pattern, Handler: in.certs})
	}
	paths = append(append(paths, in.watch.paths()...), front.Path{Pattern: "/", Handler: devices.both.HTTP})
	cert, err := in.certificate()
	if err != nil {
		return nil, err
	}
	return front.New(front.Config{Certificate: cert, Log: in.log, Grace: 3 * time.Second,
		Hosts: map[string]front.Route{
			"est." + c.Host: estRoute, "*.est." + c.Host: estRoute, "dps." + c.Host: devices.provisioning, string(firstHub) + "." + c.Host: devices.hub},
		Default: front.Route{HTTP: paths, MQTT: devices.both.MQTT}}), nil
}

// certificate makes the server's certificate, and a new one when it has used up half of its life.
func (in *installation) certificate() (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	names := []string{in.cmd.Host, "est." + in.cmd.Host, "*.est." + in.cmd.Host, "dps." + in.cmd.Host, string(firstHub) + "." + in.cmd.Host}
	for _, n := range []string{"localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if h, _, err := net.SplitHostPort(in.cmd.Listen); err == nil && h != "" && !slices.Contains(names, h) {
		if ip := net.ParseIP(h); ip == nil || !ip.IsUnspecified() {
			names = append(names, h)
		}
	}
	var current atomic.Pointer[tls.Certificate]
	var mu sync.Mutex
	renew := func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if c := current.Load(); c != nil && time.Now().Before(half(c.Leaf)) {
			return c, nil
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		leaf, err := in.prov.ServerCertificate(key.Public(), names)
		if err != nil {
			return nil, err
		}
		c := &tls.Certificate{Certificate: [][]byte{leaf.Raw, in.prov.Services().Raw}, PrivateKey: key, Leaf: leaf}
		current.Store(c)
		return c, nil
	}
	_, err := renew()
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if c := current.Load(); time.Now().Before(half(c.Leaf)) {
			return c, nil
		}
		return renew()
	}, err
}

func half(c *x509.Certificate) time.Time { return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2) }

// loopback is the client with which services of this process call each other with a certificate, as they would call
// another vendor's. It dials our own port whatever the public name resolves to.
func (in *installation) loopback(cert ...tls.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(in.prov.Services())
	h, _, _ := net.SplitHostPort(in.cmd.Listen)
	if ip := net.ParseIP(h); h == "" || ip != nil && ip.IsUnspecified() {
		h = "127.0.0.1"
	}
	own := net.JoinHostPort(h, in.port)
	var d net.Dialer
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Certificates: cert},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, own)
		},
		MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}}
}

func (in *installation) serviceKey(ctx context.Context, service string) (string, error) {
	switch service {
	case "dps":
		c := sas.ConnectionString{HostName: in.host, KeyName: "provisioningserviceowner", Key: in.dps.Identity().ServiceKey}
		return c.String(), nil
	case "hub":
		c, err := in.hubs.ConnectionString(ctx, firstHub, in.hub, "iothubowner")
		if err != nil {
			return "", err
		}
		return c.String(), nil
	}
	return "", cradle.Errorf(cradle.NotFound, "no service %q", service).WithHint("use dps or hub")
}

// followed waits until the follower has applied the feed up to seq; it serves provisioning and hub of
// this process alike.
func (in *installation) followed(ctx context.Context, seq int64) (prov, hub *time.Time) {
	for {
		if in.follow.Seq() >= seq {
			now := time.Now()
			return &now, &now
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (in *installation) status(ctx context.Context) admin.Status {
	st := admin.Status{ESTURL: in.url, Hubs: []string{in.hub}, Listen: in.listen, Checkpoint: []admin.Checkpoint{}, FeedKey: status.EncodeKey(in.prov.FeedKey()), Version: verbs.Version()}
	heads, err := in.prov.Checkpoints(ctx)
	prov := admin.Service{Service: "provider", URL: in.url, Healthy: err == nil}
	if err != nil {
		prov.Detail, _ = cradle.Public(err)
	}
	if closed, err := in.prov.Closed(ctx); err == nil && len(closed) > 0 {
		prov.Healthy = false
		prov.Detail = fmt.Sprintf("restored from a backup: %d logs have not caught up (cradle restore status)", len(closed))
	}
	for _, h := range heads {
		if key, err := in.prov.LogKey(h.Log); err == nil && h.Checkpoint != nil {
			st.Checkpoint = append(st.Checkpoint, admin.Checkpoint{Log: h.Log, Size: h.Signed, Note: string(h.Checkpoint), Key: key})
		}
	}
	if in.follow == nil {
		return in.signerStatus(st, prov)
	}
	fresh := in.follow.Fresh(time.Now())
	st.DPSHost, st.IDScope = in.host, in.dps.Identity().IDScope
	_, hubErr := in.hubs.Names(ctx)
	st.Services = []admin.Service{prov, {Service: "provisioning", URL: in.url, Healthy: fresh}, {Service: string(firstHub), URL: in.url, Healthy: fresh && hubErr == nil}}
	for i := range st.Services[1:] {
		if !fresh {
			st.Services[i+1].Detail = "the status feed is stale"
		}
	}
	st.Services = append(st.Services, in.signerService(ctx)...)
	return st
}
