package provider_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/order"
)

// TestLotUnits: each unit of a report is held against the record, wherever in the report it stands.
func TestLotUnits(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o, other := r.order(nil), r.order(func(o *order.Order) { o.ID = "ord-2" })
		made := func(o *order.Order, serial string) *unit {
			u := r.unit(o, serial)
			if err := r.birth(u, r.station(o)); err != nil {
				t.Fatal(err)
			}
			return u
		}
		var us []*unit
		for i := range 3 {
			us = append(us, made(o, fmt.Sprintf("SN%04d", i+1)))
		}
		_, err := r.p.CloseLot(t.Context(), o.ID, r.report(o, us[0], made(other, "SN0009"), us[1]))
		refused(t, err, cradle.Invalid, "unit SN0009")

		odd := *us[1]
		odd.idevid = us[1].iak
		a, err := r.p.CloseLot(t.Context(), o.ID, r.report(o, us[0], &odd))
		want := []string{"unit SN0002: serial, EK or certificates are not those on record"}
		if err != nil || a.State != order.LotWaiting || !slices.Equal(a.Reasons, want) {
			t.Fatalf("a certificate in another's place: %+v, %v; want a lot that waits: %v", a, err, want)
		}
		_, err = r.p.CloseLot(t.Context(), o.ID, r.report(o, us[0], us[2])) // the first is in the lot that waits
		refused(t, err, cradle.Conflict, "")
		if a, err = r.p.CloseLot(t.Context(), o.ID, r.report(o, us[2])); err != nil || a.State != order.LotAccepted {
			t.Fatalf("the unit that is left: %+v, %v; want it accepted", a, err)
		}
		r.check()
	})
}
