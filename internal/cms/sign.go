package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // linked for crypto.Hash
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"
)

var (
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSHA384        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidSHA512        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
)

// scheme is how a kind of key signs.
type scheme struct {
	hash   crypto.Hash
	digest asn1.ObjectIdentifier
	alg    pkix.AlgorithmIdentifier
	x509   x509.SignatureAlgorithm
}

var schemes = struct{ p256, p384, rsa, ed25519 scheme }{
	p256:    scheme{crypto.SHA256, oidSHA256, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, x509.ECDSAWithSHA256},
	p384:    scheme{crypto.SHA384, oidSHA384, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}}, x509.ECDSAWithSHA384},
	rsa:     scheme{crypto.SHA256, oidSHA256, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}, x509.SHA256WithRSA},
	ed25519: scheme{crypto.SHA512, oidSHA512, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 101, 112}}, x509.PureEd25519}, // RFC 8419
}

func schemeOf(pub crypto.PublicKey) (scheme, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return schemes.p256, nil
		case elliptic.P384():
			return schemes.p384, nil
		}
	case *rsa.PublicKey:
		return schemes.rsa, nil
	case ed25519.PublicKey:
		return schemes.ed25519, nil
	}
	return scheme{}, bad("no signature scheme for %T", pub)
}

type signedData struct {
	Version      int
	Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
	Content      encapsulated
	Certificates asn1.RawValue `asn1:"optional,tag:0"`
	Signers      []signerInfo  `asn1:"set"`
}

type encapsulated struct {
	Type    asn1.ObjectIdentifier
	Content []byte `asn1:"explicit,optional,tag:0"`
}

type signerInfo struct {
	Version    int
	Signer     asn1.RawValue
	Digest     pkix.AlgorithmIdentifier
	Attributes asn1.RawValue `asn1:"optional"` // [0] IMPLICIT SET OF
	Algorithm  pkix.AlgorithmIdentifier
	Signature  []byte
	Unsigned   asn1.RawValue `asn1:"optional"`
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// Sign returns a SignedData of content, signed by key, whose certificate is the first of chain; the chain goes
// along. The result is the SignedData itself; ContentInfo makes a file of it.
func Sign(typ asn1.ObjectIdentifier, content []byte, chain []*x509.Certificate, key crypto.Signer, now time.Time) ([]byte, error) {
	s, err := schemeOf(key.Public())
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, bad("signing needs the signer's certificate")
	}
	attributes, err := signedAttributes(typ, sum(s.hash, content), now)
	if err != nil {
		return nil, err
	}
	sig, err := crypto.SignMessage(key, rand.Reader, attributes, signOpts(s))
	if err != nil {
		return nil, fmt.Errorf("signing a CMS message: %w", err)
	}
	var certs []byte
	for _, c := range chain {
		certs = append(certs, c.Raw...)
	}
	id, err := asn1.Marshal(issuerSerial(chain[0]))
	if err != nil {
		return nil, bad("signer: %w", err)
	}
	digest := pkix.AlgorithmIdentifier{Algorithm: s.digest}
	version := 3 // RFC 5652 §5.1: the content is not data
	if typ.Equal(OIDData) {
		version = 1
	}
	inner := slices.Clone(attributes)
	inner[0] = 0xa0 // signed as SET OF, sent as [0] IMPLICIT
	return asn1.Marshal(signedData{
		Version:      version,
		Digests:      []pkix.AlgorithmIdentifier{digest},
		Content:      encapsulated{typ, content},
		Certificates: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: certs},
		Signers: []signerInfo{{Version: 1, Signer: asn1.RawValue{FullBytes: id}, Digest: digest,
			Attributes: asn1.RawValue{FullBytes: inner}, Algorithm: s.alg, Signature: sig}},
	})
}

// signOpts is what crypto.SignMessage hashes with; Ed25519 takes the message itself.
func signOpts(s scheme) crypto.SignerOpts {
	if s.x509 == x509.PureEd25519 {
		return crypto.Hash(0)
	}
	return s.hash
}

