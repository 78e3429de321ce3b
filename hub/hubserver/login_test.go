package hubserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// gone waits until the hub has closed the connection, and finds why in the log.
func (u *unit) gone(why string) {
	u.r.t.Helper()
	ends(u.r.t, u.ended, why)
	u.r.wantLog(why)
}

// refused tries to connect and expects a code, and a reason in the log.
func (u *unit) refused(o mqtt.Options, code mqtt.Code, why string) {
	u.r.t.Helper()
	if err := u.connectWith(o); !refusedWith(err, code) {
		u.r.t.Errorf("%s: got %v, want code %d (%s)", u.name, err, code, why)
	}
	u.r.wantLog(why)
}

// TestSymmetricKeys: tokens of both keys are good while they last, and no longer; what changes in the registry ends
// connections.
func TestSymmetricKeys(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		u, other := r.keyed("dev"), r.keyed("other")
		u.online(iothub.TwinAnswers)
		d, err := r.reg.GetDevice(t.Context(), "dev")
		if err != nil || d.ConnectionState != iothub.Connected {
			t.Fatalf("got %+v %v", d, err)
		}
		secondary := decode(t, d.Authentication.SymmetricKey.SecondaryKey)
		with := func(token string) mqtt.Options {
			o := u.options()
			o.Password = []byte(token)
			return o
		}
		in := func(key []byte, resource string, d time.Duration) mqtt.Options {
			return with(sas.Sign(resource, "", key, time.Now().Add(d)))
		}
		u.refused(with(""), mqtt.NotAuthorized, "no SAS token")
		u.refused(in(other.key, u.resource(), time.Hour), mqtt.NotAuthorized, "is not signed with a key of dev")
		u.refused(in(u.key, other.resource(), time.Hour), mqtt.NotAuthorized, "not for dev at")
		u.refused(in(u.key, u.resource(), -time.Second), mqtt.NotAuthorized, "SAS token expired")
		if err := r.hub.Authenticate(t.Context(), hub.DefaultName, "dev", "", &hub.Login{Token: u.token(), Host: host}); err != nil {
			t.Errorf("the right token: %v", err)
		}
		if status, _, _ := u.ask("twin/GET", " "); status != "200" {
			t.Error("refused connections ended the one that was there")
		}

		// A policy may stand in for a device, if it has the right to.
		policy := func(name, resource string) mqtt.Options {
			cs, err := r.hub.ConnectionString(t.Context(), hub.DefaultName, host, name)
			if err != nil {
				t.Fatal(err)
			}
			return with(sas.Sign(resource, name, cs.Key, time.Now().Add(time.Hour)))
		}
		u.refused(policy("service", host), mqtt.NotAuthorized, `policy \"service\" of hub hub-1 does not allow this`)
		u.refused(policy("device", other.resource()), mqtt.NotAuthorized, "not for hub-1/devices/dev")
		for _, resource := range []string{host, u.resource()} {
			if err := u.connectWith(policy("device", resource)); err != nil {
				t.Errorf("policy device for %s: %v", resource, err)
			}
		}
		u.online(iothub.TwinAnswers)

		// The session ends with its token, and the token is of no use any more.
		short := with(sas.Sign(u.resource(), "", secondary, time.Now().Add(5*time.Second)))
		if err := u.connectWith(short); err != nil {
			t.Fatal(err)
		}
		u.gone("SAS token has expired")
		u.refused(short, mqtt.NotAuthorized, "SAS token expired")

		// A connection of the primary key outlives a change of the secondary, and not its own key's.
		roll := func(fn func(*iothub.Device)) {
			d, err := r.reg.GetDevice(t.Context(), "dev")
			if err != nil {
				t.Fatal(err)
			}
			fn(d)
			r.put(d, iothub.AnyETag)
		}
		u.online(iothub.TwinAnswers)
		roll(func(d *iothub.Device) { d.Authentication.SymmetricKey.SecondaryKey = strings.Repeat("A", 43) + "=" })
		u.quiet()
		roll(func(d *iothub.Device) {
			k := &d.Authentication.SymmetricKey
			k.PrimaryKey, k.SecondaryKey = k.SecondaryKey, k.PrimaryKey
		})
		u.quiet()
		roll(func(d *iothub.Device) { d.Authentication.SymmetricKey.SecondaryKey = strings.Repeat("B", 42) + "A=" })
		u.gone("keys were replaced in the registry")
		u.refused(u.options(), mqtt.NotAuthorized, "is not signed with a key of dev")
		roll(func(d *iothub.Device) { d.Authentication.Type = iothub.AuthNone })
		u.refused(u.options(), mqtt.NotAuthorized, "authentication type none admits nobody")
	})
}

