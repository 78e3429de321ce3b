// Package custody is how units change hands: the acceptance report, with which a line closes a lot,
// and the hand-over records, which lead from it to the owner (DESIGN §4.2).
//
// The report is the root of the chain. It names the units of the lot and is signed by the OEM's lot key, which is
// not the station's. Each hand-over names its predecessor by digest (the first one names the report), says who gives
// and who receives, and is signed by both: a JWS (package internal/jws) whose first signature is the giver's and whose
// second the receiver's. A Head is the end of a chain: who holds the lot now. Extend moves it, and refuses
// what does not continue it, so that a chain never forks where heads are kept by compare-and-swap. The time of a
// hand-over is its place in the provider's log; the times in these documents are what their signers say.
//
// The owner's signature may be given beforehand: an order with auto_accept, which the account signed, is the
// account's consent to receive lots that match it. Match is that comparison.
//
// All documents have one encoding, and a digest is always of the payload.
package custody

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/jws"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/order"
)

// Version of the documents.
const Version = 1

// Limits.
const (
	MaxUnits = 10_000 // of a lot; a line closes larger deliveries as several lots
	maxSize  = 5 << 20
)

// TypeReport is the role of a report's signature.
const TypeReport = "cradle-lot-report-v1"

// Unit is one made unit. Digests are SHA-256 in lower-case hexadecimal.
type Unit struct {
	Serial string          `json:"serial"`
	Device cradle.DeviceID `json:"device"`
	EK     string          `json:"ek"`     // of the EK's SubjectPublicKeyInfo
	IDevID string          `json:"idevid"` // of the certificate
	IAK    string          `json:"iak"`    // of the certificate
	Made   time.Time       `json:"made"`   // whole seconds of UTC, by the line's clock
}

// Report is the acceptance report of a lot.
type Report struct {
	Version     int              `json:"version"`
	Lot         cradle.LotID     `json:"lot"` // made from the units, see LotID
	Order       cradle.OrderID   `json:"order"`
	OrderDigest string           `json:"order_digest"`
	Account     cradle.AccountID `json:"account"`
	OEM         cradle.OEMID     `json:"oem"`
	Closed      time.Time        `json:"closed"`
	Tool        string           `json:"tool"`  // program and version that closed the lot
	Count       int64            `json:"count"` // of units
	Units       []Unit           `json:"units"` // by serial, none twice
}

// NewReport makes the report of units made under an order. The slice is sorted in place.
func NewReport(o *order.Order, units []Unit, closed time.Time, tool string) (*Report, error) {
	slices.SortFunc(units, func(a, b Unit) int { return strings.Compare(a.Serial, b.Serial) })
	r := &Report{Version: Version, Order: o.ID, OrderDigest: o.Digest(), Account: o.Account, OEM: o.OEM,
		Closed: closed.UTC().Truncate(time.Second), Tool: tool, Count: int64(len(units)), Units: units}
	r.Lot = LotID(r.OrderDigest, units)
	return r, r.Check()
}

// LotID names a lot by its order and its units' EKs: closing the same units again is the same lot.
func LotID(orderDigest string, units []Unit) cradle.LotID {
	h := sha256.New()
	fmt.Fprintf(h, "cradle-lot-v1\n%s\n", orderDigest)
	for _, u := range units {
		fmt.Fprintf(h, "%s %s\n", u.Serial, u.EK)
	}
	return cradle.LotID("lot-" + hex.EncodeToString(h.Sum(nil))[:20])
}

// Digest identifies the report: its units' custody begins with it.
func (r *Report) Digest() string { return digest(r) }

