package provider_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// TestTwoReplicas: a challenge is spent once even when two replicas are asked at the same moment, and a
// quantity is not exceeded.
func TestTwoReplicas(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(func(o *order.Order) { o.Quantity = 3 })
		station := r.station(o)
		u := r.active(o, station, "SN0001")
		other := r.replica(r.db)
		k, err := u.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			req, err := r.request(r.p, u, attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.op, key: k, subject: u.op.Subject})
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			got := map[string]int{}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					p := []*provider.Provider{r.p, other}[i%2]
					c, err := p.Enroll(context.Background(), req)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						got[ca.Digest(c.DER)]++
					case cradle.KindOf(err) == cradle.Busy: // being worked on by the other one
					default:
						t.Errorf("refused: %v", err)
					}
				})
			}
			wg.Wait()
			if len(got) != 1 {
				t.Fatalf("one request got %d different certificates: %v", len(got), got)
			}
		}

		var made atomic.Int64
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				v := r.unit(o, fmt.Sprintf("SN%04d", i+10))
				if err := r.birth(v, station); err == nil {
					made.Add(1)
				} else if cradle.KindOf(err) != cradle.Forbidden {
					t.Errorf("refused: %v", err)
				}
			})
		}
		wg.Wait()
		if made.Load() != 2 {
			t.Errorf("%d further units were born, the quantity leaves 2", made.Load())
		}
		r.check()
	})
}

// errInjected is what a faulty store says.
var errInjected = cradle.Errorf(cradle.Busy, "injected: the store is away")

// faulty fails one chosen write, before it is stored or after.
type faulty struct {
	provider.Store
	before, after map[string]bool // by method; each fails once
	hook          func(method string)
}

func (f *faulty) fail(m string, set map[string]bool) error {
	if set[m] {
		delete(set, m)
		return errInjected
	}
	return nil
}

func (f *faulty) do(m string, write func() error) error {
	if f.hook != nil {
		f.hook(m)
	}
	if err := f.fail(m, f.before); err != nil {
		return err
	}
	if err := write(); err != nil {
		return err
	}
	return f.fail(m, f.after)
}

func (f *faulty) BeginIssue(ctx context.Context, i *provider.Intent, b *provider.Birth, promote cradle.CertSerial) (out provider.Begun, err error) {
	err = f.do("BeginIssue", func() error { out, err = f.Store.BeginIssue(ctx, i, b, promote); return err })
	return out, err
}

func (f *faulty) FinishIssue(ctx context.Context, intent string, c provider.Certificate, leaf ledger.Leaf) error {
	return f.do("FinishIssue", func() error { return f.Store.FinishIssue(ctx, intent, c, leaf) })
}

func (f *faulty) WorkJob(ctx context.Context, j provider.Job, devices []cradle.DeviceID, s provider.Standing, leaf provider.StandingLeaf) (out provider.Job, err error) {
	err = f.do("WorkJob", func() error { out, err = f.Store.WorkJob(ctx, j, devices, s, leaf); return err })
	return out, err
}

func (f *faulty) SaveCRL(ctx context.Context, s provider.Shard, previous int64, der []byte) error {
	return f.do("SaveCRL", func() error { return f.Store.SaveCRL(ctx, s, previous, der) })
}

func (f *faulty) SaveResponder(ctx context.Context, k provider.Responder, previous []byte, leaf ledger.Leaf) error {
	return f.do("SaveResponder", func() error { return f.Store.SaveResponder(ctx, k, previous, leaf) })
}

// TestStatusWritesFailOnce: whichever write of a set's revocation, a CRL or a responder fails or loses its answer, the next try ends as the
// first would have, and nothing is done twice.
func TestStatusWritesFailOnce(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url, func(c *provider.Config) { c.StatusURL = "http://status.example.com" })
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		shard := provider.ShardOf(u.op.Raw)
		issuer := r.certificate(u.op).Authority
		for i, when := range []string{"not stored", "stored, answer lost"} {
			for _, method := range []string{"WorkJob", "SaveCRL", "SaveResponder"} {
				f := &faulty{Store: r.db}
				set := map[string]bool{method: true}
				if when == "not stored" {
					f.before = set
				} else {
					f.after = set
				}
				p, again := r.replica(f), r.replica(r.db)
				switch method {
				case "WorkJob":
					ch := []provider.StateChange{provider.Suspend, provider.Release}[i]
					j, err := p.ChangeSet(t.Context(), "acme", provider.Selector{Kind: provider.ByOrder, Value: string(o.ID)}, ch, "")
					if err != nil || j.Done {
						t.Fatalf("%s %s: %+v, %v", method, when, j, err)
					}
					r.advance(time.Minute)
					if err := again.RunJobs(t.Context()); err != nil {
						t.Fatal(err)
					}
					if j, err = again.Job(t.Context(), "acme", j.ID); err != nil || !j.Done || j.Changed != 1 {
						t.Errorf("%s %s, then again: %+v, %v", method, when, j, err)
					}
				case "SaveCRL":
					if _, _, err := p.CRL(t.Context(), issuer, shard); !errors.Is(err, errInjected) {
						t.Fatalf("%s %s: %v", method, when, err)
					}
					s, der, err := again.CRL(t.Context(), issuer, shard)
					if err != nil || len(der) == 0 || s.Made != s.Wanted {
						t.Errorf("%s %s, then again: %+v, %v", method, when, s, err)
					}
				case "SaveResponder":
					if _, err := p.OCSPKey(t.Context(), issuer); !errors.Is(err, errInjected) {
						t.Fatalf("%s %s: %v", method, when, err)
					}
					k, err := again.OCSPKey(t.Context(), issuer)
					if err != nil {
						t.Fatal(err)
					}
					if same, err := p.OCSPKey(t.Context(), issuer); err != nil || !same.Cert.Equal(k.Cert) {
						t.Errorf("%s %s: two responders, %v", method, when, err)
					}
					r.advance(8 * 24 * time.Hour) // it is due again
				}
				r.check()
			}
		}
	})
}

