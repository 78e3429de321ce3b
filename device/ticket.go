package device

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"
)

// ticketLife is how long after its registration the device may resume that TLS session at its hub.
const ticketLife = time.Minute

// ticket is the TLS session of the last registration. Its hub's first connection resumes it, where one server
// certificate stands for both and they share their ticket keys (RFC 8446 §4.6.1): that spares both ends two
// signatures, and the device its TPM's. It is used once, with the certificate it was made with, and only towards a name that the
// server had proved. Every other connection is a full handshake.
type ticket struct {
	mu     sync.Mutex
	client string            // the client certificate's DER
	server *x509.Certificate // nil: none
	state  *tls.ClientSessionState
	until  time.Time // by the monotonic clock
}

// keep has a registration's connection leave its session here.
func (t *ticket) keep(c *tls.Config, client []byte) *tls.Config {
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verify(s); err != nil {
			return err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.client, t.server, t.state, t.until = string(client), s.PeerCertificates[0], nil, time.Now().Add(ticketLife)
		return nil
	}
	c.ClientSessionCache = sessionOf{put: func(s *tls.ClientSessionState) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.state = s
	}}
	return c
}

// use has a connection to the hub resume the session that is here, if it may.
func (t *ticket) use(c *tls.Config, client []byte) *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != nil && t.client == string(client) && time.Now().Before(t.until) && t.server.VerifyHostname(c.ServerName) == nil {
		c.ClientSessionCache = sessionOf{get: t.state}
	}
	t.server, t.state = nil, nil
	return c
}

// sessionOf is a cache that gives one session, or takes the newest. c.VerifyConnection judges the server's certificate
// of a resumed session as of any other.
type sessionOf struct {
	get *tls.ClientSessionState
	put func(*tls.ClientSessionState)
}

// Get implements tls.ClientSessionCache.
func (s sessionOf) Get(string) (*tls.ClientSessionState, bool) { return s.get, s.get != nil }

// Put implements tls.ClientSessionCache.
func (s sessionOf) Put(_ string, state *tls.ClientSessionState) {
	if s.put != nil && state != nil {
		s.put(state)
	}
}
