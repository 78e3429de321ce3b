package hubserver_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func sqlite(t *testing.T) string { return t.TempDir() + "/hub.db" }

func TestTelemetry(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		a, b := r.mustConnect(r.register("dev-a")), r.mustConnect(r.register("dev-b"))
		for i := range 5 {
			for _, c := range []*client{a, b} {
				if err := c.say(t.Context(), fmt.Sprint(i), fmt.Sprintf(`{"i":"<%d>"}`, i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		// Many at once, unacknowledged in between: order is kept, all are acknowledged.
		var acks []<-chan error
		for i := 5; i < 300; i++ {
			ack, err := a.Send(iothub.TelemetryTopic(a.id, iothub.Bag{{Name: "seq", Value: fmt.Sprint(i)}}), mqtt.QoS(i%2), []byte{0xff, byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			acks = append(acks, ack)
		}
		if err := a.say(t.Context(), "300", `{}`); err != nil {
			t.Fatal(err)
		}
		for _, ack := range acks {
			if err := <-ack; err != nil {
				t.Error(err)
			}
		}
		next := map[cradle.DeviceID]int64{}
		es := r.events("")
		for _, e := range es {
			if e.Sequence == nil || *e.Sequence != next[e.Device] {
				t.Fatalf("%s: got sequence %v, want %d", e.Device, e.Sequence, next[e.Device])
			}
			next[e.Device]++
		}
		if next["dev-a"] != 301 || next["dev-b"] != 5 {
			t.Errorf("read back %v", next)
		}
		e := es[0]
		if string(e.Body) != `{"i":"<0>"}` || e.BodyEncoding != "" || e.System["message_id"] != "m-0" || e.Enqueued.IsZero() {
			t.Errorf("first event: got %+v", e)
		}
		if rest := r.events(es[302].Cursor); len(rest) != 3 || rest[0].Cursor != es[303].Cursor {
			t.Errorf("from a cursor: got %d events", len(rest))
		}
		d, err := r.reg.GetDevice(t.Context(), "dev-a")
		if err != nil || d.ConnectionState != iothub.Connected {
			t.Errorf("got %+v %v", d, err)
		}
	})
}

// TestRefusals: every refusal has its answer, its reason in the log, and changes nothing.
func TestRefusals(t *testing.T) {
	r := newRig(t, sqlite(t))
	ok := r.register("dev")
	conn := r.mustConnect(ok)
	other := r.register("other")
	before, err := r.reg.GetDevice(t.Context(), "dev")
	if err != nil {
		t.Fatal(err)
	}
	disabled := newIdent(t, "disabled")
	d := entry("disabled", disabled.sha256(), "")
	d.Status, d.StatusReason = iothub.Disabled, "lost"
	r.put(d, "")
	expired := newIdent(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	r.put(entry("expired", expired.sha256(), ""), "")
	early := newIdent(t, "early", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour / 2) })
	r.put(entry("early", early.sha256(), ""), "")
	revoked, badCert := r.register("revoked"), r.register("bad-cert")
	r.feed.set(func(f *feed) {
		f.blocked["revoked"] = cradle.Revoked
		f.certs[sha256.Sum256(badCert.cert.Certificate[0])] = true
	})
	as := func(i ident, id cradle.DeviceID) ident { i.id = id; return i }
	user := func(s string) func(*mqtt.Connect) { return func(p *mqtt.Connect) { p.Username = &s } }

	for name, c := range map[string]struct {
		who    ident
		packet []byte // nil: the usual CONNECT
		code   mqtt.Code
		why    string
	}{
		"wrong CN":                  {who: as(other, "dev"), code: mqtt.NotAuthorized, why: "is not the device's"},
		"no certificate":            {who: ident{id: "dev"}, code: mqtt.NotAuthorized, why: "no client certificate"},
		"unknown device":            {who: newIdent(t, "nobody"), code: mqtt.NotAuthorized, why: "not registered in hub hub-1"},
		"other thumbprint":          {who: newIdent(t, "dev"), code: mqtt.NotAuthorized, why: "is not the device's"},
		"disabled":                  {who: disabled, code: mqtt.NotAuthorized, why: "device is disabled: lost"},
		"revoked device":            {who: revoked, code: mqtt.NotAuthorized, why: "device is revoked"},
		"revoked certificate":       {who: badCert, code: mqtt.NotAuthorized, why: "certificate is revoked"},
		"expired certificate":       {who: expired, code: mqtt.NotAuthorized, why: "certificate is valid from"},
		"not yet valid":             {who: early, code: mqtt.NotAuthorized, why: "certificate is valid from"},
		"user name of another":      {ok, connectPacket(ok, user(iothub.UserName("h", "other"))), mqtt.BadUserOrPassword, `user name is of device \"other\"`},
		"no user name":              {ok, connectPacket(ok, func(p *mqtt.Connect) { p.Username = nil }), mqtt.BadUserOrPassword, "no user name"},
		"strange user name":         {ok, connectPacket(ok, user("dev")), mqtt.BadUserOrPassword, "is not {hub}"},
		"no client id":              {ok, connectPacket(ok, func(p *mqtt.Connect) { p.ClientID = ""; p.Clean = true }), mqtt.BadIdentifier, "device id must have"},
		"a module that is none":     {ok, connectPacket(ok, func(p *mqtt.Connect) { p.ClientID = "dev/mod"; u := iothub.UserName("h", "dev/mod"); p.Username = &u }), mqtt.NotAuthorized, "device has no module"},
		"a module's odd name":       {ok, connectPacket(ok, func(p *mqtt.Connect) { p.ClientID = "dev/mod/x" }), mqtt.BadIdentifier, "is not allowed"},
		"MQTT 3.1":                  {ok, (&mqtt.Connect{Protocol: "MQIsdp", Level: 3}).Append(nil), mqtt.BadProtocol, "is not MQTT 3.1.1"},
		"will on another's topic":   {ok, connectPacket(ok, func(p *mqtt.Connect) { p.Will = &mqtt.Will{Topic: iothub.EventsTopic("other")} }), mqtt.NotAuthorized, "is another device's"},
		"oversized before CONNECT":  {ok, connectPacket(ok, user(strings.Repeat("x", 9000))), mqtt.Accepted, "packet too large"},
		"malformed CONNECT":         {ok, []byte{0x10, 2, 0, 4}, mqtt.Accepted, "malformed packet"},
		"password without a certif": {ident{id: "dev"}, connectPacket(ok, func(p *mqtt.Connect) { p.Password = []byte("SharedAccessSignature sr=x") }), mqtt.NotAuthorized, "no client certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			r.logs.Take()
			packet := c.packet
			if packet == nil {
				packet = connectPacket(c.who)
			}
			out := r.raw(c.who, packet)
			if c.code == mqtt.Accepted {
				if len(out) > 0 {
					t.Errorf("got % x, want nothing", out)
				}
			} else if ack, err := mqtt.ParseConnack(firstPacket(out)); err != nil || ack.Code != c.code {
				t.Errorf("got % x (%v), want code %d", out, err, c.code)
			}
			r.wantLog(c.why)
		})
	}
	r.feed.set(func(f *feed) { f.stale = true })
	if ack, _ := mqtt.ParseConnack(firstPacket(r.raw(ok, connectPacket(ok)))); ack.Code != mqtt.ServerUnavailable {
		t.Errorf("stale feed: got code %d", ack.Code)
	}
	r.wantLog("the status feed is stale")

	// Nothing changed: the entry, the events, and the one who was connected all along.
	if after, err := r.reg.GetDevice(t.Context(), "dev"); err != nil || !reflect.DeepEqual(after, before) {
		t.Errorf("got %+v %v, want %+v", after, err, before)
	}
	if es := r.events(""); len(es) != 0 {
		t.Errorf("got events %v", es)
	}
	if err := conn.say(t.Context(), "0", "{}"); err != nil {
		t.Error(err)
	}
	if n := r.hub.Connected(); n != 1 {
		t.Errorf("%d connected, want 1", n)
	}
}

// TestMisbehaviour: what ends an accepted connection.
func TestMisbehaviour(t *testing.T) {
	r := newRig(t, sqlite(t))
	dev := r.register("dev")
	pub := func(p mqtt.Publish) []byte { return p.Append(nil) }
	for name, c := range map[string]struct {
		packet []byte
		why    string
	}{
		"topic of another device": {pub(mqtt.Publish{Topic: iothub.EventsTopic("other"), QoS: 1, ID: 1}), "is another device's"},
		"some topic":              {pub(mqtt.Publish{Topic: "hello", QoS: 1, ID: 1}), "is not devices/{id}/messages/events/"},
		"bad property bag":        {pub(mqtt.Publish{Topic: iothub.EventsTopic("dev") + "%zz", QoS: 1, ID: 1}), "not percent-encoded well"},
		"QoS 2":                   {pub(mqtt.Publish{Topic: iothub.EventsTopic("dev"), QoS: 2, ID: 1}), "QoS 2 is not served"},
		"message too large":       {pub(mqtt.Publish{Topic: iothub.EventsTopic("dev"), QoS: 1, ID: 1, Payload: make([]byte, hub.MaxBody+1)}), "at most 262144"},
		"packet too large":        {[]byte{0x32, 0xff, 0xff, 0xff, 0x7f}, "packet too large"},
		"second CONNECT":          {connectPacket(dev), "unexpected CONNECT"},
		"PUBREL":                  {mqtt.AppendID(nil, mqtt.PUBREL, 1), "unexpected PUBREL"},
		"garbage":                 {[]byte{0xff, 0xff}, "malformed packet"},
	} {
		t.Run(name, func(t *testing.T) {
			out := r.raw(dev, append(connectPacket(dev), c.packet...))
			if want := (mqtt.Connack{}).Append(nil); !bytes.Equal(out, want) {
				t.Errorf("got % x, want only CONNACK", out)
			}
			r.wantLog(c.why)
		})
	}
	if es := r.events(""); len(es) != 0 {
		t.Errorf("got events %v", es)
	}
	// Silence for 1.5 times the keep alive.
	r.raw(dev, connectPacket(dev, func(p *mqtt.Connect) { p.KeepAlive = 1 }))
	r.wantLog("silent for too long")
}

func TestSubscribe(t *testing.T) {
	r := newRig(t, sqlite(t))
	c := r.mustConnect(r.register("dev"))
	for filter, ok := range map[string]bool{
		"devices/dev/messages/devicebound/#":      true,
		"$iothub/methods/POST/#":                  true,
		"devices/other/messages/devicebound/#":    false,
		"devices/+/messages/devicebound/#":        false,
		"#":                                       false,
		"$iothub/twin/res/#":                      true,
		"$iothub/twin/PATCH/properties/desired/#": true,
		"$iothub/methods/res/#":                   false,
	} {
		if err := c.Subscribe(t.Context(), filter, 1); (err == nil) != ok || err != nil && !errors.Is(err, mqtt.ErrSubscription) {
			t.Errorf("%s: got %v", filter, err)
		}
	}
}

func TestWill(t *testing.T) {
	r := newRig(t, sqlite(t))
	dev := r.register("dev")
	will := func(p *mqtt.Connect) { p.Will = &mqtt.Will{Topic: iothub.EventsTopic("dev"), Message: []byte("gone")} }
	r.raw(dev, append(connectPacket(dev, will), mqtt.AppendEmpty(nil, mqtt.DISCONNECT)...))
	r.raw(dev, append(connectPacket(dev, will), 0xff, 0xff))
	var es []*iothub.Event
	testenv.Eventually(t, "the will", func() bool { es = r.events(""); return len(es) > 0 })
	if len(es) != 1 || es[0].Props["iothub-MessageType"] != "Will" {
		t.Errorf("got %v", es)
	}
}

// TestWillAfterWrite: a connection that breaks while something is sent to the device is none that the device ended.
func TestWillAfterWrite(t *testing.T) {
	r := newRig(t, sqlite(t))
	dev := r.register("dev")
	c := r.dial(dev)
	b := connectPacket(dev, func(p *mqtt.Connect) { p.Will = &mqtt.Will{Topic: iothub.EventsTopic("dev"), Message: []byte("gone")} })
	b = (&mqtt.Subscribe{ID: 1, Subscriptions: []mqtt.Subscription{{Filter: iothub.DesiredChanges}}}).Append(b)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	rd := packets(t, c)
	for rd().Type() != mqtt.SUBACK {
	}
	tcp := c.(*tls.Conn).NetConn().(*net.TCPConn)
	tcp.SetLinger(0)
	tcp.Close()
	for i := range 3 {
		r.twin("PATCH", "/twins/dev", fmt.Sprintf(`{"properties":{"desired":{"i":%d}}}`, i))
	}
	testenv.Eventually(t, "the will", func() bool { return len(r.events("")) > 0 }, r.logs)
}

func refusedWith(err error, code mqtt.Code) bool {
	var e *mqtt.ConnackError
	return errors.As(err, &e) && e.Code == code
}

// TestPromotion is DESIGN §4.7: the first login with the secondary certificate ends the first, by MQTT as by HTTPS.
func TestPromotion(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		t.Run("MQTT", func(t *testing.T) { promotion(t, url, false) })
	})
	t.Run("HTTPS", func(t *testing.T) { promotion(t, sqlite(t), true) })
}

