package device_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/testenv"
)

func TestOnboard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.start(w.options())
		w.until("three messages", 2*time.Hour, func() bool { return len(w.seqs) >= 3 })
		r, err := device.Status(w.set)
		if err != nil {
			t.Fatal(err)
		}
		if r.Stage != device.StageConnected || !r.Running || r.LastError != nil || r.Hub != "hub.example:9883" || r.ClockTrust != "vouched" || len(r.Credentials) != 3 {
			t.Errorf("status %+v", r)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n, m := w.count(w.onboarding), w.count(w.operational); n != 1 || m != 1 {
			t.Errorf("%d LDevIDs and %d operational certificates, want one each", n, m)
		}
		w.check()
		if r, err = device.Status(w.set); err != nil || r.Running || r.Stage != device.StageStopped {
			t.Errorf("after the end: %+v, %v", r, err)
		}
	})
}

// Renewals follow each other, each registered and connected before the old one goes.
func TestRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.start(w.options())
		w.until("eight renewals", 8*24*time.Hour, func() bool { return w.count(w.operational) >= 9 && len(w.connects) >= 9 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.check()
		for i, c := range w.issued[1:] {
			if w.connects[i] != thumb(c.Raw) {
				t.Errorf("connection %d is not with certificate %d", i, i)
			}
			if i > 0 {
				took := c.NotBefore.Sub(w.issued[i].NotBefore)
				if took < 12*time.Hour || took > 17*time.Hour {
					t.Errorf("renewal %d after %v, want 0.54 to 0.66 of 24h", i, took)
				}
			}
		}
		if w.count(w.onboarding) != 1 {
			t.Error("a second LDevID")
		}
	})
}

// The LDevID is renewed too, by itself.
func TestLDevIDRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.opLife = 60 * 24 * time.Hour
		w.set.Telemetry.Interval *= 200
		stop := w.start(w.options())
		w.until("a connection", time.Hour, func() bool { return len(w.connects) > 0 })
		time.Sleep(190 * 24 * time.Hour)
		w.until("a second LDevID", 60*24*time.Hour, func() bool { return w.count(w.onboarding) == 2 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.check()
	})
}

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

// Revoked: refused everywhere. The device keeps what it has, asks slowly, and is back when released.
func TestBlockedAndReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.start(w.options())
		w.until("a connection", time.Hour, func() bool { return len(w.connects) > 0 })
		w.mu.Lock()
		w.blocked = true
		w.conn.cut()
		before := len(w.calls)
		w.mu.Unlock()
		time.Sleep(10 * time.Hour)
		r, err := device.Status(w.set)
		if err != nil || r.Stage != device.StageRefused || r.LastError == nil || len(r.Credentials) != 3 {
			t.Errorf("status %+v, %v", r, err)
		}
		w.mu.Lock()
		if n := len(w.calls) - before; n > 300 {
			t.Errorf("%d calls in ten hours of being refused", n)
		}
		w.blocked = false
		w.mu.Unlock()
		w.until("a connection after release", time.Hour, func() bool { return len(w.connects) > 1 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.check()
		if n, m := w.count(w.onboarding), w.count(w.operational); n != 1 || m != 1 {
			t.Errorf("%d LDevIDs and %d operational certificates, want one each", n, m)
		}
	})
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

func TestLotAcceptedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lot = false
		stop := w.start(w.options())
		time.Sleep(24 * time.Hour)
		w.mu.Lock()
		w.lot = true
		w.mu.Unlock()
		w.until("a connection", time.Hour, func() bool { return len(w.connects) > 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		w.check()
	})
}