func sum(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

// signedAttributes is the DER SET OF that is signed (RFC 5652 §5.3, §11).
func signedAttributes(typ asn1.ObjectIdentifier, digest []byte, now time.Time) ([]byte, error) {
	var list []attribute
	for _, a := range []struct {
		typ   asn1.ObjectIdentifier
		value any
	}{{oidContentType, typ}, {oidMessageDigest, digest}, {oidSigningTime, now.UTC()}} {
		der, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, bad("signed attribute: %w", err)
		}
		list = append(list, attribute{a.typ, []asn1.RawValue{{FullBytes: der}}})
	}
	return asn1.MarshalWithParams(list, "set")
}

// Verify reads a SignedData with one signer whose certificate is among those of the message, checks the
// signature over content and content type, and returns the content and the certificates, the signer's first.
// Whether to believe that signer is the caller's to judge.
func Verify(der []byte, typ asn1.ObjectIdentifier) (content []byte, chain []*x509.Certificate, err error) {
	if len(der) > MaxDER {
		return nil, nil, bad("a SignedData of %d bytes: at most %d", len(der), MaxDER)
	}
	var sd signedData
	if err := unmarshal(der, &sd, "SignedData"); err != nil {
		return nil, nil, err
	}
	if !sd.Content.Type.Equal(typ) {
		return nil, nil, bad("the signed content is of type %v, not %v", sd.Content.Type, typ)
	}
	if len(sd.Signers) != 1 {
		return nil, nil, bad("%d signers instead of one", len(sd.Signers))
	}
	certs, err := x509.ParseCertificates(sd.Certificates.Bytes)
	if err != nil || len(certs) > 16 {
		return nil, nil, bad("the certificates do not parse")
	}
	si := sd.Signers[0]
	at := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return names(si.Signer, c) })
	if at < 0 {
		return nil, nil, bad("the signer's certificate is not in the message")
	}
	signer := certs[at]
	s, err := schemeOf(signer.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	// An RSA signature may be named without its hash (RFC 3370 §3.2).
	bare := s.x509 == x509.SHA256WithRSA && si.Algorithm.Algorithm.Equal(OIDRSA)
	if !si.Digest.Algorithm.Equal(s.digest) || !si.Algorithm.Algorithm.Equal(s.alg.Algorithm) && !bare {
		return nil, nil, bad("digest %v and signature %v for a key of type %s", si.Digest.Algorithm, si.Algorithm.Algorithm, signer.PublicKeyAlgorithm)
	}
	if a := si.Attributes; a.Class != asn1.ClassContextSpecific || a.Tag != 0 || !a.IsCompound {
		return nil, nil, bad("no signed attributes")
	}
	signed := slices.Clone(si.Attributes.FullBytes)
	signed[0] = 0x31
	if err := checkAttributes(signed, typ, sum(s.hash, sd.Content.Content)); err != nil {
		return nil, nil, err
	}
	if err := signer.CheckSignature(s.x509, signed, si.Signature); err != nil {
		return nil, nil, bad("the signature is wrong")
	}
	certs[0], certs[at] = certs[at], certs[0]
	return sd.Content.Content, certs, nil
}

func checkAttributes(der []byte, typ asn1.ObjectIdentifier, digest []byte) error {
	var list []attribute
	if err := unmarshalTag(der, &list, "set", "the signed attributes"); err != nil {
		return err
	}
	var types, digests int
	for _, a := range list {
		switch {
		case a.Type.Equal(oidContentType):
			var got asn1.ObjectIdentifier
			if types++; len(a.Values) != 1 || unmarshal(a.Values[0].FullBytes, &got, "content type") != nil || !got.Equal(typ) {
				return bad("the signed content type is another")
			}
		case a.Type.Equal(oidMessageDigest):
			var got []byte
			if digests++; len(a.Values) != 1 || unmarshal(a.Values[0].FullBytes, &got, "digest") != nil || !bytes.Equal(got, digest) {
				return bad("the content is not what was signed")
			}
		}
	}
	if types != 1 || digests != 1 {
		return bad("content type or digest is not signed exactly once")
	}
	return nil
}
