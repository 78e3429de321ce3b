package providerdb_test

import (
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// TestArrive: a device that comes by a credential is made once, whoever asks at the same moment, and what refuses it is seen by
// the transaction that makes it: then neither device nor key nor intent is left.
func TestArrive(t *testing.T) {
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
		// Each request is another one, by key, challenge and id.
		asked := 0
		var mu sync.Mutex
		arrive := func(change func(i *provider.Intent, v *provider.Device)) (provider.Begun, *provider.Intent, error) {
			mu.Lock()
			asked++
			n := asked
			mu.Unlock()
			i := &provider.Intent{ID: hexOf("i", n), Account: "acme", Device: "gw-1", Profile: cradle.Operational, Operation: provider.Enroll, CSR: hexOf("csr", n), SPKI: hexOf("spki", n),
				Challenge: hexOf("once", n), Serial: cradle.CertSerial(hexOf("serial", n)), Epoch: 7, Created: now, Lineage: "operational/abcd"}
			v := provider.Device{ID: "gw-1", Account: "acme", Serial: "gw-1", Tier: cradle.SoftwareKey, Origin: "ca/x/id:gw-1", State: cradle.Active, Created: now}
			change(i, &v)
			i.Device, v.Serial = v.ID, string(v.ID)
			out, err := d.BeginIssue(t.Context(), i, &provider.Birth{Device: v}, "")
			return out, i, err
		}
		first := func(*provider.Intent, *provider.Device) {}
		refused := func(name, part string, change func(*provider.Intent, *provider.Device)) {
			t.Helper()
			id := cradle.DeviceID("other")
			_, _, err := arrive(func(i *provider.Intent, v *provider.Device) { v.ID = id; change(i, v); id = v.ID })
			if cradle.KindOf(err) != cradle.Forbidden || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v; want Forbidden, with %q", name, err, part)
			}
			if _, err := d.Device(t.Context(), "acme", id); id == "other" && cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("%s: the device was left: %v", name, err)
			}
		}

		out, i, err := arrive(first)
		if err != nil || out.Device.State != cradle.Active || i.Epoch != 0 {
			t.Fatalf("%+v, %v", out.Device, err)
		}
		v, err := d.Device(t.Context(), "acme", "gw-1")
		if err != nil || v.Origin != "ca/x/id:gw-1" || v.Serial != "gw-1" || v.Tier != cradle.SoftwareKey || v.State != cradle.Active || !v.Created.Equal(now) {
			t.Errorf("stored as %+v, %v", v, err)
		}
		if out, _, err := arrive(first); err != nil || out.Device.Origin != v.Origin { // it was there by now
			t.Errorf("the same once more: %+v, %v", out.Device, err)
		}
		if n, err := d.VoidOpen(t.Context(), now.Add(time.Hour), ""); err != nil || n != 2 {
			t.Errorf("%d intents are open, %v; want 2", n, err)
		}

		refused("by another credential", "did not come by this credential", func(_ *provider.Intent, v *provider.Device) { v.ID, v.Origin = "gw-1", "ca/x/sn:8" })
		refused("with a TPM now", "did not come by this credential", func(_ *provider.Intent, v *provider.Device) { v.ID, v.EKDigest = "gw-1", hexOf("ek") })
		refused("the key of another device", "belongs to another device", func(i *provider.Intent, _ *provider.Device) { i.SPKI = hexOf("spki", 1) })
		if _, _, err := arrive(func(_ *provider.Intent, v *provider.Device) { v.ID, v.EKDigest = "tpm-1", hexOf("ek") }); err != nil {
			t.Errorf("with a TPM: %v", err)
		}
		refused("another device's TPM", "another unit already", func(_ *provider.Intent, v *provider.Device) { v.EKDigest = hexOf("ek") })
		if err := d.Distrust(t.Context(), []provider.Distrusted{{Digest: hexOf("bad"), Kind: "issuer", At: now}}, leaf); err != nil {
			t.Fatal(err)
		}
		refused("a TPM that is not believed", "is distrusted", func(_ *provider.Intent, v *provider.Device) {
			v.EKDigest, v.Issuers = hexOf("ek2"), []string{hexOf("bad")}
		})
		job := provider.Job{ID: "job", Account: "acme", Set: provider.Selector{Kind: provider.ByMaker, Value: "evil"}, Change: provider.Suspend, Created: now}
		if err := d.StartJob(t.Context(), job, leaf); err != nil {
			t.Fatal(err)
		}
		refused("of a set that is being suspended", "is being revoked or suspended", func(_ *provider.Intent, v *provider.Device) { v.Maker = "evil" })
		if _, _, err := arrive(func(_ *provider.Intent, v *provider.Device) { v.ID = "gw-2" }); err != nil {
			t.Errorf("beside that set: %v", err)
		}

		if strings.HasPrefix(url, "postgres") {
			waitsForAccount(t, url, func() error {
				_, _, err := arrive(func(_ *provider.Intent, v *provider.Device) { v.ID = "late" })
				return err
			})
		}

		// Many at once: two ask for each name.
		var wg sync.WaitGroup
		for n := range 40 {
			wg.Go(func() {
				if _, _, err := arrive(func(_ *provider.Intent, v *provider.Device) { v.ID = cradle.DeviceID(fmt.Sprint("many-", n/2)) }); err != nil {
					t.Errorf("one of many: %v", err)
				}
			})
		}
		wg.Wait()
	})
}

// waitsForAccount: while another replica's Barrier holds the account nobody comes.
func waitsForAccount(t *testing.T, url string, arrive func() error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	held, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Rollback()
	if _, err := held.Exec(`SELECT id FROM provider.accounts FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	came := make(chan error, 1)
	go func() { came <- arrive() }()
	testenv.Eventually(t, "the device waits for the account", func() bool {
		var waiting int
		err := db.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
		return err == nil && waiting == 1
	})
	var there int
	if err := db.QueryRow(`SELECT count(*) FROM provider.devices WHERE id = 'late'`).Scan(&there); err != nil || there != 0 || len(came) != 0 {
		t.Errorf("it did not wait: %d, %v", there, err)
	}
	if err := held.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-came; err != nil {
		t.Error(err)
	}
}
