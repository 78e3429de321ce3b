package device_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
)

// Every service may be down for long, or silent; the device arrives when it is back.
func TestServicesDown(t *testing.T) {
	for _, call := range []string{"time", "cacerts", "nonce", "simpleenroll", "register", "connect", "publish"} {
		for name, fail := range map[string]error{"down": errNet, "busy": refuse(503, "later"), "silent": errHang} {
			t.Run(call+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					back := time.Now().Add(3 * time.Hour)
					w.fault = func(c string, acted bool) error {
						if c == call && !acted && time.Now().Before(back) {
							return fail
						}
						return nil
					}
					stop := w.start(w.options())
					w.until("telemetry", 4*time.Hour, func() bool { return len(w.seqs) >= 2 })
					if len(w.calls) > 900 {
						t.Errorf("%d calls in about three hours", len(w.calls))
					}
					if err := stop(); err != nil {
						t.Fatal(err)
					}
					w.check()
					if n, m := w.count(w.onboarding), w.count(w.operational); n != 1 || m != 1 {
						t.Errorf("%d LDevIDs and %d operational certificates, want one each", n, m)
					}
				})
			})
		}
	}
}

// The provider acts and its reply is lost, some times over: the same request gets the same certificate.
func TestLostReplies(t *testing.T) {
	for _, call := range []string{"time", "cacerts", "nonce", "simpleenroll", "simplereenroll", "register", "connect", "publish"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				lost := 0
				w.fault = func(c string, acted bool) error {
					if c == call && acted && lost%4 != 3 {
						lost++
						return errNet
					} else if c == call && acted {
						lost++
					}
					return nil
				}
				stop := w.start(w.options())
				w.until("two renewals", 3*24*time.Hour, func() bool {
					return w.count(w.operational) >= 3 && w.conn != nil && w.conn.thumb == thumb(w.issued[len(w.issued)-1].Raw)
				})
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if lost == 0 {
					t.Error("nothing was lost")
				}
				w.check()
				if w.count(w.onboarding) != 1 {
					t.Errorf("%d LDevIDs", w.count(w.onboarding))
				}
				for _, c := range w.issued[1:] {
					if !w.registered[thumb(c.Raw)] {
						t.Error("a certificate was issued that the device never used")
					}
				}
			})
		})
	}
}

// Renewal fails for longer than the certificate lives. The old one is kept while it works, then the
// LDevID gets a new one; nothing that works is dropped on the way.
func TestRenewalFails(t *testing.T) {
	for name, fail := range map[string]error{"down": errNet, "refused": refuse(403, "no renewals today")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				stop := w.start(w.options())
				w.until("a connection", time.Hour, func() bool { return len(w.connects) > 0 })
				first := w.connects[0]
				back := time.Now().Add(30 * time.Hour)
				w.mu.Lock()
				w.fault = func(c string, _ bool) error {
					if time.Now().Before(back) && (c == "simplereenroll" || c == "simpleenroll") {
						return fail
					}
					return nil
				}
				w.mu.Unlock()
				time.Sleep(20 * time.Hour)
				w.mu.Lock()
				if w.conn == nil || w.conn.thumb != first {
					t.Error("not connected any more while the old certificate is good")
				}
				w.conn.cut() // and it may connect again
				w.mu.Unlock()
				w.until("a second connection", time.Hour, func() bool { return len(w.connects) == 2 })
				w.until("a new certificate", 12*time.Hour, func() bool { return len(w.connects) > 2 && w.connects[len(w.connects)-1] != first })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
				if n := w.count(w.onboarding); n != 1 {
					t.Errorf("%d LDevIDs", n)
				}
			})
		})
	}
}

// The hub or the provisioning service does not take the new certificate: the old one goes on.
func TestNewCertificateNotAccepted(t *testing.T) {
	for _, call := range []string{"register", "connect"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				stop := w.start(w.options())
				w.until("a connection", time.Hour, func() bool { return len(w.connects) > 0 })
				back := time.Now().Add(22 * time.Hour)
				w.mu.Lock()
				w.fault = func(c string, acted bool) error {
					if c == call && !acted && time.Now().Before(back) {
						return errNet
					}
					return nil
				}
				w.mu.Unlock()
				time.Sleep(20 * time.Hour)
				w.mu.Lock()
				if w.conn.thumb != thumb(w.issued[1].Raw) || len(w.connects) != 1 || w.count(w.operational) != 2 {
					t.Errorf("after a renewal that nobody took: %d connections, %d certificates", len(w.connects), w.count(w.operational))
				}
				n := len(w.seqs)
				w.mu.Unlock()
				time.Sleep(time.Hour)
				w.until("the new certificate to connect", 3*time.Hour, func() bool { return w.conn.thumb == thumb(w.issued[2].Raw) })
				if len(w.seqs) <= n {
					t.Error("no telemetry on the old connection")
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
			})
		})
	}
}