// The system clock is wrong from the start, with and without a provider that states the time.
func TestClocks(t *testing.T) {
	for name, c := range map[string]struct {
		wall    time.Time
		noTime  bool
		arrives bool
	}{
		"1970":                   {time.Unix(0, 0), false, true},
		"2099":                   {time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), false, true},
		"1970, nobody to ask":    {time.Unix(0, 0), true, true},
		"2099, nobody to ask":    {time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), true, false},
		"far away and back home": {time.Date(9998, 1, 1, 0, 0, 0, 0, time.UTC), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.noTime, w.serverLife = c.noTime, 48*time.Hour
				w.set.Made = time.Now().Add(-300 * 24 * time.Hour) // made long before power-on
				began := time.Now()
				o := w.options()
				o.Wall = func() time.Time { return c.wall.Add(time.Since(began)) }
				stop := w.start(o)
				if !c.arrives {
					time.Sleep(72 * time.Hour)
					if len(w.issued) > 0 {
						t.Error("a certificate was asked for over TLS that nobody vouches for")
					}
					if err := stop(); err != nil {
						t.Fatal(err)
					}
					return
				}
				w.until("renewals", 5*24*time.Hour, func() bool { return len(w.connects) >= 4 })
				if n := w.count(w.operational); n > 7 {
					t.Errorf("%d operational certificates", n)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
			})
		})
	}
}

// The connection on which the time was asked is kept for the enrolment that follows, if its server's chain holds at
// that time (DESIGN §4.3).
func TestTimeAndEnrolmentShareAConnection(t *testing.T) {
	for name, c := range map[string]struct {
		server     time.Duration // what is left of the server's certificate
		noAuthTime bool
		want       string // handshakes with the provider until the device arrives, or for a day
	}{
		"good":                               {48 * time.Hour, false, "time nonce"},
		"no time to who shows a certificate": {48 * time.Hour, true, "time cacerts nonce time"},
		"expired at the stated time":         {-30 * time.Second, false, "time cacerts"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.serverLife, w.noAuthTime = c.server, c.noAuthTime
				began := time.Now()
				o := w.options()
				// Our own clock is slow: by it alone the expired certificate would do.
				o.Wall = func() time.Time { return began.Add(-45 * time.Second).Add(time.Since(began)) }
				stop := w.start(o)
				if c.server > 0 {
					w.until("a connection", time.Hour, func() bool {
						return len(w.connects) > 0 && (!c.noAuthTime || w.handshakes[len(w.handshakes)-1] == "time")
					})
				} else {
					time.Sleep(time.Minute)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(w.handshakes, " "); got != c.want && (c.server > 0 || !strings.HasPrefix(got, c.want)) {
					t.Errorf("handshakes for %s, want %s", got, c.want)
				}
				if c.server < 0 && (slices.Contains(w.calls, "nonce") || len(w.issued) > 0) {
					t.Errorf("asked a server that is not believed: %v", w.calls)
				}
			})
		})
	}
}

// One answer of cacerts does for both certificates where it holds both issuers (RFC 7030 §4.1); where it does not the
// provider is asked again, and never when nothing changed.
func TestCACertsAreAskedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		apart bool
		want  int
	}{"together": {false, 1}, "apart": {true, 2}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.cacertsApart = c.apart
				stop := w.start(w.options())
				w.until("two renewals", 3*24*time.Hour, func() bool { return w.count(w.operational) >= 3 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
				asked := 0
				for _, call := range w.calls {
					if call == "cacerts" {
						asked++
					}
				}
				if n := w.count(w.onboarding); asked != c.want || n != 1 {
					t.Errorf("cacerts asked %d times, want %d; %d LDevIDs", asked, c.want, n)
				}
			})
		})
	}
}

// A running device whose clock jumps to 2099 after a restart without network keeps its credentials.
func TestClockJumpKeepsCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.start(w.options())
		w.until("telemetry", time.Hour, func() bool { return len(w.seqs) > 0 })
		stop()
		w.fault = func(string, bool) error { return errNet }
		o := w.options()
		o.Wall = func() time.Time { return time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC) }
		stop = w.start(o)
		time.Sleep(6 * time.Hour)
		w.mu.Lock()
		w.fault = func(string, bool) error { return nil }
		w.mu.Unlock()
		w.until("the same certificate to connect", time.Hour, func() bool { return len(w.connects) == 2 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if w.connects[0] != w.connects[1] || len(w.issued) != 2 {
			t.Errorf("certificates were dropped: %d issued", len(w.issued))
		}
		w.check()
	})
}

var errPower = errors.New("power cut")

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
