// Package timestamp is a provider's statement of the time, asked for with a device's own nonce.
//
// A device whose clock is wrong cannot judge the validity of any certificate, not even of the TLS
// server it would ask for the time. So the statement is signed, apart from TLS, by a time key whose
// certificate chains to the device's anchors for services and is good for nothing else (its only
// extended key usage is timeStamping). The nonce makes it fresh: a statement that verifies was made
// after the nonce was, however old the connection's certificates are.
//
// The exchange is GET {provider}/time/v1?nonce=N, N being 16 to 64 random bytes in unpadded base64url, answered by a
// Statement in JSON. Signed are the SHA-256 over these fields, each preceded by its length in bytes
// as a big-endian uint32: "cradle-time-v1", nonce, the time's text as it stands in the JSON.
//
// What is trusted: the anchors, and that the time key's holder keeps to the truth. An old time key that
// leaked can claim any time of its certificate's life; the caller's floor bounds how far back.
package timestamp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
)

// Path is the resource below the provider's URL.
const Path = "/time/v1"

// Limits.
const (
	MinNonce = 16       // bytes
	MaxNonce = 64       // bytes
	MaxBody  = 16 << 10 // bytes of a statement's JSON
	MaxChain = 4        // certificates
)

const signContext = "cradle-time-v1"

// Statement says what time it was when the nonce was answered.
type Statement struct {
	Nonce     []byte   `json:"nonce"`
	Time      string   `json:"time"`      // RFC 3339 with up to nanoseconds, UTC
	Signature []byte   `json:"signature"` // ECDSA P-256 with SHA-256, ASN.1
	Chain     [][]byte `json:"chain"`     // DER: the time key's certificate, then its issuers
}

// EncodeNonce writes a nonce as the query wants it.
func EncodeNonce(nonce []byte) string { return base64.RawURLEncoding.EncodeToString(nonce) }

// ParseNonce reads the nonce of a query. Errors are of kind Invalid.
func ParseNonce(s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "the nonce is not unpadded base64url")
	}
	return b, checkNonce(b)
}

func checkNonce(b []byte) error {
	if len(b) < MinNonce || len(b) > MaxNonce {
		return cradle.Errorf(cradle.Invalid, "the nonce has %d bytes, not %d to %d", len(b), MinNonce, MaxNonce)
	}
	return nil
}

// Sign states the time now for nonce. chain is the certificate of key, then its issuers; key is P-256.
func Sign(key crypto.Signer, chain [][]byte, nonce []byte, now time.Time) (*Statement, error) {
	if err := checkNonce(nonce); err != nil {
		return nil, err
	}
	s := &Statement{Nonce: slices.Clone(nonce), Time: now.UTC().Format(time.RFC3339Nano), Chain: chain}
	digest := s.digest()
	var err error
	if s.Signature, err = key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, fmt.Errorf("signing the time: %w", err)
	}
	return s, nil
}

// Parse reads a statement's JSON. It is not verified. Errors are of kind Invalid or TooLarge.
func Parse(body []byte) (*Statement, error) {
	if len(body) > MaxBody {
		return nil, cradle.Errorf(cradle.TooLarge, "a time statement of more than %d bytes", MaxBody)
	}
	s := new(Statement)
	if err := json.Unmarshal(body, s); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "the time statement is not the expected JSON: %v", err)
	}
	return s, nil
}

// Verify returns the stated time, when the statement answers nonce and its key chains to anchors at that
// very time. Errors are of kind Unauthorized, or Invalid for what is not a statement at all.
func (s *Statement) Verify(nonce []byte, anchors *x509.CertPool) (time.Time, error) {
	var zero time.Time
	if err := checkNonce(nonce); err != nil {
		return zero, err
	}
	if subtle.ConstantTimeCompare(nonce, s.Nonce) != 1 {
		return zero, cradle.Errorf(cradle.Unauthorized, "the time statement answers another nonce")
	}
	at, err := time.Parse(time.RFC3339Nano, s.Time)
	if err != nil {
		return zero, cradle.Errorf(cradle.Invalid, "the time statement's time: %v", err)
	}
	if len(s.Chain) == 0 || len(s.Chain) > MaxChain {
		return zero, cradle.Errorf(cradle.Invalid, "the time statement has %d certificates, not 1 to %d", len(s.Chain), MaxChain)
	}
	var leaf *x509.Certificate
	issuers := x509.NewCertPool()
	for i, der := range s.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return zero, cradle.Errorf(cradle.Invalid, "certificate %d of the time statement: %v", i, err)
		}
		if i == 0 {
			leaf = c
		} else {
			issuers.AddCert(c)
		}
	}
	// Never the key of a TLS server: whoever holds one of those must not be able to move clocks.
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}) || len(leaf.UnknownExtKeyUsage) > 0 {
		return zero, cradle.Errorf(cradle.Unauthorized, "the time statement's key is not for time stamping alone")
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: issuers, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}})
	if err != nil {
		return zero, cradle.Errorf(cradle.Unauthorized, "the time statement's certificate: %v", err)
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return zero, cradle.Errorf(cradle.Unauthorized, "the time statement's key is a %T, not ECDSA", leaf.PublicKey)
	}
	digest := s.digest()
	if !ecdsa.VerifyASN1(pub, digest[:], s.Signature) {
		return zero, cradle.Errorf(cradle.Unauthorized, "the time statement's signature is wrong")
	}
	return at, nil
}

func (s *Statement) digest() [32]byte {
	h := sha256.New()
	for _, f := range [][]byte{[]byte(signContext), s.Nonce, []byte(s.Time)} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(f))))
		h.Write(f)
	}
	return [32]byte(h.Sum(nil))
}