// Off for longer than the operational certificate lives, and for longer than the LDevID.
func TestExpiredWhileOff(t *testing.T) {
	for name, c := range map[string]struct {
		off     time.Duration
		ldevids int
	}{"operational": {48 * time.Hour, 1}, "both": {400 * 24 * time.Hour, 2}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				stop := w.start(w.options())
				w.until("telemetry", time.Hour, func() bool { return len(w.seqs) > 0 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.off)
				stop = w.start(w.options())
				w.until("a connection with a new certificate", time.Hour, func() bool { return len(w.connects) == 2 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
				if n := w.count(w.onboarding); n != c.ldevids || w.count(w.operational) != 2 {
					t.Errorf("%d LDevIDs, want %d; %d operational", n, c.ldevids, w.count(w.operational))
				}
			})
		})
	}
}

// A journal from before, as of a disk that was put back, holds credentials that newer ones have replaced: the device attests
// afresh with its IDevID and works again.
func TestOlderJournal(t *testing.T) {
	for name, off := range map[string]time.Duration{"operational good": time.Minute, "operational expired": 48 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				stop := w.start(w.options())
				w.until("telemetry", time.Hour, func() bool { return len(w.seqs) > 0 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.mu.Lock()
				w.superseded = map[string]bool{}
				for _, c := range w.issued {
					w.superseded[thumb(c.Raw)] = true
				}
				w.mu.Unlock()
				time.Sleep(off)
				stop = w.start(w.options())
				w.until("a new LDevID and a connection with a new certificate", 60*time.Hour, func() bool {
					return w.count(w.onboarding) == 2 && len(w.connects) > 1 && w.connects[len(w.connects)-1] != w.connects[0]
				})
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
			})
		})
	}
}

// TPM2_Clear ends the storage hierarchy's keys; the device starts again from its IDevID.
func TestTPMCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.start(w.options())
		w.until("telemetry", time.Hour, func() bool { return len(w.seqs) > 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.tpmCleared++
		stop = w.start(w.options())
		w.until("a connection with a new key", time.Hour, func() bool { return len(w.connects) == 2 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.check()
	})
}

// Killed at each kill point in turn (also with half of the journal written), the device goes on where it was.
func TestKilledAtEveryStep(t *testing.T) {
	for n := 1; ; n += testenv.Stride(9) {
		survived := false
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			o := w.options()
			points, at := 0, ""
			o.KillPoint = func(step string) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				if points++; points >= n { // once dead, nothing is written any more
					if at == "" {
						at = step
					}
					return errPower
				}
				return nil
			}
			stop := w.start(o)
			for range 24 * 60 { // until death, or the first renewal is through
				time.Sleep(time.Minute)
				w.mu.Lock()
				dead, done := at != "", len(w.connects) >= 2
				w.mu.Unlock()
				if dead || done {
					survived = !dead
					break
				}
			}
			if err := stop(); !survived && !errors.Is(err, errPower) {
				t.Errorf("killed at %s: Run returned %v", at, err)
			}
			w.mu.Lock()
			if w.conn != nil {
				w.conn.cut()
			}
			have := len(w.connects)
			w.mu.Unlock()
			stop = w.start(w.options())
			w.until("telemetry and a renewal after death at "+at, 3*24*time.Hour, func() bool {
				return len(w.seqs) > 3 && len(w.connects) > have+1
			})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			w.check()
			if c := w.count(w.onboarding); c != 1 {
				t.Errorf("killed at %s: %d LDevIDs", at, c)
			}
			for _, c := range w.issued[1 : len(w.issued)-1] {
				if !w.registered[thumb(c.Raw)] {
					t.Errorf("killed at %s: a certificate was issued that the device never used", at)
				}
			}
		})
		if survived || t.Failed() {
			t.Logf("%d kill points", n-1)
			if n < 30 && survived {
				t.Errorf("only %d kill points", n-1)
			}
			return
		}
	}
}
