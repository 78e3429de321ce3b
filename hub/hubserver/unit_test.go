package hubserver_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// host is by what name the devices of these tests know the hub.
const host = "hub-1.example.com"

// heard is one message from the hub.
type heard struct{ topic, body string }

// unit is a device's or module's program: its credential, and what it hears.
type unit struct {
	*mqtt.Client
	r     *rig
	name  string // client id
	ident ident  // certificate, if it has one
	key   []byte // symmetric key, if it has one
	clean bool
	hears chan heard
	on    func(heard) error // before the PUBACK, if set
	ended chan error
}

func (r *rig) unit(i ident) *unit { return &unit{r: r, name: string(i.id), ident: i} }

// keyed registers a device with a symmetric key.
func (r *rig) keyed(id cradle.DeviceID) *unit {
	r.t.Helper()
	var d iothub.Device
	s := r.service()
	if code, text := s.call("PUT", "/devices/"+string(id), fmt.Sprintf(`{"deviceId":%q,"authentication":{"type":"sas"}}`, id), &d); code != 200 {
		r.t.Fatalf("registering: %d %s", code, text)
	}
	return &unit{r: r, name: string(id), key: decode(r.t, d.Authentication.SymmetricKey.PrimaryKey)}
}

func (u *unit) resource() string {
	return host + "/devices/" + strings.Replace(u.name, "/", "/modules/", 1)
}

func (u *unit) token() string { return sas.Sign(u.resource(), "", u.key, time.Now().Add(time.Hour)) }

// options are those of its CONNECT.
func (u *unit) options() mqtt.Options {
	o := mqtt.Options{ClientID: u.name, Username: iothub.UserName(host, cradle.DeviceID(u.name)), KeepAlive: time.Minute, Clean: u.clean}
	if u.key != nil {
		o.Password = []byte(u.token())
	}
	return o
}

func (u *unit) connect() error {
	u.r.t.Helper()
	return u.connectWith(u.options())
}

func (u *unit) connectWith(o mqtt.Options) error {
	u.r.t.Helper()
	hears, on := make(chan heard, 200), u.on
	o.OnMessage = func(topic string, payload []byte) error {
		h := heard{topic, string(payload)}
		hears <- h
		if on != nil {
			return on(h)
		}
		return nil
	}
	c, err := mqtt.Dial(u.r.t.Context(), u.r.dial(u.ident), o)
	if err != nil {
		return err
	}
	u.Client, u.hears, u.ended = c, hears, make(chan error, 1)
	ended := u.ended
	go func() { ended <- c.Run(context.Background()) }()
	u.r.t.Cleanup(func() { c.Close() })
	return nil
}

// on connects and subscribes.
func (u *unit) online(filters ...string) *unit {
	u.r.t.Helper()
	if err := u.connect(); err != nil {
		u.r.t.Fatalf("connecting %s: %v\n%s", u.name, err, u.r.logs)
	}
	for _, f := range filters {
		if err := u.Subscribe(u.r.t.Context(), f, 1); err != nil {
			u.r.t.Fatalf("%s: %s: %v", u.name, f, err)
		}
	}
	return u
}

func (u *unit) next() heard {
	u.r.t.Helper()
	select {
	case h := <-u.hears:
		return h
	case <-time.After(testenv.Patience):
		u.r.t.Fatalf("%s hears nothing\n%s", u.name, u.r.logs)
		return heard{}
	}
}

// ask publishes a request and returns the answer's status, the rest of its topic, and its body.
func (u *unit) ask(path, body string) (status, rest, payload string) {
	u.r.t.Helper()
	if err := u.Publish(u.r.t.Context(), "$iothub/"+path+"/?$rid=r%201", mqtt.AtMostOnce, []byte(body)); err != nil {
		u.r.t.Fatal(err)
	}
	h := u.next()
	answer, ok := strings.CutPrefix(h.topic, "$iothub/twin/res/")
	status, rest, ok2 := strings.Cut(answer, "/?$rid=r%201")
	if !ok || !ok2 {
		u.r.t.Fatalf("%s: answer %+v", path, h)
	}
	return status, rest, h.body
}

// quiet checks that the unit has heard nothing: what it asks for now comes first.
func (u *unit) quiet() {
	u.r.t.Helper()
	if status, _, _ := u.ask("twin/GET", " "); status != "200" {
		u.r.t.Errorf("%s heard something", u.name)
	}
}

func (u *unit) filter() string { return iothub.DeviceboundFilter(cradle.DeviceID(u.name)) }
