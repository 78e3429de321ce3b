// Package jws reads and writes JSON Web Signatures (RFC 7515) in the one form that signed documents
// of several parties need: general JSON serialization, ES256 (RFC 7518 §3.4), one signature per party in
// a fixed order, all over the same payload.
//
// It is stricter than the standard. Nothing is taken from an unprotected header; a protected header
// holds exactly alg, kid and typ; alg is ES256; kid is KeyID of the key that the caller expects in that place; typ
// names the role in which the party signs, so that a signature made in one role is worth nothing in another.
// The cryptography and the encoding are go-jose's, so that any JOSE library makes and reads these.
//
// ES256 signatures are malleable: identify a document by a digest of its payload, never of its JWS.
package jws

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
)

// Limits of one document.
const (
	MaxSize       = 8 << 20 // bytes of a serialization
	MaxSignatures = 4
	maxHeader     = 1 << 10 // characters of a protected header
)

var algorithms = []jose.SignatureAlgorithm{jose.ES256}

// Party is one signer: whose key is expected, and in which role it signs.
type Party struct {
	Name string // for errors, for example "the account"
	Type string // typ of the protected header
	Key  *ecdsa.PublicKey
}

type envelope struct {
	Payload    string      `json:"payload"`
	Signatures []signature `json:"signatures"`
}

type signature struct {
	Protected string `json:"protected"`
	Signature string `json:"signature"`
}

type header struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
	Typ string `json:"typ"`
}

// KeyID is the lower-case hexadecimal SHA-256 of a key's SubjectPublicKeyInfo:
// openssl pkey -pubin -outform DER | sha256sum.
func KeyID(key *ecdsa.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic("internal error: key without a SubjectPublicKeyInfo: " + err.Error())
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Sign makes a document with one signature, by key in role typ.
func Sign(payload []byte, typ string, key crypto.Signer) ([]byte, error) {
	s, err := sign(payload, typ, key)
	if err != nil {
		return nil, err
	}
	return encode(envelope{base64.RawURLEncoding.EncodeToString(payload), []signature{s}})
}

// Add adds a signature over the same payload behind those that a document has. It verifies none of them.
func Add(doc []byte, typ string, key crypto.Signer) ([]byte, error) {
	e, payload, err := decode(doc)
	if err != nil {
		return nil, err
	}
	s, err := sign(payload, typ, key)
	if err != nil {
		return nil, err
	}
	e.Signatures = append(e.Signatures, s)
	return encode(e)
}

// Trim drops all signatures but the first n.
func Trim(doc []byte, n int) ([]byte, error) {
	e, _, err := decode(doc)
	if err != nil {
		return nil, err
	}
	e.Signatures = e.Signatures[:min(n, len(e.Signatures))]
	return encode(e)
}

// Payload returns what a document says without verifying any signature, and how many it has.
func Payload(doc []byte) (payload []byte, signatures int, err error) {
	e, payload, err := decode(doc)
	return payload, len(e.Signatures), err
}

// Verify checks that signature i is party i's and returns the payload. With exact there may be no
// further signatures; without, those behind are ignored. The error is cradle.Invalid when the document is
// malformed and cradle.Unauthorized when a signature is missing or another's.
func Verify(doc []byte, exact bool, parties ...Party) ([]byte, error) {
	e, payload, err := decode(doc)
	if err != nil {
		return nil, err
	}
	if len(parties) == 0 {
		return nil, errors.New("internal error: verification against nobody")
	}
	if exact && len(e.Signatures) > len(parties) {
		return nil, cradle.Errorf(cradle.Invalid, "%d signatures where %d belong", len(e.Signatures), len(parties))
	}
	for i, p := range parties {
		if i >= len(e.Signatures) {
			return nil, cradle.Errorf(cradle.Unauthorized, "not signed by %s", p.Name)
		}
		if err := verify(e.Payload, e.Signatures[i], p); err != nil {
			return nil, err
		}
	}
	return payload, nil
}

func verify(payload string, s signature, p Party) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s.Protected)
	if err != nil || len(s.Protected) > maxHeader {
		return cradle.Errorf(cradle.Invalid, "protected header is not base64url of at most %d characters", maxHeader)
	}
	h, err := unmarshal[header](raw)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "protected header: %v", err)
	}
	if h.Alg != string(jose.ES256) {
		return cradle.Errorf(cradle.Invalid, "signed with algorithm %.20q; only ES256 is accepted", h.Alg)
	}
	if h.Typ != p.Type {
		return cradle.Errorf(cradle.Unauthorized, "signature of type %.60q where %q belongs", h.Typ, p.Type)
	}
	if id := KeyID(p.Key); h.Kid != id {
		return cradle.Errorf(cradle.Unauthorized, "signed by key %.16s, but %s has key %.16s", h.Kid, p.Name, id)
	}
	flat, err := json.Marshal(struct {
		Payload string `json:"payload"`
		signature
	}{payload, s})
	if err != nil {
		return err
	}
	o, err := jose.ParseSignedJSON(string(flat), algorithms)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "signature: %v", err)
	}
	if _, err := o.Verify(p.Key); err != nil {
		return cradle.Errorf(cradle.Unauthorized, "the signature of %s does not fit the content", p.Name)
	}
	return nil
}

func sign(payload []byte, typ string, key crypto.Signer) (signature, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return signature{}, cradle.Errorf(cradle.Invalid, "signing key is not ECDSA P-256")
	}
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("kid", KeyID(pub))
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: cryptosigner.Opaque(key)}, opts)
	if err != nil {
		return signature{}, fmt.Errorf("signing: %w", err)
	}
	o, err := s.Sign(payload)
	if err != nil {
		return signature{}, fmt.Errorf("signing: %w", err)
	}
	var flat signature
	if err := json.Unmarshal([]byte(o.FullSerialize()), &flat); err != nil {
		return signature{}, fmt.Errorf("signing: %w", err)
	}
	return flat, nil
}

func encode(e envelope) ([]byte, error) { return json.Marshal(e) }

func decode(doc []byte) (envelope, []byte, error) {
	if len(doc) > MaxSize {
		return envelope{}, nil, cradle.Errorf(cradle.TooLarge, "JWS of %d bytes is over %d", len(doc), MaxSize)
	}
	e, err := unmarshal[envelope](doc)
	if err != nil {
		return e, nil, cradle.Errorf(cradle.Invalid, "not a JWS in general JSON serialization: %v", err)
	}
	if len(e.Signatures) == 0 || len(e.Signatures) > MaxSignatures {
		return e, nil, cradle.Errorf(cradle.Invalid, "JWS with %d signatures; 1 to %d belong", len(e.Signatures), MaxSignatures)
	}
	payload, err := base64.RawURLEncoding.Strict().DecodeString(e.Payload)
	if err != nil || len(payload) == 0 || bytes.ContainsAny([]byte(e.Payload), "\r\n") {
		return e, nil, cradle.Errorf(cradle.Invalid, "the JWS's payload is not base64url")
	}
	return e, payload, nil
}

func unmarshal[T any](b []byte) (v T, err error) {
	err = strictjson.Unmarshal(b, &v)
	return v, err
}
