package provider_test

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// TestLife follows one device from birth to renewal, on both stores.
func TestLife(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		chains := map[string]*x509.Certificate{"IAK": u.iak, "IDevID": u.idevid, "LDevID": u.ldevid, "operational": u.op}
		for name, c := range chains {
			inter := x509.NewCertPool()
			certs, err := r.p.Certificates(t.Context(), "acme", "acme-sn0001")
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range certs {
				if row.Digest == ca.Digest(c.Raw) {
					for _, der := range r.p.Chain(row)[:1] {
						i, err := x509.ParseCertificate(der)
						if err != nil {
							t.Fatal(err)
						}
						inter.AddCert(i)
					}
				}
			}
			if _, err := c.Verify(x509.VerifyOptions{Roots: r.roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				t.Errorf("%s does not chain to the account's evaluation root: %v", name, err)
			}
			if c.Subject.CommonName != "acme-sn0001" || len(c.Subject.Organization) != 1 || c.Subject.Organization[0] != "acme" {
				t.Errorf("%s has subject %s", name, c.Subject)
			}
			production := x509.NewCertPool()
			production.AddCert(r.root(cradle.Production))
			if _, err := c.Verify(x509.VerifyOptions{Roots: production, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
				t.Errorf("%s of a software key chains to the production root", name)
			}
		}
		if !u.idevid.NotAfter.Equal(ca.Forever) {
			t.Errorf("IDevID ends %v, want 99991231235959Z", u.idevid.NotAfter)
		}
		d, err := r.p.Device(t.Context(), "acme", "acme-sn0001")
		if err != nil || d.State != cradle.Active {
			t.Fatalf("device is %s, %v; want active", d.State, err)
		}
		renewed, err := r.renew(u, u.op)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.renew(u, renewed); err != nil { // shows that renewed is in use
			t.Fatal(err)
		}
		r.check()
	})
}

// TestOrderRefusals: each field of an order is enforced where the IDevID is made.
func TestOrderRefusals(t *testing.T) {
	cases := []struct {
		name   string
		change func(*order.Order)
		bend   func(t *testing.T, r *rig, u *unit)
		part   string
	}{
		{"serial below the range", nil, func(_ *testing.T, _ *rig, u *unit) { u.serial = "SN0000" }, "outside the order's range"},
		{"serial above the range", nil, func(_ *testing.T, _ *rig, u *unit) { u.serial = "SN0101" }, "outside the order's range"},
		{"serial of another form", nil, func(_ *testing.T, _ *rig, u *unit) { u.serial = "SN1" }, "outside the order's range"},
		{"TPM maker not in the order", func(o *order.Order) { o.TPMMakers = []cradle.MakerID{"other"} }, nil, "maker"},
		{"EK type not in the order", func(o *order.Order) { o.EKTypes = []string{"rsa2048"} }, nil, "type"},
		{"unknown TPM maker", nil, func(t *testing.T, r *rig, u *unit) {
			m, err := newMaker()
			if err != nil {
				t.Fatal(err)
			}
			if u.Device, err = m.NewDevice(""); err != nil {
				t.Fatal(err)
			}
		}, "evidence refused"},
		{"order expired", nil, func(_ *testing.T, r *rig, _ *unit) { r.advance(400 * 24 * time.Hour) }, "expired"},
		{"order not begun", func(o *order.Order) { o.NotBefore = time.Now().Add(time.Hour) }, nil, "begins"},
		{"another order than the station's", nil, func(_ *testing.T, r *rig, u *unit) {
			other := r.order(nil)
			r.station(other)
			u.order = other
		}, "this station works on order"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, t.TempDir()+"/p.db")
			o := r.order(c.change)
			station := r.station(o)
			u := r.unit(o, "SN0001")
			if c.bend != nil {
				c.bend(t, r, u)
			}
			err := r.birth(u, station)
			if c.name == "order expired" { // the station's certificate ends with the order
				refused(t, err, cradle.Unauthorized, "expired")
			} else {
				refused(t, err, cradle.Forbidden, c.part)
			}
			got, err := r.p.Order(t.Context(), o.ID)
			if err != nil || got.Used != 0 {
				t.Errorf("order used = %d, %v; a refusal must not use it", got.Used, err)
			}
			if c.name != "order expired" {
				r.check()
			}
		})
	}
}

