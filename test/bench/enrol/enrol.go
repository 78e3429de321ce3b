// Package enrol measures plain enrolments, one certificate each, on our EST server and on other people's: a CSR on a
// new connection and on a kept one, for a first certificate (simpleenroll) and by the certificate that is
// followed (simplereenroll). No evidence is sent, since no other server reads it: at ours the clients are known
// by another CA, as an account may register one.
//
// Every client offers P-256 alone for the key exchange, the one that all servers here accept: GlobalSign's takes no other of those
// that Go's clients offer by default, and with each server's own preference it would be the curves that are compared.
//
// A Server is one of them, running in a process of its own; Run puts the same load on each, by turns.
package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle/test/bench/floor"
)

// Server is under load.
type Server interface {
	Name() string
	Addr() string
	Roots() *x509.CertPool       // of its TLS certificate
	Chain() [][]byte             // that a client sends behind what it got from it
	CPU() (time.Duration, error) // that it has taken, its database's included
	First(d *Device) error       // gives the device what it authenticates with at first: Auth or Token
	Enroll(context.Context, *http.Client, *Device, *Request) (*x509.Certificate, error)
	Reenroll(context.Context, *http.Client, *Device, *Request) (*x509.Certificate, error)
	Close()
}

// Device is a client.
type Device struct {
	Name string
	Auth *tls.Certificate // shown in TLS; nil: none
}

// Request is a CSR with a key of its own, and what goes with it.
type Request struct {
	Key   *ecdsa.PrivateKey
	CSR   []byte
	Token string
}

// Kind is what is measured.
type Kind int

// The kinds.
const (
	EnrollNew Kind = iota
	EnrollKept
	ReenrollNew
	ReenrollKept
	Kinds
)

func (k Kind) String() string {
	return [...]string{"simpleenroll, new connection", "simpleenroll, kept", "simplereenroll, new connection", "simplereenroll, kept"}[k]
}

// Crypto is what one enrolment cannot avoid: on a new connection a mutual handshake, and always the CSR's signature
// and the certificate's.
func (k Kind) Crypto() floor.Counts {
	c := floor.Counts{floor.VerifyCSR: 1, floor.IssueSign: 1}
	if k == EnrollNew || k == ReenrollNew {
		c = c.Add(floor.MutualP256)
	}
	return c
}

// Sample is one kind in one round.
type Sample struct {
	CPU   time.Duration // per enrolment
	Floor time.Duration
	Wall  time.Duration // all of them
	Count int
}

// perConnection is how many enrolments a kept connection makes: fewer than the limit of a certificate at ours.
const perConnection = 10

// Run puts one round of load on a server: devices enrolments of each kind, parallel at once.
func Run(ctx context.Context, s Server, round, devices, parallel int) (out [Kinds]Sample, err error) {
	ds := make([]*Device, devices)
	for i := range ds {
		ds[i] = &Device{Name: deviceName(round, i)}
		if err := s.First(ds[i]); err != nil {
			return out, err
		}
	}
	for k := range Kinds {
		if out[k], err = measure(ctx, s, k, ds, parallel); err != nil {
			return out, fmt.Errorf("%s, %s: %w", s.Name(), k, err)
		}
	}
	return out, nil
}

func deviceName(round, i int) string { return fmt.Sprintf("enrol-%03d-%05d", round, i) }

// work is one connection's enrolments.
type work struct {
	d    *Device
	reqs []*Request
	hc   *http.Client
}

func measure(ctx context.Context, s Server, k Kind, ds []*Device, parallel int) (out Sample, err error) {
	kept := k == EnrollKept || k == ReenrollKept
	n, each := len(ds), 1
	if kept {
		n, each = max(len(ds)/perConnection, 1), perConnection
	}
	todo := make([]*work, n)
	for i := range todo {
		w := &work{d: ds[i], hc: client(s, ds[i])}
		defer w.hc.CloseIdleConnections()
		for range each {
			r, err := request(s, w.d, k)
			if err != nil {
				return out, err
			}
			w.reqs = append(w.reqs, r)
		}
		todo[i] = w
	}
	if kept { // the connections are there before
		if err := spread(todo, parallel, func(w *work) error { return touch(ctx, w.hc) }); err != nil {
			return out, err
		}
	}
	time.Sleep(200 * time.Millisecond)
	sampler, err := floor.Start()
	if err != nil {
		return out, err
	}
	before, err := s.CPU()
	if err != nil {
		return out, err
	}
	start := time.Now()
	do := s.Enroll
	if k == ReenrollNew || k == ReenrollKept {
		do = s.Reenroll
	}
	err = spread(todo, parallel, func(w *work) error {
		for _, r := range w.reqs {
			cert, err := do(ctx, w.hc, w.d, r)
			if err != nil {
				return err
			}
			if !kept {
				w.d.Auth = &tls.Certificate{Certificate: append([][]byte{cert.Raw}, s.Chain()...), PrivateKey: r.Key, Leaf: cert}
			}
		}
		return nil
	})
	out.Wall, out.Count = time.Since(start), n*each
	after, cpuErr := s.CPU()
	cost, _, floorErr := sampler.Stop()
	for _, e := range []error{err, cpuErr, floorErr} {
		if e != nil {
			return out, e
		}
	}
	out.CPU, out.Floor = (after-before)/time.Duration(out.Count), cost.Of(k.Crypto())
	return out, nil
}

func spread(ws []*work, parallel int, do func(*work) error) error {
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, w := range ws {
		g.Go(func() error { return do(w) })
	}
	return g.Wait()
}

// tokens is what a server has that wants one with each request.
type tokens interface {
	token(name string) (string, error)
}

func request(s Server, d *Device, k Kind) (*Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.Name}}
	if k == ReenrollNew || k == ReenrollKept { // the names of the certificate that is followed
		t.RawSubject = d.Auth.Leaf.RawSubject
	}
	r := &Request{Key: key}
	if x, ok := s.(tokens); ok {
		t.DNSNames = []string{d.Name}
		if r.Token, err = x.token(d.Name); err != nil {
			return nil, err
		}
	}
	r.CSR, err = x509.CreateCertificateRequest(rand.Reader, t, key)
	return r, err
}

// client makes one device's connection: TLS 1.3, P-256, HTTP/1.1, never resumed.
func client(s Server, d *Device) *http.Client {
	c := &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.CurveP256}, RootCAs: s.Roots(), ServerName: "localhost",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if d.Auth == nil {
				return &tls.Certificate{}, nil
			}
			return d.Auth, nil
		}}
	dialer := &net.Dialer{}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: c, MaxIdleConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, s.Addr())
		},
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}}
}

// touch opens a connection by a request that every server refuses cheaply.
func touch(ctx context.Context, hc *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://localhost/none", nil)
	if err != nil {
		return err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return err
	}
	return drain(resp)
}
