package provider_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"regexp"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
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

// tampered is a store that somebody changes from outside, and that forgets it again.
type tampered struct {
	*rig
	sql    *sql.DB
	tables []string
}

func openTampered(r *rig, url string) *tampered {
	r.t.Helper()
	db, err := sql.Open("sqlite", url)
	find := `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE 'goose%'`
	if strings.HasPrefix(url, "postgres") {
		u := strings.NewReplacer("search_path", "unused").Replace(url)
		sep := "?"
		if strings.Contains(u, "?") {
			sep = "&"
		}
		db, err = sql.Open("pgx", u+sep+"search_path=provider")
		find = `SELECT tablename FROM pg_tables WHERE schemaname = 'provider' AND tablename NOT LIKE 'goose%'`
	}
	if err != nil {
		r.t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	r.t.Cleanup(func() { db.Close() })
	t := &tampered{rig: r, sql: db}
	rows, err := db.QueryContext(r.t.Context(), find)
	if err != nil {
		r.t.Fatal(err)
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			r.t.Fatal(err)
		}
		t.tables = append(t.tables, name)
	}
	if err := rows.Err(); err != nil || len(t.tables) < 10 {
		r.t.Fatal(t.tables, err)
	}
	for _, name := range t.tables {
		t.exec("CREATE TEMPORARY TABLE saved_" + name + " AS SELECT * FROM " + name)
	}
	return t
}

