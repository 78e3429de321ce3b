package provisioningdb_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)

func open(t *testing.T, url string) *provisioningdb.DB {
	t.Helper()
	d, err := provisioningdb.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func group(id string, certs ...string) provisioning.Group {
	g := provisioning.Group{ID: id, ETag: "e-" + id, Attestation: provisioning.Attestation{Kind: provisioning.X509CA, Primary: []byte(certs[0])},
		Terms: provisioning.Terms{Enabled: true, Allocation: provisioning.Custom, Hubs: []string{"hub-1"}, Weights: map[string]int{"hub-1": 3},
			Custom:      &provisioning.CustomAllocation{WebhookURL: "https://w", APIVersion: "v", CEL: "x"},
			Reprovision: provisioning.Reprovision{UpdateHub: true}, InitialTwin: json.RawMessage(`{"tags":{}}`), IoTEdge: true, CredentialPolicy: "p"}, Created: t0, Updated: t0}
	if len(certs) > 1 {
		g.Secondary = []byte(certs[1])
	}
	return g
}

func put(t *testing.T, d *provisioningdb.DB, g provisioning.Group) error {
	t.Helper()
	_, err := d.PutGroup(t.Context(), g.ID, func(*provisioning.Group) (provisioning.Group, error) { return g, nil })
	return err
}

func registration(id string, version int64) *provisioning.Registration {
	return &provisioning.Registration{
		ID: provisioning.RegistrationID(id), Group: "g", Account: "acme", Hub: "hub-1", Status: provisioning.Assigning, Substatus: "s",
		Operation: "op", PrevOperation: "prev", Thumbprint: sha256.Sum256([]byte(id)), NotBefore: t0, Newest: t0.Add(time.Microsecond), Delivered: true,
		ErrorCode: 400001, ErrorMessage: "message", Version: version, Created: t0, Updated: t0,
		Kind: provisioning.TPM, Device: "at-the-hub", Payload: `{"a":1}`, Facts: `{"lot":"l"}`,
		Keys: provisioning.Keys{Primary: "\x00key", Secondary: "other", TPM: "blob", Token: "hash\x00", PrevToken: "older"},
	}
}

// write stores a registration and its delivery.
func write(t *testing.T, d *provisioningdb.DB, r *provisioning.Registration, l provisioning.Lease) []provisioning.Delivery {
	t.Helper()
	_, ds, err := d.Change(t.Context(), r.ID, "", func(*provisioning.Registration, provisioning.Enrolled) (provisioning.Outcome, error) {
		return provisioning.Outcome{Registration: r, Deliver: []string{"hub-1"}}, nil
	}, l)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

func lease(owner string, at time.Duration) provisioning.Lease {
	return provisioning.Lease{Owner: owner, Now: t0.Add(at), Until: t0.Add(at + 10*time.Second)}
}

func due(t *testing.T, d *provisioningdb.DB, l provisioning.Lease, limit int) []provisioning.Delivery {
	t.Helper()
	ds, err := d.Due(t.Context(), "hub-1", l, limit)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

func settle(t *testing.T, d *provisioningdb.DB, dv provisioning.Delivery, l provisioning.Lease) *provisioning.Delivery {
	t.Helper()
	settled, again, err := d.Settle(t.Context(), dv, l, func(r provisioning.Registration) (provisioning.Registration, []string) {
		r.Status = provisioning.Assigned
		return r, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if settled != nil {
		r, err := d.Registration(t.Context(), dv.Registration.ID)
		if err != nil || r != *settled {
			t.Errorf("stored is %+v %v, Settle said %+v", r, err, settled)
		}
	}
	return again
}

func pending(t *testing.T, d *provisioningdb.DB) int {
	t.Helper()
	n, err := d.Pending(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStore(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		d := open(t, url)

		t.Run("identity is made once", func(t *testing.T) {
			a, err := d.Identity(t.Context(), provisioning.Identity{IDScope: "0ne1", ServiceKey: []byte{1, 0, 255}, Created: t0})
			if err != nil {
				t.Fatal(err)
			}
			b, err := d.Identity(t.Context(), provisioning.Identity{IDScope: "0ne2", ServiceKey: []byte{2}, Created: t0.Add(1)})
			if err != nil || b.IDScope != "0ne1" || string(b.ServiceKey) != string(a.ServiceKey) || !b.Created.Equal(t0) {
				t.Errorf("got %+v %v", b, err)
			}
		})

		t.Run("groups", func(t *testing.T) {
			for _, g := range []provisioning.Group{group("b", "B1"), group("a-1", "A1", "A2"), group("a.1", "C1"), group("a", "D1")} {
				if err := put(t, d, g); err != nil {
					t.Fatal(err)
				}
			}
			gs, err := d.Groups(t.Context())
			var ids []string
			for _, g := range gs {
				ids = append(ids, g.ID)
			}
			if err != nil || !slices.Equal(ids, []string{"a", "a-1", "a.1", "b"}) { // bytes, not a language's order
				t.Errorf("order %v %v", ids, err)
			}
			g, err := d.Group(t.Context(), "a-1")
			want := group("a-1", "A1", "A2")
			if err != nil || string(g.Secondary) != "A2" || !g.Enabled || !reflect.DeepEqual(g.Terms, want.Terms) || !g.Created.Equal(t0) || g.ETag != want.ETag {
				t.Errorf("got %+v %v", g, err)
			}
			if err := put(t, d, group("z", "Z1", "A2")); cradle.KindOf(err) != cradle.Conflict {
				t.Errorf("certificate of another group: %v", err)
			}
			if _, err := d.Group(t.Context(), "z"); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("and yet the group was stored: %v", err)
			}
			// A slot that is given up is free for another group.
			next := group("a-1", "A1")
			next.ETag = "e2"
			if err := put(t, d, next); err != nil {
				t.Fatal(err)
			}
			if g, err := d.Group(t.Context(), "a-1"); err != nil || g.Secondary != nil || g.ETag != "e2" {
				t.Errorf("replaced: %+v %v", g, err)
			}
			if err := put(t, d, group("z", "Z1", "A2")); err != nil {
				t.Error(err)
			}
			refuse := errors.New("no")
			if err := d.DeleteGroup(t.Context(), "z", func(provisioning.Group) error { return refuse }); !errors.Is(err, refuse) {
				t.Errorf("got %v", err)
			}
			if err := d.DeleteGroup(t.Context(), "z", func(provisioning.Group) error { return nil }); err != nil {
				t.Error(err)
			}
			if err := d.DeleteGroup(t.Context(), "z", func(provisioning.Group) error { return nil }); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("deleted twice: %v", err)
			}
			if err := put(t, d, group("y", "A2")); err != nil {
				t.Errorf("certificate of a deleted group: %v", err)
			}
		})

		t.Run("registrations", func(t *testing.T) {
			want := registration("dev-1", 3)
			write(t, d, want, provisioning.Lease{Now: t0})
			got, err := d.Registration(t.Context(), "dev-1")
			if err != nil || got != *want {
				t.Errorf("got  %+v\nwant %+v\n%v", got, *want, err)
			}
			for _, id := range []string{"dev-10", "dev-2", "dev.1", "dev_1"} {
				r := registration(id, 1)
				if id == "dev-2" || id == "dev_1" {
					r.Blocked = cradle.Revoked
				}
				write(t, d, r, provisioning.Lease{Now: t0})
			}
			var ids []string
			after := provisioning.RegistrationID("")
			for { // pages of two, with writes between them
				rs, err := d.Registrations(t.Context(), "g", after, 2)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range rs {
					ids = append(ids, string(r.ID))
					after = r.ID
				}
				if len(rs) < 2 {
					break
				}
				write(t, d, registration("aaa", 1), provisioning.Lease{Now: t0})
			}
			if !slices.Equal(ids, []string{"dev-1", "dev-10", "dev-2", "dev.1", "dev_1"}) {
				t.Errorf("pages %v", ids)
			}
			blocked, err := d.BlockedRegistrations(t.Context(), "dev-1", 10)
			if err != nil || len(blocked) != 2 || blocked[0].ID != "dev-2" || blocked[1].ID != "dev_1" {
				t.Errorf("blocked %v %v", blocked, err)
			}
			if _, err := d.Registration(t.Context(), "nope"); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("got %v", err)
			}
			refuse := errors.New("no")
			_, _, err = d.Change(t.Context(), "dev-1", "", func(*provisioning.Registration, provisioning.Enrolled) (provisioning.Outcome, error) {
				return provisioning.Outcome{}, refuse
			}, provisioning.Lease{})
			if !errors.Is(err, refuse) {
				t.Errorf("refusing step: %v", err)
			}
			for _, id := range []string{"dev-1", "dev-10", "dev-2", "dev.1", "dev_1", "aaa"} {
				if err := d.DeleteRegistration(t.Context(), provisioning.RegistrationID(id), func(provisioning.Registration) error { return nil }); err != nil {
					t.Error(err)
				}
			}
			if n := pending(t, d); n != 0 {
				t.Errorf("%d deliveries outlived their registrations", n)
			}
		})

		t.Run("step sees registration and group", func(t *testing.T) {
			_, _, err := d.Change(t.Context(), "dev-1", "a", func(r *provisioning.Registration, by provisioning.Enrolled) (provisioning.Outcome, error) {
				if r != nil || by.Group == nil || by.Group.ID != "a" {
					t.Errorf("got %v %v", r, by)
				}
				return provisioning.Outcome{}, nil
			}, provisioning.Lease{})
			if cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("nothing there, nothing made: %v", err)
			}
		})

		t.Run("leases", func(t *testing.T) {
			if ds := write(t, d, registration("l-1", 1), lease("a", 0)); len(ds) != 1 || ds[0].Version != 1 || ds[0].Registration.ID != "l-1" {
				t.Fatalf("leased with the write: %+v", ds)
			}
			if ds := due(t, d, lease("b", 9*time.Second), 10); len(ds) != 0 {
				t.Errorf("leased twice: %v", ds)
			}
			if ds := write(t, d, registration("l-1", 2), lease("b", 9*time.Second)); len(ds) != 0 {
				t.Errorf("another's lease was taken by a write: %v", ds)
			}
			// a settles what it knew; the newer version is its to deliver.
			again := settle(t, d, provisioning.Delivery{Hub: "hub-1", Registration: *registration("l-1", 1), Version: 1}, lease("a", 9*time.Second))
			if again == nil || again.Version != 2 || again.Registration.Version != 2 {
				t.Fatalf("again %+v", again)
			}
			// a hangs, b takes over, a comes back late: b's lease stands.
			ds := due(t, d, lease("b", 30*time.Second), 10)
			if len(ds) != 1 || ds[0].Version != 2 {
				t.Fatalf("taken over: %+v", ds)
			}
			if again := settle(t, d, *again, lease("a", 31*time.Second)); again != nil || pending(t, d) != 1 {
				t.Errorf("a settled under b's lease: %+v", again)
			}
			if err := d.Postpone(t.Context(), *again, "a", t0, "late"); err != nil {
				t.Error(err)
			}
			if ds := due(t, d, lease("c", 31*time.Second), 10); len(ds) != 0 {
				t.Errorf("a gave b's lease back: %v", ds)
			}
			if err := d.Postpone(t.Context(), ds[0], "b", t0.Add(40*time.Second), "hub down"); err != nil {
				t.Error(err)
			}
			if ds := due(t, d, lease("b", 39*time.Second), 10); len(ds) != 0 {
				t.Errorf("due too early: %v", ds)
			}
			ds = due(t, d, lease("b", 40*time.Second), 10)
			if len(ds) != 1 || ds[0].Attempts != 1 {
				t.Fatalf("due: %+v", ds)
			}
			if err := d.Release(t.Context(), "b"); err != nil {
				t.Error(err)
			}
			ds = due(t, d, lease("c", 41*time.Second), 10)
			if len(ds) != 1 {
				t.Fatalf("released: %+v", ds)
			}
			if again := settle(t, d, ds[0], lease("c", 42*time.Second)); again != nil || pending(t, d) != 0 {
				t.Errorf("settled: %+v, pending %d", again, pending(t, d))
			}
			if r, err := d.Registration(t.Context(), "l-1"); err != nil || r.Status != provisioning.Assigned {
				t.Errorf("settled registration %+v %v", r, err)
			}
			if again := settle(t, d, ds[0], lease("c", 43*time.Second)); again != nil {
				t.Errorf("settled twice: %+v", again)
			}
		})

		t.Run("due takes each row once", func(t *testing.T) {
			const n = 60
			for i := range n {
				write(t, d, registration(fmt.Sprintf("q-%02d", i), 1), provisioning.Lease{Now: t0})
			}
			var mu sync.Mutex
			seen := map[provisioning.RegistrationID]int{}
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					for {
						ds, err := d.Due(context.Background(), "hub-1", lease(fmt.Sprint("w", i), time.Second), 7)
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						for _, dv := range ds {
							seen[dv.Registration.ID]++
						}
						done := len(seen) == n
						mu.Unlock()
						if done || err != nil {
							return
						}
					}
				})
			}
			wg.Wait()
			for id, k := range seen {
				if k != 1 {
					t.Errorf("%s was leased %d times", id, k)
				}
			}
		})

		t.Run("changes of one registration are one after the other", func(t *testing.T) {
			second := open(t, url) // another replica
			const each = 20
			var wg sync.WaitGroup
			for _, db := range []*provisioningdb.DB{d, second} {
				for range each {
					wg.Go(func() {
						_, _, err := db.Change(context.Background(), "counter", "", func(r *provisioning.Registration, _ provisioning.Enrolled) (provisioning.Outcome, error) {
							next := registration("counter", 0)
							if r != nil {
								*next = *r
							}
							next.Version++
							return provisioning.Outcome{Registration: next, Deliver: []string{"hub-1"}}, nil
						}, lease("x", 0))
						if err != nil {
							t.Error(err)
						}
					})
				}
			}
			wg.Wait()
			if r, err := d.Registration(t.Context(), "counter"); err != nil || r.Version != 2*each {
				t.Errorf("version %d, want %d; %v", r.Version, 2*each, err)
			}
		})

		t.Run("a cancelled caller", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := d.Registration(ctx, "counter"); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})

		t.Run("everything is there after opening again", func(t *testing.T) {
			again := open(t, url)
			if r, err := again.Registration(t.Context(), "l-1"); err != nil || r.Version != 2 {
				t.Errorf("%+v %v", r, err)
			}
			if _, err := again.Group(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	})
}

