package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// AttestationKey is an IAK whose public area has been checked. That it lives in a TPM is proved
// only by the activation of its name.
type AttestationKey struct {
	Public []byte           // TPMT_PUBLIC as received
	Name   []byte           // TPM name: name algorithm and digest
	Key    *ecdsa.PublicKey // P-256
	SPKI   []byte           // DER
}

// VerifyAttestationKey checks that public is exactly a key of evidence.IAKTemplate: one that signs only what
// its TPM made, was made in it, and can never leave it. It must be asked before Activation: of an
// unrestricted key, activation proves nothing. The key is nil when there are reasons.
func VerifyAttestationKey(public []byte) (*AttestationKey, Reasons) {
	k, why := parseKey("ak-", public)
	if !why.OK() {
		return nil, why
	}
	k.check(&why, "ak-", iakKind)
	if !why.OK() {
		return nil, why
	}
	pub, spki, err := k.publicKey()
	if err != nil {
		why.add(AKPoint, err.Error())
		return nil, why
	}
	return &AttestationKey{Public: public, Name: k.name, Key: pub, SPKI: spki}, nil
}

// kind is what a TPM key must be. With a template every field is compared; without, the key may be any
// that cannot leave the TPM and signs, with an allowed algorithm.
type kind struct {
	template *tpm2.TPMTPublic
}

var (
	iakKind    = kind{&evidence.IAKTemplate}
	idevidKind = kind{&evidence.IDevIDTemplate}
	signKind   = kind{}
)

// tpmKey is a decoded TPMT_PUBLIC.
type tpmKey struct {
	pub   tpm2.TPMTPublic
	name  []byte
	curve *tpm2.TPMSECCParms // nil unless an ECC key
	point *tpm2.TPMSECCPoint // nil unless an ECC key
	kind
}

// parseKey decodes b, which must be the only encoding of what it holds: the name is a digest of it, and
// what the checks have read must be what was hashed.
func parseKey(prefix Code, b []byte) (*tpmKey, Reasons) {
	var why Reasons
	if len(b) > evidence.MaxPublic {
		why.add(prefix+suffixMalformed, fmt.Sprintf("public area has %d bytes; at most %d", len(b), evidence.MaxPublic))
		return nil, why
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		why.add(prefix+suffixMalformed, "not a TPMT_PUBLIC: "+err.Error())
		return nil, why
	}
	if !bytes.Equal(tpm2.Marshal(*pub), b) {
		why.add(prefix+suffixMalformed, "not the only encoding of this public area, or bytes after it")
		return nil, why
	}
	k := &tpmKey{pub: *pub}
	// The digest is of b itself, which the lines above have shown to be the encoding.
	h, err := pub.NameAlg.Hash()
	if err != nil {
		why.add(prefix+suffixNameAlg, err.Error())
		return nil, why
	}
	d := h.New()
	d.Write(b)
	k.name = d.Sum([]byte{byte(pub.NameAlg >> 8), byte(pub.NameAlg)})
	if pub.Type == tpm2.TPMAlgECC {
		if k.curve, err = pub.Parameters.ECCDetail(); err == nil {
			k.point, err = pub.Unique.ECC()
		}
		if err != nil {
			why.add(prefix+suffixMalformed, err.Error())
			return nil, why
		}
	}
	return k, why
}

func (k *tpmKey) check(why *Reasons, prefix Code, want kind) {
	k.kind = want
	for _, c := range keyChecks {
		if detail := c.refuse(k); detail != "" {
			why.add(prefix+c.code, detail)
		}
	}
}

// publicKey returns the key; an error means that it is no ECC key on a known curve.
func (k *tpmKey) publicKey() (*ecdsa.PublicKey, []byte, error) {
	if k.point == nil {
		return nil, nil, fmt.Errorf("not an ECC key")
	}
	pub, err := tpm2.ECDSAPub(k.curve, k.point)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub) // refuses what is not on the curve
	if err != nil {
		return nil, nil, err
	}
	return pub, spki, nil
}

