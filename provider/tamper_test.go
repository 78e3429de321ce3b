package provider_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// TestPlantedCredential: a certificate that somebody wrote into the store does not authenticate, nor does one
// whose record was changed into another profile's.
func TestPlantedCredential(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	if _, err := r.renew(u, u.op); err != nil { // u.op has been verified and is remembered
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", r.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	k := newKey(t)
	template := *u.idevid
	template.PublicKey = k.Public()
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	planted, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO certificates SELECT ?, 'f' || serial, account, device, profile, authority, ?, not_before, not_after, slot, intent, issued, 0, '', lineage, 0
		FROM certificates WHERE profile = 'idevid'`, ca.Digest(der), der); err != nil {
		t.Fatal(err)
	}
	_, err = r.enrollKey(u, cradle.LDevID, planted)
	refused(t, err, cradle.Unauthorized, "was not issued here")
	if _, err := db.ExecContext(t.Context(), `UPDATE certificates SET profile = 'idevid' WHERE digest = ?`, ca.Digest(u.op.Raw)); err != nil {
		t.Fatal(err)
	}
	_, err = r.enrollKey(u, cradle.LDevID, u.op)
	refused(t, err, cradle.Unauthorized, "was not issued here")
}

// TestTamperedStore: what somebody changes in the store below the log is found in the next export and named.
func TestTamperedStore(t *testing.T) {
	for _, c := range []struct {
		name, sql string
		names     string // in the finding
	}{
		{"certificate planted without an order", `INSERT INTO certificates SELECT substr(digest, 3) || substr(digest, 1, 2), 'f' || serial, account, 'acme-sn0099', profile, authority, der, not_before, not_after, slot, intent, issued, 0, '', lineage, 0 FROM certificates WHERE profile = 'operational'`, "acme-sn0099"},
		{"certificate removed", `DELETE FROM certificates WHERE profile = 'operational'`, "acme-sn0001"},
		{"certificate moved to another device", `UPDATE certificates SET device = 'acme-sn0002' WHERE profile = 'operational'`, "acme-sn0002"},
		{"certificate exchanged", `UPDATE certificates SET der = x'3000' WHERE profile = 'ldevid'`, "certificate"},
		{"revocation forgotten", `UPDATE devices SET state = 'active' WHERE id = 'acme-sn0001'`, "acme-sn0001"},
		{"device of another order", `UPDATE devices SET order_id = 'none' WHERE id = 'acme-sn0001'`, "acme-sn0001"},
		{"quantity raised", `UPDATE orders SET quantity = quantity + 1`, "order"},
		{"lot's report exchanged", `UPDATE lots SET report = x'7b7d'`, "lot"},
		{"leaf changed", `UPDATE leaves SET data = CAST(replace(CAST(data AS TEXT), 'acme-sn0001', 'acme-sn0007') AS BLOB) WHERE log = 'acme' AND idx = (SELECT max(idx) FROM leaves WHERE log = 'acme')`, ""},
		{"leaf removed", `DELETE FROM leaves WHERE log = 'acme' AND idx = 3`, ""},
		{"last leaf removed", `DELETE FROM leaves WHERE log = 'acme' AND idx = (SELECT max(idx) FROM leaves WHERE log = 'acme')`, ""},
		{"checkpoint changed", `UPDATE checkpoints SET note = CAST(replace(CAST(note AS TEXT), 'acme', 'acne') AS BLOB) WHERE log = 'acme'`, "checkpoint"},
		{"checkpoint removed", `DELETE FROM checkpoints WHERE log = 'acme' AND size = (SELECT min(size) FROM checkpoints WHERE log = 'acme')`, "checkpoint"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, t.TempDir()+"/p.db")
			o := r.order(nil)
			station := r.station(o)
			r.active(o, station, "SN0001")
			r.export() // a first checkpoint
			r.active(o, station, "SN0002")
			if _, err := r.p.ChangeState(t.Context(), "acme", "acme-sn0001", "revoke", "stolen"); err != nil {
				t.Fatal(err)
			}
			r.check()
			db, err := sql.Open("sqlite", r.url)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			res, err := db.ExecContext(t.Context(), c.sql)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := res.RowsAffected(); err != nil || n == 0 {
				t.Fatalf("the tampering touched %d rows, %v", n, err)
			}
			findings, _, err := ledger.Verify(bytes.NewReader(r.export()), ledger.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range findings {
				if strings.Contains(f.Subject+f.Detail, c.names) {
					return
				}
			}
			t.Errorf("not found by the audit; findings: %+v", findings)
		})
	}
}

// TestActorInLog: the leaf of what an operator does says who did it.
func TestActorInLog(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	ctx := provider.WithActor(t.Context(), "operator alice")
	if _, err := r.p.ChangeState(ctx, "acme", cradle.DeviceID(u.op.Subject.CommonName), provider.Suspend, "lost"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.p.WithdrawOrder(ctx, o.ID, "done"); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(r.export(), []byte(`\"by\":\"operator alice\"`)); n != 2 {
		t.Errorf("%d leaves name who did it, want 2", n)
	}
	r.check()
}
