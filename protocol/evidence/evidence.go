// Package evidence is what a device says about its keys, and how that travels: the claim and the
// challenge of the nonce resource, the binding that makes a TPM2_Certify fresh, the attribute of a
// PKCS#10 request that carries it, and the templates from which the keys are made.
//
// An attested enrolment is two requests. The device posts a Claim to the nonce resource and gets a
// Challenge; it lets its TPM open the challenge's secret, computes Binding.ExtraData, certifies the
// new key with that as qualifying data, and sends a CSR with a Bundle in it (CreateCSR). The server
// reads it by ParseCSR.
//
// The package only encodes and decodes within limits. Nothing here says that evidence is good:
// that is package attest of the provider. Formats: draft-ietf-lamps-csr-attestation-28 for the
// attribute (its earlier hint field is accepted, never sent), draft-ietf-lamps-attestation-freshness
// for the nonce, TCG's tcg-attest-tpm-certify (2.23.133.20.1) for the TPM's statement, and
// cradle.OIDActivation for ours.
package evidence

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
)

// Draft is the revision of draft-ietf-lamps-csr-attestation that this package writes.
const Draft = "draft-ietf-lamps-csr-attestation-28"

// Limits in bytes, for both directions.
const (
	MaxCSR       = 64 << 10 // a whole CSR
	MaxCert      = 8 << 10  // one certificate of a chain
	MaxCerts     = 8        // certificates in one chain (a count)
	MaxAttest    = 2 << 10  // TPMS_ATTEST
	MaxSignature = 1 << 10  // TPMT_SIGNATURE; RSA-4096 needs 518
	MaxPublic    = 2 << 10  // TPMT_PUBLIC
	MaxChallenge = 8 << 10  // the sealed challenge
	MaxSecret    = 1 << 10  // credential blob, encrypted secret
	MaxSerial    = 64       // a unit's serial number
)

// OIDEvidence is id-aa-evidence, the PKCS#10 attribute.
var OIDEvidence = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 59}

// OIDCertify is tcg-attest-tpm-certify, the type of the TPM's statement.
var OIDCertify = asn1.ObjectIdentifier{2, 23, 133, 20, 1}

// Claim is what a device asks a challenge for: reqInfo of the nonce request, typed by
// cradle.OIDActivation. Every field is a wish until proved. With EKCert and AttestationKey the
// challenge holds a secret that only a TPM with both keys can open; an enrolled device, whose
// attestation key is known, leaves them out.
type Claim struct {
	EKCert         []byte         `json:"ek_cert,omitempty"`         // DER as read from NV, may have trailing bytes
	EKChain        [][]byte       `json:"ek_chain,omitempty"`        // DER, any order; untrusted help for path building
	AttestationKey []byte         `json:"attestation_key,omitempty"` // TPMT_PUBLIC of the IAK
	Serial         string         `json:"serial,omitempty"`          // of the unit; printable ASCII without blanks
	Order          cradle.OrderID `json:"order,omitempty"`           // under which the unit is made
}

// ParseClaim reads and checks a claim's JSON. Unknown members are ignored.
func ParseClaim(body []byte) (Claim, error) {
	var c Claim
	if err := json.Unmarshal(body, &c); err != nil {
		return Claim{}, cradle.Errorf(cradle.Invalid, "claim is not the expected JSON object: %v", strictjson.Reason(err))
	}
	return c, c.Check()
}

// Check reports a claim over its limits or incomplete, as cradle.Invalid.
func (c Claim) Check() error {
	if err := checkLen("EK certificate", c.EKCert, 0, MaxCert); err != nil {
		return err
	}
	if err := checkCerts("EK chain", c.EKChain); err != nil {
		return err
	}
	if err := checkLen("attestation key", c.AttestationKey, 0, MaxPublic); err != nil {
		return err
	}
	if (len(c.EKCert) == 0) != (len(c.AttestationKey) == 0) {
		return cradle.Errorf(cradle.Invalid, "claim has only one of EK certificate and attestation key").
			WithHint("send both to have them activated, or neither")
	}
	if len(c.EKChain) > 0 && len(c.EKCert) == 0 {
		return cradle.Errorf(cradle.Invalid, "claim has an EK chain without an EK certificate")
	}
	if len(c.Serial) > MaxSerial {
		return cradle.Errorf(cradle.Invalid, "serial number has %d bytes; at most %d", len(c.Serial), MaxSerial)
	}
	for _, r := range []byte(c.Serial) {
		if r <= ' ' || r > '~' {
			return cradle.Errorf(cradle.Invalid, "serial number %q: use printable ASCII without blanks", c.Serial)
		}
	}
	if c.Order != "" {
		return cradle.CheckID("order", string(c.Order))
	}
	return nil
}

