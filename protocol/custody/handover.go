package custody

import (
	"crypto"
	"crypto/ecdsa"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/jws"
	"github.com/cradle-iot/cradle/protocol/order"
)

// The roles of a hand-over's signatures.
const (
	TypeGive    = "cradle-custody-give-v1"
	TypeReceive = "cradle-custody-receive-v1"
)

// Role is what a custodian is.
type Role string

// The roles.
const (
	OEM         Role = "oem"
	Distributor Role = "distributor"
	Account     Role = "account" // the owner
)

// Party is a custodian.
type Party struct {
	Role Role   `json:"role"`
	Name string `json:"name"` // canonical identifier
}

func (p Party) String() string { return string(p.Role) + " " + p.Name }

func (p Party) check(what string) error {
	if p.Role != OEM && p.Role != Distributor && p.Role != Account {
		return bad("custody record", "%s has unknown role %.30q", what, p.Role)
	}
	return cradle.CheckID(what, p.Name)
}

// Record is one hand-over of a whole lot.
type Record struct {
	Version  int            `json:"version"`
	Lot      cradle.LotID   `json:"lot"`
	Report   string         `json:"report"` // digest of the lot's report
	Order    cradle.OrderID `json:"order"`
	Sequence int64          `json:"sequence"` // 1 for the first hand-over
	Previous string         `json:"previous"` // digest of the record before; of the report for the first
	Giver    Party          `json:"giver"`
	Receiver Party          `json:"receiver"`
	At       time.Time      `json:"at"` // by the giver's clock, whole seconds of UTC
}

// Digest identifies the record.
func (r *Record) Digest() string { return digest(r) }

// Check reports the first thing wrong with a record by itself.
func (r *Record) Check() error {
	if r.Version != Version {
		return bad("custody record", "version %d; this program knows version %d", r.Version, Version)
	}
	for _, id := range []struct{ name, v string }{{"lot", string(r.Lot)}, {"order", string(r.Order)}} {
		if err := cradle.CheckID(id.name, id.v); err != nil {
			return err
		}
	}
	if !isDigest(r.Report) || !isDigest(r.Previous) {
		return bad("custody record", "report and previous must be digests")
	}
	if r.Sequence < 1 || r.Sequence > maxHandovers {
		return bad("custody record", "sequence %d is outside 1 to %d", r.Sequence, maxHandovers)
	}
	if (r.Sequence == 1) != (r.Previous == r.Report) {
		return bad("custody record", "the first hand-over names the report as its predecessor, and no other does")
	}
	if err := r.Giver.check("giver"); err != nil {
		return err
	}
	if err := r.Receiver.check("receiver"); err != nil {
		return err
	}
	if r.Giver == r.Receiver {
		return bad("custody record", "giver and receiver are the same")
	}
	return checkTime("custody record", "at", r.At)
}

// maxHandovers bounds a chain.
const maxHandovers = 1000

// Head is the end of a lot's chain: who holds it now. There is one per lot; who keeps heads stores
// the next only over the one it was made from.
type Head struct {
	Lot      cradle.LotID   `json:"lot"`
	Report   string         `json:"report"`
	Order    cradle.OrderID `json:"order"`
	Sequence int64          `json:"sequence"` // hand-overs so far
	Digest   string         `json:"digest"`   // of the last record, or of the report
	Holder   Party          `json:"holder"`
}

// Born is the head of a lot that its OEM has just closed.
func Born(r *Report) Head {
	return Head{Lot: r.Lot, Report: r.Digest(), Order: r.Order, Digest: r.Digest(), Holder: Party{OEM, string(r.OEM)}}
}

// Next makes the record by which the holder hands over to another; Give signs it.
func (h Head) Next(receiver Party, at time.Time) *Record {
	return &Record{Version: Version, Lot: h.Lot, Report: h.Report, Order: h.Order, Sequence: h.Sequence + 1, Previous: h.Digest,
		Giver: h.Holder, Receiver: receiver, At: at.UTC().Truncate(time.Second)}
}

// Give signs a record as its giver. OEMs and accounts sign with their order keys.
func Give(r *Record, giver crypto.Signer) ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return sign(r, TypeGive, giver)
}

// Receive adds the receiver's signature. Verify the giver's before, with VerifyGiven.
func Receive(doc []byte, receiver crypto.Signer) ([]byte, error) {
	doc, err := jws.Trim(doc, 1)
	if err != nil {
		return nil, fmt.Errorf("custody record: %w", err)
	}
	return jws.Add(doc, TypeReceive, receiver)
}

