package status

import (
	"crypto"
	"crypto/rand"
	"crypto/sha1" // #nosec: ResponderID by key is defined with it (RFC 6960 §4.2.1)
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
)

// Result is an OCSPResponseStatus (RFC 6960 §4.2.1).
type Result int

// The results.
const (
	Successful       Result = 0
	MalformedRequest Result = 1
	InternalError    Result = 2
	TryLater         Result = 3
	Unauthorized     Result = 6 // not a certificate of ours: nothing can be said
)

// resultOf says how an error is answered.
func resultOf(err error) Result {
	switch cradle.KindOf(err) {
	case cradle.Invalid, cradle.TooLarge:
		return MalformedRequest
	case cradle.Busy:
		return TryLater
	case cradle.NotFound, cradle.Forbidden, cradle.Unauthorized:
		return Unauthorized
	}
	return InternalError
}

// standing is what an answer says of one certificate.
type standing struct {
	id      CertID
	known   bool
	revoked time.Time // zero: good
	code    cradle.Reason
}

// form is how an answer names its responder (RFC 6960 §4.2.1): by the hash of its key, as RFC 5019 §2.2.3 asks, or by its name.
type form int

const (
	byKey form = iota
	byName
)

type singleResponse struct {
	ID         asn1.RawValue
	Status     asn1.RawValue
	ThisUpdate time.Time `asn1:"generalized"`
	NextUpdate time.Time `asn1:"generalized,explicit,tag:0,optional"`
}

type responseData struct {
	Responder  asn1.RawValue
	ProducedAt time.Time `asn1:"generalized"`
	Responses  []singleResponse
	Extensions []pkix.Extension `asn1:"explicit,tag:1,optional,omitempty"`
}

type basicResponse struct {
	Data      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
	Certs     []asn1.RawValue `asn1:"explicit,tag:0,optional,omitempty"`
}

type responseBytes struct {
	Type     asn1.ObjectIdentifier
	Response []byte
}

type response struct {
	Status asn1.Enumerated
	Bytes  responseBytes `asn1:"explicit,tag:0,optional"`
}

// refusal encodes an answer without content.
func refusal(r Result) []byte {
	b, err := asn1.Marshal(struct{ Status asn1.Enumerated }{asn1.Enumerated(r)})
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}

var oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}

// answer signs what is known of the certificates. thisUpdate and nextUpdate are whole seconds.
func answer(key *provider.OCSPKey, f form, certs []standing, nonce []byte, produced, thisUpdate, nextUpdate time.Time) ([]byte, error) {
	d := responseData{ProducedAt: produced.UTC()}
	var err error
	if d.Responder, err = responderID(key.Cert, f); err != nil {
		return nil, err
	}
	for _, c := range certs {
		s := singleResponse{ID: asn1.RawValue{FullBytes: c.id.raw}, ThisUpdate: thisUpdate.UTC(), NextUpdate: nextUpdate.UTC()}
		if s.Status, err = c.encode(); err != nil {
			return nil, err
		}
		d.Responses = append(d.Responses, s)
	}
	if nonce != nil {
		v, err := asn1.Marshal(nonce)
		if err != nil {
			return nil, err
		}
		d.Extensions = []pkix.Extension{{Id: oidNonce, Value: v}}
	}
	tbs, err := asn1.Marshal(d)
	if err != nil {
		return nil, err
	}
	h := crypto.SHA256.New()
	h.Write(tbs)
	sig, err := key.Key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing an OCSP answer: %w", err)
	}
	basic, err := asn1.Marshal(basicResponse{Data: asn1.RawValue{FullBytes: tbs}, Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidECDSAWithSHA256},
		Signature: asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}, Certs: []asn1.RawValue{{FullBytes: key.Cert.Raw}}})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(response{asn1.Enumerated(Successful), responseBytes{oidBasic, basic}})
}

func responderID(c *x509.Certificate, f form) (asn1.RawValue, error) {
	if f == byName {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: c.RawSubject}, nil
	}
	bits, err := publicKeyBits(c)
	if err != nil {
		return asn1.RawValue{}, err
	}
	h := sha1.Sum(bits)
	octets, err := asn1.Marshal(h[:])
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, IsCompound: true, Bytes: octets}, err
}

// publicKeyBits are the bits of the subjectPublicKey without tag and length, of which key hashes are made.
func publicKeyBits(c *x509.Certificate) ([]byte, error) {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil, fmt.Errorf("public key of %q: %w", c.Subject, err)
	}
	return spki.Key.RightAlign(), nil
}

// encode is CertStatus: good [0], revoked [1], unknown [2].
func (s standing) encode() (asn1.RawValue, error) {
	switch {
	case !s.known:
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2}, nil
	case s.revoked.IsZero():
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0}, nil
	}
	info, err := asn1.MarshalWithParams(struct {
		At     time.Time       `asn1:"generalized"`
		Reason asn1.Enumerated `asn1:"explicit,tag:0,optional"` // unspecified is left out, as in CRLs
	}{s.revoked.UTC().Truncate(time.Second), asn1.Enumerated(s.code)}, "tag:1")
	return asn1.RawValue{FullBytes: info}, err
}
