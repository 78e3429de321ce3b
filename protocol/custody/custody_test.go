package custody_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/jws"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/order"
)

var start = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func newOrder(t testing.TB, account *ecdsa.PrivateKey) *order.Order {
	t.Helper()
	tmpl := testca.CA("root")
	tmpl.NotAfter = start.AddDate(9, 0, 0)
	root := testca.New(t, tmpl, nil).PEM()
	o := &order.Order{ID: "ord-1", Account: "acme", OEM: "makers", Model: "Meter", Quantity: 3, SerialPrefix: "SN", SerialFirst: "01", SerialLast: "20",
		Tiers: []cradle.Tier{cradle.Simulator}, TPMMakers: []cradle.MakerID{"demo"}, ProviderURL: "https://p", ServicesAnchors: root, AccountAnchors: root,
		ProvisioningEndpoint: "https://d", IDScope: "0ne", AutoAccept: true}
	o.Complete(start)
	if _, err := order.Sign(o, account); err != nil {
		t.Fatal(err)
	}
	return o
}

func unit(n int) custody.Unit {
	s := fmt.Sprintf("%02d", n)
	return custody.Unit{Serial: "SN" + s, Device: cradle.DeviceID("acme-sn" + s), EK: hash("ek" + s), IDevID: hash("id" + s), IAK: hash("iak" + s), Made: start.Add(time.Hour)}
}

// world is an account, an OEM, a distributor, and an order between them.
type world struct {
	account, oem, lot, dist *ecdsa.PrivateKey
	order                   *order.Order
	report                  *custody.Report
	doc                     []byte // the report's JWS
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{account: testca.Key(t), oem: testca.Key(t), lot: testca.Key(t), dist: testca.Key(t)}
	w.order = newOrder(t, w.account)
	var err error
	if w.report, err = custody.NewReport(w.order, []custody.Unit{unit(2), unit(1)}, start.Add(2*time.Hour), "test 1"); err != nil {
		t.Fatal(err)
	}
	if w.doc, err = custody.SignReport(w.report, w.lot); err != nil {
		t.Fatal(err)
	}
	return w
}

var (
	maker  = custody.Party{Role: custody.OEM, Name: "makers"}
	trader = custody.Party{Role: custody.Distributor, Name: "trader"}
	owner  = custody.Party{Role: custody.Account, Name: "acme"}
)

func (w *world) keys(p custody.Party) (*ecdsa.PublicKey, error) {
	switch p {
	case maker:
		return &w.oem.PublicKey, nil
	case trader:
		return &w.dist.PublicKey, nil
	case owner:
		return &w.account.PublicKey, nil
	}
	return nil, cradle.Errorf(cradle.NotFound, "no %s", p)
}

func (w *world) handover(t testing.TB, r *custody.Record, giver, receiver *ecdsa.PrivateKey) []byte {
	t.Helper()
	doc, err := custody.Give(r, giver)
	if err != nil {
		t.Fatal(err)
	}
	if receiver != nil {
		if doc, err = custody.Receive(doc, receiver); err != nil {
			t.Fatal(err)
		}
	}
	return doc
}

