// Package est is what an EST client and an EST server (RFC 7030, RFC 8951) say to each other: the
// certs-only PKCS#7 message, the base64 body around it, the JSON messages of the nonce resource, and
// the Client.
//
// The pieces: EncodeCerts and DecodeCerts turn certificates into the degenerate SignedData of RFC 5652
// §5 and back; CSRAttributes is what a server wants in a CSR (RFC 9908); EncodeBody and DecodeBody are the base64 around every EST message,
// EncodeParts and DecodeParts several of them; KeyWish is how serverkeygen is to return the key; TPMEnrollRequest is
// GlobalSign's tpmenroll; NonceRequest and
// NonceResponse are draft-ietf-lamps-attestation-freshness (the editors' copy of 2026); Client makes
// the four calls that a device or a line makes.
//
// Nothing here trusts anything: a decoded certificate has been parsed, not verified. Client.CACerts
// returns whatever the server sent; who uses it as an anchor compares it with anchors of his own first.
// Every decoder is bounded by the limits below and returns an error of kind cradle.Invalid or
// cradle.TooLarge. Only the standard library is used, since the device agent must stay small.
package est

// WellKnown is the path under which every EST resource lies (RFC 7030 §3.2.2).
const WellKnown = "/.well-known/est/"

// The operations: last segments of the path.
const (
	OpCACerts        = "cacerts"
	OpSimpleEnroll   = "simpleenroll"
	OpSimpleReenroll = "simplereenroll"
	OpNonce          = "nonce"
	OpCSRAttrs       = "csrattrs"
	OpServerKeyGen   = "serverkeygen"
	OpFullCMC        = "fullcmc"
)

// Media types.
const (
	TypePKCS10    = "application/pkcs10"
	TypePKCS7     = "application/pkcs7-mime"                        // cacerts; old Bouncy Castle compares exactly
	TypeCertsOnly = "application/pkcs7-mime; smime-type=certs-only" // enrolment answers
	TypeCSRAttrs  = "application/csrattrs"
	TypePKCS8     = "application/pkcs8"                                       // serverkeygen's key
	TypeKey       = "application/pkcs7-mime; smime-type=server-generated-key" // the same, encrypted
	TypeNonce     = "application/est-attestation-freshness+json"
)

// Limits. They hold in both directions.
const (
	MaxBody  = 64 << 10 // bytes of an HTTP body, as sent
	MaxDER   = 64 << 10 // bytes of a PKCS#7 message
	MaxCerts = 16       // certificates in one message
)
