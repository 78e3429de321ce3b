package attest

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/weakkey"
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
	template *publicArea
}

var (
	iakKind    = kind{templateOf(evidence.IAKTemplate)}
	idevidKind = kind{templateOf(evidence.IDevIDTemplate)}
	signKind   = kind{}
)

func templateOf(t tpm2.TPMTPublic) *publicArea {
	p, err := parsePublic(tpm2.Marshal(t))
	if err != nil {
		panic("internal error: key template: " + err.Error())
	}
	return p
}

// tpmKey is a public area with its TPM name.
type tpmKey struct {
	*publicArea
	name []byte
	kind
}

// parseKey decodes b and names it (Part 1 §16): what the checks read is what was hashed, since parsePublic
// accepts only one encoding.
func parseKey(prefix Code, b []byte) (*tpmKey, Reasons) {
	var why Reasons
	if len(b) > evidence.MaxPublic {
		why.add(prefix+suffixMalformed, fmt.Sprintf("public area has %d bytes; at most %d", len(b), evidence.MaxPublic))
		return nil, why
	}
	p, err := parsePublic(b)
	if err != nil {
		why.add(prefix+suffixMalformed, err.Error())
		return nil, why
	}
	h, err := p.nameAlg.Hash()
	if err != nil {
		why.add(prefix+suffixNameAlg, err.Error())
		return nil, why
	}
	d := h.New()
	d.Write(b)
	return &tpmKey{publicArea: p, name: d.Sum([]byte{byte(p.nameAlg >> 8), byte(p.nameAlg)})}, why
}

func (k *tpmKey) check(why *Reasons, prefix Code, want kind) {
	k.kind = want
	for _, c := range keyChecks {
		if detail := c.refuse(k); detail != "" {
			why.add(prefix+c.code, detail)
		}
	}
}

// keyChecks share no field: together they compare the whole of a template, and each alone explains its
// difference. FuzzAttestationKey holds them against evidence.MatchesTemplate. Of a key that is neither ECC nor RSA only
// the common fields are known.
var keyChecks = []check[*tpmKey]{
	{suffixType, func(k *tpmKey) string {
		if k.template != nil {
			return unless(k.isECC(), "key type 0x%04x is not ECC", uint16(k.typ))
		}
		return unless(k.isECC() || k.typ == tpm2.TPMAlgRSA, "key type 0x%04x is neither ECC nor RSA", uint16(k.typ))
	}},
	{suffixNameAlg, func(k *tpmKey) string {
		ok := k.nameAlg == tpm2.TPMAlgSHA256 || k.nameAlg == tpm2.TPMAlgSHA384 || k.nameAlg == tpm2.TPMAlgSHA512
		if k.template != nil {
			ok = k.nameAlg == k.template.nameAlg
		}
		return unless(ok, "name algorithm 0x%04x is not allowed", uint16(k.nameAlg))
	}},
	{suffixFixedTPM, func(k *tpmKey) string {
		return unless(k.attributes&fixedTPM != 0, "fixedTPM is clear: the key may be duplicated out of the TPM")
	}},
	{suffixFixedPar, func(k *tpmKey) string {
		return unless(k.attributes&fixedParent != 0, "fixedParent is clear: the key may be moved under another parent")
	}},
	{suffixOrigin, func(k *tpmKey) string {
		return unless(k.attributes&sensitiveDataOrigin != 0, "sensitiveDataOrigin is clear: the private key was made outside the TPM")
	}},
	{suffixSign, func(k *tpmKey) string {
		return unless(k.attributes&signEncrypt != 0, "sign is clear")
	}},
	{suffixDecrypt, func(k *tpmKey) string {
		return unless(k.attributes&decrypt == 0, "decrypt is set: a storage or decryption key")
	}},
	{suffixRestricted, func(k *tpmKey) string {
		want := k.template != nil && k.template.attributes&restricted != 0
		switch got := k.attributes&restricted != 0; {
		case want && !got:
			return "restricted is clear: the key would sign a forged statement"
		case !want && got:
			return "restricted is set: the key signs only what the TPM made"
		}
		return ""
	}},
	{suffixAttributes, func(k *tpmKey) string {
		const others = ^(fixedTPM | fixedParent | sensitiveDataOrigin | signEncrypt | decrypt | restricted)
		return unless(k.template == nil || (k.attributes^k.template.attributes)&others == 0, "other attributes than the template's")
	}},
	{suffixPolicy, func(k *tpmKey) string {
		ok := k.template == nil || bytes.Equal(k.policy, k.template.policy)
		return unless(ok, "the authorisation policy is not the template's")
	}},
	{suffixCurve, func(k *tpmKey) string {
		ok := !k.isECC() || k.curve == tpm2.TPMECCNistP256 || k.template == nil && k.curve == tpm2.TPMECCNistP384
		return unless(ok, "curve 0x%04x is not allowed", uint16(k.curve))
	}},
	{suffixScheme, func(k *tpmKey) string {
		var ok bool
		switch {
		case k.template != nil:
			ok = !k.isECC() || k.scheme == k.template.scheme
		case !k.isECC() && k.typ != tpm2.TPMAlgRSA:
			ok = true
		case k.scheme.alg == tpm2.TPMAlgNull: // chosen when signing
			ok = true
		default:
			h := k.scheme.hash
			signs := k.scheme.alg == tpm2.TPMAlgECDSA
			if !k.isECC() {
				signs = k.scheme.alg == tpm2.TPMAlgRSASSA || k.scheme.alg == tpm2.TPMAlgRSAPSS
			}
			ok = signs && (h == tpm2.TPMAlgSHA256 || h == tpm2.TPMAlgSHA384 || h == tpm2.TPMAlgSHA512)
		}
		return unless(ok, "signature scheme 0x%04x with hash 0x%04x is not allowed", uint16(k.scheme.alg), uint16(k.scheme.hash))
	}},
	{suffixParameters, func(k *tpmKey) string {
		ok := !k.isECC() || k.template == nil || k.symmetric == k.template.symmetric && k.kdf == k.template.kdf
		return unless(ok, "symmetric algorithm or key derivation differs from the template's")
	}},
	{suffixPoint, func(k *tpmKey) string {
		if _, known := curves[k.curve]; !k.isECC() || !known {
			return "" // said by type or curve
		}
		_, _, err := k.publicKey()
		return unless(err == nil, "not a point of the curve")
	}},
	{suffixModulus, func(k *tpmKey) string {
		if k.typ != tpm2.TPMAlgRSA || k.template != nil {
			return ""
		}
		pub, err := k.rsaKey()
		if err != nil {
			return err.Error()
		}
		return weakkey.RSA(pub)
	}},
}

// unless returns the detail of a check that failed, made of its operands only then.
func unless(ok bool, format string, operands ...any) string {
	if ok {
		return ""
	}
	return fmt.Sprintf(format, operands...)
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
