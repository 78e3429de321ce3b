// Package shed decides whether a request is taken at all, before it costs more than its TLS handshake did: no
// store is read and no CSR parsed for a request that is over a limit. Its client is told when to come again (429 with
// Retry-After).
//
// Limits are token buckets per
//
//	address      requests without a client certificate, and the first of each certificate or registration
//	certificate  EST requests of a device: IoT Identity Service that fails restarts every 5 s and
//	             asks again, for ever, for each of its certificates
//	line         EST requests of a station, which asks for all units of its order, or of a registration authority
//	account      EST requests, so that one account's fleet does not starve the others'; certificates that were
//	             served before have a bucket of their own, which strangers who name the account cannot empty
//	registration requests of one device to the provisioning service, which is known by its certificate, or else by its
//	             address and the registration id it gives
//	operator     admin requests
//
// Buckets are kept for a bounded number of keys; the one idle for longest is forgotten, and is full when it comes
// back. Behind a load balancer that hides addresses, the limit per address must be off.
package shed

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// ErrLimit is the cause of a refusal by this package.
var ErrLimit = errors.New("over a limit")

// Rate is how fast a bucket fills and how much it holds. Zero PerSecond is no limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Limits are the rates per key.
type Limits struct{ Address, Certificate, Line, Account, Registration, Operator Rate }

// Defaults admit a busy factory line, a fleet that is powered on at once and a bench on one address, and
// let a device that restarts for ever through once in five seconds.
func Defaults() Limits {
	return Limits{Address: Rate{2000, 20000}, Certificate: Rate{0.2, 60}, Line: Rate{500, 5000}, Account: Rate{2000, 20000}, Registration: Rate{1, 60}, Operator: Rate{100, 1000}}
}

// Set changes the limit of that name: "off", or PER-SECOND:BURST as "0.5:30".
func (l *Limits) Set(name, value string) error {
	to, ok := map[string]*Rate{"address": &l.Address, "certificate": &l.Certificate, "line": &l.Line, "account": &l.Account, "registration": &l.Registration, "operator": &l.Operator}[name]
	if !ok {
		return fmt.Errorf("there is no limit %q: use address, certificate, line, account, registration or operator", name)
	}
	if value == "off" {
		*to = Rate{}
		return nil
	}
	per, burst, ok := strings.Cut(value, ":")
	f, err1 := strconv.ParseFloat(per, 64)
	n, err2 := strconv.Atoi(burst)
	if !ok || err1 != nil || err2 != nil || !(f > 0 && f <= 1e6) || n < 1 || n > 1e6 {
		return fmt.Errorf("limit %s: %q is not \"off\" or PER-SECOND:BURST, as 0.5:30", name, value)
	}
	*to = Rate{f, n}
	return nil
}

// Gate holds the buckets. A nil Gate takes everything.
type Gate struct {
	now                        func() time.Time
	seed                       maphash.Seed
	address, station, accounts *table
	certificates, operators    *table
	registrations              *table
}

// New makes a Gate. now may be nil for the real clock.
func New(l Limits, now func() time.Time) *Gate {
	if now == nil {
		now = time.Now
	}
	return &Gate{now: now, seed: maphash.MakeSeed(), address: newTable(l.Address), station: newTable(l.Line), accounts: newTable(l.Account),
		certificates: newTable(l.Certificate), operators: newTable(l.Operator),
		registrations: newTable(l.Registration)}
}

// Address takes or refuses a request of nobody known.
func (g *Gate) Address(r *http.Request) error {
	if g == nil {
		return nil
	}
	return g.addressOf(r.RemoteAddr, g.now())
}

func (g *Gate) addressOf(remote string, now time.Time) error {
	return g.refuse(g.address.take(g.addressKey(remote), now), "this address")
}

// Registration takes or refuses a device's request to the provisioning service. remote is its address as
// http.Request has it, certificate the one it showed (DER; nil: none), id the registration id it gives.
func (g *Gate) Registration(remote string, certificate []byte, id string) error {
	if g == nil {
		return nil
	}
	now := g.now()
	key := maphash.Bytes(g.seed, certificate)
	if certificate == nil {
		key = maphash.String(g.seed, id) ^ g.addressKey(remote)
	}
	if seen, _ := g.registrations.seen(key); !seen || certificate == nil { // ids cost a stranger nothing
		if err := g.addressOf(remote, now); err != nil {
			return err
		}
	}
	return g.refuse(g.registrations.take(key, now), "this device")
}

// EST takes or refuses a request to an account's label. account is empty for a label that is nobody's.
func (g *Gate) EST(r *http.Request, account cradle.AccountID, profile cradle.Profile) error {
	if g == nil {
		return nil
	}
	now := g.now()
	cert, ok := g.certificateKey(r)
	if !ok {
		if err := g.Address(r); err != nil || account == "" {
			return err
		}
		return g.refuse(g.accounts.take(g.accountKey(account, false), now), "strangers at account "+string(account))
	}
	t := g.tableOf(r, profile)
	seen, known := t.seen(cert)
	if !seen {
		if err := g.Address(r); err != nil {
			return err
		}
	}
	if err := g.refuse(t.take(cert, now), "this client certificate"); err != nil || account == "" {
		return err
	}
	return g.refuse(g.accounts.take(g.accountKey(account, known), now), "account "+string(account))
}

// Served notes that the request's certificate was served: it is no stranger.
func (g *Gate) Served(r *http.Request, profile cradle.Profile) {
	if g == nil {
		return
	}
	if cert, ok := g.certificateKey(r); ok {
		g.tableOf(r, profile).know(cert)
	}
}

// idCMCRA is id-kp-cmcRA (RFC 6402 §2.10).
var idCMCRA = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 28}

// tableOf is where a certificate is counted: stations, and registration authorities, ask for many devices. Who only says
// that it is one is a stranger like another.
func (g *Gate) tableOf(r *http.Request, profile cradle.Profile) *table {
	if profile == cradle.IDevID || profile == cradle.IAK || slices.ContainsFunc(r.TLS.PeerCertificates[0].UnknownExtKeyUsage, idCMCRA.Equal) {
		return g.station
	}
	return g.certificates
}

// Operator takes or refuses an admin request of an authenticated caller.
func (g *Gate) Operator(account cradle.AccountID, name string) error {
	if g == nil {
		return nil
	}
	return g.refuse(g.operators.take(maphash.String(g.seed, string(account)+"/"+name), g.now()), "this token")
}

func (g *Gate) refuse(wait time.Duration, who string) error {
	if wait <= 0 {
		return nil
	}
	wait = max(wait, time.Second)
	return &cradle.Error{Kind: cradle.Busy, Detail: "too many requests of " + who, Hint: "come again after the time in Retry-After", RetryAfter: wait, Err: ErrLimit}
}

func (g *Gate) certificateKey(r *http.Request) (uint64, bool) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return 0, false
	}
	return maphash.Bytes(g.seed, r.TLS.PeerCertificates[0].Raw), true
}

func (g *Gate) accountKey(a cradle.AccountID, known bool) uint64 {
	k := maphash.String(g.seed, string(a))
	if known {
		return k
	}
	return ^k
}

// addressKey is the client's address; of IPv6 the /64, which is what one host has.
func (g *Gate) addressKey(remote string) uint64 {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return 0
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64)
		ip = p.Addr()
	}
	return maphash.Comparable(g.seed, ip)
}