// VerifyGiven opens a record that its giver signed, whether or not the receiver has.
func VerifyGiven(doc []byte, giver *ecdsa.PublicKey) (*Record, error) { return open(doc, giver, nil) }

// Verify opens a record that both sides signed.
func Verify(doc []byte, giver, receiver *ecdsa.PublicKey) (*Record, error) {
	return open(doc, giver, receiver)
}

func open(doc []byte, giver, receiver *ecdsa.PublicKey) (*Record, error) {
	parties := []jws.Party{{Name: "the giver", Type: TypeGive, Key: giver}}
	if receiver != nil {
		parties = append(parties, jws.Party{Name: "the receiver", Type: TypeReceive, Key: receiver})
	}
	payload, err := jws.Verify(doc, receiver != nil, parties...)
	if err != nil {
		return nil, cradle.Errorf(cradle.KindOf(err), "custody record: %w", err).WithHint("both sides of a hand-over sign it with their registered keys")
	}
	r := new(Record)
	if err := decode("custody record", payload, r); err != nil {
		return nil, err
	}
	return r, r.Check()
}

// Keys finds a custodian's registered key; an unknown one is cradle.NotFound.
type Keys func(Party) (*ecdsa.PublicKey, error)

// Extend verifies a hand-over and returns the head behind it. The record must continue h: same lot
// and report, next number, h's digest as predecessor, h's holder as giver; else cradle.Conflict.
//
// consent may be nil. An order with auto_accept takes the place of the receiver's signature when the
// receiver is the account that signed it and the record is of that order; the caller has verified the
// order and has no findings from Match. A receiver's signature that is there must verify all the same.
func (h Head) Extend(doc []byte, keys Keys, consent *order.Order) (Head, error) {
	payload, signatures, err := jws.Payload(doc)
	if err != nil {
		return Head{}, fmt.Errorf("custody record: %w", err)
	}
	var claimed Record
	if err := decode("custody record", payload, &claimed); err != nil {
		return Head{}, err
	}
	giver, err := keys(claimed.Giver)
	if err != nil {
		return Head{}, fmt.Errorf("key of giver %s: %w", claimed.Giver, err)
	}
	var receiver *ecdsa.PublicKey
	agreed := consent != nil && consent.AutoAccept && consent.ID == claimed.Order && claimed.Receiver == Party{Account, string(consent.Account)}
	if signatures > 1 || !agreed {
		if receiver, err = keys(claimed.Receiver); err != nil {
			return Head{}, fmt.Errorf("key of receiver %s: %w", claimed.Receiver, err)
		}
	}
	r, err := open(doc, giver, receiver)
	if err != nil {
		return Head{}, err
	}
	return h.follow(r)
}

// follow moves the head over a record whose signatures are verified.
func (h Head) follow(r *Record) (Head, error) {
	const look = "ask for the lot's present head and hand over from it"
	switch {
	case r.Lot != h.Lot || r.Report != h.Report || r.Order != h.Order:
		return Head{}, cradle.Errorf(cradle.Conflict, "custody record of lot %s does not belong to lot %s", r.Lot, h.Lot).WithHint(look)
	case r.Sequence != h.Sequence+1 || r.Previous != h.Digest:
		return Head{}, cradle.Errorf(cradle.Conflict, "custody record %d does not follow hand-over %d of lot %s", r.Sequence, h.Sequence, h.Lot).WithHint(look)
	case r.Giver != h.Holder:
		return Head{}, cradle.Errorf(cradle.Conflict, "lot %s is held by %s; %s cannot hand it over", h.Lot, h.Holder, r.Giver).WithHint(look)
	}
	return Head{Lot: h.Lot, Report: h.Report, Order: h.Order, Sequence: r.Sequence, Digest: r.Digest(), Holder: r.Receiver}, nil
}

// VerifyChain follows a lot from its verified report through its hand-overs, in order.
func VerifyChain(r *Report, handovers [][]byte, keys Keys, consent *order.Order) (Head, error) {
	h := Born(r)
	for i, doc := range handovers {
		next, err := h.Extend(doc, keys, consent)
		if err != nil {
			return Head{}, fmt.Errorf("hand-over %d: %w", i+1, err)
		}
		h = next
	}
	return h, nil
}
