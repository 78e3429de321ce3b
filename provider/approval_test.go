package provider_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// TestApproval: a request waits for an operator (RFC 7030 §4.2.3) and is known again by client, names and key,
// whatever its signature.
func TestApproval(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ok := must[*x509.Certificate](t)
		const profile = "guests"
		guests := ca.DefaultProfile(cradle.Operational)
		guests.Approval, guests.Default = true, false
		if _, err := r.p.SetProfiles(t.Context(), "acme", provider.Profiles{profile: guests}, false); err != nil {
			t.Fatal(err)
		}
		r.basicUser(profile, "guest", "")
		r.basicUser(profile, "other", "")
		waiting := func() []provider.Approval {
			t.Helper()
			out, err := r.p.Approvals(t.Context(), "acme", provider.Waiting)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		key := newKey(t)
		ask := func(user string) (*x509.Certificate, error) {
			return r.plain(profile, provider.Enroll, byBasic(user), plainCSR(t, "gw-1", key, false)) // a new signature each time
		}
		for range 3 {
			_, err := ask("guest")
			refused(t, err, cradle.Pending, "waits for an operator's approval")
			if d := cradle.RetryAfter(err); d <= 0 {
				t.Errorf("RetryAfter %v", d)
			}
		}
		list := waiting()
		if len(list) != 1 || list[0].Device != "gw-1" || list[0].Client != "basic/guest" {
			t.Fatalf("waiting: %+v", list)
		}
		if _, err := r.p.Device(t.Context(), "acme", "gw-1"); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("the device is there before it was approved: %v", err)
		}
		if _, err := r.p.Decide(t.Context(), list[0].ID, true, ""); err != nil {
			t.Fatal(err)
		}
		_, err := r.p.Decide(t.Context(), list[0].ID, false, "too late")
		refused(t, err, cradle.Conflict, "does not wait")
		// A key of another device's is refused at once: no approval could make a certificate of it.
		taken := newKey(t)
		r.basicUser(cradle.Operational, "line", "")
		ok(r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-7", taken, false)))
		_, err = r.plain(profile, provider.Enroll, byBasic("guest"), plainCSR(t, "gw-8", taken, false))
		refused(t, err, cradle.Forbidden, "belongs to another device")
		// Another key, another name or another client waits anew.
		_, err = r.plain(profile, provider.Enroll, byBasic("guest"), plainCSR(t, "gw-1", newKey(t), false))
		refused(t, err, cradle.Pending, "")
		_, err = r.plain(profile, provider.Enroll, byBasic("guest"), plainCSR(t, "gw-2", key, false))
		refused(t, err, cradle.Pending, "")
		_, err = ask("other")
		refused(t, err, cradle.Pending, "")
		c := ok(ask("guest"))
		if again := ok(ask("guest")); !again.Equal(c) {
			t.Error("the lost answer was another certificate")
		}
		ok(r.plain(profile, provider.Reenroll, byCert(c), reCSR(t, c))) // renewal waits for nobody
		r.advance(11 * time.Minute)
		_, err = ask("guest") // one approval, one certificate
		refused(t, err, cradle.Pending, "")

		for _, a := range waiting() {
			_, err := r.p.Decide(t.Context(), a.ID, false, "")
			refused(t, err, cradle.Invalid, "needs a reason")
			if _, err := r.p.Decide(t.Context(), a.ID, false, "unknown box"); err != nil {
				t.Fatal(err)
			}
		}
		_, err = ask("guest")
		refused(t, err, cradle.Forbidden, "unknown box")
		r.advance(8 * 24 * time.Hour)
		_, err = ask("guest") // forgotten
		refused(t, err, cradle.Pending, "")
		if n := len(waiting()); n != 1 {
			t.Errorf("%d wait, want 1", n)
		}
		r.check()
	})
}
