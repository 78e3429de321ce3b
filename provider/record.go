package provider

import (
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
)

// Account is a solution builder's account.
type Account struct {
	ID       cradle.AccountID
	Region   string
	OrderKey []byte                    // SPKI DER of the key that signs the account's orders
	Profiles map[cradle.Profile]string // TOML, as stored; Provider.Profiles reads them
	CAs      CAs
	Created  time.Time
}

// CAs are an account's choices about its certification authorities.
type CAs struct {
	Key      keystore.Algorithm `json:"key,omitempty"`      // of the keys made for it; empty: keystore.P256
	External bool               `json:"external,omitempty"` // made without roots: its CAs wait for certificates from elsewhere
}

// AuthorityKind is what an issuing key may sign.
type AuthorityKind string

// The kinds of issuing keys. Root and OEMRoot sign CA certificates only.
const (
	RootCA        AuthorityKind = "root"        // per account and class, self-signed
	OnboardingCA  AuthorityKind = "onboarding"  // per account and class: LDevID
	OperationalCA AuthorityKind = "operational" // per account and class: operational
	OEMRootCA     AuthorityKind = "oem-root"    // per OEM and class, self-signed: the OEM's IDevID CA
	IDevIDCA      AuthorityKind = "idevid"      // per OEM, account and class: IDevID and IAK
	StationCA     AuthorityKind = "station"     // per OEM: stations of its lines
	UnprovedCA    AuthorityKind = "unproved"    // per account and class: certificates of keys that nothing proved
	// RegistrationCA is per account and class, made at first need: registration authorities, and what they ask for.
	RegistrationCA AuthorityKind = "registration"
	ServicesCA     AuthorityKind = "services" // per installation: TLS of the services, time statements
)

// unproved reports whether an authority of this kind signs keys that nothing proved.
func (k AuthorityKind) unproved() bool { return k == UnprovedCA || k == RegistrationCA }

// Authority is a CA: certificate, chain, and where its key is.
type Authority struct {
	ID      string // SHA-256 of Cert, hexadecimal
	Kind    AuthorityKind
	Account cradle.AccountID // empty for OEMRootCA, StationCA, ServicesCA
	OEM     cradle.OEMID     // set for OEMRootCA, IDevIDCA, StationCA
	Class   cradle.Class     // empty for StationCA, ServicesCA
	Cert    []byte           // DER
	Chain   [][]byte         // further DER certificates up to the account's root, nearest first
	Cross   [][]byte         // the same key certified by another root (IDevIDCA: by the OEM's), with that root
	Key     keystore.Key     // its private half
	State   AuthorityState
	Created time.Time // zero in authorities of before this was recorded
}

// AuthorityState is where a CA is in its life.
type AuthorityState string

// The states. One CA of a kind, account, OEM and class is active; those it followed stay known, so that what they
// signed can be verified.
const (
	ActiveCA     AuthorityState = "active"
	SupersededCA AuthorityState = "superseded"
)

// OEM is a registered device maker.
type OEM struct {
	ID       cradle.OEMID
	OrderKey []byte // SPKI DER: countersigns orders
	LotKey   []byte // SPKI DER: signs acceptance reports
	Created  time.Time
}

// Anchor is a TPM maker's CA certificate that the operator imported.
type Anchor struct {
	Fingerprint string // SHA-256 of Cert, hexadecimal
	Maker       cradle.MakerID
	Tier        cradle.Tier
	Cert        []byte
	Distrusted  bool
	Imported    time.Time
}

// OrderState is where an order is.
type OrderState string

// The states of an order.
const (
	OrderSigned    OrderState = "signed"    // by the account; waits for the OEM's countersignature
	OrderOpen      OrderState = "open"      // both signatures; devices may be born
	OrderFrozen    OrderState = "frozen"    // how many units were born was lost with the store; no birth until an operator says it
	OrderWithdrawn OrderState = "withdrawn" // by the account; no further birth, devices' custody is withdrawn
)

// Order is an order as the provider keeps it.
type Order struct {
	ID       cradle.OrderID
	Account  cradle.AccountID
	OEM      cradle.OEMID
	JWS      []byte // with the signatures it has so far
	Quantity int64
	Used     int64 // units reserved
	State    OrderState
	Created  time.Time
	Reason   string // of a withdrawal
}

