package device_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle/device"
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
