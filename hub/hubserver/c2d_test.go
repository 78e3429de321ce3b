package hubserver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// send puts a message into a device's queue, over REST.
func (r *rig) send(id, body string, header ...string) {
	r.t.Helper()
	if status, _, out := r.asOwner("POST", "/devices/"+id+"/messages/devicebound", body, header...); status != 204 {
		r.t.Fatalf("sending to %s: %d %s", id, status, out)
	}
}

func (r *rig) waiting(id cradle.DeviceID, want int) {
	r.t.Helper()
	testenv.Eventually(r.t, fmt.Sprintf("%d messages wait for %s", want, id), func() bool {
		n, err := r.hub.WaitingC2D(r.t.Context(), hub.DefaultName, id)
		if err != nil {
			r.t.Fatal(err)
		}
		return n == want
	})
}

func TestC2DOverMQTT(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		u := r.keyed("dev")
		if status, _, out := r.asOwner("POST", "/messages/devicebound", "first", "iothub-to", "/devices/dev/messages/devicebound",
			"iothub-messageid", "m 1", "iothub-ack", "full", "iothub-app-key", "a/b&c", "iothub-contenttype", "text/plain"); status != 204 {
			t.Fatalf("got %d %s", status, out)
		}
		u.online(u.filter())
		if h := u.next(); h != (heard{"devices/dev/messages/devicebound/%24.mid=m%201&%24.ct=text%2Fplain&iothub-ack=full&key=a%2Fb%26c&%24.to=%2Fdevices%2Fdev%2Fmessages%2Fdevicebound", "first"}) {
			t.Errorf("heard %+v", h)
		}
		r.waiting("dev", 0)
		// More than a window, in order.
		for i := range 20 {
			r.send("dev", fmt.Sprint(i))
		}
		for i := range 20 {
			if h := u.next(); h.body != fmt.Sprint(i) {
				t.Fatalf("message %d: heard %+v", i, h)
			}
		}
		r.waiting("dev", 0)
		// Without a PUBACK it comes again at the next connection, which the hub has not to be told of: the
		// session is kept. It carries the same packet identifier and DUP (MQTT §4.4).
		u.on = func(heard) error { return fmt.Errorf("power cut") }
		u.Close()
		if err := u.connect(); err != nil || !u.SessionPresent() {
			t.Fatalf("got %v, session present %v", err, u.SessionPresent())
		}
		r.send("dev", "twice")
		u.next()
		ends(t, u.ended, "its end")
		r.waiting("dev", 1)
		u.on = nil
		if err := u.connect(); err != nil {
			t.Fatal(err)
		}
		if h := u.next(); h.body != "twice" {
			t.Errorf("heard %+v", h)
		}
		r.waiting("dev", 0)
		// Offline messages wait; clean = 1 forgets the subscription, not the messages.
		u.Close()
		ends(t, u.ended, "its end")
		r.send("dev", "offline")
		if d, err := r.reg.GetDevice(t.Context(), "dev"); err != nil || d.CloudToDeviceMessageCount != 1 || r.twin("GET", "/twins/dev", "").CloudToDeviceMessageCount != 1 {
			t.Errorf("got %+v %v", d, err)
		}
		u.clean = true
		if err := u.connect(); err != nil || u.SessionPresent() {
			t.Fatalf("clean: got %v, session present %v", err, u.SessionPresent())
		}
		if err := u.Subscribe(t.Context(), iothub.TwinAnswers, 0); err != nil {
			t.Fatal(err)
		}
		u.quiet()
		if err := u.Subscribe(t.Context(), u.filter(), 0); err != nil {
			t.Fatal(err)
		}
		if h := u.next(); h.body != "offline" {
			t.Errorf("heard %+v", h)
		}
		r.waiting("dev", 0) // at most once needs no PUBACK
		u.Close()
		u.clean = false
		if err := u.connect(); err != nil || u.SessionPresent() {
			t.Errorf("after clean: got %v, session present %v", err, u.SessionPresent())
		}
		// The queue has an end.
		u.Close()
		ends(t, u.ended, "its end")
		for range iothub.MaxPending {
			r.send("dev", "x")
		}
		if status, _, out := r.asOwner("POST", "/devices/dev/messages/devicebound", "x"); status != 403 || !strings.Contains(out, "ErrorCode:DeviceMaximumQueueDepthExceeded") {
			t.Errorf("full: got %d %s", status, out)
		}
		if status, _, out := r.asOwner("DELETE", "/devices/dev/commands", ""); status != 200 || out != `{"deviceId":"dev","totalMessagesPurged":50}` {
			t.Errorf("purge: got %d %s", status, out)
		}
		for _, c := range []struct {
			path, body string
			header     []string
			want       int
		}{
			{"/devices/nobody/messages/devicebound", "x", nil, 404},
			{"/messages/devicebound", "x", []string{"iothub-to", "/devices/nobody/messages/devicebound"}, 404},
			{"/messages/devicebound", "x", nil, 400},
			{"/messages/devicebound", "x", []string{"iothub-to", "/devices/a/b/messages/devicebound"}, 400},
			{"/devices/dev/messages/devicebound", strings.Repeat("x", iothub.MaxC2D+1), nil, 413},
			{"/devices/dev/messages/devicebound", "x", []string{"iothub-expiry", "2020-01-01T00:00:00Z"}, 400},
			{"/devices/dev/messages/devicebound", "x", []string{"iothub-expiry", "2999-01-01T00:00:00Z"}, 400},
			{"/devices/dev/messages/devicebound", "x", []string{"iothub-ack", "maybe"}, 400},
		} {
			if status, _, out := r.asOwner("POST", c.path, c.body, c.header...); status != c.want || status == 404 && !strings.Contains(out, "ErrorCode:DeviceNotFound") {
				t.Errorf("%s %v: got %d %s, want %d", c.path, c.header, status, out, c.want)
			}
		}
		r.waiting("dev", 0)
	})
}

// TestC2DEnds: messages expire, and are given up after as many deliveries as Azure allows.
func TestC2DEnds(t *testing.T) {
	r := newRig(t, sqlite(t))
	u := r.keyed("dev")
	r.send("dev", "short", "iothub-expiry", time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
	r.send("dev", "long")
	r.skew.Store(int64(2 * time.Minute))
	r.waiting("dev", 1)
	u.on = func(heard) error { return fmt.Errorf("power cut") }
	u.online()
	u.Subscribe(t.Context(), u.filter(), 1) // may be cut off before its answer
	ends(t, u.ended, "its end")
	for range iothub.MaxDeliveries - 1 {
		if err := u.connect(); err != nil {
			t.Fatal(err)
		}
		if h := u.next(); h.body != "long" {
			t.Errorf("heard %+v", h)
		}
		ends(t, u.ended, "its end")
	}
	u.on = nil
	u.online(u.filter(), iothub.TwinAnswers)
	u.quiet()
	r.waiting("dev", 0)
}