// TestBirth: quantity, and one TPM is one unit.
func TestBirth(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(func(o *order.Order) { o.Quantity = 2 })
		station := r.station(o)
		a := r.unit(o, "SN0001")
		if err := r.birth(a, station); err != nil {
			t.Fatal(err)
		}
		first := a.idevid

		// The same unit again, as after a crash of the line, with its own keys: the same certificates.
		iak, err := r.enroll(a, attempt{profile: cradle.IAK, peer: station, key: a.IAK, claim: a.claim()})
		if err != nil || !iak.Equal(a.iak) {
			t.Fatalf("the unit's IAK again: %v; want the same certificate", err)
		}
		// Another IDevID key for it is refused.
		err = r.birth(a, station)
		refused(t, err, cradle.Forbidden, "for another key")
		a.idevid = first

		// The same TPM under another serial, another TPM under the same serial.
		twin := *a
		twin.serial = "SN0002"
		refused(t, r.birth(&twin, station), cradle.Forbidden, "is another unit already")
		refused(t, r.birth(r.unit(o, "SN0001"), station), cradle.Forbidden, "was given to another TPM")

		if err := r.birth(r.unit(o, "SN0003"), station); err != nil {
			t.Fatal(err)
		}
		refused(t, r.birth(r.unit(o, "SN0004"), station), cradle.Forbidden, "is used up")
		if got, err := r.p.Order(t.Context(), o.ID); err != nil || got.Used != 2 {
			t.Errorf("used %d, %v", got.Used, err)
		}

		if _, err := r.p.WithdrawOrder(t.Context(), o.ID, "test"); err != nil {
			t.Fatal(err)
		}
		refused(t, r.birth(r.unit(o, "SN0005"), station), cradle.Forbidden, "withdrawn")
		r.check()
	})
}

// TestOrderNeedsBothSignatures: no birth before the OEM countersigned, none with a foreign signature.
func TestOrderNeedsBothSignatures(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	station := r.station(o)
	waiting := r.order(func(o *order.Order) { o.SerialPrefix = "X" })
	u := r.unit(waiting, "X0001")
	refused(t, r.birth(u, station), cradle.Forbidden, "is signed")

	jws := r.signed(waiting)
	_, err := r.p.AcceptOrder(t.Context(), waiting.ID, order.AcceptRequest{Order: jws}, "https://x")
	refused(t, err, cradle.Unauthorized, "not countersigned")
	forged, err := order.Countersign(jws, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.p.AcceptOrder(t.Context(), waiting.ID, order.AcceptRequest{Order: forged}, "https://x")
	refused(t, err, cradle.Unauthorized, "")
	r.account = newKey(t) // not the registered one
	_, err = r.p.CreateOrder(t.Context(), r.signed(waiting), func(cradle.AccountID) error { return nil })
	refused(t, err, cradle.Unauthorized, "")
}

// TestWhoMayAskForWhat walks the table of DESIGN §2 from its wrong side.
func TestWhoMayAskForWhat(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	station := r.station(o)
	u := r.active(o, station, "SN0001")
	made := r.unit(o, "SN0002")
	if err := r.birth(made, station); err != nil {
		t.Fatal(err)
	}
	if _, err := r.p.CreateAccount(t.Context(), "other", spki(t, newKey(t)), provider.Profiles{}, provider.CAs{}); err != nil {
		t.Fatal(err)
	}
	foreign, err := r.maker.NewDevice("")
	if err != nil {
		t.Fatal(err)
	}
	foreignCert, err := x509.ParseCertificate(foreign.EKCert)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		u    *unit
		a    attempt
		kind cradle.Kind
		part string
	}{
		{"LDevID before the lot is accepted", made, attempt{profile: cradle.LDevID, peer: made.idevid}, cradle.Forbidden, "not accepted yet"},
		{"operational before the lot is accepted", made, attempt{profile: cradle.Operational, peer: made.idevid}, cradle.Forbidden, "not accepted yet"},
		{"IDevID asked for with an LDevID", u, attempt{profile: cradle.IDevID, peer: u.ldevid, claim: u.claim()}, cradle.Forbidden, "does not authenticate"},
		{"LDevID asked for by the station", u, attempt{profile: cradle.LDevID, peer: station}, cradle.Forbidden, "does not authenticate"},
		{"LDevID asked for with an operational certificate", u, attempt{profile: cradle.LDevID, peer: u.op}, cradle.Forbidden, "does not authenticate"},
		{"renewal authenticated by the LDevID", u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.ldevid, subject: u.op.Subject}, cradle.Forbidden, "does not authenticate"},
		{"another account's label", u, attempt{profile: cradle.Operational, peer: u.ldevid, account: "other"}, cradle.Forbidden, "belongs to another account"},
		{"a certificate that was not issued here", u, attempt{profile: cradle.Operational, peer: foreignCert}, cradle.Unauthorized, "was not issued here"},
		{"renewal with another subject", u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.op}, cradle.Invalid, "is not that of the certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := c.u.NewOperational()
			if err != nil {
				t.Fatal(err)
			}
			c.a.key = k
			_, err = r.enroll(c.u, c.a)
			refused(t, err, c.kind, c.part)
		})
	}
	r.check()
}