func promotion(t *testing.T, url string, https bool) {
	r := newRig(t, url)
	first := r.register("dev")
	second := newIdent(t, "dev")
	a := r.mustConnect(first)
	d, err := r.reg.GetDevice(t.Context(), "dev")
	if err != nil {
		t.Fatal(err)
	}
	d.Authentication.X509Thumbprint.SecondaryThumbprint = strings.ToUpper(second.sha256())
	d = r.put(d, d.ETag)
	// Adding the next certificate leaves the connection, and a further connect with the first, alone.
	if err := a.say(t.Context(), "0", "{}"); err != nil {
		t.Fatal(err)
	}
	a2 := r.mustConnect(first)
	r.wantGone(a, "a newer connection of the device took its place")

	if https {
		if got := r.postBy(second, "/devices/dev/messages/events"); got != 204 {
			t.Errorf("telemetry by the second certificate: got %d", got)
		}
	} else {
		r.mustConnect(second)
	}
	r.wantGone(a2, "certificate was replaced in the registry")
	got, err := r.reg.GetDevice(t.Context(), "dev")
	if err != nil {
		t.Fatal(err)
	}
	if th := got.Authentication.X509Thumbprint; th.PrimaryThumbprint != second.sha256() || th.SecondaryThumbprint != "" || got.ETag == d.ETag {
		t.Errorf("after promotion: %+v", got)
	}
	if _, err := r.connect(first); !refusedWith(err, mqtt.NotAuthorized) {
		t.Errorf("the old certificate: got %v", err)
	}
	if got := r.postBy(first, "/devices/dev/messages/events"); got != 401 {
		t.Errorf("the old certificate, over HTTPS: got %d", got)
	}
	if err := r.mustConnect(second).say(t.Context(), "1", "{}"); err != nil {
		t.Error(err)
	}
	if r.hub.Connected() != 1 {
		t.Errorf("%d connected", r.hub.Connected())
	}
}

