package attest

// Code names the ground of a refusal. Codes are stable: they stand in the log.
type Code string

// About the endorsement key and its certificate.
const (
	EKMalformed    Code = "ek-malformed"      // not a certificate
	EKSerial       Code = "ek-serial"         // negative serial number
	EKOversize     Code = "ek-oversize"       // certificate or chain over the limits
	EKKey          Code = "ek-key"            // key type or size not usable
	EKExponent     Code = "ek-exponent"       // RSA exponent other than 65537
	EKROCA         Code = "ek-roca"           // RSA key with the ROCA fingerprint (CVE-2017-15361)
	EKIsCA         Code = "ek-is-ca"          // a CA certificate
	EKPurpose      Code = "ek-purpose"        // without extended key usage tcg-kp-EKCertificate
	EKUsage        Code = "ek-usage"          // key usage of another kind of key
	EKCritical     Code = "ek-critical"       // critical extension that is not understood
	EKValidity     Code = "ek-validity"       // not yet or no longer valid
	EKDenied       Code = "ek-denied"         // this very EK is denied
	EKManufacturer Code = "ek-manufacturer"   // names another manufacturer than its anchor's
	EKUntrusted    Code = "ek-untrusted"      // no anchor by that name or key id
	EKSignature    Code = "ek-signature"      // an anchor by that name, but no signature of its key
	CADistrusted   Code = "ca-distrusted"     // the path runs through a distrusted anchor or intermediate
	CANotCA        Code = "ca-not-ca"         // an issuer on the path may not issue
	CAPathLen      Code = "ca-path-length"    // path longer than an issuer allows
	CAValidity     Code = "ca-validity"       // an issuer is not yet or no longer valid
	CACritical     Code = "ca-critical"       // an issuer has a critical extension that is not understood
	CAKey          Code = "ca-key"            // an issuer's key is weak
	TierForbidden  Code = "tier-forbidden"    // the order allows other tiers
	MakerForbidden Code = "maker-forbidden"   // the order allows other makers
	TypeForbidden  Code = "ek-type-forbidden" // the order allows other EK types
)

// About a TPM key, as it says of itself in its TPMT_PUBLIC. They come with the prefix "ak-" for the
// attestation key and "key-" for the certified key.
const (
	suffixMalformed  = "malformed"    // not a TPMT_PUBLIC, or not in its only encoding
	suffixType       = "type"         // not an ECC key; other keys: nor an RSA key
	suffixNameAlg    = "name-alg"     // weak or other name algorithm
	suffixFixedTPM   = "fixed-tpm"    // may be duplicated to another TPM
	suffixFixedPar   = "fixed-parent" // may be moved to another parent
	suffixOrigin     = "origin"       // private part was not made by the TPM
	suffixSign       = "sign"         // cannot sign
	suffixDecrypt    = "decrypt"      // also decrypts
	suffixRestricted = "restricted"   // AK: would sign anything; other keys: can sign nothing but TPM structures
	suffixAttributes = "attributes"   // another attribute differs from the template
	suffixPolicy     = "policy"       // another authorisation policy than the template's
	suffixCurve      = "curve"        // curve not allowed
	suffixScheme     = "scheme"       // signature scheme not allowed
	suffixParameters = "parameters"   // another parameter differs from the template
	suffixPoint      = "point"        // not a point of the curve
	suffixModulus    = "modulus"      // weak RSA key
)

// The codes made of them.
const (
	AKMalformed  Code = "ak-" + suffixMalformed
	AKType       Code = "ak-" + suffixType
	AKNameAlg    Code = "ak-" + suffixNameAlg
	AKFixedTPM   Code = "ak-" + suffixFixedTPM
	AKFixedPar   Code = "ak-" + suffixFixedPar
	AKOrigin     Code = "ak-" + suffixOrigin
	AKSign       Code = "ak-" + suffixSign
	AKDecrypt    Code = "ak-" + suffixDecrypt
	AKRestricted Code = "ak-" + suffixRestricted
	AKAttributes Code = "ak-" + suffixAttributes
	AKPolicy     Code = "ak-" + suffixPolicy
	AKCurve      Code = "ak-" + suffixCurve
	AKScheme     Code = "ak-" + suffixScheme
	AKParameters Code = "ak-" + suffixParameters
	AKPoint      Code = "ak-" + suffixPoint

	KeyMalformed  Code = "key-" + suffixMalformed
	KeyType       Code = "key-" + suffixType
	KeyNameAlg    Code = "key-" + suffixNameAlg
	KeyFixedTPM   Code = "key-" + suffixFixedTPM
	KeyFixedPar   Code = "key-" + suffixFixedPar
	KeyOrigin     Code = "key-" + suffixOrigin
	KeySign       Code = "key-" + suffixSign
	KeyDecrypt    Code = "key-" + suffixDecrypt
	KeyRestricted Code = "key-" + suffixRestricted
	KeyAttributes Code = "key-" + suffixAttributes
	KeyPolicy     Code = "key-" + suffixPolicy
	KeyCurve      Code = "key-" + suffixCurve
	KeyScheme     Code = "key-" + suffixScheme
	KeyParameters Code = "key-" + suffixParameters
	KeyPoint      Code = "key-" + suffixPoint
	KeyModulus    Code = "key-" + suffixModulus
)

