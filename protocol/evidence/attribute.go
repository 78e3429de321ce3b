package evidence

import (
	"encoding/asn1"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/der"
)

var (
	oidEvidence   = mustOID(OIDEvidence)
	oidCertify    = mustOID(OIDCertify)
	oidActivation = activationOID()
)

// Attribute encodes the bundle as the whole PKCS#10 attribute: SEQUENCE { id-aa-evidence, SET {
// AttestationBundle } }. The statements are in the order Certify, challenge.
func (b Bundle) Attribute() ([]byte, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	var statements []byte
	if c := b.Certify; c != nil {
		statements = append(statements, sequence(oidCertify, sequence(octets(c.Attest), octets(c.Signature), octets(c.Public)))...)
	}
	if len(b.Challenge) > 0 {
		statements = append(statements, sequence(oidActivation, sequence(octets(b.Challenge)))...)
	}
	bundle := [][]byte{sequence(statements)}
	if len(b.Certs) > 0 {
		for i, c := range b.Certs {
			v, rest, err := next(c)
			if err != nil || len(rest) > 0 || !isSequence(v) {
				return nil, cradle.Errorf(cradle.Invalid, "certificate %d of the evidence is not one DER SEQUENCE", i+1)
			}
		}
		bundle = append(bundle, sequence(b.Certs...))
	}
	return sequence(oidEvidence, element(0x31, sequence(bundle...))), nil
}

// parseBundle reads an AttestationBundle. exact says that Attribute would give back the same bytes:
// no hint, no statement or certificate format that was skipped, statements in our order.
func parseBundle(der []byte) (b *Bundle, exact bool, err error) {
	bundle, err := only(der, "attestation bundle")
	if err != nil {
		return nil, false, err
	}
	statements, rest, err := next(bundle)
	if err != nil || !isSequence(statements) || len(statements.Bytes) == 0 {
		return nil, false, cradle.Errorf(cradle.Invalid, "attestation bundle has no statements")
	}
	b, exact = new(Bundle), true
	for in := statements.Bytes; len(in) > 0; {
		var st asn1.RawValue
		if st, in, err = next(in); err != nil || !isSequence(st) {
			return nil, false, cradle.Errorf(cradle.Invalid, "attestation statement is not a DER SEQUENCE")
		}
		ok, err := b.statement(st.Bytes)
		if err != nil {
			return nil, false, err
		}
		exact = exact && ok
	}
	if len(rest) > 0 {
		certs, after, err := next(rest)
		if err != nil || len(after) > 0 || !isSequence(certs) || len(certs.Bytes) == 0 {
			return nil, false, cradle.Errorf(cradle.Invalid, "certs of the attestation bundle is not a DER SEQUENCE of certificates, or something follows it")
		}
		for in := certs.Bytes; len(in) > 0; {
			var c asn1.RawValue
			if c, in, err = next(in); err != nil {
				return nil, false, cradle.Errorf(cradle.Invalid, "certs of the attestation bundle: %v", err)
			}
			switch {
			case isSequence(c):
				b.Certs = append(b.Certs, c.FullBytes)
			case c.Class == asn1.ClassContextSpecific && c.Tag == 3: // other: a format we do not know
				exact = false
			default:
				return nil, false, cradle.Errorf(cradle.Invalid, "certs of the attestation bundle holds neither a certificate nor another format")
			}
			if len(b.Certs) > MaxCerts {
				return nil, false, cradle.Errorf(cradle.Invalid, "attestation bundle has more than %d certificates", MaxCerts)
			}
		}
	}
	return b, exact, b.Check()
}

