package est

import (
	"crypto/x509"
	"encoding/asn1"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/der"
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
)

// The parts of a certs-only message that are always the same.
var (
	signedDataDER = rawOf(oidSignedData).FullBytes
	versionDER    = []byte{asn1.TagInteger, 1, 1}
	emptySetDER   = []byte{0x31, 0}
	dataDER       = der.Element(der.Sequence, rawOf(oidData).FullBytes) // encapContentInfo without content
)

// contentInfo is RFC 5652 §3.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue // [0] EXPLICIT
}

// EncodeCerts makes a certs-only message (RFC 7030 §4.1.3) of certificates in DER. The order is kept, although
// SET OF in DER would sort them: clients such as aziot-certd store the chain in the order they find.
// It refuses no certificates, more than MaxCerts, and more than MaxDER.
func EncodeCerts(certs ...[]byte) ([]byte, error) {
	if len(certs) == 0 || len(certs) > MaxCerts {
		return nil, cradle.Errorf(cradle.Invalid, "a certs-only message holds 1 to %d certificates, not %d", MaxCerts, len(certs))
	}
	room := 64 // what is around the certificates
	for _, c := range certs {
		room += len(c)
	}
	w := der.NewWriter(room)
	w.Element(der.Sequence, func() {
		w.Raw(signedDataDER)
		w.Element(der.Contained, func() {
			w.Element(der.Sequence, func() {
				w.Raw(versionDER, emptySetDER, dataDER)
				w.Element(der.Contained, func() { w.Raw(certs...) })
				w.Raw(emptySetDER)
			})
		})
	})
	if len(w.B) > MaxDER {
		return nil, cradle.Errorf(cradle.TooLarge, "a certs-only message of %d bytes: at most %d", len(w.B), MaxDER)
	}
	return w.B, nil
}

// DecodeCerts reads the certificates of a SignedData message in DER, in the order in which they are
// encoded. Signatures, revocation lists and content in the message are ignored: it is a carrier. A message without
// certificates, with anything but X.509 certificates among them, in BER, or with bytes left over is refused.
func DecodeCerts(der []byte) ([]*x509.Certificate, error) {
	raw, err := splitCerts(der)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for i, one := range raw {
		c, err := x509.ParseCertificate(one)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "PKCS#7 message: certificate %d: %w", i+1, err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// splitCerts is DecodeCerts without parsing the certificates.
func splitCerts(der []byte) ([][]byte, error) {
	if len(der) > MaxDER {
		return nil, cradle.Errorf(cradle.TooLarge, "a PKCS#7 message of %d bytes: at most %d", len(der), MaxDER)
	}
	bad := func(format string, args ...any) ([][]byte, error) {
		return nil, cradle.Errorf(cradle.Invalid, "PKCS#7 message: "+format, args...)
	}
	var ci contentInfo
	if rest, err := asn1.Unmarshal(der, &ci); err != nil {
		return bad("%w", err)
	} else if len(rest) > 0 {
		return bad("%d bytes left over", len(rest))
	}
	if !ci.Type.Equal(oidSignedData) {
		return bad("content type %v is not signedData", ci.Type)
	}
	if ci.Content.Class != asn1.ClassContextSpecific || ci.Content.Tag != 0 || !ci.Content.IsCompound {
		return bad("no content")
	}
	var outer asn1.RawValue
	if rest, err := asn1.Unmarshal(ci.Content.Bytes, &outer); err != nil {
		return bad("%w", err)
	} else if len(rest) > 0 {
		return bad("%d bytes left over after signedData", len(rest))
	}
	if outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence || !outer.IsCompound {
		return bad("signedData is not a SEQUENCE")
	}
	// The fields one after another: version, digestAlgorithms, encapContentInfo, [0] certificates,
	// [1] crls OPTIONAL, signerInfos.
	rest := outer.Bytes
	var version int
	var err error
	if rest, err = asn1.Unmarshal(rest, &version); err != nil {
		return bad("version: %w", err)
	}
	var field asn1.RawValue
	for _, want := range []int{asn1.TagSet, asn1.TagSequence} {
		if rest, err = asn1.Unmarshal(rest, &field); err != nil {
			return bad("%w", err)
		}
		if field.Class != asn1.ClassUniversal || field.Tag != want || !field.IsCompound {
			return bad("unexpected field with tag %d", field.Tag)
		}
	}
	if rest, err = asn1.Unmarshal(rest, &field); err != nil {
		return bad("%w", err)
	}
	if field.Class != asn1.ClassContextSpecific || field.Tag != 0 || !field.IsCompound {
		return bad("it holds no certificates")
	}
	set := field.Bytes
	for signers := false; !signers; { // crls, then signerInfos, then nothing
		if rest, err = asn1.Unmarshal(rest, &field); err != nil {
			return bad("after the certificates: %w", err)
		}
		switch {
		case field.Class == asn1.ClassContextSpecific && field.Tag == 1 && field.IsCompound:
		case field.Class == asn1.ClassUniversal && field.Tag == asn1.TagSet && field.IsCompound:
			signers = true
		default:
			return bad("unexpected field with tag %d", field.Tag)
		}
	}
	if len(rest) > 0 {
		return bad("%d bytes left over in signedData", len(rest))
	}

	var certs [][]byte
	for len(set) > 0 {
		if len(certs) == MaxCerts {
			return nil, cradle.Errorf(cradle.TooLarge, "PKCS#7 message: more than %d certificates", MaxCerts)
		}
		var one asn1.RawValue
		if set, err = asn1.Unmarshal(set, &one); err != nil {
			return bad("certificate %d: %w", len(certs)+1, err)
		}
		if one.Class != asn1.ClassUniversal || one.Tag != asn1.TagSequence {
			return bad("certificate %d is not an X.509 certificate", len(certs)+1)
		}
		certs = append(certs, one.FullBytes)
	}
	if len(certs) == 0 {
		return bad("it holds no certificates")
	}
	return certs, nil
}
