package provider

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// CloseLot takes a lot that an OEM closed: the acceptance report, signed by the lot key, and the custody
// record, by which the OEM hands the units to the account. A lot in which nothing is odd is accepted at
// once when its order says so; else it waits for the owner. Handing in the same lot again is no error.
func (p *Provider) CloseLot(ctx context.Context, id cradle.OrderID, r order.LotRequest) (*order.LotAnswer, error) {
	row, acc, oem, err := p.parties(ctx, id)
	if err != nil {
		return nil, err
	}
	lotKey, err := order.ParsePublic(oem.LotKey)
	if err != nil {
		return nil, err
	}
	rep, err := custody.VerifyReport(r.Report, lotKey)
	if err != nil {
		return nil, err
	}
	if rep.Order != id || rep.OEM != row.OEM || rep.Account != row.Account {
		return nil, cradle.Errorf(cradle.Invalid, "the report is of order %s by %s for %s, not of %s", rep.Order, rep.OEM, rep.Account, id)
	}
	ord, err := verifyOrder(row.JWS, acc.OrderKey, oem.OrderKey)
	if err != nil {
		return nil, err
	}
	findings, devices, err := p.compareUnits(ctx, ord, rep)
	if err != nil {
		return nil, err
	}
	if row.State != OrderOpen {
		findings = append(findings, fmt.Sprintf("the order is %s", row.State))
	}
	var consent *order.Order
	if ord.AutoAccept && len(findings) == 0 {
		consent = ord
	}
	keys := p.custodians(acc, oem)
	lot := Lot{ID: rep.Lot, Account: row.Account, OEM: row.OEM, Order: id, Report: r.Report, Custody: r.Custody, Units: rep.Count,
		State: order.LotWaiting, Findings: findings, Closed: p.now()}
	head, err := custody.Born(rep).Extend(r.Custody, keys, ord) // the giver's signature must hold in any case
	switch {
	case err == nil && consent != nil:
		lot.State, lot.Accepted = order.LotAccepted, lot.Closed
	case err != nil && ord.AutoAccept:
		return nil, err
	case err != nil: // without consent in the order the account has yet to sign
		giver, kerr := keys(custody.Party{Role: custody.OEM, Name: string(row.OEM)})
		if kerr != nil {
			return nil, kerr
		}
		rec, verr := custody.VerifyGiven(r.Custody, giver)
		if verr != nil {
			return nil, verr
		}
		head.Digest, head.Holder = rec.Digest(), rec.Receiver
	}
	if head.Holder != (custody.Party{Role: custody.Account, Name: string(row.Account)}) {
		return nil, cradle.Errorf(cradle.Invalid, "the custody record hands the lot to %s, not to account %s", head.Holder, row.Account)
	}
	lot.Head = head.Digest
	if lot.State == order.LotWaiting && len(findings) == 0 {
		lot.Findings = []string{"the order asks for acceptance by the account"}
	}
	leaf, err := p.leaf(string(row.Account), ledger.KindLot, map[string]any{"lot": lot.ID, "order": id, "report": hexDigest(r.Report), "report_payload": rep.Digest(), "custody": lot.Head,
		"units": lot.Units, "state": lot.State, "findings": lot.Findings})
	if err != nil {
		return nil, err
	}
	stored, err := p.store.CreateLot(ctx, lot, devices, leaf)
	if err != nil {
		return nil, err
	}
	return &order.LotAnswer{Lot: stored.ID, State: stored.State, Reasons: stored.Findings}, nil
}

// unitsAtOnce is how many units of a report are read at once: a round trip costs more than a row.
const unitsAtOnce = 500

