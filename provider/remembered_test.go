package provider_test

import (
	"crypto/x509"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// TestRememberedRecordIsLookedAtAgain: a replica that remembers a client's record refuses by what another replica
// changed since, for the reason that it would give had it read the record; and what became allowed is allowed at once.
func TestRememberedRecordIsLookedAtAgain(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		other := r.replica(r.db)
		o := r.order(nil)
		station := r.station(o)
		// renewal is a request that needs no more than being sent, by a certificate whose record r.p remembers.
		renewal := func(u *unit, peer *x509.Certificate) provider.Request {
			t.Helper()
			k, err := u.NewOperational()
			if err != nil {
				t.Fatal(err)
			}
			req, err := r.request(r.p, u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: peer, key: k, subject: peer.Subject})
			if err != nil {
				t.Fatal(err)
			}
			return req
		}
		device := func(u *unit) cradle.DeviceID { return cradle.DeviceID(u.op.Subject.CommonName) }
		for i, c := range []struct {
			name   string
			change func(u *unit) error
			kind   cradle.Kind
			reason string
		}{
			{"the device is suspended", func(u *unit) error {
				_, err := other.ChangeState(t.Context(), "acme", device(u), provider.Suspend, "")
				return err
			}, cradle.Forbidden, "is suspended"},
			{"the certificate is on hold", func(u *unit) error {
				_, _, err := other.ChangeCertificate(t.Context(), "acme", ca.SerialString(u.op.SerialNumber), provider.Suspend, "")
				return err
			}, cradle.Forbidden, "on hold"},
			{"the certificate is superseded", func(u *unit) error {
				first, err := other.Enroll(t.Context(), renewal(u, u.op))
				if err != nil {
					return err
				}
				_, err = other.Enroll(t.Context(), renewal(u, parsed(t, first.DER))) // seen in use
				return err
			}, cradle.Forbidden, "was superseded"},
			{"the lineage is in quarantine", func(u *unit) error {
				stolen := u.op
				first, err := r.renew(u, stolen)
				if err != nil {
					return err
				}
				for range 2 { // promoted, then remembered as current
					if _, err := r.renew(u, first); err != nil {
						return err
					}
				}
				u.op = first
				_, err = other.Enroll(t.Context(), renewal(u, stolen))
				refused(t, err, cradle.Forbidden, "was superseded")
				return nil
			}, cradle.Forbidden, "quarantine"},
		} {
			u := r.active(o, station, "SN000"+string(rune('1'+i)))
			if _, err := r.p.Enroll(t.Context(), renewal(u, u.op)); err != nil { // its record is remembered
				t.Fatal(err)
			}
			by := u.op
			req := renewal(u, by)
			if err := c.change(u); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if u.op != by {
				req = renewal(u, u.op)
			}
			_, err := r.p.Enroll(t.Context(), req)
			refused(t, err, c.kind, c.reason)
		}
		r.check()
	})
}

// TestRememberedBecomesAllowed: a record that was remembered before the lot was accepted does not stand in the way.
func TestRememberedBecomesAllowed(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(func(o *order.Order) { o.AutoAccept = false })
	u := r.unit(o, "SN0001")
	if err := r.birth(u, r.station(o)); err != nil {
		t.Fatal(err)
	}
	req := r.report(o, u)
	a, err := r.p.CloseLot(t.Context(), o.ID, req)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, r.ownerCredentials(u), cradle.Forbidden, "not accepted yet")
	if err := r.accept(a.Lot, req); err != nil {
		t.Fatal(err)
	}
	if err := r.ownerCredentials(u); err != nil {
		t.Fatal(err)
	}
	// The certificate that follows is promoted by its first use, and again by the one after it.
	for peer := range 3 {
		next, err := r.renew(u, u.op)
		if err != nil {
			t.Fatalf("renewal %d: %v", peer+1, err)
		}
		u.op = next
	}
	r.check()
}