// TestModules: a module has its own connection and telemetry, and ends with its device.
func TestModules(t *testing.T) {
	r := newRig(t, sqlite(t))
	dev := r.keyed("dev")
	mod := r.module(dev, "mod")
	mod.online(iothub.TwinAnswers)
	dev.online(iothub.TwinAnswers) // beside it
	if err := mod.Publish(t.Context(), "devices/dev/modules/mod/messages/events/a=1&%24.cmid=forged", mqtt.AtLeastOnce, []byte("x")); err != nil {
		t.Fatal(err)
	}
	es := r.events("")
	if len(es) != 1 || es[0].Device != "dev" || es[0].System[iothub.PropModule] != "mod" || es[0].Props["a"] != "1" {
		t.Errorf("got %+v", es[0])
	}
	mod.quiet()
	if err := dev.Publish(t.Context(), "devices/dev/messages/events/%24.cmid=forged", mqtt.AtLeastOnce, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if es := r.events(es[0].Cursor); len(es) != 1 || es[0].System[iothub.PropModule] != "" {
		t.Errorf("a device that names a module: got %+v", es[0])
	}
	if err := mod.Subscribe(t.Context(), iothub.DeviceboundFilter("dev"), 1); err == nil {
		t.Error("a module hears the device's messages")
	}
	// The device's token does not open the module, nor the other way round.
	o := mod.options()
	o.Password = []byte(dev.token())
	(&unit{r: r, name: "dev/mod"}).refused(o, mqtt.NotAuthorized, "not for dev/mod at")
	o = dev.options()
	o.Password = []byte(mod.token())
	(&unit{r: r, name: "dev"}).refused(o, mqtt.NotAuthorized, "not for dev at")
	// Telemetry in the device's name ends the module's connection.
	if err := mod.Publish(t.Context(), "devices/dev/messages/events/", mqtt.AtLeastOnce, nil); err == nil {
		t.Error("a module speaks for the device")
	}
	mod.gone("is another device's")
	mod.online(iothub.TwinAnswers)
	d, err := r.reg.GetDevice(t.Context(), "dev")
	if err != nil {
		t.Fatal(err)
	}
	d.Status, d.StatusReason = iothub.Disabled, "stolen"
	r.put(d, iothub.AnyETag)
	mod.gone("device was disabled: stolen")
	dev.gone("device was disabled: stolen")
	mod.refused(mod.options(), mqtt.NotAuthorized, "device is disabled: stolen")
	d.Status = iothub.Enabled
	r.put(d, iothub.AnyETag)
	mod.online()
	if code, text := r.service().call("DELETE", "/devices/dev/modules/mod", "", nil, "If-Match", "*"); code != 204 {
		t.Fatalf("got %d %s", code, text)
	}
	mod.gone("module was removed from the registry")
	mod.refused(mod.options(), mqtt.NotAuthorized, "device has no module")
}

// issue makes a device of a CA's.
func issue(t *testing.T, ca *testca.Pair, id cradle.DeviceID) ident {
	t.Helper()
	return ident{id: id, cert: testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: string(id)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca).TLS()}
}