// Whatever becomes of a registration when its hub has been told is stored, be it what mostly does or not.
func TestSettleStores(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		d := open(t, url)
		for i, change := range []func(*provisioning.Registration){
			func(r *provisioning.Registration) {},
			func(r *provisioning.Registration) {
				r.Status, r.Substatus, r.Delivered = provisioning.Assigned, provisioning.InitialAssignment, true
				r.Version, r.Updated = r.Version+1, t0.Add(time.Second)
			},
			func(r *provisioning.Registration) {
				r.Status, r.ErrorCode, r.ErrorMessage, r.Version = provisioning.Failed, 400000, "why", r.Version+1
			},
			func(r *provisioning.Registration) { r.From, r.Twin, r.Version = "hub-9", `{"tags":{}}`, r.Version+1 },
			func(r *provisioning.Registration) { r.Status, r.Hub = provisioning.Assigned, "hub-2" },
			func(r *provisioning.Registration) { r.Group, r.Account = "g-2", "beta" },
			func(r *provisioning.Registration) { r.Blocked, r.Operation = cradle.Revoked, "op-2" },
			func(r *provisioning.Registration) { r.Keys.Primary, r.Payload = "another", `{}` },
			func(r *provisioning.Registration) { r.Issuance.Chain, r.Issuance.Policy = "chain", "p" },
		} {
			r := registration(fmt.Sprint("dev-", i), 1)
			dv := write(t, d, r, lease("me", 0))[0]
			want := *r
			change(&want)
			settled, again, err := d.Settle(t.Context(), dv, lease("me", 0), func(r provisioning.Registration) (provisioning.Registration, []string) {
				change(&r)
				return r, nil
			})
			got, getErr := d.Registration(t.Context(), r.ID)
			if err != nil || getErr != nil || again != nil || *settled != want || got != want {
				t.Errorf("%d: stored %+v, wanted %+v (%v %v)", i, got, want, err, getErr)
			}
		}
		if n := pending(t, d); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

// A step sees the group as it is stored now, whoever has changed it since the last one.
func TestChangeSeesGroup(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		d, other := open(t, url), open(t, url)
		sees := func() *provisioning.Group {
			t.Helper()
			var got *provisioning.Group
			_, _, err := d.Change(t.Context(), "dev-1", "g", func(_ *provisioning.Registration, by provisioning.Enrolled) (provisioning.Outcome, error) {
				got = by.Group
				return provisioning.Outcome{Registration: registration("dev-1", 1)}, nil
			}, lease("me", 0))
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if g := sees(); g != nil {
			t.Errorf("a group that is not there: %+v", g)
		}
		for i, hubs := range [][]string{{"hub-1"}, {"hub-2"}, nil, {"hub-3"}} {
			if hubs == nil {
				if err := other.DeleteGroup(t.Context(), "g", func(provisioning.Group) error { return nil }); err != nil {
					t.Fatal(err)
				}
				if g := sees(); g != nil {
					t.Errorf("a group that has gone: %+v", g)
				}
				continue
			}
			want := group("g", "A1")
			want.ETag, want.Hubs = fmt.Sprint("e-", i), hubs
			if err := put(t, other, want); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if g := sees(); g == nil || g.ETag != want.ETag || !reflect.DeepEqual(g.Terms, want.Terms) {
					t.Errorf("%d: got %+v, want %+v", i, g, want)
				}
			}
		}
	})
}
