package provider_test

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// TestStateChange is the table of what an operator may do to a device (RFC 5280 §5.3.1: only a hold ends).
func TestStateChange(t *testing.T) {
	all := []cradle.DeviceState{cradle.Made, cradle.Accepted, cradle.Active, cradle.Suspended, cradle.Revoked, cradle.Retired}
	want := map[provider.StateChange][]cradle.DeviceState{ // "" is refused
		provider.Suspend: {cradle.Suspended, cradle.Suspended, cradle.Suspended, "", "", ""},
		provider.Release: {"", "", "", cradle.Active, "", ""},
		provider.Revoke:  {cradle.Revoked, cradle.Revoked, cradle.Revoked, cradle.Revoked, "", ""},
		provider.Retire:  {cradle.Retired, cradle.Retired, cradle.Retired, cradle.Retired, "", ""},
		"bless":          {"", "", "", "", "", ""},
	}
	for c, row := range want {
		for i, s := range all {
			got, err := c.Apply(s, provider.Whereabouts{LDevID: true, LotAccepted: true})
			if got != row[i] || (err != nil) != (row[i] == "") {
				t.Errorf("%s of a device that is %s: %q, %v; want %q", c, s, got, err, row[i])
			}
		}
	}
	for w, want := range map[provider.Whereabouts]cradle.DeviceState{{}: cradle.Made, {LotAccepted: true}: cradle.Accepted,
		{LDevID: true, LotAccepted: true}: cradle.Active, {Credential: true}: cradle.Active} {
		if got, err := provider.Release.Apply(cradle.Suspended, w); err != nil || got != want {
			t.Errorf("released with %+v: %q, %v; want %q", w, got, err, want)
		}
	}
}

// TestCertificateChange is the same for one certificate.
func TestCertificateChange(t *testing.T) {
	free, held, with, gone := provider.CertStanding{}, provider.CertStanding{Hold: true}, provider.CertStanding{Hold: true, ByDevice: true}, provider.CertStanding{Revoked: true}
	for _, c := range []struct {
		change    provider.StateChange
		have      provider.CertStanding
		suspended bool
		want      *provider.CertStanding
	}{
		{provider.Revoke, free, false, &gone},
		{provider.Revoke, held, false, &gone},
		{provider.Revoke, with, true, &gone},
		{provider.Revoke, gone, false, nil},
		{provider.Suspend, free, false, &held},
		{provider.Suspend, held, false, nil},
		{provider.Suspend, with, true, &held},
		{provider.Suspend, gone, false, nil},
		{provider.Release, free, false, nil},
		{provider.Release, held, false, &free},
		{provider.Release, held, true, &with},
		{provider.Release, with, true, nil},
		{provider.Release, gone, false, nil},
		{provider.Retire, free, false, nil},
	} {
		got, err := c.change.ApplyCert(c.have, c.suspended)
		if (err != nil) != (c.want == nil) || err == nil && got != *c.want {
			t.Errorf("%s of %+v, device suspended %v: %+v, %v; want %+v", c.change, c.have, c.suspended, got, err, c.want)
		}
	}
}

func TestReasons(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	id := cradle.DeviceID(u.op.Subject.CommonName)
	for _, c := range []struct {
		change       provider.StateChange
		reason, part string
	}{
		{provider.Suspend, "keyCompromise", "certificateHold"},
		{provider.Revoke, "certificateHold: for now", "not final"},
		{provider.Revoke, "cACompromise", "not a reason for a device's"},
		{provider.Revoke, strings.Repeat("x", 201), "at most 200"},
	} {
		_, err := r.p.ChangeState(t.Context(), "acme", id, c.change, c.reason)
		refused(t, err, cradle.Invalid, c.part)
	}
	if _, err := cradle.ParseReason("removeFromCRL"); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("removeFromCRL: %v", err)
	}
	for _, code := range []cradle.Reason{0, 1, 2, 3, 4, 5, 6, 9, 10} {
		if got, err := cradle.ParseReason(strings.ToUpper(code.String())); err != nil || got != code {
			t.Errorf("%s: %v, %v", code, got, err)
		}
	}
}

// TestRevokeCertificate: one certificate by its serial; the device goes on with its others.
func TestRevokeCertificate(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		u := r.active(o, station, "SN0001")
		id := cradle.DeviceID(u.op.Subject.CommonName)
		change := func(cert *x509.Certificate, c provider.StateChange, reason string) error {
			_, ev, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(cert.SerialNumber), c, reason)
			if err == nil && (ev.Certificate != ca.Digest(cert.Raw) || ev.Released != (c == provider.Release)) {
				err = fmt.Errorf("%s: event %+v", c, ev)
			}
			return err
		}
		device := func(c provider.StateChange) error {
			_, err := r.p.ChangeState(t.Context(), "acme", id, c, "")
			return err
		}
		blocked := func(peer *x509.Certificate) {
			t.Helper()
			_, err := r.enrollKey(u, cradle.Operational, peer)
			refused(t, err, cradle.Forbidden, "revoked or on hold")
		}
		ok := func(errs ...error) {
			t.Helper()
			for _, err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		onHold := func(want int) {
			t.Helper()
			certs, err := r.p.Certificates(t.Context(), "acme", id)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, c := range certs {
				if c.Hold {
					n++
				}
				if c.Hold && c.Revoked.IsZero() {
					t.Errorf("%s is on hold since never", c.Serial)
				}
			}
			if n != want {
				t.Errorf("%d certificates are on hold, want %d", n, want)
			}
		}
		// On hold by itself, through the suspension and release of its device, until it is released.
		ok(change(u.ldevid, provider.Suspend, ""))
		onHold(1)
		blocked(u.ldevid)
		if _, err := r.renew(u, u.op); err != nil {
			t.Fatalf("the device's other certificate: %v", err)
		}
		ok(device(provider.Suspend), device(provider.Release))
		blocked(u.ldevid)
		ok(change(u.ldevid, provider.Release, ""))
		onHold(0)
		if _, err := r.enrollKey(u, cradle.Operational, u.ldevid); err != nil {
			t.Fatalf("after the release: %v", err)
		}
		// Released while its device is suspended it waits for the device.
		ok(change(u.ldevid, provider.Suspend, ""), device(provider.Suspend), change(u.ldevid, provider.Release, ""))
		refused(t, change(u.op, provider.Release, ""), cradle.Conflict, "on hold with its device")
		ok(device(provider.Release))
		if _, err := r.enrollKey(u, cradle.Operational, u.ldevid); err != nil {
			t.Fatalf("after both releases: %v", err)
		}
		ok(change(u.op, provider.Revoke, "keyCompromise: found in a bin"))
		blocked(u.op)
		refused(t, change(u.op, provider.Release, ""), cradle.Conflict, "final")
		refused(t, change(u.op, provider.Revoke, ""), cradle.Conflict, "final")
		ok(change(station, provider.Revoke, "keyCompromise"))
		err := r.birth(r.unit(o, "SN0002"), station)
		refused(t, err, cradle.Forbidden, "revoked or on hold")
		_, _, err = r.p.ChangeCertificate(t.Context(), "acme", "abc", provider.Revoke, "")
		refused(t, err, cradle.NotFound, "no certificate with the serial")
		r.check()
		ok(device(provider.Revoke))
		r.check()
	})
}

// TestRevokeExpired: there is nothing to revoke.
func TestRevokeExpired(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	r.advance(2 * time.Hour)
	_, _, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(u.op.SerialNumber), provider.Revoke, "")
	refused(t, err, cradle.Conflict, "expired")
}
