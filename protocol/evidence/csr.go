package evidence

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"github.com/cradle-iot/cradle"
)

// CSR is a parsed certification request. Its signature has not been checked.
type CSR struct {
	Request *x509.CertificateRequest
	Bundle  *Bundle // nil when the request carries no evidence
	SPKI    []byte  // DER of the SubjectPublicKeyInfo
}

// ParseCSR reads a DER PKCS#10 request of at most MaxCSR bytes, with at most one evidence attribute of
// exactly one value. Errors are cradle.Invalid, or cradle.TooLarge.
func ParseCSR(der []byte) (*CSR, error) {
	csr, _, err := parseCSR(der)
	return csr, err
}

func parseCSR(der []byte) (csr *CSR, exact bool, err error) {
	if len(der) > MaxCSR {
		return nil, false, cradle.Errorf(cradle.TooLarge, "the CSR has %d bytes; at most %d", len(der), MaxCSR)
	}
	info, plain, values, err := takeEvidence(der)
	if err != nil {
		return nil, false, err
	}
	req, err := x509.ParseCertificateRequest(plain)
	if err != nil {
		return nil, false, unread(info)
	}
	req.Raw, req.RawTBSCertificateRequest = der, info
	csr = &CSR{Request: req, SPKI: req.RawSubjectPublicKeyInfo}
	switch {
	case len(values) > 1:
		return nil, false, cradle.Errorf(cradle.Invalid, "the CSR has two evidence attributes")
	case len(values) == 0:
		return csr, false, nil
	}
	set, rest, err := next(values[0])
	if err != nil || len(rest) > 0 || set.Class != asn1.ClassUniversal || set.Tag != asn1.TagSet || !set.IsCompound {
		return nil, false, cradle.Errorf(cradle.Invalid, "the evidence attribute has no SET of values")
	}
	value, rest, err := next(set.Bytes)
	if err != nil || len(rest) > 0 {
		return nil, false, cradle.Errorf(cradle.Invalid, "the evidence attribute must have exactly one value")
	}
	if csr.Bundle, exact, err = parseBundle(value.FullBytes); err != nil {
		return nil, false, err
	}
	return csr, exact, nil
}

func notPKCS10() error {
	return cradle.Errorf(cradle.Invalid, "the body is not a PKCS#10 request").WithHint("send the DER request in base64 (RFC 8951)")
}

// named are the curves whose keys crypto/x509 reads: P-224, P-256, P-384, P-521 (RFC 5480 §2.1.1.1).
var named = []asn1.ObjectIdentifier{{1, 3, 132, 0, 33}, {1, 2, 840, 10045, 3, 1, 7}, {1, 3, 132, 0, 34}, {1, 3, 132, 0, 35}}

// unread says why a request of the right form, of which this is the certificationRequestInfo, was not read: mostly for its key.
func unread(info []byte) error {
	var request struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   asn1.RawValue
	}
	var key struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(info, &request); err != nil {
		return notPKCS10()
	}
	if _, err := x509.ParsePKIXPublicKey(request.Key.FullBytes); err == nil {
		return notPKCS10() // something else is wrong
	}
	if _, err := asn1.Unmarshal(request.Key.FullBytes, &key); err != nil || !key.Algorithm.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}) {
		return notPKCS10()
	}
	const use = "use P-256 or P-384, by name; the profile says which"
	var curve asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(key.Algorithm.Parameters.FullBytes, &curve); err != nil {
		return cradle.Errorf(cradle.Invalid, "the CSR's key does not name its curve (RFC 5480 §2.1.1)").WithHint(use)
	}
	for _, c := range named {
		if c.Equal(curve) {
			return cradle.Errorf(cradle.Invalid, "the CSR's key is no point of its curve").WithHint("make the key and the request anew")
		}
	}
	return cradle.Errorf(cradle.Invalid, "the CSR's key is on a curve that is not known here (%s)", curve).WithHint(use)
}

