package provider_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// edits is the store's file as who has taken it writes to it.
func (a *apart) edits(query string, args ...any) {
	a.t.Helper()
	db, err := sql.Open("sqlite", "file:"+a.url+"?_pragma=busy_timeout(10000)")
	if err != nil {
		a.t.Fatal(err)
	}
	defer db.Close()
	if r, err := db.ExecContext(a.t.Context(), query, args...); err != nil {
		a.t.Fatal(err)
	} else if n, _ := r.RowsAffected(); n != 1 {
		a.t.Fatalf("%s changed %d rows", query, n)
	}
}

// attacked sends a request through a front end that does something before it hands its permit to the signer.
func (a *apart) attacked(before func(pm *provider.Permit), send func() error) error {
	a.t.Helper()
	reached := false
	f := func(ctx context.Context, pm provider.Permit) (*provider.Issued, error) {
		reached = true
		before(&pm)
		return a.door.Sign(ctx, pm)
	}
	a.attack.Store(&f)
	defer a.attack.Store(nil)
	err := send()
	if !reached {
		a.t.Fatalf("the front end did not come to its signer: %v", err)
	}
	return err
}

// TestPermitOfAnEditedIntent: an intent that says anything else than the request it is brought with, in any of its columns,
// is signed for nobody.
func TestPermitOfAnEditedIntent(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	o := a.order(nil)
	u := a.active(o, a.station(o), "SN0001")
	for _, c := range []struct {
		column, value, part string
	}{
		{"account", "other", "account"},
		{"device", "acme-sn0002", "device"},
		{"profile", "ldevid", "account, profile or operation is"},
		{"operation", "serverkeygen", "account, profile or operation is"},
		{"authority", "0000", "rolled"},
		{"auth_cert", "0000", "authentication is"},
		{"auth_profile", "idevid", "authentication is"},
		{"csr", "0000", "CSR is"},
		{"spki", "0000", "key is"},
		{"challenge", "0000", "challenge is"},
		{"lineage", "operational/2", "lineage is"},
	} {
		t.Run(c.column, func(t *testing.T) {
			err := a.attacked(func(pm *provider.Permit) {
				a.edits(`UPDATE intents SET `+c.column+` = ? WHERE id = ?`, c.value, pm.Intent.ID)
			}, func() error {
				k, err := u.NewOperational()
				if err != nil {
					t.Fatal(err)
				}
				_, err = a.enroll(u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
				return err
			})
			if err == nil {
				t.Fatal("signed")
			}
			refused(t, err, cradle.KindOf(err), c.part)
		})
	}
}

// TestPermitWithoutEvidence: where no evidence ties a request to its label and its device, the signer's own look does; and
// an approval that the intent does not have, or that is another's, is none.
func TestPermitWithoutEvidence(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	const profile = "guests"
	guests := ca.DefaultProfile(cradle.Operational)
	guests.Evidence, guests.Approval = ca.EvidenceNone, true
	if _, err := a.p.SetProfiles(t.Context(), "acme", provider.Profiles{profile: guests}, false); err != nil {
		t.Fatal(err)
	}
	a.basicUser(profile, "guest", "")
	approved := func(name string) (id string, ask func() error) {
		t.Helper()
		csr := plainCSR(t, name, newKey(t), false)
		ask = func() error {
			_, err := a.plain(profile, provider.Enroll, byBasic("guest"), csr)
			return err
		}
		refused(t, ask(), cradle.Pending, "waits for an operator's approval")
		list, err := a.p.Approvals(t.Context(), "acme", provider.Waiting)
		if err != nil || len(list) != 1 {
			t.Fatalf("waiting: %+v, %v", list, err)
		}
		if _, err := a.p.Decide(t.Context(), list[0].ID, true, ""); err != nil {
			t.Fatal(err)
		}
		return list[0].ID, ask
	}
	other, _ := approved("gw-1")
	for name, c := range map[string]struct {
		before func(pm *provider.Permit)
		part   string
	}{
		"no approval": {func(pm *provider.Permit) {
			a.edits(`UPDATE approvals SET intent = '' WHERE intent = ?`, pm.Intent.ID)
		}, "the permit's approval is not the intent's"},
		"another's approval": {func(pm *provider.Permit) {
			a.edits(`UPDATE approvals SET intent = '' WHERE intent = ?`, pm.Intent.ID)
			a.edits(`UPDATE approvals SET intent = ?, state = 'used' WHERE id = ?`, pm.Intent.ID, other)
		}, "the permit's approval is not the intent's"},
		"another label": {func(pm *provider.Permit) { pm.Request.Label = "acme-operational" }, "the permit's label is not the intent's"},
	} {
		t.Run(name, func(t *testing.T) {
			_, ask := approved("gw-" + string(rune('a'+len(name))))
			refused(t, a.attacked(c.before, ask), cradle.Forbidden, c.part)
		})
	}
	_, ask := approved("gw-9")
	if err := ask(); err != nil {
		t.Errorf("rightly: %v", err)
	}
}