func TestCertificateAuthority(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		ctx := t.Context()
		ca, other := testca.New(t, testca.CA("ca"), nil), testca.New(t, testca.CA("other"), nil)
		d := entry("dev", "", "")
		d.Authentication.Type = iothub.CertificateAuthority
		r.put(d, "")
		u := r.unit(issue(t, ca, "dev"))
		u.refused(u.options(), mqtt.NotAuthorized, "the hub trusts no CA yet")
		a, err := r.reg.AddAuthority(ctx, "makers", ca.Cert.Raw)
		if err != nil || a.Name != "makers" || a.Subject != ca.Cert.Subject.String() || a.Expired {
			t.Fatalf("got %+v %v", a, err)
		}
		if _, err := r.reg.AddAuthority(ctx, "others", other.Cert.Raw); err != nil {
			t.Fatal(err)
		}
		for name, der := range map[string][]byte{"no-ca": newIdent(t, "dev").cert.Certificate[0], "rubbish": {1, 2}, "": nil, "Bad Name": ca.Cert.Raw} {
			if _, err := r.reg.AddAuthority(ctx, name, der); err == nil {
				t.Errorf("%q was taken", name)
			}
		}
		if _, err := r.reg.AddAuthority(ctx, "makers", other.Cert.Raw); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), iothub.CodeNameTaken) {
			t.Errorf("a name twice: %v", err)
		}
		u.online(iothub.TwinAnswers)
		x := r.unit(issue(t, other, "dev"))
		x.online() // both are trusted
		u.gone("a newer connection of the device took its place")
		if err := r.reg.RemoveAuthority(ctx, "others"); err != nil {
			t.Fatal(err)
		}
		x.gone("the hub trusts the certificate's CA no more")
		x.refused(x.options(), mqtt.NotAuthorized, "does not lead to a CA that the hub trusts")
		u.online(iothub.TwinAnswers)
		u.quiet()
		if as, err := r.reg.Authorities(ctx); err != nil || len(as) != 1 || as[0].SHA256 != a.SHA256 {
			t.Errorf("got %+v %v", as, err)
		}
		if err := r.reg.RemoveAuthority(ctx, "others"); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("removed twice: %v", err)
		}
	})
}

// TestRestart: what a device subscribed to with clean = 0, and what waits for it, is there after the hub was started anew,
// and so are twins.
func TestRestart(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		u := r.keyed("dev").online(iothub.TwinAnswers, iothub.DesiredChanges)
		if err := u.Subscribe(t.Context(), u.filter(), 1); err != nil {
			t.Fatal(err)
		}
		if status, _, _ := u.ask(iothub.TwinReport, `{"a":1}`); status != "204" {
			t.Fatal(status)
		}
		u.on = func(heard) error { return fmt.Errorf("power cut") }
		u.online()
		r.send("dev", "unacknowledged")
		u.next()
		ends(t, u.ended, "power cut")
		r.send("dev", "waiting")

		r = newRig(t, url)
		u.r, u.on = r, nil
		if err := u.connect(); err != nil || !u.SessionPresent() {
			t.Fatalf("got %v, session present %v", err, u.SessionPresent())
		}
		for _, want := range []string{"unacknowledged", "waiting"} {
			if h := u.next(); h.body != want {
				t.Errorf("heard %+v, want %s", h, want)
			}
		}
		r.waiting("dev", 0)
		if _, _, body := u.ask("twin/GET", " "); !strings.Contains(body, `"a":1`) {
			t.Errorf("twin: %s", body)
		}
		r.twin("PATCH", "/twins/dev", `{"properties":{"desired":{"b":2}}}`)
		if h := u.next(); !strings.Contains(h.body, `"b":2`) {
			t.Errorf("heard %+v", h)
		}
		if status, _, out := r.asOwner("POST", "/twins/dev/methods", `{"methodName":"m"}`); status != 404 {
			t.Errorf("nobody subscribed to methods: got %d %s", status, out)
		}
	})
}

