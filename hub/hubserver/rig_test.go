package hubserver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/hub/hubserver"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/status"
)

var _ hub.Status = (*status.Follower)(nil)

// feed is a hub.Status that the test writes.
type feed struct {
	mu      sync.Mutex
	blocked map[cradle.DeviceID]cradle.DeviceState // of account acme
	foreign map[cradle.DeviceID]cradle.DeviceState // of any other
	certs   map[[32]byte]bool
	stale   bool
}

func (f *feed) set(fn func(*feed)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(f)
}

func (f *feed) Blocked(a cradle.AccountID, d cradle.DeviceID) (cradle.DeviceState, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a != "acme" {
		s, ok := f.foreign[d]
		return s, ok
	}
	s, ok := f.blocked[d]
	return s, ok
}

func (f *feed) CertBlocked(c [32]byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.certs[c]
}

func (f *feed) Fresh(time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.stale
}

// rig is one hub with its server on loopback.
type rig struct {
	t     *testing.T
	hub   *hub.Hub
	feed  *feed
	logs  *testenv.Buffer
	ca    *issuer
	skew  atomic.Int64 // added to the hub's clock
	addr  string       // of the MQTT listener
	roots *x509.CertPool
	reg   *iothub.Registry
}

// kek is what the rigs' stores seal their keys by.
var kek = sync.OnceValue(func() *filekey.Vault {
	dir, err := os.MkdirTemp("", "hubserver")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	v, err := filekey.CreateVault(filepath.Join(dir, "kek"))
	if err != nil {
		panic(err)
	}
	return v
})

func newRig(t *testing.T, url string) *rig {
	t.Helper()
	return newRigOver(t, url, func(s hub.Store) hub.Store { return s })
}

func newRigOver(t *testing.T, url string, over func(hub.Store) hub.Store) *rig {
	t.Helper()
	db, err := hubdb.Open(t.Context(), url, kek())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	store := over(db)
	r := &rig{t: t, logs: new(testenv.Buffer), ca: newIssuer(t), feed: &feed{blocked: map[cradle.DeviceID]cradle.DeviceState{}, certs: map[[32]byte]bool{}}}
	log := slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.hub = hub.New(hub.Config{Store: store, Status: r.feed, Log: log, Issuer: r.ca,
		Now: func() time.Time { return time.Now().Add(time.Duration(r.skew.Load())) }})
	if err := r.hub.Ensure(t.Context(), hub.DefaultName); err != nil {
		t.Fatal(err)
	}
	s := hubserver.New(hubserver.Config{Hub: r.hub, Log: log})

	web := httptest.NewUnstartedServer(s)
	web.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	web.StartTLS()
	t.Cleanup(web.Close)
	r.roots = x509.NewCertPool()
	r.roots.AddCert(web.Certificate())
	cs, err := r.hub.ConnectionString(t.Context(), hub.DefaultName, web.Listener.Addr().String(), hub.Owner)
	if err != nil {
		t.Fatal(err)
	}
	r.reg = iothub.NewRegistry(web.Client(), cs)

	r.addr = mqttPort(t, web.TLS, mqttserve.New(mqttserve.Config{Log: log}).For(s))
	return r
}