// About the challenge that the evidence answers.
const (
	ChallengeExpired  Code = "challenge-expired"       // too late, by the server's clock
	ChallengeAccount  Code = "challenge-account"       // asked for by another account
	ChallengeLabel    Code = "challenge-label"         // asked for under another label
	ChallengeClient   Code = "challenge-client"        // asked for by another TLS client certificate
	ChallengeNoSecret Code = "challenge-not-activated" // the profile needs an activated secret and none was given
)

// About the CSR and the TPM's statement in it.
const (
	EvidenceMissing    Code = "evidence-missing"    // no TPM statement, or no challenge, in the CSR
	CSRAlgorithm       Code = "csr-algorithm"       // weak or foreign signature algorithm or key
	CSRSignature       Code = "csr-signature"       // no proof of possession
	CSRKey             Code = "csr-key"             // another key than the certified one
	NotTheAK           Code = "key-not-ak"          // IAK enrolment of another key than the activated one
	KeyHierarchy       Code = "key-hierarchy"       // IDevID or IAK not a primary of the endorsement hierarchy
	AttestMalformed    Code = "attest-malformed"    // not a TPMS_ATTEST, or bytes after it
	AttestMagic        Code = "attest-magic"        // not made by a TPM
	AttestType         Code = "attest-type"         // another statement than TPM2_Certify's
	AttestName         Code = "attest-name"         // speaks of another key
	AttestSigner       Code = "attest-signer"       // signer is not an endorsement primary of that name
	AttestExtra        Code = "attest-extra-data"   // not bound to this challenge, account, client and key
	AttestSignature    Code = "attest-signature"    // not signed by the attestation key
	SignatureAlg       Code = "signature-algorithm" // not the attestation key's scheme
	SignatureMalformed Code = "signature-malformed" // not a TPMT_SIGNATURE, or bytes after it
	FirmwareTooOld     Code = "firmware-too-old"    // below the order's minimum
)

// About a client that authenticates by another CA's certificate, the endorsement key in tpmenroll, and a CSR without evidence.
const (
	ClientMissing   Code = "client-missing"   // no certificate
	ClientOversize  Code = "client-oversize"  // chain over the limits
	ClientIsCA      Code = "client-is-ca"     // a CA certificate
	ClientUsage     Code = "client-usage"     // key usage without digitalSignature
	ClientKey       Code = "client-key"       // weak key
	ClientCritical  Code = "client-critical"  // critical extension that is not understood
	ClientValidity  Code = "client-validity"  // not yet or no longer valid
	ClientUntrusted Code = "client-untrusted" // leads to no registered CA
	ClientPath      Code = "client-path"      // path against RFC 5280 §6
	ClientOurs      Code = "client-ours"      // signed by a CA of ours, but not on record
	ClientCAKey     Code = "client-ca-key"    // an issuer's key is weak
	EKPubMalformed  Code = "ekpub-malformed"  // not a TPMT_PUBLIC, or not in its only encoding
	EKPubKey        Code = "ekpub-key"        // of another key than the EK certificate's
	EKPubAttributes Code = "ekpub-attributes" // not those of an endorsement key
	EKPubParameters Code = "ekpub-parameters" // name or symmetric algorithm is not the template's
	POPAlgorithm    Code = "pop-algorithm"    // weak or foreign signature algorithm of a CSR
	POPKey          Code = "pop-key"          // weak key in a CSR
	POPSignature    Code = "pop-signature"    // CSR not signed by its key
)

// hints say what to do about the refusals that a person can do something about.
var hints = map[Code]string{
	EKUntrusted:       "import the TPM maker's CA certificates: cradle tpm-maker import",
	EKValidity:        "check the server's clock; expired EK certificates need a rule that allows them",
	EKROCA:            "this TPM's RSA key can be factored (CVE-2017-15361): use its ECC key after a firmware update, or replace it",
	TierForbidden:     "use a TPM of a tier that the order allows, or have a further order placed",
	MakerForbidden:    "use a TPM of a maker that the order allows, or have a further order placed",
	TypeForbidden:     "present the endorsement key of a type that the order allows",
	ChallengeExpired:  "ask for a new challenge and send the CSR at once",
	ChallengeClient:   "send both requests with the same client certificate",
	EvidenceMissing:   "POST to the nonce resource first, then send the TPM's statement in the CSR",
	FirmwareTooOld:    "update the TPM's firmware",
	ClientUntrusted:   "register the CA: cradle account trust-ca, or send the intermediates along",
	ChallengeNoSecret: "send EK certificate and attestation key in the nonce request",
}
