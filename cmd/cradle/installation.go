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
	"errors"
	"fmt"
	"io/fs"
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
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/verbs"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/adminserver"
	"github.com/cradle-iot/cradle/provider/estserver"
	"github.com/cradle-iot/cradle/provider/providerdb"
	certstatus "github.com/cradle-iot/cradle/provider/status"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/destination"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
)

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

// providerStore opens the provider's store and the key-encryption key that belongs to it. Both are made by the first start and
// by no other: where one of them is missing, a new one would be another installation under the old one's name.
func (in *installation) providerStore(ctx context.Context) (*providerdb.DB, *filekey.Vault, error) {
	served, err := in.served()
	if err != nil {
		return nil, nil, err
	}
	if file := in.store("provider"); served && in.cmd.DB == "" {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, nil, in.otherStore()
		}
	}
	db, err := providerdb.Open(ctx, in.store("provider"))
	if err != nil {
		return nil, nil, fmt.Errorf("provider's store: %w", err)
	}
	in.close = append(in.close, db.Close)
	in.watch.store("provider", db)
	begun, err := db.Begun(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("provider's store: %w", err)
	}
	if served && !begun {
		return nil, nil, in.otherStore()
	}
	vault, err := filekey.OpenVault(filepath.Join(in.cmd.Data, keyFile), begun)
	return db, vault, err
}

// served tells whether an earlier start on this data folder came so far as to write the operator's access.
func (in *installation) served() (bool, error) {
	switch _, err := os.Stat(filepath.Join(in.cmd.Data, "context.json")); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("data folder: %w", err)
	}
}

func (in *installation) otherStore() error {
	return cradle.Errorf(cradle.Invalid, "%s has served an installation, and the store that is named now holds none", in.cmd.Data).
		WithHint("give --db as before; or restore a backup, or begin a new installation, in another folder with --data")
}

func (in *installation) build(ctx context.Context, run *errgroup.Group) (*front.Server, error) {
	replica, err := in.replica()
	if err != nil {
		return nil, err
	}
	pdb, vault, err := in.providerStore(ctx)
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
	hdb, err := hubdb.Open(ctx, in.store("hub"), vault)
	if err != nil {
		return nil, fmt.Errorf("hub's store: %w", err)
	}
	in.close = append(in.close, hdb.Close)
	if n, err := hdb.SealKeys(ctx); err != nil {
		return nil, fmt.Errorf("sealing the hub's keys: %w", err)
	} else if n > 0 {
		in.log.Info("the hub's SAS keys are sealed by the key-encryption key now", "entries", n)
	}
	in.watch.store("hub", hdb)
	ddb, err := provisioningdb.Open(ctx, in.store("provisioning"))
	if err != nil {
		return nil, fmt.Errorf("provisioning's store: %w", err)
	}
	in.close = append(in.close, ddb.Seal(vault).Close)
	in.watch.store("provisioning", ddb)

	in.follow = status.NewFollower(in.prov, in.prov.FeedKey(), in.log, func(e status.Event) {
		in.dps.OnBlock(e.Account, e.Device, e.State)
		in.hubs.StatusChanged(e.Account, e.Device)
	})
	in.ra = &ownRA{prov: in.prov, dir: filepath.Join(in.cmd.Data, "ra"), url: in.url, client: in.loopback, now: time.Now, log: in.log}
	in.hubs = hub.New(hub.Config{Store: hdb, Status: in.follow, Issuer: renewals{in.ra}, Log: in.log})
	if err := in.hubs.Ensure(ctx, firstHub); err != nil {
		return nil, err
	}
	own := ownHub{in.hubs, firstHub}
	if in.dps, err = provisioning.New(ctx, provisioning.Config{Store: ddb, Feed: in.follow, Units: units{in.prov}, Owners: units{in.prov}, Issuer: in.ra, Log: in.log, Replica: replica, Open: destination.Open,
		Webhook: &dps.Webhook{}, Hubs: []provisioning.Hub{{Name: string(firstHub), Host: in.hub, Registry: own, Twins: own}}}); err != nil {
		return nil, err
	}
	tokens, err := in.prov.Token(ctx, "admin")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(in.cmd.Data, "context.json")
	if old, err := admin.ReadContext(file); err == nil && old.URL != in.url {
		in.log.Warn("the services have another address than at the last start: orders, devices and contexts made before name the old one", "was", old.URL, "is", in.url)
	}
	if err := durable.WriteFile(file, indent(admin.Context{URL: in.url,
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
	run.Go(func() error { return in.hubs.Listen(ctx) })
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
	if err == nil {
		err = in.watch.stores["provider"].Writable(ctx)
	}
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
	follower := func(name string, store error) admin.Service {
		s := admin.Service{Service: name, URL: in.url, Healthy: fresh && store == nil}
		if !fresh {
			s.Detail = "the status feed is stale"
		}
		if store != nil {
			s.Detail, _ = cradle.Public(store)
		}
		return s
	}
	_, dpsErr := in.dps.Links(ctx)
	if dpsErr == nil {
		dpsErr = in.watch.stores["provisioning"].Writable(ctx)
	}
	_, hubErr := in.hubs.Names(ctx)
	if hubErr == nil {
		hubErr = in.watch.stores["hub"].Writable(ctx)
	}
	st.Services = []admin.Service{prov, follower("provisioning", dpsErr), follower(string(firstHub), hubErr)}
	st.Services = append(st.Services, in.signerService(ctx)...)
	return st
}
