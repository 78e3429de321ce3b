package attest

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/protocol/evidence"
)

// TPMEnroll is a request of tpmenroll (est.OpTPMEnroll): certify the key of the CSR if the TPM of that endorsement key
// holds it. Nothing in it is signed by the TPM; the proof is that the certificate can be read only after the
// activation of the key's name.
type TPMEnroll struct {
	EKChain  [][]byte // DER, the EK certificate first
	EKPublic []byte   // TPMT_PUBLIC
	AKPublic []byte   // TPMT_PUBLIC of the key to certify
	CSR      *evidence.CSR
	Anchors  *AnchorSet
	Rules    Rules
	Denied   Denied
}

// TPMVerdict is the outcome. EK and KeyName are what Activation needs; nil when there are reasons.
type TPMVerdict struct {
	Reasons
	EK      *EK
	KeyName []byte
}

// tpmSubject is what the checks of a tpmenroll request look at.
type tpmSubject struct {
	*TPMEnroll
	ek     *EK
	public tpm2.TPMTPublic // of the EK
	key    *tpmKey
	spki   []byte // of key
}

// VerifyTPMEnroll judges a tpmenroll request: that the EK certificate leads to a trusted maker, that the EK's public area
// is of the certified key and describes an endorsement key, that the key to certify can never leave its TPM and is
// no restricted one, and that the CSR is of this key and signed by it. Each of these would let a software key in if
// it were left out: Activation encrypts to whatever name it is given.
func VerifyTPMEnroll(now time.Time, q TPMEnroll) TPMVerdict {
	var v TPMVerdict
	if len(q.EKChain) == 0 {
		v.add(EKMalformed, "no EK certificate")
		return v
	}
	ek, why := q.Anchors.VerifyEK(now, q.EKChain[0], q.EKChain[1:], q.Rules, q.Denied)
	v.Reasons = append(v.Reasons, why...)
	s := &tpmSubject{TPMEnroll: &q, ek: ek}
	var err error
	if s.public, err = parseArea(q.EKPublic); err != nil {
		v.add(EKPubMalformed, err.Error())
	}
	if s.key, why = parseKey("key-", q.AKPublic); !why.OK() {
		v.Reasons = append(v.Reasons, why...)
	}
	if !v.OK() {
		return v
	}
	s.key.check(&v.Reasons, "key-", signKind)
	if s.key.isECC() {
		_, s.spki, _ = s.key.publicKey()
	} else {
		s.spki = areaSPKI(q.AKPublic)
	}
	run(&v.Reasons, tpmChecks, s)
	run(&v.Reasons, possessionChecks, q.CSR)
	if v.OK() {
		run(&v.Reasons, possessionSignature, q.CSR)
	}
	if v.OK() {
		v.EK, v.KeyName = ek, s.key.name
	}
	return v
}

var tpmChecks = []check[*tpmSubject]{
	{EKPubKey, func(s *tpmSubject) string {
		spki := areaSPKI(s.EKPublic)
		want, err := x509.MarshalPKIXPublicKey(s.ek.Public)
		return unless(err == nil && spki != nil && bytes.Equal(spki, want), "the public area is not of the key in the EK certificate")
	}},
	{EKPubAttributes, func(s *tpmSubject) string {
		a := s.public.ObjectAttributes
		ok := a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.Restricted && a.Decrypt && !a.SignEncrypt
		return unless(ok, "the public area's attributes are not those of an endorsement key")
	}},
	{EKPubParameters, func(s *tpmSubject) string {
		want, err := activationArea(s.ek)
		ok := err == nil && s.public.Type == want.Type && s.public.NameAlg == want.NameAlg && sameSymmetric(&s.public, &want)
		return unless(ok, "name algorithm or symmetric algorithm is not that of the EK templates for such a key")
	}},
	{CSRKey, func(s *tpmSubject) string {
		return unless(bytes.Equal(s.CSR.SPKI, s.spki), "the CSR's key is not the key to certify")
	}},
}

// parseArea decodes a public area of any type whole.
func parseArea(b []byte) (tpm2.TPMTPublic, error) {
	if len(b) > evidence.MaxPublic {
		return tpm2.TPMTPublic{}, fmt.Errorf("public area has %d bytes; at most %d", len(b), evidence.MaxPublic)
	}
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return tpm2.TPMTPublic{}, fmt.Errorf("not a TPMT_PUBLIC")
	}
	if !bytes.Equal(tpm2.Marshal(p), b) {
		return tpm2.TPMTPublic{}, fmt.Errorf("not a TPMT_PUBLIC in its only encoding, or bytes after it")
	}
	return *p, nil
}

// areaSPKI is the DER of the SubjectPublicKeyInfo of a public area, nil of what is no usable key.
func areaSPKI(b []byte) []byte {
	p, err := parseArea(b)
	if err != nil {
		return nil
	}
	pub, err := tpm2.Pub(p)
	if err != nil {
		return nil
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil
	}
	return spki
}

func sameSymmetric(a, b *tpm2.TPMTPublic) bool {
	return bytes.Equal(symmetricOf(a), symmetricOf(b))
}

// symmetricOf is the encoding of a storage key's symmetric algorithm.
func symmetricOf(p *tpm2.TPMTPublic) []byte {
	if d, err := p.Parameters.RSADetail(); err == nil {
		return tpm2.Marshal(d.Symmetric)
	}
	if d, err := p.Parameters.ECCDetail(); err == nil {
		return tpm2.Marshal(d.Symmetric)
	}
	return nil
}
