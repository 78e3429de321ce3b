// Package provisioningtest stands in for the outside world of the provisioning service in tests: a hub's
// device registry that checks how it is used, a status feed, and a CA that makes devices' certificates.
// Only tests import it.
package provisioningtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Hub is a device registry in memory with the contract of iothub.Registry. It fails the test when the
// provisioning service breaks the two-slot rule: a primary thumbprint that stands is only ever changed by
// the hub itself (Promote).
type Hub struct {
	t testing.TB

	mu      sync.Mutex
	devices map[cradle.DeviceID]*iothub.Device
	tag     int
	fail    error                                        // every call answers this
	before  func(method string, id cradle.DeviceID)      // runs before a call, without the lock
	lose    func(method string, id cradle.DeviceID) bool // carries the call out, then loses the answer
	calls   map[string]int
	twins   map[cradle.DeviceID]*Twin
}

// Twin is what a hub keeps for a device, as plain values.
type Twin struct{ Tags, Desired map[string]any }

// NewHub makes an empty registry.
func NewHub(t testing.TB) *Hub {
	return &Hub{t: t, devices: map[cradle.DeviceID]*iothub.Device{}, calls: map[string]int{}, twins: map[cradle.DeviceID]*Twin{}}
}

// ErrDown is what a hub out of reach answers.
var ErrDown = cradle.Errorf(cradle.Busy, "hub is not reachable: connection refused")

// Fail makes every call fail with err; nil ends it.
func (h *Hub) Fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = err
}

// Before calls f before each call.
func (h *Hub) Before(f func(method string, id cradle.DeviceID)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = f
}

// Lose makes writes that f names happen, and their answers get lost.
func (h *Hub) Lose(f func(method string, id cradle.DeviceID) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lose = f
}

// Calls counts calls of a method ("get", "create", "update", "delete").
func (h *Hub) Calls(method string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[method]
}

// Device returns an entry, or nil.
func (h *Hub) Device(id cradle.DeviceID) *iothub.Device {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.devices[id]; d != nil {
		c := *d
		return &c
	}
	return nil
}

// Promote does what a hub does at the first CONNECT with the secondary.
func (h *Hub) Promote(id cradle.DeviceID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := &h.devices[id].Authentication.X509Thumbprint
	x.PrimaryThumbprint, x.SecondaryThumbprint = x.SecondaryThumbprint, ""
	h.touch(h.devices[id])
}

// Edit changes an entry behind the provisioning service's back.
func (h *Hub) Edit(id cradle.DeviceID, f func(*iothub.Device)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.devices[id])
	h.touch(h.devices[id])
}

func (h *Hub) touch(d *iothub.Device) {
	h.tag++
	d.ETag = fmt.Sprint("tag-", h.tag)
}

