package estserver

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

// Endpoint is what a request's server name and label stand for.
type Endpoint struct {
	Account cradle.AccountID
	Profile cradle.Profile
	Label   string // cradle.Label(Account, Profile), also when the path had none
	// Realm is told to clients that may authenticate by HTTP Basic here; empty where they may not.
	Realm string
	// Bound demands that every CSR is bound to its TLS connection by a challengePassword (RFC 7030 §3.5).
	Bound bool
}

// Operation is simpleenroll or simplereenroll.
type Operation string

// The operations that issue.
const (
	Enroll   Operation = est.OpSimpleEnroll
	Reenroll Operation = est.OpSimpleReenroll
)

// Client is what a client brought to authenticate itself; any part may be missing.
type Client struct {
	// Peer is the TLS client certificate. TLS has proved that the client holds its key and nothing else:
	// issuer, validity and status are the provider's to check.
	Peer  *x509.Certificate
	Chain []*x509.Certificate // as sent, unverified, Peer first
	Basic *Basic
}

// Basic is what HTTP Basic carried (RFC 7617). The user may be empty (RFC 7030 §3.2.3).
type Basic struct{ User, Password string }

// Enrolment is one request for a certificate.
type Enrolment struct {
	Endpoint  Endpoint
	Operation Operation
	Client    Client // with a certificate or Basic
	CSR       []byte // DER, not parsed, at most est.MaxBody
}

// Provider decides and issues. Errors carry a cradle.Kind, whose mapping to HTTP is in the package
// comment, and a detail that may be shown. All methods are called concurrently.
type Provider interface {
	// Resolve finds the endpoint of a TLS server name (may be empty) and a label (empty when the path
	// has none: then the account of the server name and its default profile). cradle.NotFound
	// for an unknown label or a name that belongs to no account. It must not block.
	Resolve(ctx context.Context, serverName, label string) (Endpoint, error)

	// CACerts returns the issuing CA first, then upwards to the root.
	CACerts(ctx context.Context, e Endpoint) ([]*x509.Certificate, error)

	// CSRAttributes returns what a CSR for the endpoint is to hold. The client may have brought nothing.
	CSRAttributes(ctx context.Context, e Endpoint, c Client) (est.CSRAttributes, error)

	// Nonce answers the nonce resource. The client may have brought nothing; the zero request is the bare GET.
	// An error that wraps ErrUnwilling says that no such nonce is given here.
	Nonce(ctx context.Context, e Endpoint, c Client, q est.NonceRequest) (est.NonceResponse, error)

	// Enroll issues one certificate and returns it, after it is on record. ctx is not cancelled when the
	// client goes away, only after Config.Timeout; a certificate that is recorded and not
	// delivered is answered again by the provider's replay rule. cradle.Pending asks the client to send the same
	// request again.
	Enroll(ctx context.Context, e Enrolment) (Issued, error)

	// GenerateKey is Enroll for a key that the provider makes; key and signature of the CSR are ignored (RFC 7030
	// §4.4.1). strength is the number of bits of security with which the key will travel; a stronger key is not
	// to be made (§4.4).
	GenerateKey(ctx context.Context, e Enrolment, strength int) (GeneratedKey, error)

	// DecryptKey returns the symmetric key of 16, 24 or 32 bytes that was agreed with clients of the endpoint under
	// an identifier; cradle.NotFound when there is none.
	DecryptKey(ctx context.Context, e Endpoint, id []byte) ([]byte, error)

	// KeyGenerator signs the package of a generated key that is sent encrypted; a nil key means that this is
	// not offered.
	KeyGenerator() (chain []*x509.Certificate, key crypto.Signer)

	// TPMEnroll decides on a tpmenroll request (est.OpTPMEnroll).
	TPMEnroll(ctx context.Context, e Endpoint, c Client, q est.TPMEnrollRequest) (TPMIssued, error)
}

// Issued is an issued certificate.
type Issued struct {
	Certificate []byte // DER
	// Replaced names the wishes of the CSR that the profile replaced by its own; the answer's header
	// Cradle-Replaced lists them.
	Replaced []string
}

// GeneratedKey is a certificate and its key.
type GeneratedKey struct {
	Issued
	PKCS8 []byte
}

// TPMIssued is a certificate, the secret of 16 bytes under which it is to be sent, and that secret for the TPM.
type TPMIssued struct {
	Issued
	CredentialBlob  []byte // content of TPM2B_ID_OBJECT
	EncryptedSecret []byte // content of TPM2B_ENCRYPTED_SECRET
	Secret          []byte
}
