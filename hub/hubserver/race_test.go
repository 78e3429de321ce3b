package hubserver_test

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

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
					_, err := r.hub.Connect(ctx, hub.DefaultName, id, i.leaf, func(string) {
						mu.Lock()
						defer mu.Unlock()
						alive[i]--
					})
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