func TestReport(t *testing.T) {
	w := newWorld(t)
	r, err := custody.VerifyReport(w.doc, &w.lot.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if r.Digest() != w.report.Digest() || r.Count != 2 || r.Units[0].Serial != "SN01" || len(custody.Match(w.order, r, 1)) != 0 {
		t.Errorf("%+v, odd %v", r, custody.Match(w.order, r, 1))
	}
	again, err := custody.NewReport(w.order, []custody.Unit{unit(1), unit(2)}, start.Add(9*time.Hour), "test 2")
	if err != nil || again.Lot != r.Lot {
		t.Errorf("the same units are another lot: %v", err)
	}
}

func TestReportRefuses(t *testing.T) {
	w := newWorld(t)
	payload, err := json.Marshal(w.report)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(old, new string) []byte {
		t.Helper()
		if !strings.Contains(string(payload), old) {
			t.Fatalf("no %s in %s", old, payload)
		}
		doc, err := jws.Sign([]byte(strings.Replace(string(payload), old, new, 1)), custody.TypeReport, w.lot)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	byOther, _ := custody.SignReport(w.report, w.oem)
	asGive, _ := jws.Sign(payload, custody.TypeGive, w.lot)
	twice, _ := jws.Add(w.doc, custody.TypeReport, w.lot)
	u1, _ := json.Marshal(unit(1))
	u2, _ := json.Marshal(unit(2))
	for name, c := range map[string]struct {
		doc  []byte
		kind cradle.Kind
		want string
	}{
		"signed by the station or another key": {byOther, cradle.Unauthorized, "lot key"},
		"signed in another role":               {asGive, cradle.Unauthorized, "signature of type"},
		"signed twice":                         {twice, cradle.Invalid, "2 signatures"},
		"unit digest changed":                  {tamper(t, w.doc, hash("id01"), hash("id03")), cradle.Unauthorized, "does not fit"},
		"count":                                {sign(`"count":2`, `"count":3`), cradle.Invalid, "count is 3"},
		"unit left out":                        {sign(string(u1)+",", ""), cradle.Invalid, "count"},
		"unit exchanged":                       {sign(unit(1).EK, hash("ek03")), cradle.Invalid, "not made from its units"},
		"units out of order":                   {sign(string(u1)+","+string(u2), string(u2)+","+string(u1)), cradle.Invalid, "listed by serial"},
		"unit twice":                           {sign(string(u2), string(u1)), cradle.Invalid, "none twice"},
		"EK twice":                             {sign(unit(2).EK, unit(1).EK), cradle.Invalid, "same endorsement key"},
		"device twice":                         {sign("acme-sn02", "acme-sn01"), cradle.Invalid, "same device id"},
		"digest in capitals":                   {sign(unit(1).IAK, strings.ToUpper(unit(1).IAK)), cradle.Invalid, "iak is no digest"},
		"time with fraction":                   {sign("T01:00:00Z", "T01:00:00.5Z"), cradle.Invalid, "whole seconds"},
		"version":                              {sign(`"version":1`, `"version":2`), cradle.Invalid, "version 2"},
		"unknown member":                       {sign(`"count":2`, `"count":2,"note":""`), cradle.Invalid, "note"},
		"not canonical":                        {sign(`"count":2`, `"count": 2`), cradle.Invalid, "canonical"},
		"tool unprintable":                     {sign("test 1", `test\u0007`), cradle.Invalid, "tool"},
		"empty":                                {nil, cradle.Invalid, "JWS"},
	} {
		_, err := custody.VerifyReport(c.doc, &w.lot.PublicKey)
		if err == nil || !strings.Contains(err.Error(), c.want) || cradle.KindOf(err) != c.kind {
			t.Errorf("%s: got %v (%v), want %q (%v)", name, err, cradle.KindOf(err), c.want, c.kind)
		}
	}
}

func TestMatch(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		change   func(*custody.Report)
		accepted int64
		want     string
	}{
		"another version of the order": {func(r *custody.Report) { r.OrderDigest = hash("x") }, 0, "another version of order"},
		"another account":              {func(r *custody.Report) { r.Account = "other" }, 0, "account other"},
		"another OEM":                  {func(r *custody.Report) { r.OEM = "other" }, 0, "by other"},
		"too many":                     {func(*custody.Report) {}, 2, "4 units of 3"},
		"serial outside":               {func(r *custody.Report) { r.Units[1].Serial = "SN21" }, 0, "outside the order's range"},
		"another name":                 {func(r *custody.Report) { r.Units[1].Device = "acme-sn03" }, 0, "the order names it acme-sn02"},
		"made too early":               {func(r *custody.Report) { r.Units[0].Made = start.Add(-1) }, 0, "outside the order's dates"},
		"made too late":                {func(r *custody.Report) { r.Units[0].Made = w.order.NotAfter }, 0, "outside the order's dates"},
	} {
		r := *w.report
		r.Units = append([]custody.Unit(nil), r.Units...)
		c.change(&r)
		if odd := custody.Match(w.order, &r, c.accepted); len(odd) != 1 || !strings.Contains(odd[0], c.want) {
			t.Errorf("%s: got %q, want %q", name, odd, c.want)
		}
	}
}

func TestChain(t *testing.T) {
	w := newWorld(t)
	born := custody.Born(w.report)
	toTrader := born.Next(trader, start.Add(3*time.Hour))
	first := w.handover(t, toTrader, w.oem, w.dist)
	held, err := born.Extend(first, w.keys, nil)
	if err != nil || held.Holder != trader {
		t.Fatalf("%+v %v", held, err)
	}
	second := w.handover(t, held.Next(owner, start.Add(4*time.Hour)), w.dist, w.account)
	h, err := custody.VerifyChain(w.report, [][]byte{first, second}, w.keys, nil)
	if err != nil || h.Holder != owner || h.Sequence != 2 {
		t.Fatalf("%+v %v", h, err)
	}
	// The owner's consent stands in its order; only the owner's.
	direct := w.handover(t, born.Next(owner, start.Add(3*time.Hour)), w.oem, nil)
	if h, err := custody.VerifyChain(w.report, [][]byte{direct}, w.keys, w.order); err != nil || h.Holder != owner {
		t.Errorf("%+v %v", h, err)
	}
	manual := *w.order
	manual.AutoAccept = false
	elsewhere := *w.order
	elsewhere.ID = "ord-2"
	for name, consent := range map[string]*order.Order{"no order": nil, "order without auto_accept": &manual, "another order": &elsewhere} {
		if _, err := born.Extend(direct, w.keys, consent); cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("%s: %v", name, err)
		}
	}
	signed, err := custody.Receive(direct, w.account)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := born.Extend(signed, w.keys, nil); err != nil || h.Holder != owner {
		t.Errorf("%v", err)
	}
}