// certificate returns the record of a certificate.
func (r *rig) certificate(c *x509.Certificate) provider.Certificate {
	r.t.Helper()
	k, err := r.db.Credential(r.t.Context(), ca.SerialString(c.SerialNumber), ca.Digest(c.Raw))
	if err != nil {
		r.t.Fatal(err)
	}
	return k.Cert
}

// TestEachWriteFailsOnce: whichever write of the cycle fails or loses its answer, the same request sent
// again ends with one certificate, and the records agree.
func TestEachWriteFailsOnce(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		for _, method := range []string{"BeginIssue", "FinishIssue"} {
			for _, when := range []string{"not stored", "stored, answer lost"} {
				f := &faulty{Store: r.db}
				if when == "not stored" {
					f.before = map[string]bool{method: true}
				} else {
					f.after = map[string]bool{method: true}
				}
				p := r.replica(f)
				k, err := u.NewOperational()
				if err != nil {
					t.Fatal(err)
				}
				req, err := r.request(p, u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := p.Enroll(t.Context(), req); !errors.Is(err, errInjected) {
					t.Fatalf("%s %s: %v", method, when, err)
				}
				// The server starts again.
				again := r.replica(r.db)
				if err := again.Recover(t.Context()); err != nil {
					t.Fatal(err)
				}
				first, err := again.Enroll(t.Context(), req)
				if err != nil {
					t.Fatalf("%s %s, then again: %v", method, when, err)
				}
				second, err := again.Enroll(t.Context(), req)
				if err != nil || !bytes.Equal(second.DER, first.DER) {
					t.Fatalf("%s %s, then twice: %v; want the same certificate", method, when, err)
				}
				r.check()
			}
		}
	})
}

// TestRevokedInTheMiddle: a device revoked between intent and signature gets nothing.
func TestRevokedInTheMiddle(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		before, err := r.p.Certificates(t.Context(), "acme", "acme-sn0001")
		if err != nil {
			t.Fatal(err)
		}
		f := &faulty{Store: r.db, hook: func(m string) {
			if m == "FinishIssue" {
				if _, err := r.p.ChangeState(t.Context(), "acme", "acme-sn0001", provider.Revoke, "stolen"); err != nil {
					t.Error(err)
				}
			}
		}}
		p := r.replica(f)
		k, err := u.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		req, err := r.request(p, u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Enroll(t.Context(), req)
		refused(t, err, cradle.Conflict, "became revoked meanwhile")
		after, err := r.p.Certificates(t.Context(), "acme", "acme-sn0001")
		if err != nil || len(after) != len(before) {
			t.Errorf("%d certificates, %v; before it were %d", len(after), err, len(before))
		}
		for _, c := range after {
			if c.Revoked.IsZero() {
				t.Errorf("certificate %s of the revoked device is not revoked", c.Serial)
			}
		}
		r.check()
	})
}

// TestCertificateRevokedInTheMiddle: what a certificate authenticated a moment before it was put on hold ends void.
func TestCertificateRevokedInTheMiddle(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		f := &faulty{Store: r.db, hook: func(m string) {
			if m == "FinishIssue" {
				if _, _, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(u.ldevid.SerialNumber), provider.Suspend, ""); err != nil {
					t.Error(err)
				}
			}
		}}
		k, err := u.NewOperational()
		if err != nil {
			t.Fatal(err)
		}
		p := r.replica(f)
		req, err := r.request(p, u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Enroll(t.Context(), req)
		refused(t, err, cradle.Conflict, "meanwhile")
		r.check()
	})
}

// TestOpenIntentsAreVoided: by age while others run, all of them at a lonely start.
func TestOpenIntentsAreVoided(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	f := &faulty{Store: r.db, before: map[string]bool{"FinishIssue": true}}
	p := r.replica(f)
	k, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	req, err := r.request(p, u, attempt{profile: cradle.Operational, peer: u.ldevid, key: k})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Enroll(t.Context(), req); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	_, err = p.Enroll(t.Context(), req) // still open: another replica may be at it
	refused(t, err, cradle.Busy, "being worked on")
	if n, err := r.db.VoidOpen(t.Context(), r.now().Add(-time.Minute), "another"); err != nil || n != 0 {
		t.Fatalf("voided %d young intents, %v", n, err)
	}
	if n, err := r.db.VoidOpen(t.Context(), r.now().Add(time.Second), ""); err != nil || n != 1 {
		t.Fatalf("voided %d, %v; want 1", n, err)
	}
	if _, err := p.Enroll(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	r.check()
}
