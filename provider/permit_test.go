package provider_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"database/sql"
	"encoding/hex"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/permit"
)

// What a taken front end may try. It has its credential, the database's password and the front end's key-encryption key;
// it lacks devices' keys and issuing keys.
func TestPermitAttacks(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	o := a.order(nil)
	st := a.station(o)
	u, victim := a.active(o, st, "SN0001"), a.active(o, st, "SN0002")
	renewal := func(u *unit) provider.Request {
		t.Helper()
		k, err := u.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		req, err := a.request(a.p, u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	ctx := t.Context()
	var kept provider.Permit // one that was spent
	for _, c := range []struct {
		name   string
		attack func(pm provider.Permit) error // pm's intent is stored and open
		kind   cradle.Kind
		part   string
	}{
		{"a permit twice", func(pm provider.Permit) error {
			kept = pm
			if _, err := a.door.Sign(ctx, pm); err != nil {
				t.Error(err)
			}
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Conflict, "the intent is done"},
		{"a permit twice at once", func(pm provider.Permit) error {
			errs := make(chan error, 4)
			for range 4 {
				go func() { _, err := a.door.Sign(ctx, pm); errs <- err }()
			}
			var last error
			done := 0
			for range 4 {
				if err := <-errs; err == nil {
					done++
				} else {
					last = err
				}
			}
			if done != 1 {
				t.Errorf("%d of 4 were signed", done)
			}
			return last
		}, cradle.Conflict, ""},
		{"a permit again whose first use was refused", func(pm provider.Permit) error {
			bent := pm
			bent.Request.Operation = provider.Reenroll
			if _, err := a.door.Sign(ctx, bent); err == nil {
				t.Error("signed")
			}
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Conflict, "the intent is void"},
		{"a spent permit later", func(provider.Permit) error { _, err := a.door.Sign(ctx, kept); return err }, cradle.Conflict, "the intent is done"},
		{"no intent", func(pm provider.Permit) error {
			pm.Intent = &provider.Intent{ID: "made-up"}
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.NotFound, "no intent"},
		{"a voided intent", func(pm provider.Permit) error {
			if err := a.db.VoidIssue(ctx, pm.Intent.ID, "test"); err != nil {
				t.Error(err)
			}
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Conflict, "the intent is void"},
		{"an intent of long ago", func(pm provider.Permit) error {
			a.advance(3 * time.Minute)
			defer a.advance(-3 * time.Minute)
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Conflict, "the intent is of"},
		{"another CSR, right in itself", func(pm provider.Permit) error {
			pm.Request.CSR = renewal(u).CSR
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "the permit's CSR is not the intent's"},
		{"another profile", func(pm provider.Permit) error {
			pm.Request.Profile, pm.Request.Label = cradle.LDevID, "acme-ldevid"
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "account, profile or operation"},
		{"another label", func(pm provider.Permit) error {
			pm.Request.Label = "acme-ldevid"
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "label"},
		{"another device's certificate", func(pm provider.Permit) error {
			pm.Request.Client.Peer = victim.ldevid
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "evidence"},
		{"no certificate", func(pm provider.Permit) error {
			pm.Request.Client.Peer = nil
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Unauthorized, "no TLS client certificate"},
		{"an intent for another device", func(pm provider.Permit) error {
			in := *pm.Intent
			in.ID, in.Device, in.Challenge, in.SPKI = "forged-1", cradle.DeviceID(victim.op.Subject.CommonName), "forged-1", "forged-1"
			if _, err := a.db.BeginIssue(ctx, &in, nil, ""); err != nil {
				t.Error(err)
			}
			pm.Intent = &in
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "the permit's device is not the intent's"},
		{"an intent under another CA", func(pm provider.Permit) error {
			in := *pm.Intent
			in.ID, in.Authority, in.Challenge = "forged-2", "0000", "forged-2"
			if _, err := a.db.BeginIssue(ctx, &in, nil, ""); err != nil {
				t.Error(err)
			}
			pm.Intent = &in
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Busy, "rolled"},
		{"an intent with a challenge of its own", func(pm provider.Permit) error {
			in := *pm.Intent
			in.ID, in.Challenge = "forged-3", "forged-3"
			if _, err := a.db.BeginIssue(ctx, &in, nil, ""); err != nil {
				t.Error(err)
			}
			pm.Intent = &in
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "challenge"},
		{"evidence of another TPM", func(pm provider.Permit) error {
			req := forged(t, a.rig, u, victim)
			in := *pm.Intent
			in.ID, in.CSR, in.Challenge = "forged-4", hexSHA256(req.CSR), "forged-4"
			if _, err := a.db.BeginIssue(ctx, &in, nil, ""); err != nil {
				t.Error(err)
			}
			pm.Intent, pm.Request = &in, req
			_, err := a.door.Sign(ctx, pm)
			return err
		}, cradle.Forbidden, "evidence"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reached := false
			f := func(_ context.Context, pm provider.Permit) (*provider.Issued, error) {
				reached = true
				return nil, c.attack(pm)
			}
			req := renewal(u)
			a.attack.Store(&f)
			defer a.attack.Store(nil)
			_, err := a.p.Enroll(ctx, req)
			if !reached {
				t.Fatalf("the front end did not come to its signer: %v", err)
			}
			refused(t, err, c.kind, c.part)
		})
	}
	a.check()
}

// Who writes to the store exchanges the attestation key on record for one of his own: the front end's checks pass, the
// signer's do not.
func TestSignerDoubtsTheRecord(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	o := a.order(nil)
	st := a.station(o)
	u, thief := a.active(o, st, "SN0001"), a.active(o, st, "SN0002")
	db, err := sql.Open("sqlite", a.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exchange := func(set string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), `UPDATE devices SET `+set+` WHERE serial = 'SN0001'`, args...); err != nil {
			t.Fatal(err)
		}
	}
	exchange(`iak = ?`, thief.IAK.TPMTPublic())
	_, err = a.p.Enroll(t.Context(), forged(t, a.rig, u, thief))
	refused(t, err, cradle.Forbidden, "is not the one that was certified at its birth")
	exchange(`iak_cert = ?`, hexSHA256(thief.iak.Raw)) // and the certificate with it
	_, err = a.p.Enroll(t.Context(), forged(t, a.rig, u, thief))
	refused(t, err, cradle.Forbidden, "is not the one that was certified at its birth")
	exchange(`iak = ?, iak_cert = ?`, u.IAK.TPMTPublic(), hexSHA256(u.iak.Raw))
	if _, err := a.renew(u, u.op); err != nil {
		t.Error(err)
	}
}

// Strangers at the signer's door.
func TestPermitDoor(t *testing.T) {
	a := newApart(t, filepath.Join(t.TempDir(), "p.db"))
	ask := func(id *permit.Identity, method, path, body string) (int, string) {
		t.Helper()
		conf := &tls.Config{InsecureSkipVerify: true}
		if id != nil {
			conf.Certificates = []tls.Certificate{id.Certificate}
		}
		req, err := http.NewRequest(method, a.server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	for _, c := range []struct {
		name, method, path, body string
		id                       *permit.Identity
		status                   int
		part                     string
	}{
		{"no certificate", "POST", permit.Path, `{}`, nil, 401, "no TLS client certificate"},
		{"another's certificate", "POST", permit.Path, `{}`, identity(t), 401, "of no front end"},
		{"another method", "GET", permit.Path, ``, a.front, 404, "POST"},
		{"another path", "POST", "/signer/v1/sign", `{}`, a.front, 404, "takes permits, and nothing else"},
		{"no JSON", "POST", permit.Path, `x`, a.front, 400, "request body"},
		{"an unknown member", "POST", permit.Path, `{"key":"x"}`, a.front, 400, "unknown field"},
		{"a certificate that is none", "POST", permit.Path, `{"peer":"AAAA"}`, a.front, 400, "client's certificate"},
		{"too much", "POST", permit.Path, `{"intent":"` + strings.Repeat("x", 2<<20) + `"}`, a.front, 400, "request body"},
		{"an order that nobody signed to prepare", "POST", permit.PreparePath, `{"order":{"payload":"e30","signatures":[]}}`, a.front, 400, "0 signatures"},
		{"an order that nobody signed", "POST", permit.AcceptPath, `{"order":"ord-1","request":{},"provider_url":""}`, a.front, 404, "no order"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, body := ask(c.id, c.method, c.path, c.body); status != c.status || !strings.Contains(body, c.part) {
				t.Errorf("answered %d %s, want %d with %q", status, body, c.status, c.part)
			}
		})
	}
	a.handler.PerSecond = 3
	busy := 0
	for range 12 {
		if status, _ := ask(a.front, "POST", permit.Path, `{"intent":"x"}`); status == 503 {
			busy++
		}
	}
	if busy == 0 {
		t.Error("no permit was over the limit")
	}
	// And the other way: a front end does not take another server for its signer.
	_, err := permit.NewClient(a.server.URL, a.front, identity(t, permit.ServerName).Leaf).Sign(t.Context(), provider.Permit{Intent: &provider.Intent{}})
	refused(t, err, cradle.Busy, "the signer is away")
	// A front end that was withdrawn does not make the device's credential wrong.
	_, err = permit.NewClient(a.server.URL, identity(t), a.server.Certificate()).Sign(t.Context(), provider.Permit{Intent: &provider.Intent{}})
	refused(t, err, cradle.Busy, "does not take permits of this front end")
}

// forged is a request of u's in which everything is right but the evidence: another TPM made it.
func forged(t *testing.T, r *rig, u, other *unit) provider.Request {
	t.Helper()
	k, err := other.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	req, err := r.request(r.p, other, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func hexSHA256(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
