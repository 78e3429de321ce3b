package provider_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// state returns where a device is.
func (r *rig) state(id cradle.DeviceID) cradle.DeviceState {
	r.t.Helper()
	d, err := r.p.Device(r.t.Context(), "acme", id)
	if err != nil {
		r.t.Fatal(err)
	}
	return d.State
}

func idOf(u *unit) cradle.DeviceID { return cradle.DeviceID(u.idevid.Subject.CommonName) }

// TestChangeSet: each selector changes its devices and no others, in batches, and says how many.
func TestChangeSet(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o1 := r.order(nil)
		o2 := r.order(func(o *order.Order) { o.Model, o.Naming = "gw2", "{account}-b-{serial}" })
		s1, s2 := r.station(o1), r.station(o2)
		a, b, c := r.active(o1, s1, "SN0001"), r.active(o1, s1, "SN0002"), r.active(o2, s2, "SN0003")
		da, err := r.p.Device(t.Context(), "acme", idOf(a))
		if err != nil {
			t.Fatal(err)
		}
		change := func(kind provider.SelectorKind, value string, ch provider.StateChange, want ...*unit) {
			t.Helper()
			j, err := r.p.ChangeSet(t.Context(), "acme", provider.Selector{Kind: kind, Value: value}, ch, "")
			if err != nil || !j.Done || j.Changed != int64(len(want)) || j.Feed == 0 && len(want) > 0 {
				t.Fatalf("%s %s %s: %+v, %v; want %d devices", ch, kind, value, j, err, len(want))
			}
			for _, u := range []*unit{a, b, c} {
				in := false
				for _, w := range want {
					in = in || w == u
				}
				_, err := r.renew(u, u.op)
				if ch == provider.Suspend && in {
					refused(t, err, cradle.Forbidden, "is suspended")
				} else if err != nil {
					t.Fatalf("%s %s: %s is refused: %v", ch, kind, idOf(u), err)
				}
			}
		}
		for _, s := range []struct {
			kind  provider.SelectorKind
			value string
			want  []*unit
		}{
			{provider.ByLot, string(da.Lot), []*unit{a}},
			{provider.ByOrder, string(o1.ID), []*unit{a, b}},
			{provider.ByOEM, "maker1", []*unit{a, b, c}},
			{provider.ByMaker, "soft", []*unit{a, b, c}},
			{provider.ByEKIssuer, da.Anchor, []*unit{a, b, c}},
		} {
			change(s.kind, s.value, provider.Suspend, s.want...)
			change(s.kind, s.value, provider.Release, s.want...)
		}
		if _, err := r.p.ChangeState(t.Context(), "acme", idOf(b), provider.Revoke, ""); err != nil {
			t.Fatal(err)
		}
		j, err := r.p.ChangeSet(t.Context(), "acme", provider.Selector{Kind: provider.ByOrder, Value: string(o1.ID)}, provider.Revoke, "keyCompromise: line broken into")
		if err != nil || j.Total != 2 || j.Changed != 1 || r.state(idOf(a)) != cradle.Revoked || r.state(idOf(c)) != cradle.Active {
			t.Errorf("%+v, %v", j, err)
		}
		for _, bad := range []struct {
			kind  provider.SelectorKind
			value string
			want  cradle.Kind
		}{{provider.ByOrder, "none", cradle.NotFound}, {provider.ByLot, "none", cradle.NotFound}, {provider.ByOEM, "none", cradle.NotFound}, {provider.ByMaker, "none", cradle.NotFound},
			{provider.ByEKIssuer, "abcd", cradle.NotFound}, {"colour", "red", cradle.Invalid}} {
			if _, err := r.p.ChangeSet(t.Context(), "acme", provider.Selector{Kind: bad.kind, Value: bad.value}, provider.Revoke, ""); cradle.KindOf(err) != bad.want {
				t.Errorf("%s %s: %v", bad.kind, bad.value, err)
			}
		}
		_, err = r.p.ChangeSet(t.Context(), "acme", provider.Selector{Kind: provider.ByOrder, Value: string(o1.ID)}, provider.Retire, "")
		refused(t, err, cradle.Invalid, "one by one")
		// What is asked for by a name that nothing has is not an empty list.
		for _, ask := range []struct {
			account cradle.AccountID
			f       provider.DeviceFilter
			kind    cradle.Kind
		}{
			{"acme", provider.DeviceFilter{Order: o1.ID, Lot: da.Lot, State: cradle.Revoked}, 0},
			{"acme", provider.DeviceFilter{Order: "none"}, cradle.NotFound},
			{"acme", provider.DeviceFilter{Lot: "none"}, cradle.NotFound},
			{"acme", provider.DeviceFilter{Order: o2.ID, Lot: da.Lot}, cradle.NotFound},
			{"acme", provider.DeviceFilter{State: "lost"}, cradle.Invalid},
			{"none", provider.DeviceFilter{}, cradle.NotFound},
		} {
			if _, err := r.p.DeviceList(t.Context(), ask.account, ask.f); ask.kind == 0 && err != nil || ask.kind != 0 && cradle.KindOf(err) != ask.kind {
				t.Errorf("devices of %s, %+v: %v", ask.account, ask.f, err)
			}
		}
		jobs, err := r.p.Jobs(t.Context(), "acme")
		if err != nil || len(jobs) != 11 {
			t.Errorf("%d jobs, %v", len(jobs), err)
		}
		r.check()
	})
}

