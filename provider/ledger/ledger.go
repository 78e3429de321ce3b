// Package ledger is the tamper-evident log: its entries, its Merkle tree, its signed checkpoints, the file
// that an auditor gets, and the offline verifier of that file.
//
// There is one log per account (in the account's region), and one of the installation. Every
// issuance, refusal, revocation, order and custody event is a leaf. Hashing is RFC 6962 §2.1;
// checkpoints are C2SP tlog-checkpoint in a C2SP signed note (Ed25519); tiles are C2SP tlog-tiles.
//
// # How a store uses it
//
// Record and leaf are written by one transaction, so that neither exists without the other:
//
//  1. lock the log's head row (SELECT size, frontier … FOR UPDATE), last of all locks;
//  2. Frontier.UnmarshalBinary the blob of the head row;
//  3. index := f.Size(), f.Append(leaf.Hash()), insert the row (log, index, leaf.Data);
//  4. update the head row with f.Size() and f.MarshalBinary.
//
// Leaves of one transaction (a group commit) may share steps 1, 2 and 4. That
// costs O(log n) hashes and reads nothing but the head row, whatever the size of the log. Stored tree nodes
// are not needed: tiles and proofs are computed from the leaves (Tiler, Tree).
//
// Checkpoints are signed outside of that transaction by a loop that looks at the heads more often
// than once a second: Checkpoint{origin, f.Size(), f.Root(), size of the previous checkpoint},
// SignCheckpoint, store.
//
// # What an attacker who controls the store gains
//
// Until the next checkpoint he can append leaves, as the provider does. He cannot change, remove or reorder a leaf
// below a checkpoint that an auditor or a hub has kept, nor plant a certificate: it would need a leaf, a
// device counted in an order that account and OEM signed, and the signature of an issuing key.
package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/cradle-iot/cradle"
)

// Kind is what a leaf records.
type Kind string

// The kinds of leaves.
const (
	KindIssuance   Kind = "issuance"   // a device's certificate
	KindStation    Kind = "station"    // the certificate of an OEM's line station
	KindRegistrar  Kind = "registrar"  // the certificate of a registration authority, and what it may ask for
	KindRefusal    Kind = "refusal"    // an enrolment that was refused, a quarantine
	KindRevocation Kind = "revocation" // a device's standing changed: suspended, released, revoked, retired; or one certificate's
	KindOrder      Kind = "order"      // signed, open, closed, withdrawn
	KindLot        Kind = "lot"        // closed, accepted
	KindCustody    Kind = "custody"    // a hand-over
	KindAccount    Kind = "account"    // an account or further authorities of it
	KindOEM        Kind = "oem"        // an OEM or its keys
	KindOpening    Kind = "opening"    // a certificate of which the log held a commitment was used
	KindApproval   Kind = "approval"   // an enrolment waits for an operator, or was decided on
	KindOperator   Kind = "operator"   // what an operator did
	KindResponder  Kind = "responder"  // the certificate of an OCSP responder
)

// ActionLost is the operator's act by which leaves that a restored store lacks are given up.
const ActionLost = "restore declare-lost"

// MaxLeaf bounds the bytes of one leaf: what fits into a bundle of entries (C2SP tlog-tiles).
const MaxLeaf = 1<<16 - 1

// Hash is a node of the Merkle tree.
type Hash = tlog.Hash

// Leaf is one entry of a log.
type Leaf struct {
	Log  string
	Kind Kind
	Time time.Time // UTC, microseconds
	Data []byte    // the bytes that are stored and hashed
}

// entry is the JSON object in Leaf.Data.
type entry struct {
	Log  string          `json:"log"`
	Kind Kind            `json:"kind"`
	Time time.Time       `json:"time"`
	Body json.RawMessage `json:"body"`
}