// Device is the unit of trust (DESIGN §2): identified by EK, IAK and IDevID.
type Device struct {
	ID         cradle.DeviceID
	Account    cradle.AccountID
	OEM        cradle.OEMID
	Order      cradle.OrderID
	Lot        cradle.LotID // empty until its lot is closed
	Serial     string
	Tier       cradle.Tier
	Maker      cradle.MakerID
	Anchor     string   // fingerprint of the maker's anchor that admitted the EK certificate
	Issuers    []string // SHA-256 of the SPKIs on its EK certificate's path, the anchor's included; set at birth alone
	EKDigest   string   // SHA-256 of the EK's SPKI, hexadecimal; unique in the installation
	EKCert     []byte
	IAK        []byte // TPMT_PUBLIC
	IDevIDCert string // SHA-256 of the IDevID certificate, hexadecimal; empty before it exists
	IAKCert    string // the same for the IAK certificate
	Origin     string // the credential by which it came: basic/USER, ca/ID/UNIT or ra/NAME; empty: an order
	State      cradle.DeviceState
	Epoch      int64 // moves at every change of State by an operator
	Reason     string
	Created    time.Time
}

// Class of the device.
func (d *Device) Class() cradle.Class { return d.Tier.Class() }

// Slot is a certificate's place in its lineage (DESIGN §4.7): at most one Current and one Next.
type Slot string

// The slots.
const (
	Next       Slot = "next"       // issued, not yet seen in use
	Current    Slot = "current"    // in use
	Sealed     Slot = "sealed"     // secret until it is used (tpmenroll)
	Superseded Slot = "superseded" // its successor was seen in use, or it was replaced unused
)

// Certificate is an issued certificate.
type Certificate struct {
	Digest    string // SHA-256 of DER, hexadecimal
	Serial    cradle.CertSerial
	Account   cradle.AccountID
	Device    cradle.DeviceID // empty for a station's
	Profile   cradle.Profile
	Authority string
	DER       []byte
	NotBefore time.Time
	NotAfter  time.Time
	Slot      Slot
	Intent    string
	Issued    time.Time
	Revoked   time.Time // zero if not
	Hold      bool      // Revoked, and may be released; told by Devices.Certificates alone
	Reason    string
	// Lineage is the slot that the certificate belongs to: of proved keys the profile's name, else one for each kind
	// of request (docs/decisions/0015).
	Lineage    string
	Superseded time.Time // zero if not
	Salt       []byte    // of the commitment to a certificate that is to be sealed; set at FinishIssue alone
}

// Proved reports whether the key was proved to live in the device's TPM.
func (c *Certificate) Proved() bool { return c.Lineage == string(c.Profile) }

// Operation is which EST call asked.
type Operation string

// The operations.
const (
	Enroll   Operation = "simpleenroll"
	Reenroll Operation = "simplereenroll"
	// ServerKeyGen asks for a key as well, which the provider makes.
	ServerKeyGen Operation = "serverkeygen"
	// TPMEnroll asks for a certificate that only the TPM with its key can read.
	TPMEnroll Operation = "tpmenroll"
)

// Intent is the provider's recorded intention to issue (DESIGN §5). It is stored before the
// signature exists; exactly one of a certificate or a void follows.
type Intent struct {
	ID          string
	Account     cradle.AccountID
	Device      cradle.DeviceID
	Profile     cradle.Profile
	Operation   Operation
	Authority   string
	AuthCert    string         // SHA-256 of the TLS client certificate, hexadecimal
	AuthProfile cradle.Profile // its profile
	CSR         string         // SHA-256 of the CSR, hexadecimal
	SPKI        string         // SHA-256 of the CSR's SubjectPublicKeyInfo, hexadecimal
	Challenge   string         // spent by this intent: challengeKey, or what a request without evidence spends
	Serial      cradle.CertSerial
	Epoch       int64 // of the device; the finishing transaction holds it
	Created     time.Time
	Replica     string // which process is at it
	Lineage     string // of the certificate to be
	Approval    string // id; spent by this intent
	Rests       *Rests // not stored; set when AuthCert's record was remembered and not read
	// ReplayAfter: a request without a challenge is answered again when its certificate is younger.
	ReplayAfter time.Time
}

// Proved reports whether the request has evidence.
func (i *Intent) Proved() bool { return i.Lineage == string(i.Profile) }

// Lot is a closed lot of an order.
type Lot struct {
	ID       cradle.LotID
	Account  cradle.AccountID
	OEM      cradle.OEMID
	Order    cradle.OrderID
	Report   []byte // JWS
	Custody  []byte // JWS
	Head     string // SHA-256 of the custody record, hexadecimal
	Units    int64
	State    string   // "waiting" or "accepted"
	Findings []string // why it waits
	Closed   time.Time
	Accepted time.Time
}

// FeedEvent is a change of a device's standing, published by the status feed (DESIGN §4.8).
// With Certificate set it is about that certificate alone.
type FeedEvent struct {
	Seq         int64
	Account     cradle.AccountID
	Device      cradle.DeviceID
	State       cradle.DeviceState
	Epoch       int64
	Reason      string
	At          time.Time
	Certificate string // SHA-256, hexadecimal
	Released    bool   // with Certificate: it may be used again
}

// QuarantineReason is the reason of the feed event that blocks a superseded certificate.
const QuarantineReason = "superseded certificate used"
