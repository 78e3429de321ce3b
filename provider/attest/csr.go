package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// ChallengeState is what the provider seals into a challenge when it answers the nonce request, and opens
// again at the enrolment. It is the only memory between the two.
type ChallengeState struct {
	Account  cradle.AccountID
	Label    string
	Order    cradle.OrderID
	Serial   string
	EK       EKFacts   // accepted at the nonce, or of the device's record
	IAK      []byte    // TPMT_PUBLIC, likewise
	Secret   []byte    // given to Activation; empty where the IAK was known
	AuthCert []byte    // SHA-256 of the TLS client certificate; empty when there was none
	Expiry   time.Time // not later than
	Nonce    []byte    // unique; the provider spends it once
}

// Request is an enrolment with evidence.
type Request struct {
	Profile  cradle.Profile
	Account  cradle.AccountID // of the label under which the CSR came
	Label    string
	CSR      *evidence.CSR
	AuthCert []byte         // DER of the TLS client certificate; nil when there was none
	State    ChallengeState // opened from CSR.Bundle.Challenge
	Rules    Rules          // of the order; here only MinFirmware counts, the rest was judged at the nonce
	Anchors  *AnchorSet     // as they are now; nil leaves their check out
	Denied   Denied         // as it is now; may be nil
}

// Verdict is the outcome, and what to record of it.
type Verdict struct {
	Reasons
	EK           EKFacts
	AKName       []byte // TPM name of the IAK
	KeyName      []byte // TPM name of the certified key
	Firmware     uint64 // of the TPM, as the statement says
	Clock        uint64 // milliseconds; with the two counts it shows a cloned virtual TPM
	ResetCount   uint32
	RestartCount uint32
}

// csrSubject is what the checks of an enrolment look at.
type csrSubject struct {
	Request
	now     time.Time
	ak      *AttestationKey
	certify evidence.Certify
	attest  attestation
	key     *tpmKey
	spki    []byte // of key
	sig     signature
}

// VerifyCSR judges the evidence of one enrolment: that the challenge is alive and was given to this client
// for this label, that the CSR proves possession, that its key is the one certified and is what the profile
// demands, and that the IAK of the challenge has said so over this very binding. It does not judge the
// CSR's subject, the serial number or the device's state, nor spend the challenge.
func VerifyCSR(now time.Time, q Request) Verdict {
	v := Verdict{EK: q.State.EK}
	s := &csrSubject{Request: q, now: now}
	if run(&v.Reasons, stateChecks, s); !v.OK() {
		return v
	}
	if s.parse(&v.Reasons); !v.OK() {
		return v
	}
	v.AKName, v.KeyName = s.ak.Name, s.key.name
	v.Firmware, v.Clock = s.attest.firmware, s.attest.clock
	v.ResetCount, v.RestartCount = s.attest.resetCount, s.attest.restartCount
	s.key.check(&v.Reasons, "key-", kindOf(q.Profile))
	run(&v.Reasons, csrChecks, s)
	if v.OK() {
		run(&v.Reasons, signatures, s)
	}
	return v
}

// parse decodes what the checks read.
func (s *csrSubject) parse(why *Reasons) {
	if s.CSR == nil || s.CSR.Bundle == nil || s.CSR.Bundle.Certify == nil || len(s.CSR.Bundle.Challenge) == 0 {
		why.add(EvidenceMissing, "the CSR holds no TPM statement with a challenge")
		return
	}
	var r Reasons
	if s.ak, r = VerifyAttestationKey(s.State.IAK); !r.OK() {
		*why = append(*why, r...)
		return
	}
	s.certify = *s.CSR.Bundle.Certify
	var ok bool
	if s.attest, ok = parseAttest(s.certify.Attest); !ok {
		why.add(AttestMalformed, "not a TPMS_ATTEST of TPM2_Certify, or bytes after it")
	}
	if s.sig, ok = parseSignature(s.certify.Signature); !ok && s.sig.alg == tpm2.TPMAlgECDSA {
		why.add(SignatureMalformed, "not a TPMT_SIGNATURE, or bytes after it")
	}
	if s.key, r = parseKey("key-", s.certify.Public); !r.OK() {
		*why = append(*why, r...)
		return
	}
	// A key that is none gets its reasons from keyChecks, and equals no CSR's.
	s.spki, _ = s.key.spki()
}

// utc prints a moment, if it comes to be printed.
type utc time.Time

func (t utc) String() string { return time.Time(t).UTC().Format(time.RFC3339) }

// stateChecks come first: they cost nothing and say that the request is worth reading.
var stateChecks = []check[*csrSubject]{
	{ChallengeExpired, func(s *csrSubject) string {
		return unless(!s.now.After(s.State.Expiry), "the challenge expired at %s", utc(s.State.Expiry))
	}},
	{ChallengeAccount, func(s *csrSubject) string {
		return unless(s.Account == s.State.Account, "the challenge was given to another account")
	}},
	{ChallengeLabel, func(s *csrSubject) string {
		return unless(s.Label == s.State.Label, "the challenge was given for label %q", s.State.Label)
	}},
	{ChallengeClient, func(s *csrSubject) string {
		var digest []byte
		if len(s.AuthCert) > 0 {
			d := sha256.Sum256(s.AuthCert)
			digest = d[:]
		}
		return unless(bytes.Equal(digest, s.State.AuthCert), "the challenge was given to another client certificate")
	}},
	{ChallengeNoSecret, func(s *csrSubject) string {
		born := s.Profile == cradle.IDevID || s.Profile == cradle.IAK
		return unless(!born || len(s.State.Secret) >= 16, "profile %s needs the activation of EK and attestation key", s.Profile)
	}},
	{EKDenied, func(s *csrSubject) string {
		return unless(s.Denied == nil || !s.Denied(s.State.EK.Digest), "this endorsement key is denied")
	}},
	{CADistrusted, func(s *csrSubject) string {
		return unless(s.Anchors == nil || !s.Anchors.Distrusts(s.State.EK), "an issuer of the EK certificate is distrusted")
	}},
}