// takeEvidence splits a CertificationRequest (RFC 2986 §4) into its certificationRequestInfo, the same request without
// evidence attributes, and what these hold behind their type. crypto/x509 reads the request without: it would go through
// the evidence by reflection, to find that it is none of the attributes it knows, at three quarters of its whole
// time.
func takeEvidence(der []byte) (info, plain []byte, values [][]byte, err error) {
	request, err := only(der, "the CSR")
	if err != nil {
		return nil, nil, nil, notPKCS10()
	}
	tbs, signature, err := next(request)
	if err != nil || !isSequence(tbs) {
		return nil, nil, nil, notPKCS10()
	}
	rest := tbs.Bytes
	for range 3 { // version, subject, subjectPKInfo
		if _, rest, err = next(rest); err != nil {
			return nil, nil, nil, notPKCS10()
		}
	}
	head := tbs.Bytes[:len(tbs.Bytes)-len(rest)]
	attributes, rest, err := next(rest)
	if err != nil || attributes.Class != asn1.ClassContextSpecific || attributes.Tag != 0 || !attributes.IsCompound || len(rest) > 0 {
		return nil, nil, nil, notPKCS10()
	}
	var others [][]byte
	for in := attributes.Bytes; len(in) > 0; {
		var a, typ asn1.RawValue
		if a, in, err = next(in); err != nil {
			return nil, nil, nil, notPKCS10()
		}
		if !isSequence(a) {
			return nil, nil, nil, cradle.Errorf(cradle.Invalid, "an attribute of the CSR is not a SEQUENCE")
		}
		if typ, rest, err = next(a.Bytes); err != nil {
			return nil, nil, nil, cradle.Errorf(cradle.Invalid, "an attribute of the CSR has no type")
		}
		if string(typ.FullBytes) == string(oidEvidence) {
			values = append(values, rest)
		} else {
			others = append(others, a.FullBytes)
		}
	}
	if len(values) == 0 {
		return tbs.FullBytes, der, nil, nil
	}
	return tbs.FullBytes, sequence(sequence(head, element(0xa0, others...)), signature), values, nil
}

// CreateCSR makes a PKCS#10 request with that subject, signed by key, which may live in a TPM. bundle may
// be nil. A restricted key, which signs no digest that its TPM has not made, implements
// crypto.MessageSigner and gets the whole certificationRequestInfo. The signature is checked before
// the request is returned. (x509.CreateCertificateRequest cannot write such attributes.)
func CreateCSR(subject pkix.Name, key crypto.Signer, bundle *Bundle) (der []byte, err error) {
	name, err := asn1.Marshal(subject.ToRDNSequence())
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "subject of the CSR: %v", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "public key of the CSR: %v", err)
	}
	alg, hash, err := signatureAlgorithm(key.Public())
	if err != nil {
		return nil, err
	}
	var attr []byte
	if bundle != nil {
		if attr, err = bundle.Attribute(); err != nil {
			return nil, err
		}
	}
	info := sequence([]byte{0x02, 0x01, 0x00}, name, spki, element(0xa0, attr))
	sig, err := crypto.SignMessage(key, rand.Reader, info, hash)
	if err != nil {
		return nil, fmt.Errorf("signing the CSR: %w", err)
	}
	der = sequence(info, alg, element(0x03, []byte{0}, sig))
	csr, err := ParseCSR(der)
	if err != nil {
		return nil, err
	}
	if err := csr.Request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the key made a wrong signature of the CSR: %w", err)
	}
	return der, nil
}

// AlgorithmIdentifiers: RFC 5758 §3.2, RFC 4055 §5, RFC 8410 §3.
var (
	ecdsaSHA256 = sequence(mustOID(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}))
	ecdsaSHA384 = sequence(mustOID(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}))
	rsaSHA256   = sequence(mustOID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}), []byte{0x05, 0x00})
	pureEd25519 = sequence(mustOID(asn1.ObjectIdentifier{1, 3, 101, 112}))
)

func signatureAlgorithm(pub crypto.PublicKey) (alg []byte, hash crypto.Hash, err error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ecdsaSHA256, crypto.SHA256, nil
		case elliptic.P384():
			return ecdsaSHA384, crypto.SHA384, nil
		}
	case *rsa.PublicKey:
		return rsaSHA256, crypto.SHA256, nil
	case ed25519.PublicKey:
		return pureEd25519, 0, nil
	}
	return nil, 0, cradle.Errorf(cradle.Invalid, "no signature algorithm for a CSR of %T", pub)
}
