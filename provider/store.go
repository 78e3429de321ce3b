package provider

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Store keeps everything the provider must not lose. Each method is one transaction, durable when it
// returns, safe for concurrent use by any number of replicas, and takes its log leaf along: record and
// leaf exist together or not at all. Methods return an error of kind NotFound, Conflict or Busy (the
// store is away: retry) where they say so; every other error is internal.
//
// An attacker who controls the store can withhold and roll back, but not sign: issuing keys are sealed
// by a key kept outside of it, and a changed row no longer matches the log that others have copies of.
type Store interface {
	Permits
	Setup
	Directory
	ProfileStore
	Orders
	Issuance
	Devices
	Revocations
	Sets
	Distrusts
	CRLs
	Clients
	Registrars
	Approvals
	KEKs
	Sealing
	Log
	Audit
	Restores
	Operators
	Watch
}

// Setup keeps what the first start makes.
type Setup interface {
	// Secret returns the sealed secret of that name; when there is none it stores fresh and returns it.
	// Two replicas that start at once get the same one.
	Secret(ctx context.Context, name string, fresh []byte) ([]byte, error)
	// CreateLog makes an empty log unless it exists.
	CreateLog(ctx context.Context, log string) error
}

// Directory keeps accounts, OEMs, authorities and TPM makers' anchors. An authority's certificate and key never change.
type Directory interface {
	// CreateAccount fails with Conflict when the name is taken. The account's log is made with it.
	CreateAccount(ctx context.Context, a Account, cas []Authority, waiting []PendingKey, leaf ledger.Leaf) error
	Account(ctx context.Context, id cradle.AccountID) (Account, error) // NotFound
	Accounts(ctx context.Context) ([]Account, error)
	// CreateOEM fails with Conflict when the name is taken.
	CreateOEM(ctx context.Context, o OEM, cas []Authority, leaf ledger.Leaf) error
	OEM(ctx context.Context, id cradle.OEMID) (OEM, error) // NotFound
	OEMs(ctx context.Context) ([]OEM, error)
	// AddAuthority stores a further active authority unless one of the same kind, account, OEM and class exists;
	// it returns the one that is stored.
	AddAuthority(ctx context.Context, ca Authority, leaf ledger.Leaf) (Authority, error)
	Authorities(ctx context.Context) ([]Authority, error)
	// InstallAuthorities stores authorities as the active ones of their kind, account, OEM and class; those that
	// were become superseded, and keys that waited for these certificates wait no more. crosses replaces the crosses
	// of authorities, by id. Conflict: one of them is stored already.
	InstallAuthorities(ctx context.Context, cas []Authority, crosses map[string][][]byte, leaf ledger.Leaf) error
	// AddPendingKey stores a key that waits for its certificate, unless one of the same kind, account, OEM and
	// class waits; it returns the one that is stored.
	AddPendingKey(ctx context.Context, k PendingKey, leaf ledger.Leaf) (PendingKey, error)
	PendingKeys(ctx context.Context) ([]PendingKey, error)
	// ImportAnchors adds anchors; an anchor already stored keeps its row and is not counted in added.
	// It fails with Conflict when one is stored under another maker or tier.
	ImportAnchors(ctx context.Context, anchors []Anchor, leaf ledger.Leaf) (added int, err error)
	Anchors(ctx context.Context) ([]Anchor, error)
}