func (t *tampered) exec(query string) int64 {
	t.t.Helper()
	res, err := t.sql.ExecContext(t.t.Context(), query)
	if err != nil {
		t.t.Fatalf("%s: %v", query, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		t.t.Fatal(err)
	}
	return n
}

// restore brings the store back to where it was.
func (t *tampered) restore() {
	t.t.Helper()
	tx, err := t.sql.BeginTx(context.Background(), nil)
	for _, name := range t.tables {
		if err == nil {
			_, err = tx.Exec("DELETE FROM " + name)
		}
		if err == nil {
			_, err = tx.Exec("INSERT INTO " + name + " SELECT * FROM saved_" + name)
		}
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		t.t.Fatal(err)
	}
}

// TestTamperedStore: whatever somebody changes in the store below the log is found in the next export, and named.
func TestTamperedStore(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		if strings.HasPrefix(url, "postgres") {
			testenv.Long(t)
		}
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		r.active(o, station, "SN0001")
		r.export() // a first checkpoint
		u := r.active(o, station, "SN0002")
		held := r.active(o, station, "SN0003")
		revoked, err := r.enrollKey(held, cradle.Operational, held.ldevid)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(revoked.SerialNumber), provider.Revoke, "keyCompromise: found"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.p.ChangeState(t.Context(), "acme", "acme-sn0001", provider.Revoke, "stolen"); err != nil {
			t.Fatal(err)
		}
		r.superseded(u) // its operational credentials are in quarantine
		r.fill(300)
		if _, err := r.p.Tile(t.Context(), "acme", ledger.TileRef{Level: 1, Width: 1}); err != nil { // a hash is remembered
			t.Fatal(err)
		}
		r.check()
		store := openTampered(r, url)
		const (
			acme  = ` WHERE log = 'acme'`
			first = ` WHERE id = 'acme-sn0001'`
			other = ` WHERE id = 'acme-sn0003'`
		)
		for _, c := range []struct {
			name, sql string
			code      ledger.Code
			names     string // in the finding's subject
		}{
			{"certificate planted", `INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason, lineage)
				SELECT 'ababab' || substr(digest, 7), 'f' || serial, account, 'acme-sn0099', profile, authority, der, not_before, not_after, slot, intent, issued, 0, '', lineage FROM certificates WHERE profile = 'ldevid'`, ledger.CertificateUnlogged, "certificate ababab"},
			{"certificate removed", `DELETE FROM certificates WHERE profile = 'operational'`, ledger.CertificateMissing, "certificate"},
			{"certificate moved to another device", `UPDATE certificates SET device = 'acme-sn0002' WHERE device = 'acme-sn0003' AND profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate of another profile", `UPDATE certificates SET profile = 'idevid' WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate of another account", `UPDATE certificates SET account = 'acne' WHERE profile = 'ldevid'`, ledger.CertificateMissing, "certificate"},
			{"certificate of another authority", `UPDATE certificates SET authority = (SELECT max(id) FROM authorities WHERE kind = 'root') WHERE profile = 'ldevid'`, ledger.CertificateForged, "certificate"},
			{"certificate exchanged", `UPDATE certificates SET der = %x'3000' WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate's serial", `UPDATE certificates SET serial = 'f' || serial WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate's life", `UPDATE certificates SET not_after = not_after + 1000000 WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate's start", `UPDATE certificates SET not_before = 0 WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate's intent", `UPDATE certificates SET intent = 'another' WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"certificate's time of issue", `UPDATE certificates SET issued = issued + 3600000000 WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"superseded certificate current again", `UPDATE certificates SET slot = 'current' WHERE slot = 'superseded'`, ledger.CertificateChanged, "certificate"},
			{"certificate's revocation forgotten", `UPDATE certificates SET revoked = 0 WHERE device = 'acme-sn0003'`, ledger.RevocationMissing, "certificate"},
			{"certificate revoked silently", `UPDATE certificates SET revoked = 1 WHERE device = 'acme-sn0003'`, ledger.RevocationUnlogged, "certificate"},
			{"certificate's reason", `UPDATE certificates SET reason = 'none' WHERE revoked <> 0`, ledger.RevocationUnlogged, "certificate"},
			{"certificate's reason without revocation", `UPDATE certificates SET reason = 'stolen' WHERE revoked = 0`, ledger.RevocationUnlogged, "certificate"},
			{"certificate's lineage", `UPDATE certificates SET lineage = 'operational' WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"CRL's row removed", `DELETE FROM revocations WHERE device = 'acme-sn0003'`, ledger.RevocationMissing, "certificate"},
			{"CRL's reason", `UPDATE revocations SET code = 6`, ledger.RevocationMissing, "certificate"},
			{"intent removed", `DELETE FROM intents WHERE profile = 'ldevid'`, ledger.CertificateChanged, "certificate"},
			{"intent's challenge", `UPDATE intents SET challenge = 'x' || challenge`, ledger.CertificateChanged, "certificate"},
			{"intent open again", `UPDATE intents SET state = 'open'`, ledger.CertificateChanged, "certificate"},
			{"device's state", `UPDATE devices SET state = 'active'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device not accepted any more", `UPDATE devices SET state = 'made'` + other, ledger.DeviceChanged, "acme-sn0003"},
			{"device's order", `UPDATE devices SET order_id = 'none'` + first, ledger.DeviceOutside, "acme-sn0001"},
			{"device's OEM", `UPDATE devices SET oem = 'maker2'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's tier", `UPDATE devices SET tier = 'discrete-tpm'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's maker", `UPDATE devices SET maker = 'infineon'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's anchor", `UPDATE devices SET anchor = 'x'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's TPM", `UPDATE devices SET ek_digest = 'x'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's EK certificate", `UPDATE devices SET ek_cert = %x'3000'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's attestation key", `UPDATE devices SET iak = %x'3000'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's IDevID", `UPDATE devices SET idevid_cert = iak_cert` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's epoch", `UPDATE devices SET epoch = epoch + 1` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's reason", `UPDATE devices SET reason = 'none'` + first, ledger.DeviceChanged, "acme-sn0001"},
			{"device's lot", `UPDATE devices SET lot = 'none'` + first, ledger.LotChanged, "none"},
			{"device removed", `DELETE FROM devices` + first, ledger.DeviceMissing, "acme-sn0001"},
			{"quarantine lifted", `DELETE FROM quarantines`, ledger.QuarantineChanged, "acme-sn0002"},
			{"quarantine planted", `INSERT INTO quarantines (account, device, lineage) VALUES ('acme', 'acme-sn0003', 'ldevid')`, ledger.QuarantineChanged, "acme-sn0003"},
			{"feed forgets a revocation", `DELETE FROM feed WHERE device = 'acme-sn0001'`, ledger.FeedChanged, "acme-sn0001"},
			{"feed says active", `UPDATE feed SET state = 'active' WHERE device = 'acme-sn0001'`, ledger.FeedChanged, "acme-sn0001"},
			{"feed's certificate of an active device", `UPDATE feed SET state = 'suspended' WHERE certificate <> '' AND state = 'active'`, ledger.FeedChanged, "certificate"},
			{"feed moved to another account", `UPDATE feed SET account = 'other' WHERE device = 'acme-sn0001'`, ledger.FeedChanged, "acme-sn0001"},
			{"feed's head", `UPDATE feed_head SET seq = 0`, ledger.FeedChanged, "head"},
			{"quantity raised", `UPDATE orders SET quantity = quantity + 1`, ledger.OrderChanged, "order"},
			{"quota given back", `UPDATE orders SET used = used - 1`, ledger.OrderChanged, "order"},
			{"order's state", `UPDATE orders SET state = 'withdrawn'`, ledger.OrderChanged, "order"},
			{"order's text", `UPDATE orders SET jws = %x'7b7d'`, ledger.OrderChanged, "order"},
			{"order removed", `DELETE FROM orders`, ledger.OrderMissing, "order"},
			{"lot's report", `UPDATE lots SET report = %x'7b7d'`, ledger.LotChanged, "lot"},
			{"lot's custody", `UPDATE lots SET head = 'x'`, ledger.LotChanged, "lot"},
			{"lot's state", `UPDATE lots SET state = 'waiting'`, ledger.LotChanged, "lot"},
			{"lot removed", `DELETE FROM lots`, ledger.LotChanged, "lot"},
			{"account's key", `UPDATE accounts SET order_key = (SELECT order_key FROM oems)`, ledger.AccountChanged, "account acme"},
			{"account's region", `UPDATE accounts SET region = 'elsewhere'`, ledger.AccountChanged, "account acme"},
			{"account's profiles", `UPDATE accounts SET profiles = replace(profiles, 'validity', 'validity ')`, ledger.AccountChanged, "account acme"},
			{"OEM's key", `UPDATE oems SET order_key = lot_key`, ledger.OrderChanged, "order"},
			{"authority's certificate", `UPDATE authorities SET cert = %x'3000' WHERE kind = 'onboarding' AND account = 'acme'`, ledger.AuthorityChanged, "authority"},
			{"authority's chain", `UPDATE authorities SET chain = (SELECT chain FROM authorities WHERE kind = 'onboarding' AND class = 'production')
				WHERE kind = 'onboarding' AND class = 'evaluation'`, ledger.AuthorityChanged, "authority"},
			{"authority's kind", `UPDATE authorities SET kind = 'operational2' WHERE kind = 'operational'`, ledger.CertificateForged, "certificate"},
			{"authority's class", `UPDATE authorities SET class = 'x' WHERE kind = 'onboarding' AND class = 'evaluation' AND account = 'acme'`, ledger.AuthorityChanged, "authority"},
			{"authority of another kind", `UPDATE authorities SET kind = 'idevid' WHERE kind = 'operational' AND class = 'production' AND account = 'acme'`, ledger.AuthorityChanged, "authority"},
			{"authority planted", `UPDATE authorities SET account = 'acme' WHERE kind = 'station'`, ledger.AuthorityUnknown, "authority"},
			{"leaf changed", `UPDATE leaves SET data = ` + replaced(url, "data", "acme-sn0001", "acme-sn0007") + acme, ledger.CheckpointRoot, "checkpoint"},
			{"leaf removed", `DELETE FROM leaves` + acme + ` AND idx = 3`, ledger.LeafGap, "leaf 3"},
			{"last leaf removed", `DELETE FROM leaves` + acme + ` AND idx = 299`, ledger.LogRolledBack, "checkpoint 300"},
			{"leaf of another log", `UPDATE leaves SET log = 'provider', idx = 1000` + acme + ` AND idx = 5`, ledger.LeafGap, "leaf 5"},
			{"head's size", `UPDATE logs SET size = 200` + acme, ledger.HeadChanged, "head"},
			{"head's right edge", `UPDATE logs SET frontier = (SELECT frontier FROM logs WHERE log = 'provider')` + acme, ledger.HeadChanged, "head"},
			{"head's checkpoint", `UPDATE logs SET checkpoint = (SELECT note FROM checkpoints WHERE log = 'acme' ORDER BY size LIMIT 1)` + acme, ledger.HeadChanged, "head"},
			{"remembered hash", `UPDATE log_hashes SET hash = (SELECT %z)` + acme, ledger.HashChanged, "hash 0 of level 1"},
			{"checkpoint changed", `UPDATE checkpoints SET note = ` + replaced(url, "note", "acme", "acne") + acme, ledger.CheckpointChanged, "checkpoint"},
			{"checkpoint's size", `UPDATE checkpoints SET size = size + 1` + acme, ledger.CheckpointChanged, "checkpoint"},
			{"checkpoint removed", `DELETE FROM checkpoints` + acme + ` AND size = (SELECT min(size) FROM checkpoints` + acme + `)`, ledger.CheckpointMissing, "checkpoint"},
		} {
			t.Run(c.name, func(t *testing.T) {
				defer store.restore()
				if n := store.exec(blobs(url, c.sql)); n == 0 {
					t.Fatal("the tampering touched nothing")
				}
				var b bytes.Buffer
				err := r.p.Export(t.Context(), "acme", ledger.NewWriter(&b))
				if err != nil {
					t.Fatal(err)
				}
				findings, _, err := ledger.Verify(&b, ledger.Options{})
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range findings {
					if f.Code == c.code && strings.Contains(f.Subject, c.names) {
						return
					}
				}
				t.Errorf("not found by the audit as %s of %q; findings: %+v", c.code, c.names, findings)
			})
		}
		r.check() // restored
	})
}

// superseded has a certificate used that was superseded, which puts the lineage into quarantine.
func (r *rig) superseded(u *unit) {
	r.t.Helper()
	next, err := r.renew(u, u.op)
	if err == nil {
		_, err = r.renew(u, next) // next is in use from now on
	}
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = r.renew(u, u.op)
	refused(r.t, err, cradle.Forbidden, "superseded")
}

// TestTamperedInstallation: the same for what belongs to no account, in the installation's log.
func TestTamperedInstallation(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		audit := func() []ledger.Finding {
			var b bytes.Buffer
			if err := r.p.Export(t.Context(), provider.InstallationLog, ledger.NewWriter(&b)); err != nil {
				t.Fatal(err)
			}
			findings, _, err := ledger.Verify(&b, ledger.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return findings
		}
		if f := audit(); len(f) > 0 {
			t.Fatalf("untouched: %v", f)
		}
		store := openTampered(r, url)
		for name, c := range map[string]struct {
			sql  string
			code ledger.Code
		}{
			"anchor's tier":        {`UPDATE anchors SET tier = 'discrete-tpm'`, ledger.AnchorChanged},
			"anchor's maker":       {`UPDATE anchors SET maker = 'infineon'`, ledger.AnchorChanged},
			"anchor's certificate": {`UPDATE anchors SET cert = %x'3000'`, ledger.AnchorChanged},
			"anchor removed":       {`DELETE FROM anchors`, ledger.AnchorChanged},
			"anchor planted":       {`UPDATE anchors SET fingerprint = 'xx' || substr(fingerprint, 3)`, ledger.AnchorChanged},
			"OEM's order key":      {`UPDATE oems SET order_key = lot_key`, ledger.OEMChanged},
			"OEM's lot key":        {`UPDATE oems SET lot_key = order_key`, ledger.OEMChanged},
			"OEM renamed":          {`UPDATE oems SET id = 'maker2'`, ledger.OEMChanged},
			"OEM removed":          {`DELETE FROM oems`, ledger.OEMChanged},
		} {
			if n := store.exec(blobs(url, c.sql)); n == 0 {
				t.Fatalf("%s: touched nothing", name)
			}
			if f := audit(); len(f) == 0 || f[0].Code != c.code {
				t.Errorf("%s: found %v, want %s", name, f, c.code)
			}
			store.restore()
		}
	})
}

// replaced is the text of a blob column with one word exchanged, as SQL.
func replaced(url, column, from, to string) string {
	if strings.HasPrefix(url, "postgres") {
		return "convert_to(replace(convert_from(" + column + ", 'UTF8'), '" + from + "', '" + to + "'), 'UTF8')"
	}
	return "CAST(replace(CAST(" + column + " AS TEXT), '" + from + "', '" + to + "') AS BLOB)"
}

// blobs writes %x'…' and %z, 32 bytes of zero, as the engine wants them.
func blobs(url, query string) string {
	if strings.HasPrefix(url, "postgres") {
		query = regexp.MustCompile(`%x'([0-9a-f]*)'`).ReplaceAllString(query, `decode('$1', 'hex')`)
		return strings.ReplaceAll(query, "%z", "decode(repeat('00', 32), 'hex')")
	}
	return strings.ReplaceAll(strings.ReplaceAll(query, "%x'", "x'"), "%z", "zeroblob(32)")
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