// dyingStore stops working jobs after some batches, as a process that dies does.
type dyingStore struct {
	provider.Store
	batches int
}

var errDied = errors.New("died")

func (s *dyingStore) WorkJob(ctx context.Context, j provider.Job, devices []cradle.DeviceID, st provider.Standing, leaf provider.StandingLeaf) (provider.Job, error) {
	if s.batches--; s.batches < 0 {
		return j, errDied
	}
	return s.Store.WorkJob(ctx, j, devices, st, leaf)
}

// TestJobSurvivesCrash: while a set is being revoked nothing is issued to its devices, those that are not reached yet and
// those to be born included; another replica goes on where the dead one stopped, and no device is changed twice.
func TestJobSurvivesCrash(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		u := r.active(o, station, "SN0001")
		other := r.order(func(o *order.Order) { o.Model, o.Naming = "gw2", "{account}-b-{serial}" })
		bystander := r.active(other, r.station(other), "SN0002")
		dying := r.replica(&dyingStore{Store: r.db})
		// A set that both are in is being released meanwhile: that refuses nobody.
		if j, err := dying.ChangeSet(t.Context(), "acme", provider.Selector{Kind: provider.ByOEM, Value: "maker1"}, provider.Release, ""); err != nil || j.Done {
			t.Fatalf("%+v, %v", j, err)
		}
		j, err := dying.ChangeSet(t.Context(), "acme", provider.Selector{Kind: provider.ByOrder, Value: string(o.ID)}, provider.Revoke, "keyCompromise")
		if err != nil || j.Done || j.Total != 1 || j.Changed != 0 {
			t.Fatalf("%+v, %v", j, err)
		}
		_, err = r.renew(u, u.op)
		refused(t, err, cradle.Forbidden, "is being revoked")
		refused(t, r.birth(r.unit(o, "SN0003"), station), cradle.Forbidden, "is being revoked")
		if _, err := r.renew(bystander, bystander.op); err != nil {
			t.Fatalf("a device outside the set: %v", err)
		}
		r.advance(time.Minute)
		if _, err := r.db.WorkJob(t.Context(), r.job(provider.Release), nil, provider.Standing{Change: provider.Release, At: r.now()}, nil); err != nil {
			t.Fatal(err)
		}
		half := r.replica(&dyingStore{Store: r.db, batches: 1})
		if err := half.RunJobs(t.Context()); !errors.Is(err, errDied) {
			t.Fatalf("%v", err)
		}
		if s := r.state(idOf(u)); s != cradle.Revoked {
			t.Fatalf("after the first batch it is %s", s)
		}
		before := r.export()
		r.advance(time.Minute)
		if err := r.p.RunJobs(t.Context()); err != nil {
			t.Fatal(err)
		}
		if j, err = r.p.Job(t.Context(), "acme", j.ID); err != nil || !j.Done || j.Changed != 1 {
			t.Errorf("%+v, %v", j, err)
		}
		if after := r.export(); len(after) > len(before)+2000 {
			t.Errorf("the last batch wrote %d bytes of records", len(after)-len(before))
		}
		if err := r.birth(r.unit(o, "SN0004"), station); err != nil {
			t.Errorf("the order goes on after the job: %v", err)
		}
		r.check()
	})
}

