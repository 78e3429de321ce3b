package provider_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// unaudited are the columns of the store that can be changed without a finding, with the reason for each. "*" is the whole table.
var unaudited = map[string]map[string]string{
	"secrets":      {"*": "sealed, or of no use when it was changed"},
	"accounts":     {"created": when},
	"oems":         {"created": moment},
	"anchors":      {"distrusted": "not used any more", "imported": when},
	"orders":       {"created": moment},
	"lots":         {"report_digest": "an index; the report itself is held to its leaf", "closed": moment, "accepted": moment},
	"certificates": {"issued": moment, "superseded": when},
	"intents":      {"operation": ended, "auth_profile": ended, "epoch": ended, "reason": ended, "created": ended, "replica": ended},
	"feed_head":    {"one": "constant", "seq": "numbers may be left out, as after a restore; a lower one is found"},
	"feed":         {"at": moment},
	"checkpoints":  {"at": when},
	"devices":      {"created": moment},
	"basic_users":  {"created": when},
	"client_cas":   {"created": when},
	"approvals":    {"account": "it is found in the other account", "intent": ended, "asked": when, "decided": when, "expires": "approvals are forgotten then"},
	"keks":         {"created": when},
	"revocations":  {"at": when, "by_device": "here no certificate is on hold"},
	"distrusts":    {"reason": "for people", "at": when},
	"authorities":  {"key_ref": "another key is not that of the certificate", "sealed_key": "sealed", "created": moment},
	"witnesses":    {"added": when},
	"log_hashes":   {"log": "a hash that is missing is computed"},
	"operators":    {"created": when, "last_used": when},
	// What is under way, and what is signed by itself.
	"commitments": {"*": "empty here"}, "crl_shards": {"*": "CRLs are signed"}, "ocsp_responders": {"*": "certificates, and sealed keys"}, "leases": {"*": "work under way"},
	"revocation_jobs": {"*": "work under way; each device has its leaf"}, "pending_keys": {"*": "a CA's certificate is compared with its key"},
	"permits": {"*": "work under way"}, "restored": {"*": "a store that is being restored"},
}

const (
	when   = "a time for people; the leaf has its own"
	moment = "by less than minutes; TestEveryField changes it by more"
	ended  = "of an intent that has ended"
)

// past is an account of which the log has much to tell: devices of an order, one revoked, one with a revoked certificate, one
// with a second LDevID, and who else was given something (grants).
func (r *rig) past(oc *otherCA) {
	r.t.Helper()
	o := r.order(nil)
	station := r.station(o)
	r.active(o, station, "SN0001")
	r.export()
	u := r.active(o, station, "SN0002")
	held := r.active(o, station, "SN0003")
	gone, err := r.enrollKey(held, cradle.Operational, held.ldevid)
	if err == nil {
		_, _, err = r.p.ChangeCertificate(r.t.Context(), "acme", ca.SerialString(gone.SerialNumber), provider.Revoke, "keyCompromise: found")
	}
	if err == nil {
		_, err = r.p.ChangeState(r.t.Context(), "acme", "acme-sn0001", provider.Revoke, "stolen")
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.superseded(u)
	r.grants(oc)
}

// TestEveryColumn changes each column of the store in turn: the audit finds it, or a reason stands above.
func TestEveryColumn(t *testing.T) {
	testenv.Long(t)
	url := t.TempDir() + "/p.db"
	r, oc := newRig(t, url), newOtherCA(t)
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.past(oc)
	r.fill(300)
	_, err := r.p.Tile(t.Context(), "acme", ledger.TileRef{Level: 1, Width: 1})
	try(err)
	r.check()
	store := openTampered(r, url)
	audit := func() int {
		n := 0
		for _, log := range []string{"acme", provider.InstallationLog} {
			var b bytes.Buffer
			if err := r.p.Export(t.Context(), log, ledger.NewWriter(&b)); err != nil {
				return 1
			}
			findings, _, err := ledger.Verify(&b, ledger.Options{})
			try(err)
			n += len(findings)
		}
		return n
	}
	if audit() != 0 {
		t.Fatal("untouched")
	}
	for _, table := range store.tables {
		excused := unaudited[table]
		if excused["*"] != "" {
			continue
		}
		for _, c := range columns(t, store, table) {
			v := map[string]string{"TEXT": c[0] + " || 'x'", "INTEGER": "CASE WHEN " + c[0] + " = 1 THEN 0 ELSE " + c[0] + " + 1 END", "BLOB": "x'3000'"}[c[1]]
			change := fmt.Sprintf("UPDATE %s SET %s = %s", table, c[0], v)
			res, err := store.sql.Exec(change + fmt.Sprintf(" WHERE rowid = (SELECT max(rowid) FROM %s)", table))
			if err != nil { // a table without rowid
				res, err = store.sql.Exec(change)
			}
			if err != nil && excused[c[0]] != "" {
				continue // a constraint
			}
			try(err)
			if n, err := res.RowsAffected(); err != nil || n == 0 {
				t.Fatalf("%s is empty: %v", table, err)
			}
			switch found := audit() > 0; {
			case !found && excused[c[0]] == "":
				t.Errorf("%s.%s was changed, and the audit does not see it", table, c[0])
			case found && excused[c[0]] != "":
				t.Errorf("%s.%s is found: no reason is needed", table, c[0])
			}
			store.restore()
		}
	}
}

// columns are a table's names and types.
func columns(t *testing.T, store *tampered, table string) (out [][2]string) {
	t.Helper()
	rows, err := store.sql.QueryContext(t.Context(), "SELECT name, type FROM pragma_table_info('"+table+"')")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var c [2]string
		if err := rows.Scan(&c[0], &c[1]); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}
