package hubserver_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// onDrop is a hub.Sink that only learns of its end.
type onDrop func(reason string)

func (f onDrop) Drop(reason string)                            { f(reason) }
func (f onDrop) Method(string, string, []byte) bool            { return true }
func (f onDrop) Desired(int64, []byte) bool                    { return true }
func (f onDrop) Message(uint16, bool, iothub.Bag, []byte) bool { return true }

// TestSessionsUnderChange lets connects race with promotions, registry writes and the status feed.
// However they interleave, nobody stays connected whom the final state does not admit.
func TestSessionsUnderChange(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ctx := t.Context()
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		old, next := newIdent(t, "x"), newIdent(t, "x")
		for round := range 60 {
			id := cradle.DeviceID(fmt.Sprintf("dev-%d", round))
			for _, i := range []*ident{&old, &next} {
				i.id = id
				c, err := x509.ParseCertificate(i.cert.Certificate[0])
				if err != nil {
					t.Fatal(err)
				}
				c.Subject.CommonName = string(id)
				i.leaf = c
			}
			r.put(entry(id, old.sha256(), next.sha256()), "")
			var mu sync.Mutex
			alive := map[*ident]int{} // sessions by certificate that were not dropped
			connect := func(i *ident) func() {
				return func() {
					_, err := r.hub.Connect(ctx, hub.DefaultName, id, "", &hub.Login{Chain: []*x509.Certificate{i.leaf}}, false, onDrop(func(string) {
						mu.Lock()
						defer mu.Unlock()
						alive[i]--
					}))
					if err == nil {
						mu.Lock()
						alive[i]++
						mu.Unlock()
					}
				}
			}
			end := rng.IntN(3)
			acts := []func(){connect(&old), connect(&next), connect(&old), connect(&next)}
			switch end {
			case 1:
				acts = append(acts, func() {
					d := entry(id, old.sha256(), next.sha256())
					d.Status = iothub.Disabled
					if _, err := r.hub.PutDevice(ctx, hub.DefaultName, d, iothub.AnyETag); err != nil {
						t.Error(err)
					}
				})
			case 2:
				acts = append(acts, func() {
					r.feed.set(func(f *feed) { f.blocked[id] = cradle.Revoked })
					r.hub.StatusChanged("acme", id)
				})
			}
			rng.Shuffle(len(acts), func(a, b int) { acts[a], acts[b] = acts[b], acts[a] })
			var wg sync.WaitGroup
			for _, act := range acts {
				wg.Go(act)
			}
			wg.Wait()
			d, err := r.hub.GetDevice(ctx, hub.DefaultName, id)
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if end > 0 {
				want = 0
			}
			primary := d.Authentication.X509Thumbprint.PrimaryThumbprint
			if alive[&old]+alive[&next] != want || (d.ConnectionState == iothub.Connected) != (want == 1) {
				t.Fatalf("seed %d round %d end %d: %d old and %d next alive, want %d in all; %s", seed, round, end, alive[&old], alive[&next], want, d.ConnectionState)
			}
			if end == 0 && (primary != next.sha256() || alive[&next] != 1) {
				t.Fatalf("seed %d round %d: promotion lost: %d old, %d next alive", seed, round, alive[&old], alive[&next])
			}
		}
	})
}

// between runs a function once, after a device was read and before the reader goes on.
type between struct {
	hub.Store
	do func()
}

func (b *between) Device(ctx context.Context, name hub.Name, id cradle.DeviceID) (*hub.Device, error) {
	d, err := b.Store.Device(ctx, name, id)
	if do := b.do; do != nil {
		b.do = nil
		do()
	}
	return d, err
}

// TestChangeBetween: what changes after a connect has read the entry, and before the session is entered,
// counts for the connect; the one who changes it finds no session to drop yet.
func TestChangeBetween(t *testing.T) {
	b := &between{}
	r := newRigOver(t, sqlite(t), func(s hub.Store) hub.Store { b.Store = s; return b })
	edit := func(id cradle.DeviceID, fn func(*iothub.Device)) {
		d, err := r.hub.GetDevice(t.Context(), hub.DefaultName, id)
		if err != nil {
			t.Fatal(err)
		}
		fn(d)
		if _, err := r.hub.PutDevice(t.Context(), hub.DefaultName, d, iothub.AnyETag); err != nil {
			t.Fatal(err)
		}
	}
	for id, do := range map[cradle.DeviceID]func(){
		"disabled": func() { edit("disabled", func(d *iothub.Device) { d.Status = iothub.Disabled }) },
		"replaced": func() {
			edit("replaced", func(d *iothub.Device) {
				d.Authentication.X509Thumbprint.PrimaryThumbprint = strings.Repeat("ab", 32)
			})
		},
		"deleted": func() {
			if err := r.hub.DeleteDevice(t.Context(), hub.DefaultName, "deleted", ""); err != nil {
				t.Fatal(err)
			}
		},
		"revoked": func() {
			r.feed.set(func(f *feed) { f.blocked["revoked"] = cradle.Revoked })
			r.hub.StatusChanged("acme", "revoked")
		},
	} {
		i := r.register(id)
		cert, err := x509.ParseCertificate(i.cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		b.do = do
		_, err = r.hub.Connect(t.Context(), hub.DefaultName, id, "", &hub.Login{Chain: []*x509.Certificate{cert}}, false, onDrop(func(string) {}))
		if cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("%s: got %v", id, err)
		}
	}
	if n := r.hub.Connected(); n != 0 {
		t.Errorf("%d connected", n)
	}
}
