package providerdb_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// TestQuantityTogether: of births at once an order admits as many as it has units left.
func TestQuantityTogether(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		d, err := providerdb.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		now := time.Now().UTC().Truncate(time.Microsecond)
		leaf := ledger.Leaf{Log: "acme", Kind: "x", Time: now, Data: []byte("x")}
		if err := d.CreateAccount(t.Context(), provider.Account{ID: "acme", OrderKey: []byte("k"), Created: now}, nil, nil, leaf); err != nil {
			t.Fatal(err)
		}
		const units = 7
		if err := d.CreateOrder(t.Context(), provider.Order{ID: "o", Account: "acme", OEM: "oem", JWS: []byte("j"), Quantity: units, State: provider.OrderOpen, Created: now}, leaf); err != nil {
			t.Fatal(err)
		}
		dig := func(a ...any) string { return ca.Digest([]byte(fmt.Sprint(a...))) }
		errs := make([]error, 20)
		var wg sync.WaitGroup
		for n := range errs {
			wg.Go(func() {
				device := cradle.DeviceID(fmt.Sprint("d", n))
				_, errs[n] = d.BeginIssue(t.Context(), &provider.Intent{ID: dig("i", n), Account: "acme", Device: device, Profile: cradle.IAK, Operation: "simpleenroll",
					CSR: dig("csr", n), SPKI: dig("spki", n), Challenge: dig("challenge", n), Serial: cradle.CertSerial(dig("s", n)), Created: now, Lineage: string(cradle.IAK)},
					&provider.Birth{Device: provider.Device{ID: device, Account: "acme", OEM: "oem", Order: "o", Serial: fmt.Sprint(n), EKDigest: dig("ek", n), EKCert: []byte("e"), IAK: []byte("k"), Created: now}}, "")
			})
		}
		wg.Wait()
		born := 0
		for n, err := range errs {
			if err == nil {
				born++
			} else if cradle.KindOf(err) != cradle.Forbidden {
				t.Errorf("birth %d: %v", n, err)
			}
		}
		o, err := d.Order(t.Context(), "o")
		if err != nil || born != units || o.Used != units {
			t.Errorf("%d were born, the order has %d, %v; want %d", born, o.Used, err, units)
		}
	})
}