func (h *Hub) enter(method string, id cradle.DeviceID) error {
	h.mu.Lock()
	before := h.before
	h.mu.Unlock()
	if before != nil {
		before(method, id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[method]++
	return h.fail
}

// leave loses the answer if the test wants it so; the lock is held.
func (h *Hub) leave(method string, id cradle.DeviceID) error {
	if h.lose != nil && h.lose(method, id) {
		return ErrDown
	}
	return nil
}

// GetDevice implements provisioning.HubRegistry.
func (h *Hub) GetDevice(_ context.Context, id cradle.DeviceID) (*iothub.Device, error) {
	if err := h.enter("get", id); err != nil {
		return nil, err
	}
	if d := h.Device(id); d != nil {
		return d, nil
	}
	return nil, cradle.Errorf(cradle.NotFound, "device %q not found", id)
}

// WriteDevice implements provisioning.HubRegistry.
func (h *Hub) WriteDevice(_ context.Context, d *iothub.Device, ifMatch string) error {
	method := "update"
	if ifMatch == "" {
		method = "create"
	}
	if err := h.enter(method, d.DeviceID); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	cur := h.devices[d.DeviceID]
	switch {
	case cur == nil && ifMatch != "":
		return cradle.Errorf(cradle.NotFound, "device %q not found", d.DeviceID)
	case cur != nil && ifMatch == "":
		return cradle.Errorf(cradle.Conflict, "device %q exists", d.DeviceID)
	case cur != nil && ifMatch != "*" && ifMatch != cur.ETag:
		return cradle.Errorf(cradle.Conflict, "etag of %q has moved", d.DeviceID)
	}
	x := d.Authentication.X509Thumbprint
	if cur != nil {
		old := cur.Authentication.X509Thumbprint
		if cur.Authentication.Type == d.Authentication.Type && old.PrimaryThumbprint != "" && x.PrimaryThumbprint != old.PrimaryThumbprint {
			h.t.Errorf("two-slot rule: primary of %q changed from %s to %s", d.DeviceID, old.PrimaryThumbprint, x.PrimaryThumbprint)
		}
	}
	if k := d.Authentication.SymmetricKey; d.Authentication.Type == iothub.SAS {
		if k.PrimaryKey == "" || k.SecondaryKey == "" || x.PrimaryThumbprint+x.SecondaryThumbprint != "" {
			h.t.Errorf("device %q: a key is missing, or there is a thumbprint beside it", d.DeviceID)
		}
	} else if d.Authentication.Type != iothub.SelfSigned || len(x.PrimaryThumbprint) != 64 || x.PrimaryThumbprint != strings.ToUpper(x.PrimaryThumbprint) {
		h.t.Errorf("device %q: authentication %+v is not what the hub expects", d.DeviceID, d.Authentication)
	}
	if cur == nil {
		h.twins[d.DeviceID] = &Twin{Tags: map[string]any{}, Desired: map[string]any{}}
	}
	stored := *d
	h.touch(&stored)
	h.devices[d.DeviceID] = &stored
	return h.leave(method, d.DeviceID)
}

// DeleteDevice implements provisioning.HubRegistry.
func (h *Hub) DeleteDevice(_ context.Context, id cradle.DeviceID, _ string) error {
	if err := h.enter("delete", id); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.devices[id] == nil {
		return cradle.Errorf(cradle.NotFound, "device %q not found", id)
	}
	delete(h.devices, id)
	delete(h.twins, id)
	return h.leave("delete", id)
}

// Feed is a status feed that is set by hand.
type Feed struct {
	mu      sync.Mutex
	stale   bool
	devices map[string]cradle.DeviceState
	certs   map[[32]byte]bool
}

// NewFeed makes a fresh feed that blocks nobody.
func NewFeed() *Feed {
	return &Feed{devices: map[string]cradle.DeviceState{}, certs: map[[32]byte]bool{}}
}

// Set gives a device a state; one that does not block releases it.
func (f *Feed) Set(account cradle.AccountID, id cradle.DeviceID, s cradle.DeviceState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.devices[string(account)+"/"+string(id)] = s
}

// BlockCert blocks one certificate.
func (f *Feed) BlockCert(sha256 [32]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.certs[sha256] = true
}

// SetStale makes the feed too old, or fresh again.
func (f *Feed) SetStale(stale bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale = stale
}

// Blocked implements provisioning.Feed.
func (f *Feed) Blocked(account cradle.AccountID, id cradle.DeviceID) (cradle.DeviceState, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.devices[string(account)+"/"+string(id)]
	return s, s.Blocked()
}

// CertBlocked implements provisioning.Feed.
func (f *Feed) CertBlocked(sha256 [32]byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.certs[sha256]
}

// Fresh implements provisioning.Feed.
func (f *Feed) Fresh(time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.stale
}

// CA signs devices' certificates for one account.
type CA struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	t    testing.TB
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	return n
}

// NewCA makes an operational CA.
func NewCA(t testing.TB, account cradle.AccountID, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	subject := pkix.Name{CommonName: name}
	if account != "" {
		subject.Organization = []string{string(account)}
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{cert, key, t}
}

// Leaf makes a device's certificate; change may alter the template.
func (ca *CA) Leaf(name string, change func(*x509.Certificate)) tls.Certificate {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf := ca.leaf(name, &key.PublicKey, change)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// LeafFor makes a device's certificate for its key.
func (ca *CA) LeafFor(name string, key *ecdsa.PublicKey) *x509.Certificate {
	ca.t.Helper()
	return ca.leaf(name, key, nil)
}

func (ca *CA) leaf(name string, key *ecdsa.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	ca.t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name, Organization: ca.Cert.Subject.Organization},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Cert, key, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return leaf
}

// Intermediate makes a CA below ca; change may alter the template.
func (ca *CA) Intermediate(name string, change func(*x509.Certificate)) *CA {
	ca.t.Helper()
	tls := ca.Leaf(name, func(c *x509.Certificate) {
		c.BasicConstraintsValid, c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(500*time.Hour)
		if change != nil {
			change(c)
		}
	})
	return &CA{tls.Leaf, tls.PrivateKey.(*ecdsa.PrivateKey), ca.t}
}

// Device signs as if a device's certificate were a CA's.
func Device(t testing.TB, cert tls.Certificate) *CA {
	return &CA{cert.Leaf, cert.PrivateKey.(*ecdsa.PrivateKey), t}
}
