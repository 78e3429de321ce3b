package shed_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/shed"
)

type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func gate(t *testing.T, limits ...string) (*shed.Gate, *clock) {
	t.Helper()
	var l shed.Limits
	for i := 0; i < len(limits); i += 2 {
		if err := l.Set(limits[i], limits[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	return shed.New(l, c.now), c
}

func request(addr, cert string) *http.Request {
	r := &http.Request{RemoteAddr: addr, TLS: &tls.ConnectionState{}}
	if cert != "" {
		r.TLS.PeerCertificates = []*x509.Certificate{{Raw: []byte(cert)}}
	}
	return r
}

// taken counts how many of n requests are taken.
func taken(t *testing.T, n int, ask func() error) (yes int) {
	t.Helper()
	for range n {
		err := ask()
		if err == nil {
			yes++
			continue
		}
		if cradle.KindOf(err) != cradle.Busy || !errors.Is(err, shed.ErrLimit) || cradle.RetryAfter(err) < time.Second {
			t.Fatalf("refused as %v, Retry-After %v: %v", cradle.KindOf(err), cradle.RetryAfter(err), err)
		}
	}
	return yes
}

// TestCrashLoop is IoT Identity Service whose setup fails: systemd starts it again every 5 s, for ever, and each
// time it asks for CA certificates and a certificate under est-id and under device-id.
func TestCrashLoop(t *testing.T) {
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	g := shed.New(shed.Defaults(), c.now)
	served := 0
	const starts = 12 * 60 // one hour
	for range starts {
		served += taken(t, 4, func() error { return g.EST(request("192.0.2.1:1000", "bootstrap"), "acme", cradle.Operational) })
		c.Time = c.Add(5 * time.Second)
	}
	if served > 60+starts {
		t.Errorf("%d of %d requests of the storm were taken", served, 4*starts)
	}
	if n := taken(t, 10, func() error { return g.EST(request("192.0.2.1:1000", "neighbour"), "acme", cradle.Operational) }); n != 10 {
		t.Errorf("a neighbour behind the same address got %d of 10", n)
	}
	c.Time = c.Add(5 * time.Minute)
	if n := taken(t, 60, func() error { return g.EST(request("192.0.2.1:1000", "bootstrap"), "acme", cradle.Operational) }); n != 60 {
		t.Errorf("after five quiet minutes %d of 60 are taken", n)
	}
}

// TestDefaultsAdmit: what the defaults must not get in the way of.
func TestDefaultsAdmit(t *testing.T) {
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	g := shed.New(shed.Defaults(), c.now)
	for unit := range 1000 { // powered on at once behind one address, made by one station
		if n := taken(t, 4, func() error { return g.EST(request("127.0.0.1:9", "station"), "acme", cradle.IDevID) }); n != 4 {
			t.Fatalf("unit %d: the station got %d of 4", unit, n)
		}
		for _, k := range []string{"idevid", "ldevid", "operational"} {
			if n := taken(t, 4, func() error { return g.EST(request("127.0.0.1:9", fmt.Sprint(k, unit)), "acme", cradle.LDevID) }); n != 4 {
				t.Fatalf("unit %d: its %s got %d of 4", unit, k, n)
			}
		}
	}
}

func TestBuckets(t *testing.T) {
	est := func(g *shed.Gate, addr, cert string, account cradle.AccountID, p cradle.Profile) func() error {
		return func() error { return g.EST(request(addr, cert), account, p) }
	}
	t.Run("address", func(t *testing.T) {
		g, c := gate(t, "address", "1:5", "certificate", "100:100")
		if n := taken(t, 10, est(g, "192.0.2.1:1", "", "acme", cradle.LDevID)); n != 5 {
			t.Errorf("%d taken", n)
		}
		if n := taken(t, 10, func() error { return g.Address(request("192.0.2.1:77", "")) }); n != 0 {
			t.Errorf("another port, another door: %d taken", n)
		}
		if n := taken(t, 10, est(g, "192.0.2.2:1", "", "acme", cradle.LDevID)); n != 5 {
			t.Errorf("a neighbour: %d taken", n)
		}
		for i := range 3 { // new certificates do not help
			if n := taken(t, 1, est(g, "192.0.2.1:1", fmt.Sprint("fresh", i), "acme", cradle.LDevID)); n != 0 {
				t.Errorf("fresh certificate %d: %d taken", i, n)
			}
		}
		c.Time = c.Add(3 * time.Second)
		if n := taken(t, 10, est(g, "192.0.2.1:1", "", "acme", cradle.LDevID)); n != 3 {
			t.Errorf("after three seconds: %d taken", n)
		}
	})
	t.Run("IPv6 hosts own a /64", func(t *testing.T) {
		g, _ := gate(t, "address", "1:5")
		n := 0
		for i := range 10 {
			n += taken(t, 1, est(g, fmt.Sprintf("[2001:db8:0:1::%x]:1", i+1), "", "acme", cradle.LDevID))
		}
		if n != 5 {
			t.Errorf("%d taken", n)
		}
		if n := taken(t, 10, est(g, "[2001:db8:0:2::1]:1", "", "acme", cradle.LDevID)); n != 5 {
			t.Errorf("the next network: %d taken", n)
		}
	})
	t.Run("line", func(t *testing.T) {
		g, _ := gate(t, "certificate", "1:3", "line", "1:9")
		if n := taken(t, 20, est(g, "192.0.2.1:1", "c", "acme", cradle.IDevID)); n != 9 {
			t.Errorf("idevid: %d taken", n)
		}
		if n := taken(t, 20, est(g, "192.0.2.1:1", "c", "acme", cradle.LDevID)); n != 3 {
			t.Errorf("ldevid: %d taken", n)
		}
	})
	t.Run("strangers do not empty an account's bucket", func(t *testing.T) {
		g, _ := gate(t, "certificate", "1:100", "account", "1:10")
		device := request("192.0.2.1:1", "device")
		if err := g.EST(device, "acme", cradle.Operational); err != nil {
			t.Fatal(err)
		}
		g.Served(device, cradle.Operational)
		for i := range 50 {
			_ = g.EST(request("198.51.100.1:1", fmt.Sprint("stranger", i)), "acme", cradle.Operational)
		}
		if n := taken(t, 10, func() error { return g.EST(device, "acme", cradle.Operational) }); n != 10 {
			t.Errorf("the account's device got %d of 10", n)
		}
		if n := taken(t, 10, est(g, "192.0.2.1:1", "stranger", "other", cradle.Operational)); n != 10 {
			t.Errorf("another account's got %d of 10", n)
		}
	})
	t.Run("registration", func(t *testing.T) {
		g, _ := gate(t, "registration", "1:3", "address", "1:8")
		ask := func(addr, cert, id string) func() error {
			return func() error {
				if cert == "" {
					return g.Registration(addr, nil, id)
				}
				return g.Registration(addr, []byte(cert), id)
			}
		}
		if n := taken(t, 5, ask("192.0.2.1:1", "a", "a")); n != 3 {
			t.Errorf("%d taken", n)
		}
		if n := taken(t, 5, ask("192.0.2.9:2", "a", "b")); n != 0 {
			t.Errorf("from elsewhere, under another id: %d taken", n)
		}
		if n := taken(t, 5, ask("192.0.2.1:1", "", "k")); n != 3 {
			t.Errorf("by key: %d taken", n)
		}
		if n := taken(t, 5, ask("192.0.2.7:1", "", "k")); n != 3 {
			t.Errorf("a namesake elsewhere: %d taken", n)
		}
		n := 0
		for i := range 20 { // the address has two left: one certificate and five requests without were asked about
			n += taken(t, 1, ask("192.0.2.1:1", "", fmt.Sprint("k", i)))
		}
		if n != 2 {
			t.Errorf("ids that change: %d taken", n)
		}
		if n := taken(t, 1, ask("192.0.2.1:1", "fresh", "f")); n != 0 {
			t.Errorf("a fresh certificate: %d taken", n)
		}
	})
	t.Run("operator", func(t *testing.T) {
		g, _ := gate(t, "operator", "1:3")
		if n := taken(t, 5, func() error { return g.Operator("acme", "alice") }); n != 3 {
			t.Errorf("%d taken", n)
		}
		if n := taken(t, 5, func() error { return g.Operator("", "alice") }); n != 3 {
			t.Errorf("a namesake: %d taken", n)
		}
	})
	t.Run("off", func(t *testing.T) {
		g, _ := gate(t)
		if n := taken(t, 1000, est(g, "192.0.2.1:1", "c", "acme", cradle.LDevID)); n != 1000 {
			t.Errorf("%d taken", n)
		}
	})
}

// TestBounded: a flood of keys forgets the idle ones, and the gate goes on.
func TestBounded(t *testing.T) {
	g, _ := gate(t, "certificate", "0.01:1")
	first := request("192.0.2.1:1", "first")
	if g.EST(first, "", cradle.LDevID) != nil || g.EST(first, "", cradle.LDevID) == nil {
		t.Fatal("the bucket of one does not work")
	}
	for i := range 1<<16 + 1 {
		if err := g.EST(request("192.0.2.1:1", fmt.Sprint(i)), "", cradle.LDevID); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.EST(first, "", cradle.LDevID); err != nil {
		t.Errorf("the first key is still kept: %v", err)
	}
}

func TestSet(t *testing.T) {
	l := shed.Defaults()
	for _, bad := range [][2]string{{"device", "1:1"}, {"address", ""}, {"address", "1"}, {"address", "x:1"}, {"address", "1:x"}, {"address", "0:1"},
		{"address", "-1:1"}, {"address", "1:0"}, {"address", "NaN:1"}, {"address", "Inf:1"}} {
		if err := l.Set(bad[0], bad[1]); err == nil {
			t.Errorf("%v accepted", bad)
		}
	}
	if l != shed.Defaults() {
		t.Errorf("a refused setting changed something: %+v", l)
	}
	if err := l.Set("certificate", "0.5:30"); err != nil || l.Certificate != (shed.Rate{PerSecond: 0.5, Burst: 30}) {
		t.Errorf("%+v, %v", l, err)
	}
}

func BenchmarkEST(b *testing.B) {
	g := shed.New(shed.Defaults(), nil)
	r := request("192.0.2.1:1", string(make([]byte, 600)))
	b.ReportAllocs()
	for b.Loop() {
		_ = g.EST(r, "acme", cradle.IDevID)
	}
}