// Orders keeps orders and lots.
type Orders interface {
	CreateOrder(ctx context.Context, o Order, leaf ledger.Leaf) error // Conflict when the id is taken
	Order(ctx context.Context, id cradle.OrderID) (Order, error)      // NotFound
	Orders(ctx context.Context, account cradle.AccountID) ([]Order, error)
	// OpenOrder stores the countersigned JWS and moves signed -> open. An order that is open with the same
	// payload stays as it is (the OEM asked again); closed or withdrawn is Conflict.
	OpenOrder(ctx context.Context, id cradle.OrderID, jws []byte, leaf ledger.Leaf) error
	// WithdrawOrder moves signed or open to withdrawn; Conflict otherwise.
	WithdrawOrder(ctx context.Context, id cradle.OrderID, reason string, leaf ledger.Leaf) error
	// CreateLot stores a lot and puts the units into it: all must be of the order, made, in no other lot,
	// else Conflict. With l.State accepted their devices move made -> accepted in the same transaction. A
	// lot already stored with the same Report is returned as it is, with its state.
	CreateLot(ctx context.Context, l Lot, devices []cradle.DeviceID, leaf ledger.Leaf) (Lot, error)
	// AcceptLot moves waiting -> accepted and its devices made -> accepted, and keeps the custody record that
	// both sides signed; accepted already is no error.
	AcceptLot(ctx context.Context, id cradle.LotID, custody []byte, leaf ledger.Leaf) (Lot, error)
	Lot(ctx context.Context, id cradle.LotID) (Lot, error) // NotFound
	Lots(ctx context.Context, account cradle.AccountID) ([]Lot, error)
}

// Birth is what an intent to issue an IAK or IDevID certificate does to its order: the unit is
// reserved within the quantity, or is the unit that was reserved before.
type Birth struct {
	Device Device // ID, Account, OEM, Order, Serial, Tier, Maker, Anchor, Issuers, EKDigest, EKCert, IAK
}

// Begun is the outcome of BeginIssue.
type Begun struct {
	// Replay is set when this very request was answered before (same challenge, account, operation,
	// authenticating certificate and CSR): the certificate it got. The provider decides whether the
	// replay rule still allows to give it out (DESIGN §4.7).
	Replay *Certificate
	// Existing is set at a birth whose device already holds a certificate of this profile for the same
	// key: the unit was personalised before.
	Existing *Certificate
	Device   Device // as stored
}

// Issuance is the issuing cycle: BeginIssue, (sign), FinishIssue or VoidIssue.
type Issuance interface {
	// BeginIssue stores an open intent and spends its challenge. It fails with
	//   Conflict  the challenge was spent by another request, or the device's epoch is not i.Epoch
	//   Busy      the same request is being worked on (open intent)
	//   Forbidden the device is suspended, revoked or retired; birth: order not open, quantity used up, EK or
	//             serial or device id of another unit; (profile LDevID, operational) state made; the key (i.SPKI) was
	//             certified, or was to be, for another device of the installation
	//   ErrStale  with i.Rests: the device's epoch is not i.Epoch or its state refuses the intent, or i.AuthCert is not in that
	//             slot, is revoked or on hold, or its lineage is in quarantine
	// and stores nothing then. A challenge spent by a voided intent of the very same request may be spent
	// by it again. birth is set for the profiles IAK and IDevID alone; then the device's epoch is not
	// compared but filled in.
	// promote (may be empty) is the serial number of the authenticating certificate when it sits in slot next:
	// it becomes current and the former current superseded, in the same transaction.
	BeginIssue(ctx context.Context, i *Intent, birth *Birth, promote cradle.CertSerial) (Begun, error)
	// FinishIssue stores the certificate and its leaf and closes the intent, if the intent is still open,
	// and the device's epoch is the intent's and its state not blocked; else Conflict and the intent is void.
	// Slots: an IAK or IDevID certificate is current at once; others become next, and a former next of the
	// same device and profile becomes superseded; the first of a device and profile is current at once. A device
	// that gets its first LDevID moves accepted -> active. The device's IDevIDCert or IAKCert is filled in.
	FinishIssue(ctx context.Context, intent string, c Certificate, leaf ledger.Leaf) error
	// VoidIssue closes an open intent without a certificate.
	VoidIssue(ctx context.Context, intent, reason string) error
	// VoidOpen voids intents that were begun before t, or by that replica, and are still open: their
	// signatures, if ever made, were never given out. It returns how many.
	VoidOpen(ctx context.Context, before time.Time, replica string) (int64, error)
	// StoreStation records a station's certificate and its leaf; stations have no device and no intent.
	StoreStation(ctx context.Context, order cradle.OrderID, c Certificate, leaf ledger.Leaf) error
}