// keyChecks share no field: together they compare the whole of a template, and each alone explains its
// difference. FuzzVerifyAttestationKey holds them against evidence.MatchesTemplate.
var keyChecks = []check[*tpmKey]{
	{suffixType, func(k *tpmKey) string {
		if k.pub.Type != tpm2.TPMAlgECC {
			return fmt.Sprintf("key type 0x%04x is not ECC", uint16(k.pub.Type))
		}
		return ""
	}},
	{suffixNameAlg, func(k *tpmKey) string {
		switch a := k.pub.NameAlg; {
		case k.template != nil && a == k.template.NameAlg:
		case k.template == nil && (a == tpm2.TPMAlgSHA256 || a == tpm2.TPMAlgSHA384 || a == tpm2.TPMAlgSHA512):
		default:
			return fmt.Sprintf("name algorithm 0x%04x is not allowed", uint16(a))
		}
		return ""
	}},
	{suffixFixedTPM, func(k *tpmKey) string {
		return unless(k.pub.ObjectAttributes.FixedTPM, "fixedTPM is clear: the key may be duplicated out of the TPM")
	}},
	{suffixFixedPar, func(k *tpmKey) string {
		return unless(k.pub.ObjectAttributes.FixedParent, "fixedParent is clear: the key may be moved under another parent")
	}},
	{suffixOrigin, func(k *tpmKey) string {
		return unless(k.pub.ObjectAttributes.SensitiveDataOrigin, "sensitiveDataOrigin is clear: the private key was made outside the TPM")
	}},
	{suffixSign, func(k *tpmKey) string {
		return unless(k.pub.ObjectAttributes.SignEncrypt, "sign is clear")
	}},
	{suffixDecrypt, func(k *tpmKey) string {
		return unless(!k.pub.ObjectAttributes.Decrypt, "decrypt is set: a storage or decryption key")
	}},
	{suffixRestricted, func(k *tpmKey) string {
		want := k.template != nil && k.template.ObjectAttributes.Restricted
		switch got := k.pub.ObjectAttributes.Restricted; {
		case want && !got:
			return "restricted is clear: the key would sign a forged statement"
		case !want && got:
			return "restricted is set: the key signs only what the TPM made"
		}
		return ""
	}},
	{suffixAttributes, func(k *tpmKey) string {
		if k.template == nil {
			return ""
		}
		got, want := otherAttributes(k.pub.ObjectAttributes), otherAttributes(k.template.ObjectAttributes)
		return unless(got == want, "other attributes than the template's")
	}},
	{suffixPolicy, func(k *tpmKey) string {
		if k.template == nil || bytes.Equal(k.pub.AuthPolicy.Buffer, k.template.AuthPolicy.Buffer) {
			return ""
		}
		return fmt.Sprintf("authorisation policy %x is not the template's", k.pub.AuthPolicy.Buffer)
	}},
	{suffixCurve, func(k *tpmKey) string {
		if k.curve == nil {
			return "" // said by type
		}
		switch c := k.curve.CurveID; {
		case c == tpm2.TPMECCNistP256:
		case k.template == nil && c == tpm2.TPMECCNistP384:
		default:
			return fmt.Sprintf("curve 0x%04x is not allowed", uint16(c))
		}
		return ""
	}},
	{suffixScheme, func(k *tpmKey) string {
		if k.curve == nil {
			return ""
		}
		return k.refuseScheme()
	}},
	{suffixParameters, func(k *tpmKey) string {
		if k.curve == nil || k.template == nil {
			return ""
		}
		t, err := k.template.Parameters.ECCDetail()
		if err != nil {
			return err.Error()
		}
		got := *k.curve
		got.CurveID, got.Scheme = t.CurveID, t.Scheme
		return unless(bytes.Equal(tpm2.Marshal(got), tpm2.Marshal(*t)), "symmetric algorithm or key derivation differs from the template's")
	}},
	{suffixPoint, func(k *tpmKey) string {
		if k.curve == nil {
			return ""
		}
		if _, err := tpm2.ECDSAPub(k.curve, k.point); err != nil {
			return "" // said by curve
		}
		if len(k.point.X.Buffer) > 66 || len(k.point.Y.Buffer) > 66 {
			return "coordinates are too long"
		}
		if _, err := tpm2.ECDHPub(k.curve, k.point); err != nil {
			return "not a point of the curve"
		}
		return ""
	}},
}

// refuseScheme: the template's, or ECDSA with SHA-2, or none (chosen when signing).
func (k *tpmKey) refuseScheme() string {
	s := k.curve.Scheme
	if k.template == nil && s.Scheme == tpm2.TPMAlgNull {
		return ""
	}
	if s.Scheme != tpm2.TPMAlgECDSA {
		return fmt.Sprintf("signature scheme 0x%04x is not ECDSA", uint16(s.Scheme))
	}
	d, err := s.Details.ECDSA()
	if err != nil {
		return err.Error()
	}
	switch {
	case d.HashAlg == tpm2.TPMAlgSHA256:
	case k.template == nil && (d.HashAlg == tpm2.TPMAlgSHA384 || d.HashAlg == tpm2.TPMAlgSHA512):
	default:
		return fmt.Sprintf("hash 0x%04x of the signature scheme is not allowed", uint16(d.HashAlg))
	}
	return ""
}

// otherAttributes clears those that have a check of their own.
func otherAttributes(a tpm2.TPMAObject) tpm2.TPMAObject {
	a.FixedTPM, a.FixedParent, a.SensitiveDataOrigin = false, false, false
	a.SignEncrypt, a.Decrypt, a.Restricted = false, false, false
	return a
}

func unless(ok bool, detail string) string {
	if ok {
		return ""
	}
	return detail
}

// kindOf returns what a profile's key must be.
func kindOf(p cradle.Profile) kind {
	switch p {
	case cradle.IAK:
		return iakKind
	case cradle.IDevID:
		return idevidKind
	}
	return signKind
}