// statement takes over one AttestationStatement whose type is known, at most one of each type.
func (b *Bundle) statement(in []byte) (exact bool, err error) {
	typ, in, err := next(in)
	if err != nil || typ.Class != asn1.ClassUniversal || typ.Tag != asn1.TagOID || typ.IsCompound {
		return false, cradle.Errorf(cradle.Invalid, "attestation statement has no type")
	}
	stmt, in, err := next(in)
	if err != nil {
		return false, cradle.Errorf(cradle.Invalid, "attestation statement without content")
	}
	exact = true
	if len(in) > 0 { // hint, of the drafts before -20; says nothing that is signed
		hint, after, err := next(in)
		if err != nil || len(after) > 0 || hint.Class != asn1.ClassUniversal || hint.IsCompound ||
			hint.Tag != asn1.TagUTF8String && hint.Tag != asn1.TagIA5String {
			return false, cradle.Errorf(cradle.Invalid, "attestation statement has an unknown third field")
		}
		exact = false
	}
	switch string(typ.FullBytes) {
	case string(oidCertify):
		if b.Certify != nil {
			return false, cradle.Errorf(cradle.Invalid, "attestation bundle has two TPM statements")
		}
		f, err := octetFields(stmt, 2, 3)
		if err != nil {
			return false, cradle.Errorf(cradle.Invalid, "tcg-attest-tpm-certify: %v", err)
		}
		if len(f) < 3 {
			return false, cradle.Errorf(cradle.Invalid, "tcg-attest-tpm-certify without tpmTPublic").
				WithHint("send the public area of the certified key")
		}
		b.Certify = &Certify{Attest: f[0], Signature: f[1], Public: f[2]}
		return exact && len(b.Challenge) == 0, nil
	case string(oidActivation):
		if len(b.Challenge) > 0 {
			return false, cradle.Errorf(cradle.Invalid, "attestation bundle has two challenges")
		}
		f, err := octetFields(stmt, 1, 1)
		if err != nil || len(f[0]) == 0 {
			return false, cradle.Errorf(cradle.Invalid, "challenge statement is not a SEQUENCE of one OCTET STRING with content")
		}
		b.Challenge = f[0]
		return exact, nil
	}
	return false, nil
}

// octetFields reads a SEQUENCE of least to most OCTET STRINGs.
func octetFields(v asn1.RawValue, least, most int) ([][]byte, error) {
	if !isSequence(v) {
		return nil, fmt.Errorf("not a SEQUENCE")
	}
	var out [][]byte
	for in := v.Bytes; len(in) > 0; {
		var f asn1.RawValue
		var err error
		if f, in, err = next(in); err != nil {
			return nil, err
		}
		if f.Class != asn1.ClassUniversal || f.Tag != asn1.TagOctetString || f.IsCompound {
			return nil, fmt.Errorf("field %d is not an OCTET STRING", len(out)+1)
		}
		if out = append(out, f.Bytes); len(out) > most {
			return nil, fmt.Errorf("more than %d fields", most)
		}
	}
	if len(out) < least {
		return nil, fmt.Errorf("%d fields; at least %d", len(out), least)
	}
	return out, nil
}

// next reads one DER element: definite, minimal lengths.
func next(in []byte) (v asn1.RawValue, rest []byte, err error) {
	rest, err = asn1.Unmarshal(in, &v)
	return v, rest, err
}

// only returns the content of the single SEQUENCE that der is.
func only(der []byte, what string) ([]byte, error) {
	v, rest, err := next(der)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s is not DER: %v", what, err)
	}
	if len(rest) > 0 || !isSequence(v) {
		return nil, cradle.Errorf(cradle.Invalid, "%s is not one DER SEQUENCE", what)
	}
	return v.Bytes, nil
}

func isSequence(v asn1.RawValue) bool {
	return v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence && v.IsCompound
}

// element, like sequence and octets, is for files where arguments are named der.
func element(tag byte, parts ...[]byte) []byte { return der.Element(tag, parts...) }

func sequence(parts ...[]byte) []byte { return der.Element(der.Sequence, parts...) }

func octets(b []byte) []byte { return der.Element(asn1.TagOctetString, b) }

func mustOID(o asn1.ObjectIdentifier) []byte {
	der, err := asn1.Marshal(o)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return der
}

// activationOID encodes cradle.OIDActivation, whose arc is too large for asn1.ObjectIdentifier.
func activationOID() []byte {
	b, err := cradle.OIDActivation.MarshalBinary()
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return element(0x06, b)
}