// Each attack on a chain is refused for its own reason.
func TestExtendRefuses(t *testing.T) {
	w := newWorld(t)
	born := custody.Born(w.report)
	at := start.Add(3 * time.Hour)
	first := w.handover(t, born.Next(trader, at), w.oem, w.dist)
	held, err := born.Extend(first, w.keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	otherReport, err := custody.NewReport(w.order, []custody.Unit{unit(3)}, start.Add(2*time.Hour), "test")
	if err != nil {
		t.Fatal(err)
	}
	edit := func(r *custody.Record, change func(*custody.Record)) *custody.Record { change(r); return r }
	stranger := custody.Party{Role: custody.Distributor, Name: "stranger"}
	thief := testca.Key(t)
	for name, c := range map[string]struct {
		head custody.Head
		doc  []byte
		kind cradle.Kind
		want string
	}{
		"replayed":                   {held, first, cradle.Conflict, "does not follow hand-over 1"},
		"forked by the former owner": {held, w.handover(t, edit(held.Next(owner, at), func(r *custody.Record) { r.Giver = maker }), w.oem, w.account), cradle.Conflict, "held by distributor trader"},
		"forked at the root":         {held, w.handover(t, born.Next(owner, at), w.oem, w.account), cradle.Conflict, "does not follow"},
		"predecessor left out":       {born, w.handover(t, held.Next(owner, at), w.dist, w.account), cradle.Conflict, "does not follow"},
		"another predecessor":        {held, w.handover(t, edit(held.Next(owner, at), func(r *custody.Record) { r.Previous = hash("x") }), w.dist, w.account), cradle.Conflict, "does not follow"},
		"another lot":                {born, w.handover(t, custody.Born(otherReport).Next(owner, at), w.oem, w.account), cradle.Conflict, "does not belong"},
		"another order":              {held, w.handover(t, edit(held.Next(owner, at), func(r *custody.Record) { r.Order = "ord-2" }), w.dist, w.account), cradle.Conflict, "does not belong"},
		"not received":               {held, w.handover(t, held.Next(owner, at), w.dist, nil), cradle.Unauthorized, "not signed by the receiver"},
		"given by a thief":           {held, w.handover(t, held.Next(owner, at), thief, w.account), cradle.Unauthorized, "the giver has key"},
		"received by a thief":        {held, w.handover(t, held.Next(owner, at), w.dist, thief), cradle.Unauthorized, "the receiver has key"},
		"both signatures one side's": {held, w.handover(t, held.Next(owner, at), w.dist, w.dist), cradle.Unauthorized, "the receiver has key"},
		"receiver unknown":           {held, w.handover(t, held.Next(stranger, at), w.dist, thief), cradle.NotFound, "no distributor stranger"},
		"receiver changed":           {held, tamper(t, w.handover(t, held.Next(trader2(), at), w.dist, w.account), `"trader2"`, `"acme"`), cradle.Unauthorized, ""},
		"report in a record's place": {born, w.doc, cradle.Invalid, "custody record"},
		"not JWS":                    {born, []byte("{}"), cradle.Invalid, "JWS"},
	} {
		_, err := c.head.Extend(c.doc, w.keys, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || cradle.KindOf(err) != c.kind {
			t.Errorf("%s: got %v (%v), want %q (%v)", name, err, cradle.KindOf(err), c.want, c.kind)
		}
	}
	for name, change := range map[string]func(*custody.Record){
		"to itself":         func(r *custody.Record) { r.Receiver = r.Giver },
		"unknown role":      func(r *custody.Record) { r.Receiver.Role = "thief" },
		"bad name":          func(r *custody.Record) { r.Receiver.Name = "A" },
		"sequence 0":        func(r *custody.Record) { r.Sequence = 0 },
		"sequence skips":    func(r *custody.Record) { r.Sequence = 2 },
		"sequence too high": func(r *custody.Record) { r.Sequence = 1001 },
		"no digest":         func(r *custody.Record) { r.Previous = "x" },
		"version":           func(r *custody.Record) { r.Version = 0 },
		"local time":        func(r *custody.Record) { r.At = r.At.In(time.FixedZone("", 60)) },
	} {
		if _, err := custody.Give(edit(born.Next(trader, at), change), w.oem); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func trader2() custody.Party { return custody.Party{Role: custody.Account, Name: "trader2"} }

// tamper changes a document's payload and leaves the signatures.
func tamper(t testing.TB, doc []byte, old, new string) []byte {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal(doc, &e); err != nil {
		t.Fatal(err)
	}
	p, err := base64.RawURLEncoding.DecodeString(e["payload"].(string))
	if err != nil || !strings.Contains(string(p), old) {
		t.Fatalf("no %s in %s", old, p)
	}
	e["payload"] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(p), old, new, 1)))
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func typed(t *testing.T, err error) {
	t.Helper()
	var e *cradle.Error
	if !errors.As(err, &e) || e.Kind == cradle.Internal {
		t.Errorf("untyped error %v", err)
	}
}

// What opens is the report that was signed.
func FuzzVerifyReport(f *testing.F) {
	w := newWorld(f)
	f.Add(w.doc)
	f.Add(tamper(f, w.doc, `"count":2`, `"count":1`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		r, err := custody.VerifyReport(doc, &w.lot.PublicKey)
		if err != nil {
			typed(t, err)
		} else if r.Digest() != w.report.Digest() {
			t.Errorf("a forged report opened: %+v", r)
		}
	})
}

// Whatever payload a giver and a receiver sign: what is accepted has our encoding and continues the head, once.
func FuzzFollow(f *testing.F) {
	w := newWorld(f)
	born := custody.Born(w.report)
	good, err := json.Marshal(born.Next(trader, start))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(strings.Replace(string(good), `"sequence":1`, `"sequence":2`, 1)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		h, err := custody.Follow(born, payload)
		if err != nil {
			typed(t, err)
			return
		}
		sum := sha256.Sum256(payload)
		if h.Sequence != 1 || h.Lot != born.Lot || h.Report != born.Report || h.Digest != hex.EncodeToString(sum[:]) || h.Holder == born.Holder {
			t.Errorf("%s leads to %+v", payload, h)
		}
		if _, err := custody.Follow(h, payload); err == nil {
			t.Errorf("%s extends twice", payload)
		}
	})
}