// Permits keeps which intents a signer apart has taken.
type Permits interface {
	// UsePermit marks an open intent as taken, once and durably, and returns it. front says who brought it.
	// NotFound: there is no such intent; Conflict: it is done or void, or it was taken before.
	UsePermit(ctx context.Context, intent, front string, at time.Time) (Intent, error)
	// ResealKey replaces the sealed form of an issuing key wherever it stands.
	ResealKey(ctx context.Context, k keystore.Key) error
}

// Credential is what the provider knows of an authenticating certificate.
type Credential struct {
	Cert   Certificate
	Device Device // zero for a station's certificate
	// Quarantined is set when a superseded certificate of this device and profile was seen (DESIGN §4.7).
	Quarantined bool
}

// DeviceFilter selects devices; zero fields select all.
type DeviceFilter struct {
	Order cradle.OrderID
	Lot   cradle.LotID
	State cradle.DeviceState
	After cradle.DeviceID // paging: ids greater than this
	Limit int             // default and at most 1000
}

// Devices keeps devices, their certificates and the feed of changes.
type Devices interface {
	// Credential finds an issued certificate by its serial number and its SHA-256 digest (NotFound), with its device.
	Credential(ctx context.Context, serial cradle.CertSerial, digest string) (Credential, error)
	Device(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) (Device, error) // NotFound
	// DevicesOf returns those of the given devices that there are, in any order.
	DevicesOf(ctx context.Context, account cradle.AccountID, ids []cradle.DeviceID) ([]Device, error)
	// IAKCertificate returns the certificate that the device's record names as its attestation key's (NotFound).
	IAKCertificate(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) (Certificate, error)
	DeviceList(ctx context.Context, account cradle.AccountID, f DeviceFilter) ([]Device, error)
	Certificates(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) ([]Certificate, error) // oldest first
	// Quarantine marks the credentials of c's device and profile quarantined, with the leaf and a feed event that
	// blocks c itself, once for each c; FinishIssue of a certificate of
	// this profile that was authenticated by another profile's certificate heals it.
	Quarantine(ctx context.Context, c Credential, at time.Time, leaf ledger.Leaf) error
	// FeedOf returns the feed events of one device, oldest first.
	FeedOf(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) ([]FeedEvent, error)
	// FeedAfter returns up to limit feed events with a sequence number above seq, in order without gaps. Conflict when seq
	// is above every number that the store has given: it was rolled back.
	FeedAfter(ctx context.Context, seq int64, limit int) ([]FeedEvent, error)
}

// Head is a log's newest state.
type Head struct {
	Log        string
	Size       int64
	Root       [32]byte
	Signed     int64  // size of the newest checkpoint
	Checkpoint []byte // newest signed checkpoint, nil if none
	Public     bool   // its tiles are served to everybody
}

// Log is the tamper-evident log, one per account plus the installation's own ("provider").
type Log interface {
	// Append adds a leaf that goes with no other record (refusals, operator actions).
	Append(ctx context.Context, leaf ledger.Leaf) error
	Heads(ctx context.Context) ([]Head, error)
	GrownHeads(ctx context.Context) ([]Head, error) // those with leaves that no checkpoint covers
	// SaveCheckpoint stores a signed checkpoint if the newest one stored is of size previous (0: none), else Conflict.
	SaveCheckpoint(ctx context.Context, log string, previous, size int64, checkpoint []byte, at time.Time) error
	// Export writes the rest of an export behind its header, and closes w: everything an auditor needs
	// about the log, as of one moment.
	Export(ctx context.Context, h ledger.Header, w *ledger.Writer) error
}