// TestChallenge: spent once, by one client, in time.
func TestChallenge(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		u, v := r.active(o, station, "SN0001"), r.active(o, station, "SN0002")
		k, err := u.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		ask := attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.op, key: k, subject: u.op.Subject}
		req, err := r.request(r.p, u, ask)
		if err != nil {
			t.Fatal(err)
		}
		first, err := r.p.Enroll(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}

		// A lost reply: the very same request, also at another replica, gets the very same certificate.
		again, err := r.replica(r.db).Enroll(t.Context(), req)
		if err != nil || !bytes.Equal(again.DER, first.DER) {
			t.Fatalf("the same request again: %v; want the same certificate", err)
		}

		// The same challenge under another CSR.
		k2, err := u.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		b := evidence.Binding{Account: "acme", Label: req.Label, AuthCert: u.op.Raw}
		csr, err := evidence.ParseCSR(req.CSR)
		if err != nil {
			t.Fatal(err)
		}
		b.Challenge = csr.Bundle.Challenge
		if b.SPKI, err = x509.MarshalPKIXPublicKey(k2.Public()); err != nil {
			t.Fatal(err)
		}
		extra := b.ExtraData()
		cert, err := u.Certify(k2, extra[:])
		if err != nil {
			t.Fatal(err)
		}
		other := req
		if other.CSR, err = evidence.CreateCSR(u.op.Subject, k2, &evidence.Bundle{Certify: &cert, Challenge: b.Challenge}); err != nil {
			t.Fatal(err)
		}
		_, err = r.p.Enroll(t.Context(), other)
		refused(t, err, cradle.Conflict, "spent by another request")

		// By another client.
		stolen := req
		stolen.Client.Peer = v.op
		_, err = r.p.Enroll(t.Context(), stolen)
		if err == nil {
			t.Fatal("another device's challenge was accepted")
		}

		// Too late for the first time, and too late to be answered again.
		late, err := r.request(r.p, u, ask)
		if err != nil {
			t.Fatal(err)
		}
		r.advance(6 * time.Minute)
		_, err = r.p.Enroll(t.Context(), late)
		refused(t, err, cradle.Forbidden, "challenge")
		r.check()
	})
}

// TestReplayEnds: a certificate that was seen in use is not handed out again.
func TestReplayEnds(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	k, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	req, err := r.request(r.p, u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.op, key: k, subject: u.op.Subject})
	if err != nil {
		t.Fatal(err)
	}
	next, err := r.p.Enroll(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.renew(u, parsed(t, next.DER)); err != nil {
		t.Fatal(err)
	}
	_, err = r.p.Enroll(t.Context(), req)
	refused(t, err, cradle.Forbidden, "superseded")
}

