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

// between runs a function once, after a device was read or written and before who did it goes on.
type between struct {
	hub.Store
	read, written func()
}

func (b *between) Device(ctx context.Context, name hub.Name, id cradle.DeviceID) (*hub.Device, error) {
	d, err := b.Store.Device(ctx, name, id)
	once(&b.read)
	return d, err
}

func (b *between) UpdateDevice(ctx context.Context, name hub.Name, d *hub.Device, etag string) error {
	err := b.Store.UpdateDevice(ctx, name, d, etag)
	once(&b.written)
	return err
}

func once(f *func()) {
	if do := *f; do != nil {
		*f = nil
		do()
	}
}

// TestChangeBetween: what changes after a connect has read the entry (or has promoted its certificate in it), and before the
// session is entered, counts for the connect; the one who changes it finds no session to drop yet.
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
	changes := map[string]func(cradle.DeviceID){
		"disabled": func(id cradle.DeviceID) { edit(id, func(d *iothub.Device) { d.Status = iothub.Disabled }) },
		"replaced": func(id cradle.DeviceID) {
			edit(id, func(d *iothub.Device) {
				d.Authentication.X509Thumbprint.PrimaryThumbprint = strings.Repeat("ab", 32)
				d.Authentication.X509Thumbprint.SecondaryThumbprint = ""
			})
		},
		"deleted": func(id cradle.DeviceID) {
			if err := r.hub.DeleteDevice(t.Context(), hub.DefaultName, id, ""); err != nil {
				t.Fatal(err)
			}
		},
		"revoked": func(id cradle.DeviceID) {
			r.feed.set(func(f *feed) { f.blocked[id] = cradle.Revoked })
			r.hub.StatusChanged("acme", id)
		},
	}
	for what, do := range changes {
		for when, hook := range map[string]*func(){"read": &b.read, "promoted": &b.written} {
			id := cradle.DeviceID(what + "-" + when)
			i := newIdent(t, id)
			primary, secondary := i.sha256(), ""
			if when == "promoted" {
				primary, secondary = strings.Repeat("cd", 32), i.sha256()
			}
			r.put(entry(id, primary, secondary), "")
			cert, err := x509.ParseCertificate(i.cert.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			*hook = func() { do(id) }
			_, err = r.hub.Connect(t.Context(), hub.DefaultName, id, "", &hub.Login{Chain: []*x509.Certificate{cert}}, false, onDrop(func(string) {}))
			if cradle.KindOf(err) != cradle.Unauthorized || *hook != nil {
				t.Errorf("%s: got %v", id, err)
			}
		}
	}
	if n := r.hub.Connected(); n != 0 {
		t.Errorf("%d connected", n)
	}
}
