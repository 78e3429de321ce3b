package provisioning

import (
	"crypto/x509"
	"encoding/json"
	"time"

	"github.com/cradle-iot/cradle"
)

// Credentials are what a device shows, whichever transport brought it.
type Credentials struct {
	RegistrationID string
	Chain          []*x509.Certificate // as the TLS client sent it, leaf first, possession of its key proved; empty: none
	Token          string              // the SAS token exactly as sent; empty: none
	TPM            *TPMKeys            // as sent at register; nil: none
	Operation      string              // of a poll: the operation asked for; else empty
}

// Ask is what a device wants beside being admitted.
type Ask struct {
	Payload json.RawMessage // JSON for the custom allocation; nil: none
	CSR     []byte          // DER of a certificate request; nil: none
	Force   bool            // the device says that its data at the hub may be lost
	Hold    time.Duration   // how long Register may wait for the outcome
}

// TPMChallenge is the refusal of a TPM's first call, of kind cradle.Unauthorized: the TPM must activate the
// key in AuthenticationKey, and sign with it a SAS token whose skn is KeyName. Transports answer 401 with
// both.
type TPMChallenge struct {
	AuthenticationKey []byte // TPM2B_ID_OBJECT | TPM2B_ENCRYPTED_SECRET | TPM2B_PRIVATE | TPM2B_ENCRYPTED_SECRET | TPM2B_PUBLIC | TPM2B_DATA
	KeyName           string
}

func (c *TPMChallenge) Error() string { return c.Unwrap().Error() }

// Unwrap gives the error that may be shown; its text is what Azure says.
func (c *TPMChallenge) Unwrap() error {
	return cradle.Errorf(cradle.Unauthorized, "Authorization required")
}

// Secret is a key that does not show itself when it is printed.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString likewise.
func (s Secret) GoString() string { return s.String() }

// Keys are what a registration has beside a certificate. They are comparable, as a registration is.
type Keys struct {
	Primary, Secondary Secret // raw keys of the hub's entry, of type sas; empty: the entry has a thumbprint
	TPM                Secret // the blob by which a TPM takes in Primary; empty: not a TPM
	// Tokens are SHA-256 of the SAS tokens that began Operation and PrevOperation: for polls they count
	// though they have expired.
	Token, PrevToken string
}
