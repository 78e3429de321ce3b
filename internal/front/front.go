// Package front is one TLS port for many services. It accepts TCP, does the TLS handshake under limits, and
// hands the connection on by the TLS server name and then by its first byte: 0x10 begins an MQTT CONNECT
// (MQTT 3.1.1 §3.1.1), anything else is HTTP.
//
// The pieces: Listen opens a port and explains a port that is taken; Server accepts and routes; Route says
// what is behind a name; Paths divides a name that several HTTP services share; Hold lets a handler
// send an answer in one write; Session keeps a connection that a handler has made a WebSocket.
//
// Every client is asked for a certificate, without naming CAs (clients leave theirs out when they do not find
// their issuer in the list, and the list would tell who the tenants are), and none is required. The
// certificate is not verified here, on full handshakes or resumed ones: the services do that per request
// or connection, from r.TLS (always set) or the state they are given.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
)

// Listen opens a TCP port. A port that is taken is cradle.Conflict, one that may not be opened
// cradle.Forbidden, a bad address cradle.Invalid; each with a hint.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	if addr == "" { // for which Go listens everywhere, at any port
		return nil, cradle.Errorf(cradle.Invalid, "the address to listen on is empty").WithHint("give an address of this machine as host:port")
	}
	ln, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, cradle.Errorf(cradle.Conflict, "cannot listen on %s: the port is taken", addr).
			WithHint("this or another process listens on %s; choose another address", addr)
	case errors.Is(err, syscall.EACCES):
		return nil, cradle.Errorf(cradle.Forbidden, "cannot listen on %s: no permission", addr).
			WithHint("choose a port above 1023")
	default:
		return nil, cradle.Errorf(cradle.Invalid, "cannot listen on %s: %w", addr, err).
			WithHint("give an address of this machine as host:port")
	}
}

// Route is what is behind a server name. A nil part is refused by closing the connection.
type Route struct {
	HTTP http.Handler
	// MQTT serves one connection whose first packet is CONNECT. ctx ends when the server shuts down. The
	// connection has no deadlines set and is closed when MQTT returns. A panic in it ends the connection only.
	MQTT func(ctx context.Context, conn net.Conn, state tls.ConnectionState)
}

// Config of a Server. Only Certificate and a route are required.
type Config struct {
	// Certificate returns the server's certificate; it is called on every handshake, so that the
	// certificate can be exchanged while the server runs.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Hosts routes by TLS server name, lower case; "*.example.com" stands for one more label. Default serves
	// all other names, and clients that send none.
	Hosts   map[string]Route
	Default Route

	Log *slog.Logger // nil means slog.Default()

	HandshakeTimeout time.Duration    // from accept to the first byte inside TLS; 0 means 10 s
	MaxHandshakes    int              // connections that have not come so far yet; 0 means 1024
	MaxPerIP         int              // connections of one IPv4 address or IPv6 /64; 0 means no limit
	IdleTimeout      time.Duration    // of a kept HTTP connection; 0 means 2 min
	ReadTimeout      time.Duration    // of one HTTP request; 0 means 30 s
	WriteTimeout     time.Duration    // of one HTTP answer, handler included; 0 means 60 s; streams extend theirs by http.ResponseController
	Grace            time.Duration    // that Run gives requests and MQTT connections at the end; 0 means 10 s
	Now              func() time.Time // clock of TLS; nil means the real one
}

func (c *Config) defaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.HandshakeTimeout, 10*time.Second)
	def(&c.IdleTimeout, 2*time.Minute)
	def(&c.ReadTimeout, 30*time.Second)
	def(&c.WriteTimeout, time.Minute)
	def(&c.Grace, 10*time.Second)
	if c.MaxHandshakes <= 0 {
		c.MaxHandshakes = 1024
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// route finds what is behind a server name.
func (c *Config) route(name string) Route {
	if name == "" || len(c.Hosts) == 0 {
		return c.Default
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if r, ok := c.Hosts[name]; ok {
		return r
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		if r, ok := c.Hosts["*."+parent]; ok {
			return r
		}
	}
	return c.Default
}

// tlsConfig makes the server's TLS settings. Tickets are on by default; the config that GetConfigForClient
// returns uses the keys of the first one (crypto/tls), so a ticket is good for every name of this server, and
// services must not take a resumed session for a status check.
func (c *Config) tlsConfig() *tls.Config {
	plain := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: c.Certificate,
		Time:           c.Now,
		// Answers go out as one record: strongSwan wants the body in one read.
		DynamicRecordSizingDisabled: true,
	}
	// ALPN is answered only to those who offer HTTP/1.1: a server with a list refuses a client that
	// offers other names only, as MQTT clients do.
	alpn := plain.Clone()
	alpn.NextProtos = []string{"http/1.1"}
	plain.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		for _, p := range hello.SupportedProtos {
			if p == "http/1.1" {
				return alpn, nil
			}
		}
		return nil, nil
	}
	return plain
}

// Paths divides HTTP requests by path; the first match wins, none is 404. Unlike http.ServeMux it never
// redirects and does not clean paths, since devices follow no redirects.
type Paths []Path

// Path is one entry. A pattern is matched segment by segment: "*" stands for any one segment that is not empty. A
// pattern that ends in "/" matches everything below it; else the last segment must be the path's last.
//
//	/.well-known/est/     /*/registrations/     /devices     /devices/
type Path struct {
	Pattern string
	Handler http.Handler
}

// ServeHTTP implements http.Handler.
func (p Paths) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, e := range p {
		if matchPath(e.Pattern, r.URL.Path) {
			e.Handler.ServeHTTP(w, r)
			return
		}
	}
	http.Error(w, "nothing is served under this path", http.StatusNotFound)
}

func matchPath(pattern, path string) bool {
	for pattern != "" {
		seg, rest, more := strings.Cut(pattern, "/")
		got, left, deeper := strings.Cut(path, "/")
		if seg != got && (seg != "*" || got == "") || more != deeper {
			return false
		}
		if more && rest == "" {
			return true // "…/": everything below
		}
		pattern, path = rest, left
	}
	return true
}