// mqttPort serves MQTT connections on a port of its own.
func mqttPort(t *testing.T, c *tls.Config, accept func(context.Context, net.Conn, tls.ConnectionState)) string {
	t.Helper()
	l, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := front.New(front.Config{
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.Certificates[0], nil },
		Default:     front.Route{MQTT: accept},
		Log:         slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return l.Addr().String()
}

// ident is a device's key and certificate.
type ident struct {
	id   cradle.DeviceID
	cert tls.Certificate
	leaf *x509.Certificate // only where a test calls the hub itself
}

func (i ident) sha256() string {
	s := sha256.Sum256(i.cert.Certificate[0])
	return hex.EncodeToString(s[:])
}

func (i ident) sha1() string {
	s := sha1.Sum(i.cert.Certificate[0])
	return hex.EncodeToString(s[:])
}

func newIdent(t *testing.T, id cradle.DeviceID, change ...func(*x509.Certificate)) ident {
	t.Helper()
	c := &x509.Certificate{Subject: pkix.Name{Organization: []string{"acme"}, CommonName: string(id)}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	for _, f := range change {
		f(c)
	}
	return ident{id: id, cert: testca.New(t, c, nil).TLS()}
}

func entry(id cradle.DeviceID, primary, secondary string) *iothub.Device {
	return &iothub.Device{DeviceID: id, Authentication: iothub.Authentication{Type: iothub.SelfSigned,
		X509Thumbprint: iothub.X509Thumbprint{PrimaryThumbprint: primary, SecondaryThumbprint: secondary}}}
}

// register makes an identity and its registry entry.
func (r *rig) register(id cradle.DeviceID) ident {
	r.t.Helper()
	i := newIdent(r.t, id)
	r.put(entry(id, i.sha256(), ""), "")
	return i
}

func (r *rig) put(d *iothub.Device, ifMatch string) *iothub.Device {
	r.t.Helper()
	out, err := r.reg.PutDevice(r.t.Context(), d, ifMatch)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) tls(i ident) *tls.Config {
	c := &tls.Config{RootCAs: r.roots, ServerName: "example.com"}
	if i.cert.Certificate != nil {
		c.Certificates = []tls.Certificate{i.cert}
	}
	return c
}

func (r *rig) dial(i ident) net.Conn {
	r.t.Helper()
	c, err := tls.Dial("tcp", r.addr, r.tls(i))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// client is a connected device.
type client struct {
	*mqtt.Client
	ident
	ended chan error // what Run returned
}

func (r *rig) connect(i ident) (*client, error) { return r.connectOver(r.dial(i), i) }

func (r *rig) connectOver(nc net.Conn, i ident) (*client, error) {
	c, err := mqtt.Dial(r.t.Context(), nc, mqtt.Options{ClientID: string(i.id), Username: iothub.UserName("localhost:8443", i.id), KeepAlive: time.Minute})
	if err != nil {
		return nil, err
	}
	out := &client{c, i, make(chan error, 1)}
	go func() { out.ended <- c.Run(context.Background()) }()
	r.t.Cleanup(func() { c.Close() })
	return out, nil
}

func (r *rig) mustConnect(i ident) *client {
	r.t.Helper()
	c, err := r.connect(i)
	if err != nil {
		r.t.Fatalf("connecting %s: %v\n%s", i.id, err, r.logs)
	}
	return c
}

func (c *client) say(ctx context.Context, seq, body string) error {
	bag := iothub.Bag{{Name: iothub.PropSequence, Value: seq}, {Name: iothub.PropMessageID, Value: "m-" + seq}, {Name: iothub.PropContentType, Value: "application/json"}}
	return c.Publish(ctx, iothub.TelemetryTopic(c.id, bag), mqtt.AtLeastOnce, []byte(body))
}

// wantGone waits until the hub has closed the connection, and finds why in the log.
func (r *rig) wantGone(c *client, why string) {
	r.t.Helper()
	ends(r.t, c.ended, why)
	r.wantLog(why)
}

func (r *rig) wantLog(why string) {
	r.t.Helper()
	testenv.Eventually(r.t, fmt.Sprintf("%q in the log", why), func() bool { return strings.Contains(r.logs.String(), why) }, r.logs)
}

// ends waits for the end of a connection.
func ends(t *testing.T, ended <-chan error, why string) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(testenv.Patience):
		t.Fatalf("still connected; expected: %s", why)
	}
}

func (r *rig) events(from iothub.Cursor) []*iothub.Event {
	r.t.Helper()
	var out []*iothub.Event
	if err := r.reg.Events(r.t.Context(), iothub.EventQuery{From: from}, func(e *iothub.Event) error { out = append(out, e); return nil }); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// raw sends bytes over a new connection and returns everything the hub answers until it closes.
func (r *rig) raw(i ident, b []byte) []byte {
	r.t.Helper()
	c := r.dial(i)
	// The hub may close before it has read everything: that is an answer too.
	if _, err := c.Write(b); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		r.t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(testenv.Patience))
	out, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Error("the hub did not close the connection")
	}
	return out
}

func connectPacket(i ident, change ...func(*mqtt.Connect)) []byte {
	u := iothub.UserName("localhost", i.id)
	p := &mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: string(i.id), KeepAlive: 60, Username: &u}
	for _, f := range change {
		f(p)
	}
	return p.Append(nil)
}

func firstPacket(b []byte) mqtt.Packet {
	p, _ := mqtt.Read(bufio.NewReader(bytes.NewReader(b)), 1<<20)
	return p
}

func decode(t *testing.T, key string) []byte {
	t.Helper()
	k, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(k) == 0 {
		t.Fatalf("key %q: %v", key, err)
	}
	return k
}

// module registers a module with a symmetric key.
func (r *rig) module(of *unit, id string) *unit {
	r.t.Helper()
	var m iothub.Module
	if code, text := r.service().call("PUT", "/devices/"+of.name+"/modules/"+id, fmt.Sprintf(`{"deviceId":%q,"moduleId":%q,"authentication":{"type":"sas"}}`, of.name, id), &m); code/100 != 2 {
		r.t.Fatalf("registering a module: %d %s", code, text)
	}
	return &unit{r: r, name: of.name + "/" + id, key: decode(r.t, m.Authentication.SymmetricKey.PrimaryKey)}
}

// packets reads one packet after the other.
func packets(t *testing.T, c net.Conn) func() mqtt.Packet {
	r := bufio.NewReader(c)
	return func() mqtt.Packet {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(testenv.Patience))
		p, err := mqtt.Read(r, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
}