// Challenge answers a Claim: respInfo of the nonce answer, typed by cradle.OIDActivation.
type Challenge struct {
	Challenge       []byte `json:"challenge"`                  // opaque; goes back in the CSR as it is
	CredentialBlob  []byte `json:"credential_blob,omitempty"`  // content of TPM2B_ID_OBJECT
	EncryptedSecret []byte `json:"encrypted_secret,omitempty"` // content of TPM2B_ENCRYPTED_SECRET
}

// ParseChallenge reads and checks a challenge's JSON. Unknown members are ignored.
func ParseChallenge(body []byte) (Challenge, error) {
	var c Challenge
	if err := json.Unmarshal(body, &c); err != nil {
		return Challenge{}, cradle.Errorf(cradle.Invalid, "challenge is not the expected JSON object: %v", strictjson.Reason(err))
	}
	return c, c.Check()
}

// Check reports a challenge over its limits or incomplete, as cradle.Invalid.
func (c Challenge) Check() error {
	if err := checkLen("challenge", c.Challenge, 1, MaxChallenge); err != nil {
		return err
	}
	if (len(c.CredentialBlob) == 0) != (len(c.EncryptedSecret) == 0) {
		return cradle.Errorf(cradle.Invalid, "challenge has only one of credential blob and encrypted secret")
	}
	if err := checkLen("credential blob", c.CredentialBlob, 0, MaxSecret); err != nil {
		return err
	}
	return checkLen("encrypted secret", c.EncryptedSecret, 0, MaxSecret)
}

// Binding is everything that one TPM2_Certify is bound to (DESIGN §4.4).
type Binding struct {
	Challenge []byte           // as received, opaque
	Account   cradle.AccountID // of the label
	Label     string           // EST label, for example "acme-idevid"
	Secret    []byte           // activated by the TPM; empty where nothing was activated
	AuthCert  []byte           // DER of the TLS client certificate; empty when there was none
	SPKI      []byte           // DER of the SubjectPublicKeyInfo in the CSR
}

// bindingVersion separates this digest from any other use of SHA-256 with the same key.
const bindingVersion = "cradle-certify-v1"

// ExtraData is the qualifying data of the TPM2_Certify: SHA-256 over these fields, each preceded by
// its length in bytes as a big-endian uint32: "cradle-certify-v1", challenge, account, label, secret
// (or nothing), SHA-256 of the authenticating certificate (or nothing), SPKI. testdata/binding.json
// holds the published vectors.
func (b Binding) ExtraData() [32]byte {
	var auth []byte
	if len(b.AuthCert) > 0 {
		d := sha256.Sum256(b.AuthCert)
		auth = d[:]
	}
	h := sha256.New()
	for _, f := range [][]byte{[]byte(bindingVersion), b.Challenge, []byte(b.Account), []byte(b.Label), b.Secret, auth, b.SPKI} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(f))))
		h.Write(f)
	}
	return [32]byte(h.Sum(nil))
}

// Certify is the outcome of TPM2_Certify in the TPM's own structures, marshalled without size prefixes.
type Certify struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE over Attest, by the attestation key
	Public    []byte // TPMT_PUBLIC of the certified key
}

// Bundle is the content of the evidence attribute.
type Bundle struct {
	Certify   *Certify // nil when the client has no TPM
	Challenge []byte   // Challenge.Challenge, sent back
	Certs     [][]byte // DER; for us the attestation key's certificate chain, where there is one
}

// Check reports a bundle over its limits or empty, as cradle.Invalid.
func (b Bundle) Check() error {
	if b.Certify == nil && len(b.Challenge) == 0 {
		return cradle.Errorf(cradle.Invalid, "evidence holds no statement that is understood here")
	}
	if c := b.Certify; c != nil {
		if err := checkLen("tpmSAttest", c.Attest, 1, MaxAttest); err != nil {
			return err
		}
		if err := checkLen("signature of the statement", c.Signature, 1, MaxSignature); err != nil {
			return err
		}
		if err := checkLen("tpmTPublic", c.Public, 1, MaxPublic); err != nil {
			return err
		}
	}
	if err := checkLen("challenge", b.Challenge, 0, MaxChallenge); err != nil {
		return err
	}
	return checkCerts("evidence", b.Certs)
}

func checkLen(what string, b []byte, least, most int) error {
	if len(b) < least {
		return cradle.Errorf(cradle.Invalid, "%s is empty", what)
	}
	if len(b) > most {
		return cradle.Errorf(cradle.Invalid, "%s has %d bytes; at most %d", what, len(b), most)
	}
	return nil
}

func checkCerts(what string, certs [][]byte) error {
	if len(certs) > MaxCerts {
		return cradle.Errorf(cradle.Invalid, "%s has %d certificates; at most %d", what, len(certs), MaxCerts)
	}
	for _, c := range certs {
		if err := checkLen(what+": certificate", c, 1, MaxCert); err != nil {
			return err
		}
	}
	return nil
}
