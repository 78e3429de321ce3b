package standing

import (
	"crypto/sha1" // #nosec: what OCSP clients name issuers by (RFC 5019 §2.1.1)
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/cradle-iot/cradle"
)

var (
	oidSHA1  = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
)

// requests makes OCSP requests for certificates of one issuer (RFC 6960 §4.1.1).
type requests struct{ name, key [sha1.Size]byte }

func newRequests(issuer *x509.Certificate) (*requests, error) {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil, err
	}
	return &requests{sha1.Sum(issuer.RawSubject), sha1.Sum(spki.Key.RightAlign())}, nil
}

type certID struct {
	Hash   pkix.AlgorithmIdentifier
	Name   []byte
	Key    []byte
	Serial *big.Int
}

type ocspRequest struct {
	TBS struct {
		List       []struct{ ID certID }
		Extensions []pkix.Extension `asn1:"explicit,tag:2,optional,omitempty"`
	}
}

// of asks for one certificate; nonce may be nil.
func (r *requests) of(serial cradle.CertSerial, nonce []byte) ([]byte, error) {
	n, ok := new(big.Int).SetString(string(serial), 16)
	if !ok {
		return nil, fmt.Errorf("serial number %q", serial)
	}
	var q ocspRequest
	q.TBS.List = []struct{ ID certID }{{certID{pkix.AlgorithmIdentifier{Algorithm: oidSHA1, Parameters: asn1.NullRawValue}, r.name[:], r.key[:], n}}}
	if nonce != nil {
		v, err := asn1.Marshal(nonce)
		if err != nil {
			return nil, err
		}
		q.TBS.Extensions = []pkix.Extension{{Id: oidNonce, Value: v}}
	}
	return asn1.Marshal(q)
}

const tagRevoked = 1 // of CertStatus; 0 is good, 2 unknown

// verdict reads what an answer says of its first certificate. It verifies nothing.
func verdict(b []byte) (tag int, err error) {
	var outer struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type     asn1.ObjectIdentifier
			Response []byte
		} `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(b, &outer); err != nil {
		return -1, err
	}
	if outer.Status != 0 {
		return -1, fmt.Errorf("OCSP status %d", outer.Status)
	}
	type single struct {
		ID     asn1.RawValue
		Status asn1.RawValue
		Rest   asn1.RawValue // thisUpdate
		Next   asn1.RawValue `asn1:"optional"`
	}
	var basic struct {
		Data struct {
			Responder  asn1.RawValue
			Produced   asn1.RawValue
			Responses  []single
			Extensions []pkix.Extension `asn1:"explicit,tag:1,optional"`
		}
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
		Certs     asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(outer.Bytes.Response, &basic); err != nil {
		return -1, err
	}
	if len(basic.Data.Responses) != 1 {
		return -1, fmt.Errorf("%d responses", len(basic.Data.Responses))
	}
	return basic.Data.Responses[0].Status.Tag, nil
}

func crlEntries(der []byte) (int, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return 0, err
	}
	return len(l.RevokedCertificateEntries), nil
}
