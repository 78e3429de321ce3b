package provider_test

import (
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
)

func TestVitals(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		if v, err := r.p.Vitals(t.Context()); err != nil || v.OpenIntents != 0 || !v.OldestIntent.IsZero() || v.Closed != 0 {
			t.Errorf("a fresh store: %+v, %v", v, err)
		}
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		d, err := r.p.Device(t.Context(), "acme", cradle.DeviceID(u.op.Subject.CommonName))
		if err != nil {
			t.Fatal(err)
		}
		begun := r.now().Truncate(time.Microsecond)
		in := &provider.Intent{ID: "i1", Account: "acme", Device: d.ID, Profile: cradle.Operational, Operation: provider.Enroll, Challenge: "c1", CSR: "x", SPKI: "y", Epoch: d.Epoch,
			Created: begun, Replica: "r", Lineage: string(cradle.Operational)}
		if _, err := r.db.BeginIssue(t.Context(), in, nil, ""); err != nil {
			t.Fatal(err)
		}
		if v, err := r.p.Vitals(t.Context()); err != nil || v.OpenIntents != 1 || !v.OldestIntent.Equal(begun) {
			t.Errorf("with an open intent: %+v, %v", v, err)
		}
		if err := r.p.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.check() // signs
		if v, err := r.p.Vitals(t.Context()); err != nil || v.OpenIntents != 0 || v.Signed.IsZero() {
			t.Errorf("after it was voided: %+v, %v", v, err)
		}
	})
}