var csrChecks = []check[*csrSubject]{
	// CheckSignature of a request would take SHA-1.
	{CSRAlgorithm, func(s *csrSubject) string {
		alg := s.CSR.Request.SignatureAlgorithm
		switch k := s.CSR.Request.PublicKey.(type) {
		case *ecdsa.PublicKey:
			if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
				return "the CSR's key is an EC key on another curve than P-256 and P-384"
			}
			if alg == x509.ECDSAWithSHA256 || alg == x509.ECDSAWithSHA384 || alg == x509.ECDSAWithSHA512 {
				return ""
			}
		case *rsa.PublicKey:
			switch alg {
			case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
				return ""
			}
		default:
			return "the CSR's key is neither an EC nor an RSA key"
		}
		return fmt.Sprintf("signature algorithm %s of the CSR is not ECDSA or RSA with SHA-2", alg)
	}},
	{CSRKey, func(s *csrSubject) string {
		return unless(bytes.Equal(s.CSR.SPKI, s.spki), "the CSR's key is not the certified key")
	}},
	{NotTheAK, func(s *csrSubject) string {
		return unless(s.Profile != cradle.IAK || bytes.Equal(s.certify.Public, s.ak.Public), "the certified key is not the attestation key of the challenge")
	}},
	{KeyHierarchy, func(s *csrSubject) string {
		if s.Profile != cradle.IDevID && s.Profile != cradle.IAK {
			return ""
		}
		return unless(bytes.Equal(s.attest.qualifiedName, endorsementPrimary(s.key.name)), "the key is not a primary of the endorsement hierarchy")
	}},
	{AttestMagic, func(s *csrSubject) string {
		return unless(s.attest.magic == uint32(tpm2.TPMGeneratedValue), "the statement does not begin with TPM_GENERATED_VALUE")
	}},
	{AttestType, func(s *csrSubject) string {
		return unless(s.attest.kind == tpm2.TPMSTAttestCertify, "the statement is of type 0x%04x, not TPM2_Certify's", uint16(s.attest.kind))
	}},
	{AttestName, func(s *csrSubject) string {
		return unless(bytes.Equal(s.attest.name, s.key.name), "the statement is about another key than tpmTPublic")
	}},
	{AttestSigner, func(s *csrSubject) string {
		return unless(bytes.Equal(s.attest.qualifiedSigner, endorsementPrimary(s.ak.Name)), "the qualified signer is not this attestation key as a primary of the endorsement hierarchy")
	}},
	{AttestExtra, func(s *csrSubject) string {
		want := evidence.Binding{
			Challenge: s.CSR.Bundle.Challenge, Account: s.Account, Label: s.Label,
			Secret: s.State.Secret, AuthCert: s.AuthCert, SPKI: s.CSR.SPKI,
		}.ExtraData()
		return unless(subtle.ConstantTimeCompare(s.attest.extraData, want[:]) == 1, "extraData is not the digest of this challenge, account, label, client, secret and key")
	}},
	{SignatureAlg, func(s *csrSubject) string {
		return unless(s.sig.alg == tpm2.TPMAlgECDSA && s.sig.hash == tpm2.TPMAlgSHA256, "the statement is not signed by ECDSA with SHA-256, the attestation key's scheme")
	}},
	{FirmwareTooOld, func(s *csrSubject) string {
		return unless(s.attest.firmware >= s.Rules.MinFirmware, "TPM firmware %016x is below %016x", s.attest.firmware, s.Rules.MinFirmware)
	}},
}

// signatures cost most and come last.
var signatures = []check[*csrSubject]{
	{CSRSignature, func(s *csrSubject) string {
		if err := s.CSR.Request.CheckSignature(); err != nil {
			return "the CSR is not signed by its key: " + err.Error()
		}
		return ""
	}},
	{AttestSignature, func(s *csrSubject) string {
		d := sha256.Sum256(s.certify.Attest)
		return unless(ecdsa.Verify(s.ak.Key, d[:], s.sig.r, s.sig.s), "the statement is not signed by the attestation key")
	}},
}

// endorsementPrimary is the qualified name of a primary key of the endorsement hierarchy: its name algorithm
// and the digest of the hierarchy's handle and its name (Part 1 §16.3). name is one of tpmKey or AttestationKey.
func endorsementPrimary(name []byte) []byte {
	if len(name) < 2 {
		return nil
	}
	h, err := tpm2.TPMAlgID(binary.BigEndian.Uint16(name)).Hash()
	if err != nil {
		return nil
	}
	d := h.New()
	d.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)))
	d.Write(name)
	return d.Sum(name[:2:2])
}