func TestSHA1Thumbprint(t *testing.T) {
	r := newRig(t, sqlite(t))
	i := newIdent(t, "dev")
	r.put(entry("dev", i.sha1(), ""), "")
	r.mustConnect(i)
}

// TestDrops: what ends the connection of a device that did nothing wrong.
func TestDrops(t *testing.T) {
	r := newRig(t, sqlite(t))
	bystander := r.mustConnect(r.register("bystander"))
	edit := func(fn func(*iothub.Device)) func(ident) {
		return func(i ident) {
			d, err := r.reg.GetDevice(t.Context(), i.id)
			if err != nil {
				t.Fatal(err)
			}
			fn(d)
			r.put(d, iothub.AnyETag)
		}
	}
	for name, c := range map[string]struct {
		do   func(ident)
		why  string
		code mqtt.Code // of the next attempt
	}{
		"suspended": {func(i ident) {
			r.feed.set(func(f *feed) { f.blocked[i.id] = cradle.Suspended })
			r.hub.StatusChanged("acme", i.id)
		}, "device is suspended", mqtt.NotAuthorized},
		"certificate revoked": {func(i ident) {
			r.feed.set(func(f *feed) { f.certs[sha256.Sum256(i.cert.Certificate[0])] = true })
			r.hub.StatusChanged("acme", i.id)
		}, "certificate is revoked", mqtt.NotAuthorized},
		"disabled":       {edit(func(d *iothub.Device) { d.Status = iothub.Disabled }), "device was disabled", mqtt.NotAuthorized},
		"new thumbprint": {edit(func(d *iothub.Device) { d.Authentication.X509Thumbprint.PrimaryThumbprint = strings.Repeat("ab", 32) }), "certificate was replaced", mqtt.NotAuthorized},
		"deleted": {func(i ident) {
			if err := r.reg.DeleteDevice(t.Context(), i.id, ""); err != nil {
				t.Fatal(err)
			}
		}, "device was removed", mqtt.NotAuthorized},
	} {
		t.Run(name, func(t *testing.T) {
			i := r.register(cradle.DeviceID(strings.ReplaceAll(name, " ", "-")))
			cfg := r.tls(i)
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			dial := func() (*client, bool, error) {
				nc, err := tls.Dial("tcp", r.addr, cfg)
				if err != nil {
					t.Fatal(err)
				}
				c, err := r.connectOver(nc, i)
				return c, nc.ConnectionState().DidResume, err
			}
			con, _, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			c.do(i)
			r.wantGone(con, c.why)
			// The resumed TLS connection is judged like a new one.
			_, resumed, err := dial()
			if !resumed || !refusedWith(err, c.code) {
				t.Errorf("connecting again, resumed %v: got %v", resumed, err)
			}
		})
	}
	// A device whose certificate has another name, by which the feed knows it.
	alias := newIdent(t, "named-otherwise")
	r.put(entry("alias", alias.sha256(), ""), "")
	alias.id = "alias"
	r.feed.set(func(f *feed) { f.blocked["named-otherwise"] = cradle.Suspended })
	if _, err := r.connect(alias); !refusedWith(err, mqtt.NotAuthorized) {
		t.Errorf("suspended under another name: got %v", err)
	}
	r.feed.set(func(f *feed) { delete(f.blocked, "named-otherwise") })
	named := r.mustConnect(alias)
	r.feed.set(func(f *feed) { f.blocked["named-otherwise"] = cradle.Suspended })
	r.hub.StatusChanged("acme", "named-otherwise")
	r.wantGone(named, "device is suspended")

	// A word on another account's device of the same name changes nothing.
	r.feed.set(func(f *feed) { f.foreign = map[cradle.DeviceID]cradle.DeviceState{"bystander": cradle.Revoked} })
	r.hub.StatusChanged("other", "bystander")
	if err := bystander.say(t.Context(), "0", "{}"); err != nil {
		t.Error(err)
	}
}