// job returns the running job of that change.
func (r *rig) job(c provider.StateChange) provider.Job {
	r.t.Helper()
	jobs, err := r.db.RunningJobs(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, j := range jobs {
		if j.Change == c {
			return j
		}
	}
	r.t.Fatalf("no %s is running", c)
	return provider.Job{}
}

// TestJobOfIssuer: the devices below an EK issuer are refused from the moment its job is there, those that are born and those that are to be.
func TestJobOfIssuer(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		u := r.active(o, station, "SN0001")
		d, err := r.p.Device(t.Context(), "acme", idOf(u))
		if err != nil {
			t.Fatal(err)
		}
		half := r.unit(o, "SN0003")
		if half.iak, err = r.enroll(half, attempt{profile: cradle.IAK, peer: station, key: half.IAK, claim: half.claim()}); err != nil {
			t.Fatal(err)
		}
		dying := r.replica(&dyingStore{Store: r.db})
		if j, err := dying.ChangeSet(t.Context(), "acme", provider.Selector{Kind: provider.ByEKIssuer, Value: d.Anchor}, provider.Suspend, ""); err != nil || j.Done {
			t.Fatalf("%+v, %v", j, err)
		}
		_, err = r.renew(u, u.op)
		refused(t, err, cradle.Forbidden, "suspended")
		refused(t, r.birth(r.unit(o, "SN0002"), station), cradle.Forbidden, "suspended")
		refused(t, r.birth(half, station), cradle.Forbidden, "suspended") // its IAK again
		k, err := half.NewIDevID()
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.enroll(half, attempt{profile: cradle.IDevID, peer: station, key: k, claim: half.claim()})
		refused(t, err, cradle.Forbidden, "suspended")
	})
}

// TestJobCursor: of two replicas at one job each batch is done by one.
func TestJobCursor(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		leaf, err := ledger.NewLeaf("acme", ledger.KindOperator, r.now(), map[string]any{})
		if err != nil {
			t.Fatal(err)
		}
		j := provider.Job{ID: "j", Account: "acme", Set: provider.Selector{Kind: provider.ByOEM, Value: "x"}, Change: provider.Revoke, Created: r.now()}
		if err := r.db.StartJob(t.Context(), j, leaf); err != nil {
			t.Fatal(err)
		}
		s := provider.Standing{Change: provider.Revoke, At: r.now()}
		moved, err := r.db.WorkJob(t.Context(), j, []cradle.DeviceID{"gone-1"}, s, nil)
		if err != nil || moved.Cursor != "gone-1" || moved.Changed != 0 {
			t.Fatalf("%+v, %v", moved, err)
		}
		_, err = r.db.WorkJob(t.Context(), j, []cradle.DeviceID{"gone-1"}, s, nil)
		refused(t, err, cradle.Conflict, "elsewhere")
		if done, err := r.db.WorkJob(t.Context(), moved, nil, s, nil); err != nil || !done.Done {
			t.Fatalf("%+v, %v", done, err)
		}
		_, err = r.db.WorkJob(t.Context(), moved, nil, s, nil)
		refused(t, err, cradle.Conflict, "elsewhere")
	})
}
