package tpmkey

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// cutCertificate splits data into the DER certificate at its start and what follows. NV indices are
// often longer than the certificate.
func cutCertificate(data []byte) (der, rest []byte, err error) {
	var outer asn1.RawValue
	rest, err = asn1.Unmarshal(data, &outer)
	if err != nil || outer.Tag != asn1.TagSequence || outer.Class != asn1.ClassUniversal || !outer.IsCompound {
		return nil, nil, errors.New("it is not a DER certificate")
	}
	if len(outer.FullBytes) > maxCertificate {
		return nil, nil, fmt.Errorf("it has %d bytes", len(outer.FullBytes))
	}
	return outer.FullBytes, rest, nil
}

// stripHeader removes the header that early TPM makers put before a certificate (TCG PC Client
// 1.2: tag 0x1001, type 0, length).
func stripHeader(data []byte) []byte {
	if len(data) > 5 && data[0] == 0x10 && data[1] == 0x01 && data[2] == 0x00 {
		return data[5:]
	}
	return data
}

// cutAll splits concatenated DER certificates, stopping at the first bytes that are none.
func cutAll(data []byte) [][]byte {
	var out [][]byte
	for len(data) > 0 && len(out) < maxChainCerts {
		der, rest, err := cutCertificate(data)
		if err != nil {
			break
		}
		out, data = append(out, der), rest
	}
	return out
}

var (
	oidRSA  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7} // in EK certificates of some makers
)

// certificateKey reads the public key of a certificate. It looks at nothing else, so that
// certificates of real makers that package x509 does not parse (negative serial numbers, RSA keys
// marked for OAEP) still serve to know the key.
func certificateKey(der []byte) (crypto.PublicKey, error) {
	var cert struct {
		TBS struct {
			Raw                                          asn1.RawContent
			Version                                      int `asn1:"optional,explicit,default:0,tag:0"`
			Serial, Algorithm, Issuer, Validity, Subject asn1.RawValue
			SPKI                                         spki
			IssuerUID, SubjectUID                        asn1.BitString `asn1:"optional,tag:1"`
			Extensions                                   asn1.RawValue  `asn1:"optional,explicit,tag:3"`
		}
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	rest, err := asn1.Unmarshal(der, &cert)
	if err != nil || len(rest) > 0 {
		return nil, errors.New("it is not a DER certificate")
	}
	key := cert.TBS.SPKI
	if oid := key.Algorithm.Algorithm; oid.Equal(oidRSA) || oid.Equal(oidOAEP) {
		return x509.ParsePKCS1PublicKey(key.Key.RightAlign())
	}
	return x509.ParsePKIXPublicKey(key.Raw)
}

type spki struct {
	Raw       asn1.RawContent
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}