// compareUnits holds the report against the order and against what was issued here, and returns what is
// odd. A unit that is not on record is a refusal: there is nothing that could be accepted.
func (p *Provider) compareUnits(ctx context.Context, ord *order.Order, rep *custody.Report) ([]string, []cradle.DeviceID, error) {
	var in int64 // units of the order in earlier lots
	lots, err := p.store.Lots(ctx, ord.Account)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range lots {
		if l.Order == ord.ID && l.ID != rep.Lot {
			in += l.Units
		}
	}
	odd := custody.Match(ord, rep, in)
	var ids []cradle.DeviceID
	for some := range slices.Chunk(rep.Units, unitsAtOnce) {
		first := len(ids)
		for _, u := range some {
			ids = append(ids, u.Device)
		}
		devices, err := p.store.DevicesOf(ctx, ord.Account, ids[first:])
		if err != nil {
			return nil, nil, err
		}
		known := make(map[cradle.DeviceID]*Device, len(devices))
		for i := range devices {
			known[devices[i].ID] = &devices[i]
		}
		for _, u := range some {
			d := known[u.Device]
			if d == nil || d.Order != ord.ID {
				return nil, nil, cradle.Errorf(cradle.Invalid, "unit %s (%s) was not made under order %s", u.Serial, u.Device, ord.ID).
					WithHint("personalise it first")
			}
			if d.Serial != u.Serial || d.EKDigest != u.EK || d.IDevIDCert != u.IDevID || d.IAKCert != u.IAK {
				odd = append(odd, fmt.Sprintf("unit %s: serial, EK or certificates are not those on record", u.Serial))
			}
			if d.State != cradle.Made && d.Lot != rep.Lot {
				odd = append(odd, fmt.Sprintf("unit %s: device %s is %s", u.Serial, d.ID, d.State))
			}
		}
	}
	return odd, ids, nil
}

func (p *Provider) custodians(acc *Account, oem *OEM) custody.Keys {
	return func(c custody.Party) (*ecdsa.PublicKey, error) {
		switch c {
		case custody.Party{Role: custody.OEM, Name: string(oem.ID)}:
			return order.ParsePublic(oem.OrderKey)
		case custody.Party{Role: custody.Account, Name: string(acc.ID)}:
			return order.ParsePublic(acc.OrderKey)
		}
		return nil, cradle.Errorf(cradle.NotFound, "no custodian %s takes part in this order", c)
	}
}

// Lot returns a lot.
func (p *Provider) Lot(ctx context.Context, id cradle.LotID) (Lot, error) {
	return p.store.Lot(ctx, id)
}

// CheckLot is NotFound unless it is a lot of the account and, unless that is empty, of the order.
func (p *Provider) CheckLot(ctx context.Context, account cradle.AccountID, order cradle.OrderID, id cradle.LotID) error {
	l, err := p.store.Lot(ctx, id)
	switch {
	case cradle.KindOf(err) == cradle.NotFound || err == nil && l.Account != account:
		return cradle.Errorf(cradle.NotFound, "account %s has no lot %.80q", account, id).WithHint("cradle lot list --account %s", account)
	case err == nil && order != "" && l.Order != order:
		return cradle.Errorf(cradle.NotFound, "lot %s is of order %s, not of order %.80s", id, l.Order, order).WithHint("cradle lot list --account %s", account)
	}
	return err
}

// Lots returns an account's lots, oldest first.
func (p *Provider) Lots(ctx context.Context, account cradle.AccountID) ([]Lot, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	return p.store.Lots(ctx, account)
}

// AcceptLot accepts a lot that waits. received is its custody record with the account's signature
// added: the hand-over is signed by both sides (DESIGN §4.2).
func (p *Provider) AcceptLot(ctx context.Context, id cradle.LotID, received []byte) (Lot, error) {
	l, err := p.store.Lot(ctx, id)
	if err != nil {
		return Lot{}, err
	}
	if l.State == order.LotAccepted {
		return l, nil
	}
	acc, err := p.account(ctx, l.Account)
	if err != nil {
		return Lot{}, err
	}
	oem, err := p.store.OEM(ctx, l.OEM)
	if err != nil {
		return Lot{}, err
	}
	keys := p.custodians(acc, &oem)
	giver, err := keys(custody.Party{Role: custody.OEM, Name: string(l.OEM)})
	if err != nil {
		return Lot{}, err
	}
	receiver, err := keys(custody.Party{Role: custody.Account, Name: string(l.Account)})
	if err != nil {
		return Lot{}, err
	}
	rec, err := custody.Verify(received, giver, receiver)
	if err != nil {
		return Lot{}, err
	}
	if rec.Digest() != l.Head {
		return Lot{}, cradle.Errorf(cradle.Conflict, "the signed custody record is not that of lot %s", id)
	}
	leaf, err := p.leafBy(ctx, string(l.Account), ledger.KindLot, map[string]any{"lot": id, "order": l.Order, "custody": l.Head, "state": order.LotAccepted})
	if err != nil {
		return Lot{}, err
	}
	return p.store.AcceptLot(ctx, id, received, leaf)
}