// TestRevocation: nothing is issued to a device that is suspended, revoked or retired; only a suspension ends.
func TestRevocation(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		id := cradle.DeviceID("acme-sn0001")
		change := func(c provider.StateChange) error {
			_, err := r.p.ChangeState(t.Context(), "acme", id, c, "test")
			return err
		}
		refused(t, change(provider.Release), cradle.Conflict, "is active")
		if err := change(provider.Suspend); err != nil {
			t.Fatal(err)
		}
		_, err := r.renew(u, u.op)
		refused(t, err, cradle.Forbidden, "is suspended")
		if err := change(provider.Release); err != nil {
			t.Fatal(err)
		}
		if _, err := r.renew(u, u.op); err != nil {
			t.Fatal(err)
		}
		if err := change(provider.Revoke); err != nil {
			t.Fatal(err)
		}
		for _, peer := range []*x509.Certificate{u.op, u.ldevid, u.idevid} {
			_, err = r.enrollKey(u, cradle.Operational, peer)
			refused(t, err, cradle.Forbidden, "revoked")
		}
		refused(t, change(provider.Release), cradle.Conflict, "is revoked")
		e, err := r.p.After(t.Context(), 0, false)
		if err != nil || len(e.Body) == 0 {
			t.Fatal(err)
		}
		r.check()
	})
}

// TestQuarantine: a superseded certificate that shows up again; attesting afresh heals.
func TestQuarantine(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		next, err := r.renew(u, u.op)
		if err != nil {
			t.Fatal(err)
		}
		third, err := r.renew(u, next) // next is in use: u.op is superseded
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.renew(u, u.op)
		refused(t, err, cradle.Forbidden, "superseded")
		_, err = r.renew(u, third)
		refused(t, err, cradle.Forbidden, "quarantine")
		healed, err := r.enrollKey(u, cradle.Operational, u.ldevid)
		if err != nil {
			t.Fatalf("attesting afresh: %v", err)
		}
		if _, err := r.renew(u, healed); err != nil {
			t.Fatal(err)
		}
		r.check()
	})
}

// TestAfterExpiry: an expired operational certificate heals by the LDevID, and by the IDevID.
func TestAfterExpiry(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	r.advance(2 * time.Hour)
	_, err := r.renew(u, u.op)
	refused(t, err, cradle.Unauthorized, "expired")
	for _, peer := range []*x509.Certificate{u.ldevid, u.idevid} {
		if _, err := r.enrollKey(u, cradle.Operational, peer); err != nil {
			t.Errorf("healing with %s: %v", peer.Issuer, err)
		}
	}
	r.check()
}

// TestLotWaits: a lot that does not match its order waits for the owner.
func TestLotWaits(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(func(o *order.Order) { o.AutoAccept = false })
	u := r.unit(o, "SN0001")
	if err := r.birth(u, r.station(o)); err != nil {
		t.Fatal(err)
	}
	req := r.report(o, u)
	a, err := r.p.CloseLot(t.Context(), o.ID, req)
	if err != nil || a.State != order.LotWaiting {
		t.Fatalf("lot: %+v, %v; want waiting", a, err)
	}
	refused(t, r.ownerCredentials(u), cradle.Forbidden, "not accepted yet")
	_, err = r.p.AcceptLot(t.Context(), a.Lot, req.Custody)
	refused(t, err, cradle.KindOf(err), "custody")
	if err := r.accept(a.Lot, req); err != nil {
		t.Fatal(err)
	}
	if err := r.ownerCredentials(u); err != nil {
		t.Fatal(err)
	}
	r.check()
}

// TestSameName: a store whose logs are signed under one name is not served under another.
func TestSameName(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url, func(c *provider.Config) { c.Origin, c.Region = "iot.example.com", "eu" })
		r.export() // signs
		for _, c := range []provider.Config{{Origin: "iot.example.com"}, {Origin: "other.example.com", Region: "eu"}, {Origin: "iot.example.com", Region: "us"}} {
			c.Store, c.Vault, c.Replica, c.Log = r.db, r.vault, "r", slog.New(slog.DiscardHandler)
			_, err := provider.New(t.Context(), c)
			refused(t, err, cradle.Invalid, "iot.example.com in region eu")
			if _, hint := cradle.Public(err); !strings.Contains(hint, "--host iot.example.com --region eu") {
				t.Errorf("host %q, region %q: hint %q", c.Origin, c.Region, hint)
			}
		}
		r.replica(r.db)
	})
}