// TestDupAndIdentifier: a message that is sent again carries the packet identifier of the first time, and DUP.
func TestDupAndIdentifier(t *testing.T) {
	r := newRig(t, sqlite(t))
	u := r.keyed("dev")
	o := u.options()
	connect := &mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: "dev", Username: &o.Username, Password: o.Password}
	first := connect.Append(nil)
	first = (&mqtt.Subscribe{ID: 1, Subscriptions: []mqtt.Subscription{{Filter: u.filter(), QoS: 2}}}).Append(first)
	r.send("dev", "x")
	receive := func(b []byte) (present bool, granted []mqtt.QoS, p mqtt.Publish) {
		t.Helper()
		c := r.dial(ident{})
		defer c.Close()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		rd := packets(t, c)
		for {
			raw := rd()
			switch raw.Type() {
			case mqtt.CONNACK:
				a, err := mqtt.ParseConnack(raw)
				if err != nil || a.Code != mqtt.Accepted {
					t.Fatalf("%+v %v", a, err)
				}
				present = a.SessionPresent
			case mqtt.SUBACK:
				a, err := mqtt.ParseSuback(raw)
				if err != nil {
					t.Fatal(err)
				}
				granted = a.Granted
			case mqtt.PUBLISH:
				p, err := mqtt.ParsePublish(raw)
				if err != nil {
					t.Fatal(err)
				}
				return present, granted, p
			}
		}
	}
	present, granted, p := receive(first)
	if present || len(granted) != 1 || granted[0] != mqtt.AtLeastOnce || p.Dup || p.QoS != mqtt.AtLeastOnce || string(p.Payload) != "x" {
		t.Errorf("first: %v %v %+v", present, granted, p)
	}
	present, _, q := receive(connect.Append(nil))
	if !present || !q.Dup || q.ID != p.ID || q.Topic != p.Topic || string(q.Payload) != "x" {
		t.Errorf("again: %v %+v, first %+v", present, q, p)
	}
	// Who unsubscribes hears no more, now and at the next connection.
	_, _, q = receive((&mqtt.Unsubscribe{ID: 2, Filters: []string{u.filter()}}).Append(connect.Append(nil)))
	if q.ID != p.ID {
		t.Errorf("a third time: %+v", q)
	}
	c := r.dial(ident{})
	if _, err := c.Write((&mqtt.Unsubscribe{ID: 2, Filters: []string{u.filter()}}).Append(connect.Append(nil))); err != nil {
		t.Fatal(err)
	}
	rd := packets(t, c)
	for rd().Type() != mqtt.UNSUBACK {
	}
	u.online(iothub.TwinAnswers)
	if !u.SessionPresent() {
		t.Error("no session present")
	}
	u.quiet()
}

// TestSlowDevice: a device that does not read is let go, and nobody waits for it.
func TestSlowDevice(t *testing.T) {
	r := newRig(t, sqlite(t))
	u := r.keyed("slow")
	o := u.options()
	b := (&mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: "slow", Clean: true, Username: &o.Username, Password: o.Password}).Append(nil)
	b = (&mqtt.Subscribe{ID: 1, Subscriptions: []mqtt.Subscription{{Filter: iothub.DesiredChanges}}}).Append(b)
	c := r.dial(ident{})
	c.(*tls.Conn).NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	rd := packets(t, c)
	for rd().Type() != mqtt.SUBACK {
	}
	big := strings.Repeat("x", 4000)
	for i := range 4000 {
		p := &iothub.TwinPatch{}
		p.Properties.Desired = json.RawMessage(fmt.Sprintf(`{"a":%q,"b":%q,"c":%q,"d":%q,"e":%q,"f":%q,"i":%d}`, big, big, big, big, big, big, i))
		if _, err := r.hub.PatchTwin(t.Context(), hub.DefaultName, "slow", "", p, "", false); err != nil {
			t.Fatal(err)
		}
		if r.hub.Connected() == 0 {
			r.wantLog("device does not take what is sent to it")
			return
		}
	}
	t.Error("still connected")
}