// Body is what the verifier reads of a leaf's body; other members are for people. Digests are SHA-256 in
// lower-case hexadecimal, of DER where a certificate or key is meant.
type Body struct {
	Account         string                 `json:"account,omitempty"`
	OEM             string                 `json:"oem,omitempty"`
	OrderKey        string                 `json:"order_key,omitempty"`   // account, oem: digest of the SPKI
	Region          string                 `json:"region,omitempty"`      // account, when made
	Authorities     []string               `json:"authorities,omitempty"` // account: digests of CA certificates
	Settings        map[string]string      `json:"settings,omitempty"`    // operator, approval: digests of rows that it set, empty of those that it removed
	Roles           map[string]string      `json:"roles,omitempty"`       // account: kind and class of each, as Role has it
	Order           string                 `json:"order,omitempty"`
	Digest          string                 `json:"digest,omitempty"`   // order: digest of its payload
	Quantity        int64                  `json:"quantity,omitempty"` // order, when signed
	State           string                 `json:"state,omitempty"`    // order, lot, revocation: the new one
	Lot             string                 `json:"lot,omitempty"`
	Units           int64                  `json:"units,omitempty"`  // lot, when closed
	Report          string                 `json:"report,omitempty"` // lot: digest of the report
	Certificate     string                 `json:"certificate,omitempty"`
	Serial          string                 `json:"serial,omitempty"` // of the certificate
	Profile         string                 `json:"profile,omitempty"`
	Device          string                 `json:"device,omitempty"`
	Unit            string                 `json:"unit,omitempty"` // the device's serial
	EK              string                 `json:"ek,omitempty"`   // digest of the EK's SPKI
	Intent          string                 `json:"intent,omitempty"`
	Tier            string                 `json:"tier,omitempty"`
	Commitment      string                 `json:"commitment,omitempty"` // in place of certificate and serial: see Commitment
	Salt            string                 `json:"salt,omitempty"`       // opening: what the commitment was made with
	Maker           string                 `json:"maker,omitempty"`
	Profiles        map[string]profileLeaf `json:"profiles,omitempty"`         // account, operator: digests of texts
	Name            string                 `json:"name,omitempty"`             // operator: of an operator
	User            string                 `json:"user,omitempty"`             // operator: of a Basic user
	ClientCA        string                 `json:"client_ca,omitempty"`        // operator
	Keys            []string               `json:"keys,omitempty"`             // operator: digests of keys that are distrusted, or trusted again
	LotKey          string                 `json:"lot_key,omitempty"`          // oem: digest of the SPKI
	Anchors         []string               `json:"anchors,omitempty"`          // operator: TPM makers' certificates that were imported, their digests
	Witness         string                 `json:"witness,omitempty"`          // operator: key that was added, or name that was removed
	Public          bool                   `json:"public,omitempty"`           // operator: the log was published
	CSR             string                 `json:"csr,omitempty"`              // its digest
	Orders          []string               `json:"orders,omitempty"`           // operator: frozen by a loss
	Size            int64                  `json:"size,omitempty"`             // operator: of the log when newer leaves were lost
	Lost            int64                  `json:"lost,omitempty"`             // order, when thawed: units that are not on record
	Lineage         string                 `json:"lineage,omitempty"`          // of the certificate
	Record          string                 `json:"record,omitempty"`           // of a device, at its birth: DeviceRow.Record
	EKIssuers       []string               `json:"ek_issuers,omitempty"`       // of a device, at its birth: keys on its EK certificate's path
	Challenge       string                 `json:"challenge,omitempty"`        // spent by the issuance: when it expires, its digest
	AuthenticatedBy string                 `json:"authenticated_by,omitempty"` // digest of the client's certificate, or basic/USER, ca/ID/UNIT, ra/NAME
	Reason          string                 `json:"reason,omitempty"`
	Code            string                 `json:"code,omitempty"`    // revocation: the CRLReason
	Custody         string                 `json:"custody,omitempty"` // lot: digest of the custody record
	Action          string                 `json:"action,omitempty"`  // operator: what was done
	Origin          string                 `json:"origin,omitempty"`  // the credential by which the device came without an order
	Proved          bool                   `json:"proved,omitempty"`  // evidence said where the key lives
}

// NewLeaf encodes an entry. body is a map or struct whose JSON is an object; its members are
// sorted by name, so that equal entries are equal bytes. It fails with TooLarge above MaxLeaf.
func NewLeaf(log string, kind Kind, at time.Time, body any) (Leaf, error) {
	fail := func(err error) (Leaf, error) { return Leaf{}, fmt.Errorf("encoding the %s leaf: %w", kind, err) }
	m, ok := body.(map[string]any)
	if !ok {
		raw, err := json.Marshal(body)
		if err != nil {
			return fail(err)
		}
		if m, err = members(raw); err != nil {
			return fail(err)
		}
	}
	l := Leaf{Log: log, Kind: kind, Time: at.UTC().Truncate(time.Microsecond)}
	var err error
	if l.Data, err = appendEntry(make([]byte, 0, 1536), log, kind, l.Time, m); err != nil {
		return fail(err)
	}
	if len(l.Data) > MaxLeaf {
		return Leaf{}, cradle.Errorf(cradle.TooLarge, "the log entry has %d bytes, at most %d fit", len(l.Data), MaxLeaf)
	}
	return l, nil
}

// ParseLeaf is the inverse of NewLeaf: it accepts only bytes that NewLeaf makes.
func ParseLeaf(data []byte) (Leaf, Body, error) {
	bad := func(err error) (Leaf, Body, error) {
		return Leaf{}, Body{}, cradle.Errorf(cradle.Invalid, "not a leaf of a log: %v", err)
	}
	if len(data) > MaxLeaf {
		return bad(fmt.Errorf("%d bytes", len(data)))
	}
	var e entry
	if err := strict(data, &e); err != nil {
		return bad(err)
	}
	body, err := canonical(e.Body)
	if err != nil {
		return bad(err)
	}
	l := Leaf{Log: e.Log, Kind: e.Kind, Time: e.Time.UTC().Truncate(time.Microsecond), Data: data}
	again, err := json.Marshal(entry{l.Log, l.Kind, l.Time, body})
	if err != nil {
		return bad(err)
	}
	if !bytes.Equal(again, data) {
		return bad(fmt.Errorf("not in canonical form"))
	}
	var b Body
	if err := json.Unmarshal(body, &b); err != nil {
		return bad(err)
	}
	return l, b, nil
}

// members reads an object; its numbers stay as they are written.
func members(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("the body is not an object")
	}
	return m, nil
}

// canonical sorts the members of an object by name, at every depth.
func canonical(raw []byte) ([]byte, error) {
	m, err := members(raw)
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// strict decodes exactly one JSON value without unknown members.
func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(data)) {
		return fmt.Errorf("more after the end")
	}
	return nil
}

// Hash is the leaf's hash in the tree (RFC 6962 §2.1).
func (l Leaf) Hash() Hash { return tlog.RecordHash(l.Data) }
