package providerdb_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// older are the migrations up to a version.
func older(t *testing.T, version int) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	for _, engine := range []string{"sqlite", "postgres"} {
		files, err := os.ReadDir("migrations/" + engine)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files[:version] {
			text, err := os.ReadFile("migrations/" + engine + "/" + f.Name())
			if err != nil {
				t.Fatal(err)
			}
			out[engine+"/"+f.Name()] = &fstest.MapFile{Data: text}
		}
	}
	return out
}

// TestCertificatesMigrated: certificates of a store of version 8, whose key was their digest, are found as before.
func TestCertificatesMigrated(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		old, err := sqldb.Open(t.Context(), sqldb.Config{URL: url, Schema: "provider", Migrations: older(t, 8), ReadCommitted: true})
		if err != nil {
			t.Fatal(err)
		}
		const certs = 5
		digest := func(i int) string { return fmt.Sprintf("%064x", 97-i) }
		serial := func(i int) cradle.CertSerial { return cradle.CertSerial(fmt.Sprintf("7%031x", (i*3)%7)) }
		err = old.Update(t.Context(), func(_ context.Context, tx *sqldb.Tx) error {
			if _, err := tx.Exec(`INSERT INTO devices (account, id, oem, order_id, lot, serial, tier, maker, anchor, ek_digest, ek_cert, iak, idevid_cert, iak_cert, state, epoch, reason, created)
				VALUES ('acme', 'acme-1', 'maker1', 'order-1', '', 'SN1', 'simulator', '', '', 'ek', ?, ?, '', ?, 'active', 0, '', 1)`, []byte{1}, []byte{2}, digest(0)); err != nil {
				return err
			}
			for i := range certs {
				profile := []cradle.Profile{cradle.IAK, cradle.IDevID, cradle.LDevID, cradle.Operational, provider.StationProfile}[i]
				device := "acme-1"
				if i == 4 {
					device = "order-1"
				}
				if _, err := tx.Exec(`INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason, lineage, superseded)
					VALUES (?, ?, 'acme', ?, ?, 'ca', ?, 1, 2, 'next', 'intent', ?, ?, 'why', ?, 4)`, digest(i), serial(i), device, profile, []byte{byte(i)}, i, 3*(i%2), profile); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		db, err := providerdb.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for i := range certs {
			c, err := db.Credential(t.Context(), serial(i), digest(i))
			if err != nil || c.Cert.Digest != digest(i) || c.Cert.DER[0] != byte(i) || c.Cert.Slot != provider.Next || c.Cert.Reason != "why" || c.Cert.Intent != "intent" ||
				c.Cert.Revoked.IsZero() != (i%2 == 0) || !c.Cert.Superseded.Equal(time.UnixMicro(4)) || (c.Device.ID == "acme-1") != (i < 4) {
				t.Errorf("certificate %d: %+v, %v", i, c, err)
			}
			if _, err := db.Credential(t.Context(), serial(i), digest(i+1)); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("certificate %d by another's digest: %v, want not found", i, err)
			}
		}
		if iak, err := db.IAKCertificate(t.Context(), "acme", "acme-1"); err != nil || iak.Digest != digest(0) {
			t.Errorf("the IAK's certificate: %+v, %v", iak, err)
		}
		if list, err := db.Certificates(t.Context(), "acme", "acme-1"); err != nil || len(list) != 4 {
			t.Errorf("%d certificates, %v", len(list), err)
		}
	})
}
