package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Header begins an export.
type Header struct {
	Version int       `json:"version"` // Writer.Header sets it
	Log     string    `json:"log"`
	Origin  string    `json:"origin"`
	Key     string    `json:"key"` // VerifierKey; an auditor gives his own copy to Verify
	Created time.Time `json:"created"`
}

// Version of the format.
const Version = 2

// AccountRow is the account whose log it is.
type AccountRow struct {
	ID       string            `json:"id"`
	Region   string            `json:"region"`
	OrderKey []byte            `json:"order_key"` // SPKI DER
	Profiles map[string]string `json:"profiles"`  // texts by name
}

// OEMRow is a device maker that has orders of the account.
type OEMRow struct {
	ID       string    `json:"id"`
	OrderKey []byte    `json:"order_key"` // SPKI DER
	LotKey   []byte    `json:"lot_key"`   // SPKI DER
	Created  time.Time `json:"created,omitzero"`
}

// AnchorRow is a TPM maker's certificate, in the installation's log.
type AnchorRow struct {
	ID    string `json:"id"` // SHA-256 of DER, hexadecimal
	Maker string `json:"maker"`
	Tier  string `json:"tier"`
	DER   []byte `json:"der"`
}

// AuthorityRow is a CA that issued certificates of the account. Account is empty for the CA of stations.
type AuthorityRow struct {
	ID      string    `json:"id"` // SHA-256 of DER, hexadecimal
	Kind    string    `json:"kind"`
	Account string    `json:"account,omitempty"`
	OEM     string    `json:"oem,omitempty"`
	Class   string    `json:"class,omitempty"`
	Chain   [][]byte  `json:"chain,omitempty"`
	Created time.Time `json:"created,omitzero"`
	State   string    `json:"state,omitempty"`
	DER     []byte    `json:"der"`
}

// Role is how a leaf says what a CA is for.
func Role(kind, class, oem string) string { return kind + "/" + class + "/" + oem }

// OrderRow is an order.
type OrderRow struct {
	ID       string    `json:"id"`
	Account  string    `json:"account"`
	OEM      string    `json:"oem"`
	JWS      []byte    `json:"jws"`
	Quantity int64     `json:"quantity"`
	Used     int64     `json:"used"`
	State    string    `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Created  time.Time `json:"created"`
}

// LotRow is a closed lot.
type LotRow struct {
	ID       string    `json:"id"`
	Order    string    `json:"order"`
	OEM      string    `json:"oem"`
	Report   []byte    `json:"report"`  // JWS
	Custody  []byte    `json:"custody"` // JWS
	Head     string    `json:"head"`    // digest of the custody record
	Units    int64     `json:"units"`
	State    string    `json:"state"`
	Findings []string  `json:"findings,omitempty"`
	Closed   time.Time `json:"closed"`
	Accepted time.Time `json:"accepted,omitzero"`
}

// DeviceRow is a device.
type DeviceRow struct {
	ID         string    `json:"id"`
	Account    string    `json:"account"`
	OEM        string    `json:"oem"`
	Order      string    `json:"order"`
	Lot        string    `json:"lot,omitempty"`
	Serial     string    `json:"serial"`
	Tier       string    `json:"tier"`
	Maker      string    `json:"maker"`
	EK         string    `json:"ek"`               // SHA-256 of the EK's SPKI
	Origin     string    `json:"origin,omitempty"` // the credential by which it came; then it has no order
	EKCert     []byte    `json:"ek_cert"`
	IAK        []byte    `json:"iak"`    // TPMT_PUBLIC
	Anchor     string    `json:"anchor"` // the maker's certificate that admitted the EK certificate
	Created    time.Time `json:"created"`
	State      string    `json:"state"`
	Epoch      int64     `json:"epoch"`
	Reason     string    `json:"reason,omitempty"`
	IDevIDCert string    `json:"idevid_cert,omitempty"`
	IAKCert    string    `json:"iak_cert,omitempty"`
}

// Record is the digest of what is fixed at a device's birth; the leaf of its birth holds it.
func (r *DeviceRow) Record() string {
	fixed := DeviceRow{ID: r.ID, Account: r.Account, OEM: r.OEM, Order: r.Order, Serial: r.Serial, Tier: r.Tier, Maker: r.Maker, EK: r.EK,
		Origin: r.Origin, EKCert: append([]byte{}, r.EKCert...), IAK: append([]byte{}, r.IAK...), Anchor: r.Anchor}
	b, err := json.Marshal(fixed)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	h := sha256.Sum256(append([]byte("cradle-device-record-v1\n"), b...))
	return hex.EncodeToString(h[:])
}

// CertificateRow is an issued certificate. Device is a station's order where Profile is not a device's.
type CertificateRow struct {
	Digest    string    `json:"digest"`
	Serial    string    `json:"serial"`
	Account   string    `json:"account"`
	Device    string    `json:"device"`
	Profile   string    `json:"profile"`
	Authority string    `json:"authority"`
	DER       []byte    `json:"der"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Lineage   string    `json:"lineage,omitempty"`
	Slot      string    `json:"slot"`
	Intent    string    `json:"intent,omitempty"`
	Challenge string    `json:"challenge,omitempty"` // spent by the intent: when it expires, SHA-256
	CSR       string    `json:"csr,omitempty"`       // of the intent, its digest
	By        string    `json:"by,omitempty"`        // what authenticated the intent
	Key       string    `json:"key,omitempty"`       // digest of the SPKI by the intent, if that is on record as this device's
	Issued    time.Time `json:"issued"`
	Revoked   bool      `json:"revoked,omitempty"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	CRLReason string    `json:"crl_reason"` // as CRLs and OCSP give it; empty: they say nothing of it
	Reason    string    `json:"reason,omitempty"`
}

// QuarantineRow says that a superseded certificate of this lineage was used.
type QuarantineRow struct {
	Device  string `json:"device"`
	Lineage string `json:"lineage"`
}

// FeedRow is an event of the status feed about this account.
type FeedRow struct {
	Seq         int64     `json:"seq"`
	Device      string    `json:"device"`
	State       string    `json:"state"`
	Epoch       int64     `json:"epoch"`
	Reason      string    `json:"reason,omitempty"`
	At          time.Time `json:"at"`
	Certificate string    `json:"certificate,omitempty"`
	Released    bool      `json:"released,omitempty"`
}

// HeadRow is what the store says of the log's end.
type HeadRow struct {
	Size       int64  `json:"size"`
	Root       string `json:"root"`   // of its right edge
	Signed     int64  `json:"signed"` // size of the newest checkpoint
	Checkpoint string `json:"checkpoint,omitempty"`
	Feed       int64  `json:"feed"` // newest number of the status feed, of all accounts
}

// HashRow is a remembered node of the Merkle tree: the root over TileWidth^Level leaves from N * TileWidth^Level on.
type HashRow struct {
	Level int    `json:"level"`
	N     int64  `json:"n"`
	Hash  []byte `json:"hash"`
}

// CheckpointRow is a stored checkpoint.
type CheckpointRow struct {
	Size int64  `json:"size"`
	Note string `json:"note"`
}

// LeafRow is a stored leaf.
type LeafRow struct {
	Index int64  `json:"index"`
	Data  string `json:"data"` // the very bytes of Leaf.Data
}