// Check reports the first thing wrong with a report by itself.
func (r *Report) Check() error {
	if r.Version != Version {
		return bad("report", "version %d; this program knows version %d", r.Version, Version)
	}
	for _, id := range []struct{ name, v string }{{"lot", string(r.Lot)}, {"order", string(r.Order)}, {"account", string(r.Account)}, {"oem", string(r.OEM)}} {
		if err := cradle.CheckID(id.name, id.v); err != nil {
			return err
		}
	}
	if !isDigest(r.OrderDigest) {
		return bad("report", "order_digest is no digest")
	}
	if err := checkTime("report", "closed", r.Closed); err != nil {
		return err
	}
	if !printable(r.Tool, 128) {
		return bad("report", "tool must be 1 to 128 printable characters")
	}
	if len(r.Units) == 0 || len(r.Units) > MaxUnits || r.Count != int64(len(r.Units)) {
		return bad("report", "count is %d and %d units are listed; 1 to %d belong", r.Count, len(r.Units), MaxUnits)
	}
	devices, eks := make(map[cradle.DeviceID]string, len(r.Units)), make(map[string]string, len(r.Units))
	for i, u := range r.Units {
		if !printable(u.Serial, order.MaxSerial) {
			return bad("report", "unit %d has no proper serial", i)
		}
		if i > 0 && r.Units[i-1].Serial >= u.Serial {
			return bad("report", "unit %s stands behind %s: units are listed by serial, none twice", u.Serial, r.Units[i-1].Serial)
		}
		if err := cradle.CheckID("device of unit "+u.Serial, string(u.Device)); err != nil {
			return err
		}
		for _, d := range []struct{ name, v string }{{"ek", u.EK}, {"idevid", u.IDevID}, {"iak", u.IAK}} {
			if !isDigest(d.v) {
				return bad("report", "unit %s: %s is no digest", u.Serial, d.name)
			}
		}
		if err := checkTime("report", "made of unit "+u.Serial, u.Made); err != nil {
			return err
		}
		if other, ok := devices[u.Device]; ok {
			return bad("report", "units %s and %s have the same device id", other, u.Serial)
		}
		if other, ok := eks[u.EK]; ok {
			return bad("report", "units %s and %s have the same endorsement key", other, u.Serial)
		}
		devices[u.Device], eks[u.EK] = u.Serial, u.Serial
	}
	if want := LotID(r.OrderDigest, r.Units); r.Lot != want {
		return bad("report", "lot %s is not made from its units (%s)", r.Lot, want)
	}
	return nil
}

// SignReport signs with the OEM's lot key.
func SignReport(r *Report, lotKey crypto.Signer) ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return sign(r, TypeReport, lotKey)
}

// VerifyReport opens a report that the OEM's lot key signed. Whether it fits its order is Match's question.
func VerifyReport(doc []byte, lotKey *ecdsa.PublicKey) (*Report, error) {
	payload, err := jws.Verify(doc, true, jws.Party{Name: "the OEM's lot key", Type: TypeReport, Key: lotKey})
	if err != nil {
		return nil, cradle.Errorf(cradle.KindOf(err), "acceptance report: %w", err).
			WithHint("close the lot with: cradle-oem lot close, in the folder of the OEM that has the order")
	}
	r := new(Report)
	if err := decode("report", payload, r); err != nil {
		return nil, err
	}
	return r, r.Check()
}

// Match compares a report with its order and returns what is odd; nothing odd and auto_accept means
// that the lot is accepted by itself. accepted counts the order's units in lots before this one.
// What the provider knows better than both, the issued certificates, it compares itself.
func Match(o *order.Order, r *Report, accepted int64) []string {
	var odd []string
	say := func(format string, args ...any) { odd = append(odd, fmt.Sprintf(format, args...)) }
	if r.Order != o.ID || r.OrderDigest != o.Digest() {
		say("the report is of another order, or of another version of order %s", o.ID)
	}
	if r.Account != o.Account {
		say("the report is for account %s, the order is of %s", r.Account, o.Account)
	}
	if r.OEM != o.OEM {
		say("the report is by %s, the order is for %s", r.OEM, o.OEM)
	}
	if n := accepted + int64(len(r.Units)); n > o.Quantity {
		say("with this lot the order has %d units of %d", n, o.Quantity)
	}
	for _, u := range r.Units {
		if len(odd) >= maxFindings {
			say("and more")
			break
		}
		if name, err := o.DeviceName(u.Serial); err != nil {
			say("unit %s: serial outside the order's range", u.Serial)
		} else if name != u.Device {
			say("unit %s: device id is %s, the order names it %s", u.Serial, u.Device, name)
		}
		if u.Made.Before(o.NotBefore) || !u.Made.Before(o.NotAfter) {
			say("unit %s: made at %s, outside the order's dates", u.Serial, u.Made.Format(time.RFC3339))
		}
	}
	return odd
}

// maxFindings bounds Match's answer.
const maxFindings = 20

func digest(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func sign(v any, typ string, key crypto.Signer) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jws.Sign(b, typ, key)
}

// decode reads a payload that has the one encoding of its type.
func decode(what string, payload []byte, v any) error {
	if len(payload) > maxSize {
		return cradle.Errorf(cradle.TooLarge, "%s of %d bytes is over %d", what, len(payload), maxSize)
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bad(what, "%v", strictjson.Reason(err))
	}
	if b, err := json.Marshal(v); err != nil || !bytes.Equal(b, payload) {
		return bad(what, "not in canonical encoding")
	}
	return nil
}

func bad(what, format string, args ...any) *cradle.Error {
	return cradle.Errorf(cradle.Invalid, what+": "+format, args...)
}

func isDigest(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

func checkTime(what, name string, t time.Time) error {
	if t.Location() != time.UTC || t.Nanosecond() != 0 || t.Year() < 2000 || t.Year() > 9999 {
		return bad(what, "%s must be whole seconds of UTC", name)
	}
	return nil
}

func printable(s string, most int) bool {
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