// TestExpiry: a session does not outlive its certificate.
func TestExpiry(t *testing.T) {
	r := newRig(t, sqlite(t))
	i := newIdent(t, "dev", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(5 * time.Second) })
	r.put(entry("dev", i.sha256(), ""), "")
	r.wantGone(r.mustConnect(i), "certificate has expired")
}

// TestPaho is a client that none of us wrote.
func TestPaho(t *testing.T) {
	r := newRig(t, sqlite(t))
	i := r.register("paho")
	o := paho.NewClientOptions().AddBroker("ssl://" + r.addr).SetClientID("paho").SetUsername(iothub.UserName("hub-1.example.com", "paho")).
		SetTLSConfig(r.tls(i)).SetCleanSession(false).SetProtocolVersion(4).SetAutoReconnect(false).SetKeepAlive(30 * time.Second)
	c := paho.NewClient(o)
	wait := func(what string, tok paho.Token) {
		t.Helper()
		if !tok.WaitTimeout(testenv.Patience) || tok.Error() != nil {
			t.Fatalf("%s: %v\n%s", what, tok.Error(), r.logs)
		}
	}
	wait("connect", c.Connect())
	wait("subscribe", c.Subscribe("devices/paho/messages/devicebound/#", 1, nil))
	for i := range 20 {
		wait("publish", c.Publish(fmt.Sprintf("devices/paho/messages/events/seq=%d&%%24.mid=x", i), byte(i%2), false, "hello"))
	}
	wait("unsubscribe", c.Unsubscribe("devices/paho/messages/devicebound/#"))
	wait("last", c.Publish("devices/paho/messages/events/", 1, false, "end"))
	c.Disconnect(100)
	es := r.events("")
	if len(es) != 21 {
		t.Fatalf("got %d events", len(es))
	}
	if b, err := es[3].Bytes(); err != nil || string(b) != "hello" || *es[3].Sequence != 3 {
		t.Errorf("got %+v %v", es[3], err)
	}
}
