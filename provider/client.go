package provider

import "crypto/x509"

// Client is what a client brought to authenticate itself; any part may be missing.
type Client struct {
	Peer  *x509.Certificate   // TLS client certificate; TLS proved its key, nothing more
	Chain []*x509.Certificate // as sent, unverified, the leaf first
	Basic *Basic              // HTTP Basic
}

// Basic is a user and password of HTTP Basic (RFC 7617).
type Basic struct{ User, Password string }
