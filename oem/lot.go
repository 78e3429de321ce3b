package oem

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/order"
)

// Lot is a closed lot.
type Lot struct {
	ID        cradle.LotID   `json:"id"`
	Order     cradle.OrderID `json:"order"`
	Units     int64          `json:"units"`
	State     string         `json:"state"` // order.LotAccepted or order.LotWaiting
	Reasons   []string       `json:"reasons,omitempty"`
	Report    string         `json:"report"`  // file
	Custody   string         `json:"custody"` // file
	Remaining int            `json:"remaining"`
}

// CloseLot closes a lot of all units that are made and in no lot: it signs the acceptance report with
// the lot key and the hand-over to the account with the order key, writes both to out and hands them in.
//
// A lot that was closed but not handed in, because we were stopped or the provider was away, is handed in first, and
// then is the answer; Remaining says how many units wait for a further call. Without a new unit
// the newest lot is handed in again, which changes nothing and tells its present state.
func (s *Station) CloseLot(ctx context.Context, id cradle.OrderID, out string) (*Lot, error) {
	l, err := s.readOrder(id)
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(s.orderPath(id, "lots"), 0o700); err != nil {
		return nil, err
	}
	unlock, err := durable.Lock(s.orderPath(id, "lots", ".lock"), false)
	if errors.Is(err, durable.ErrLocked) {
		return nil, cradle.Errorf(cradle.Busy, "a lot of order %s is being closed by another process", id)
	}
	if err != nil {
		return nil, err
	}
	defer unlock()

	fresh, closed, err := l.pending()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(closed, func(c *closedLot) bool { return !c.handedIn })
	var lot *closedLot
	switch {
	case i >= 0:
		lot = closed[i]
	case len(fresh) > 0:
		n := min(len(fresh), custody.MaxUnits)
		if lot, err = l.closeLot(fresh[:n]); err != nil {
			return nil, err
		}
		fresh = fresh[n:]
	case len(closed) > 0:
		lot = slices.MaxFunc(closed, func(a, b *closedLot) int { return a.report.Closed.Compare(b.report.Closed) })
	default:
		return nil, cradle.Errorf(cradle.Conflict, "no unit of order %s is made yet", id).
			WithHint("make units with: cradle-oem personalise --order %s", id)
	}
	r, err := l.handIn(ctx, lot, out)
	if err != nil {
		return nil, err
	}
	r.Remaining = len(fresh)
	return r, nil
}

// closedLot is a lot in the OEM's folder.
type closedLot struct {
	report   *custody.Report
	handedIn bool
}

// pending reads the closed lots and the units that are in none.
func (l *line) pending() (fresh []custody.Unit, closed []*closedLot, err error) {
	pub, err := l.Public()
	if err != nil {
		return nil, nil, err
	}
	dirs, err := os.ReadDir(l.orderPath(l.order.ID, "lots"))
	if err != nil {
		return nil, nil, err
	}
	in := map[string]bool{}
	for _, d := range dirs {
		doc, err := os.ReadFile(l.lotPath(d.Name(), "report.jws"))
		if errors.Is(err, fs.ErrNotExist) || !d.IsDir() { // stopped before the lot was closed
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		r, err := custody.VerifyReport(doc, pub.Lot)
		if err != nil {
			return nil, nil, err
		}
		for _, u := range r.Units {
			in[u.Serial] = true
		}
		closed = append(closed, &closedLot{r, exists(l.lotPath(d.Name(), "answer.json"))})
	}
	units, err := l.units()
	if err != nil {
		return nil, nil, err
	}
	for _, u := range units {
		if !in[u.Serial] {
			fresh = append(fresh, u.Custody())
		}
	}
	return fresh, closed, nil
}

// closeLot signs and stores a lot. The report is written last: with it the lot is closed, for good.
func (l *line) closeLot(units []custody.Unit) (*closedLot, error) {
	lotKey, err := order.LoadKey(l.path("lot.key"))
	if err != nil {
		return nil, err
	}
	orderKey, err := order.LoadKey(l.path("order.key"))
	if err != nil {
		return nil, err
	}
	tool := l.Tool
	if tool == "" {
		tool = "cradle-oem"
	}
	r, err := custody.NewReport(l.order, slices.Clone(units), l.now(), tool)
	if err != nil {
		return nil, err
	}
	report, err := custody.SignReport(r, lotKey)
	if err != nil {
		return nil, err
	}
	record := custody.Born(r).Next(custody.Party{Role: custody.Account, Name: string(l.order.Account)}, l.now())
	handover, err := custody.Give(record, orderKey)
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(l.lotPath(string(r.Lot)), 0o700); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(l.lotPath(string(r.Lot), "custody.jws"), handover, 0o644); err != nil {
		return nil, err
	}
	if err := l.step("custody"); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(l.lotPath(string(r.Lot), "report.jws"), report, 0o644); err != nil {
		return nil, err
	}
	return &closedLot{report: r}, l.step("report")
}

// handIn copies a lot to out and gives it to the provider.
func (l *line) handIn(ctx context.Context, c *closedLot, out string) (*Lot, error) {
	id := string(c.report.Lot)
	var docs [2][]byte
	if err := durable.MkdirAll(out, 0o755); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "folder for the lot: %w", err)
	}
	for i, name := range []string{"report.jws", "custody.jws"} {
		var err error
		if docs[i], err = os.ReadFile(l.lotPath(id, name)); err != nil {
			return nil, err
		}
		if err := durable.WriteFile(filepath.Join(out, name), docs[i], 0o644); err != nil {
			return nil, err
		}
	}
	anchors, err := l.anchors()
	if err != nil {
		return nil, err
	}
	hc, err := l.client(anchors, nil)
	if err != nil {
		return nil, err
	}
	defer hc.CloseIdleConnections()
	client := order.Client{HTTP: hc, URL: l.order.ProviderURL}
	answer, err := client.CloseLot(ctx, l.order.ID, order.LotRequest{Report: docs[0], Custody: docs[1]})
	if err != nil {
		return nil, err
	}
	if answer.Lot != c.report.Lot {
		return nil, cradle.Errorf(cradle.Conflict, "the provider answered for lot %s, not %s", answer.Lot, c.report.Lot)
	}
	if err := l.step("answered"); err != nil {
		return nil, err
	}
	if err := writeJSON(l.lotPath(id, "answer.json"), answer); err != nil {
		return nil, err
	}
	return &Lot{ID: c.report.Lot, Order: l.order.ID, Units: c.report.Count, State: answer.State, Reasons: answer.Reasons,
		Report: filepath.Join(out, "report.jws"), Custody: filepath.Join(out, "custody.jws")}, nil
}

func (l *line) lotPath(lot string, elem ...string) string {
	return l.orderPath(l.order.ID, append([]string{"lots", lot}, elem...)...)
}
