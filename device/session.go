package device

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
)

// session is a kept connection to the provider, with the certificate that authenticates it. One that was opened to
// ask for the time accepts a server's chain at whatever time until judge is called.
type session struct {
	Provider
	d    *Device
	auth *tls.Certificate // nil: none

	mu      sync.Mutex // the handshake runs on a goroutine of the HTTP client
	anyTime bool
	leaf    *x509.Certificate // of the server, as accepted last
	opts    x509.VerifyOptions
}

func (d *Device) openSession(auth *tls.Certificate, anyTime bool) (*session, error) {
	host, err := hostOf(d.set.Provider.URL)
	if err != nil {
		return nil, err
	}
	s := &session{d: d, auth: auth, anyTime: anyTime}
	s.Provider = d.net.Provider(strings.TrimSuffix(d.set.Provider.URL, "/"), d.tlsConfigAt(host, auth, s.accept))
	return s, nil
}

// accept is asked in each handshake.
func (s *session) accept(leaf *x509.Certificate, o x509.VerifyOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaf, s.opts = leaf, o
	if s.anyTime {
		return ignoreValidity(leaf, o)
	}
	return s.d.verifyServer(leaf, o)
}

// judge verifies the server's chain again, at the time that is known now, and from now on each new
// connection by the usual rules (DESIGN §4.3).
func (s *session) judge() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.anyTime = false
	if s.leaf == nil {
		return errors.New("internal error: no connection to judge")
	}
	s.opts.CurrentTime = s.d.time.now()
	return s.d.verifyServer(s.leaf, s.opts)
}

// providerSession is a session authenticated by auth: the kept one if it is, else a new one.
func (d *Device) providerSession(auth *tls.Certificate) (*session, error) {
	if s := d.m.kept; s != nil && bytes.Equal(s.auth.Certificate[0], auth.Certificate[0]) && s.judge() == nil {
		d.m.kept = nil
		return s, nil
	}
	d.m.release()
	return d.openSession(auth, false)
}

// release closes the kept connection, if there is one.
func (m *maintenance) release() {
	if m.kept != nil {
		m.kept.Close()
		m.kept = nil
	}
}
