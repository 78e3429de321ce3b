package estserver

import (
	"context"
	"crypto/x509"
	"encoding/json"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

// Endpoint is what a request's server name and label stand for.
type Endpoint struct {
	Account cradle.AccountID
	Profile cradle.Profile
	Label   string // cradle.Label(Account, Profile), also when the path had none
}

// Operation is simpleenroll or simplereenroll.
type Operation string

// The operations that issue.
const (
	Enroll   Operation = est.OpSimpleEnroll
	Reenroll Operation = est.OpSimpleReenroll
)

// Enrolment is one request for a certificate.
type Enrolment struct {
	Endpoint  Endpoint
	Operation Operation
	// Peer is the TLS client certificate, never nil. TLS has proved that the client holds its key and nothing
	// else: issuer, validity and status are the provider's to check.
	Peer *x509.Certificate
	CSR  []byte // DER, not parsed, at most est.MaxBody
}

// Provider decides and issues. Errors carry a cradle.Kind, whose mapping to HTTP is in the package
// comment, and a detail that may be shown. All methods are called concurrently.
type Provider interface {
	// Resolve finds the endpoint of a TLS server name (may be empty) and a label (empty when the path
	// has none: then the account of the server name and its default profile). cradle.NotFound
	// for an unknown label or a name that belongs to no account. It must not block.
	Resolve(serverName, label string) (Endpoint, error)

	// CACerts returns the issuing CA first, then upwards to the root.
	CACerts(ctx context.Context, e Endpoint) ([]*x509.Certificate, error)

	// Nonce answers the nonce resource. peer is nil for a client without certificate, and unverified as
	// in Enrolment; typ and claim are empty when the client asked for a bare nonce.
	Nonce(ctx context.Context, e Endpoint, peer *x509.Certificate, typ string, claim json.RawMessage) (est.NonceResponse, error)

	// Enroll issues one certificate and returns it, after it is on record. ctx is not cancelled when the
	// client goes away, only after Config.Timeout; a certificate that is recorded and not
	// delivered is answered again by the provider's replay rule.
	Enroll(ctx context.Context, e Enrolment) (Issued, error)
}

// Issued is an issued certificate.
type Issued struct {
	Certificate []byte // DER
	// Replaced names the wishes of the CSR that the profile replaced by its own; the answer's header
	// Cradle-Replaced lists them.
	Replaced []string
}
