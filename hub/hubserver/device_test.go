package hubserver_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
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
	case <-time.After(20 * time.Second):
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

// TestTwinByDevice is what Microsoft's SDKs do over MQTT, for a device and for a module.
func TestTwinByDevice(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		dev := r.keyed("dev")
		for _, c := range []struct {
			u    *unit
			path string
		}{{dev, "/twins/dev"}, {r.module(dev, "mod"), "/twins/dev/modules/mod"}} {
			u := c.u.online(iothub.TwinAnswers, iothub.DesiredChanges)
			if status, _, body := u.ask("twin/GET", " "); status != "200" || body != `{"desired":{"$version":1},"reported":{"$version":1}}` {
				t.Errorf("%s: got %s %s", u.name, status, body)
			}
			if status, rest, body := u.ask(iothub.TwinReport, `{"fw":{"v":"1.2","build":7},"old":true}`); status != "204" || rest != "&$version=2" || body != "" {
				t.Errorf("report: got %s %s %s", status, rest, body)
			}
			if status, _, _ := u.ask(iothub.TwinReport, `{"old":null,"fw":{"build":8}}`); status != "204" {
				t.Errorf("report: got %s", status)
			}
			// A desired change comes with nulls; a replacement as what leads there.
			r.twin("PATCH", c.path, `{"properties":{"desired":{"a":{"b":1,"c":2},"gone":1}},"tags":{"x":1}}`)
			if h := u.next(); h != (heard{"$iothub/twin/PATCH/properties/desired/?$version=2", `{"$version":2,"a":{"b":1,"c":2},"gone":1}`}) {
				t.Errorf("heard %+v", h)
			}
			r.twin("PATCH", c.path, `{"properties":{"desired":{"a":{"c":null}}}}`)
			if h := u.next(); h.body != `{"$version":3,"a":{"c":null}}` {
				t.Errorf("heard %+v", h)
			}
			r.twin("PUT", c.path, `{"properties":{"desired":{"a":{"b":1,"d":3}}}}`)
			if h := u.next(); h.body != `{"$version":4,"a":{"d":3},"gone":null}` {
				t.Errorf("heard %+v", h)
			}
			r.twin("PATCH", c.path, `{"tags":{"y":1}}`) // not the device's business
			if _, _, body := u.ask("twin/GET", " "); body != `{"desired":{"$version":4,"a":{"b":1,"d":3}},"reported":{"$version":3,"fw":{"build":8,"v":"1.2"}}}` {
				t.Errorf("twin: %s", body)
			}
			tw := r.twin("GET", c.path, "")
			if tw.ConnectionState != iothub.Connected || !strings.Contains(string(tw.Properties.Reported), `"fw":{"build":8,"v":"1.2"}`) {
				t.Errorf("got %+v", tw)
			}
			// What is refused is told with a body by which SDKs know it, and changes nothing.
			for body, want := range map[string]string{`{"a.b":1}`: "400", `[1]`: "400", `{"a":"` + strings.Repeat("x", 5000) + `"}`: "400", `{`: "400"} {
				status, _, answer := u.ask(iothub.TwinReport, body)
				var e struct {
					ErrorCode int    `json:"errorCode"`
					Message   string `json:"message"`
				}
				if err := json.Unmarshal([]byte(answer), &e); status != want || err != nil || e.ErrorCode != 400000 || !strings.Contains(e.Message, "reported properties") {
					t.Errorf("%.20s: got %s %s", body, status, answer)
				}
			}
			if again := r.twin("GET", c.path, ""); again.Version != tw.Version {
				t.Errorf("refused reports left version %d, was %d", again.Version, tw.Version)
			}
		}
	})
}

// TestTwinInOrder: while the twin is patched from many sides the device, which applies what it hears to what it read,
// ends with what the hub has.
func TestTwinInOrder(t *testing.T) {
	r := newRig(t, sqlite(t))
	u := r.keyed("dev").online(iothub.TwinAnswers, iothub.DesiredChanges)
	const n = 60
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range n / 3 {
				p := &iothub.TwinPatch{}
				p.Properties.Desired = json.RawMessage(fmt.Sprintf(`{"w%d":%d}`, w, i))
				if _, err := r.hub.PatchTwin(t.Context(), hub.DefaultName, "dev", "", p, "", false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	asked := 0
	last := int64(0)
	for seen := int64(1); seen < n+1; {
		if asked < 10 {
			asked++
			if err := u.Publish(t.Context(), "$iothub/twin/GET/?$rid=1", mqtt.AtMostOnce, nil); err != nil {
				t.Fatal(err)
			}
		}
		h := u.next()
		var doc struct {
			Version int64 `json:"$version"`
			Desired struct {
				V int64 `json:"$version"`
			} `json:"desired"`
		}
		if err := json.Unmarshal([]byte(h.body), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Desired.V != 0 { // the twin: as new as what was heard last, and no older
			if doc.Desired.V < seen {
				t.Fatalf("twin of version %d after change %d", doc.Desired.V, seen)
			}
			seen = doc.Desired.V
			continue
		}
		if doc.Version <= last {
			t.Fatalf("change %d after %d", doc.Version, last)
		}
		last, seen = doc.Version, max(seen, doc.Version)
	}
	wg.Wait()
}

func TestMethods(t *testing.T) {
	r := newRig(t, sqlite(t))
	a, b := r.keyed("a"), r.keyed("b")
	call := func(path, body string) (int, string) {
		status, _, out := r.asOwner("POST", path+"/methods", body)
		return status, out
	}
	if status, out := call("/twins/nobody", `{"methodName":"m"}`); status != 404 || !strings.Contains(out, "ErrorCode:DeviceNotFound") {
		t.Errorf("nobody: %d %s", status, out)
	}
	if status, out := call("/twins/a", `{"methodName":"m"}`); status != 404 || !strings.Contains(out, "ErrorCode:DeviceNotOnline") {
		t.Errorf("offline: %d %s", status, out)
	}
	answering := func(u *unit) func(heard) error {
		return func(h heard) error {
			name, rid, ok := strings.Cut(strings.TrimPrefix(h.topic, "$iothub/methods/POST/"), "/?$rid=")
			if !ok || name == "silent" {
				return nil
			}
			body := fmt.Sprintf(`{"by":%q,"got":%s}`, u.name, h.body)
			if name == "bad" {
				body = "{"
			}
			if name == "empty" {
				body = ""
			}
			go u.Publish(context.Background(), "$iothub/methods/res/-7/?$rid="+rid, mqtt.AtMostOnce, []byte(body))
			return nil
		}
	}
	a.on = answering(a)
	a.online()
	if status, out := call("/twins/a", `{"methodName":"m"}`); status != 404 || !strings.Contains(out, "DeviceNotOnline") {
		t.Errorf("not subscribed: %d %s", status, out)
	}
	if err := a.Subscribe(t.Context(), iothub.MethodCalls, 0); err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		`{"methodName":"m","payload":{"x":[1]}}`:                         `{"status":-7,"payload":{"by":"a","got":{"x":[1]}}}`,
		`{"methodName":"m","payload":"s","responseTimeoutInSeconds":30}`: `{"status":-7,"payload":{"by":"a","got":"s"}}`,
		`{"methodName":"m"}`:                 `{"status":-7,"payload":{"by":"a","got":null}}`,
		`{"methodName":"empty","payload":1}`: `{"status":-7,"payload":null}`,
	} {
		if status, out := call("/twins/a", body); status != 200 || out != want {
			t.Errorf("%s: got %d %s", body, status, out)
		}
	}
	if status, out := call("/twins/a", `{"methodName":"bad"}`); status != 502 || !strings.Contains(out, "BadDeviceResponse") {
		t.Errorf("bad answer: %d %s", status, out)
	}
	for body, want := range map[string]int{`{"methodName":""}`: 400, `{"methodName":"a/b"}`: 400, `{"methodName":"m","responseTimeoutInSeconds":301}`: 400,
		`{"methodName":"m","responseTimeoutInSeconds":4}`: 400, `{"methodName":"m","connectTimeoutInSeconds":-1}`: 400, `{"methodName":"m","payload":"` + strings.Repeat("x", 128<<10) + `"}`: 413, `{`: 400} {
		if status, out := call("/twins/a", body); status != want {
			t.Errorf("%.40s: got %d %s", body, status, out)
		}
	}
	// The device comes while the caller waits for it, and subscribes later still.
	b.on = answering(b)
	done := make(chan string, 1)
	go func() {
		status, out := call("/twins/b", `{"methodName":"m","connectTimeoutInSeconds":30}`)
		done <- fmt.Sprint(status, out)
	}()
	b.online(iothub.MethodCalls)
	if got := <-done; got != `200{"status":-7,"payload":{"by":"b","got":null}}` {
		t.Errorf("came later: %s", got)
	}
	// Another device's answer to the same id is nobody's.
	go func() {
		status, out := call("/twins/a", `{"methodName":"silent"}`)
		done <- fmt.Sprint(status, out)
	}()
	var rid string
	for rid == "" {
		if h := a.next(); strings.Contains(h.topic, "/silent/") {
			_, rid, _ = strings.Cut(h.topic, "$rid=")
		}
	}
	if err := b.Publish(t.Context(), "$iothub/methods/res/200/?$rid="+rid, mqtt.AtLeastOnce, []byte(`"forged"`)); err != nil {
		t.Fatal(err)
	}
	if err := a.Publish(t.Context(), "$iothub/methods/res/201/?$rid="+rid, mqtt.AtLeastOnce, []byte(`"own"`)); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got != `200{"status":201,"payload":"own"}` {
		t.Errorf("two answers: %s", got)
	}
	// The device goes before it answers.
	go func() {
		status, out := call("/twins/a", `{"methodName":"silent","responseTimeoutInSeconds":300}`)
		done <- fmt.Sprint(status, out)
	}()
	for {
		if h := a.next(); strings.Contains(h.topic, "/silent/") {
			break
		}
	}
	a.Close()
	if got := <-done; !strings.HasPrefix(got, "404") || !strings.Contains(got, "DeviceNotOnline") || !strings.Contains(got, "may have run") {
		t.Errorf("gone: %s", got)
	}
	// A module has methods of its own.
	m := r.module(b, "mod")
	m.on = answering(m)
	m.online(iothub.MethodCalls)
	if status, out := call("/twins/b/modules/mod", `{"methodName":"m"}`); status != 200 || out != `{"status":-7,"payload":{"by":"b/mod","got":null}}` {
		t.Errorf("module: %d %s", status, out)
	}
}

func TestMethodTimeout(t *testing.T) {
	testenv.Long(t)
	r := newRig(t, sqlite(t))
	r.keyed("a").online(iothub.MethodCalls)
	if status, _, out := r.asOwner("POST", "/twins/a/methods", `{"methodName":"m","responseTimeoutInSeconds":5}`); status != 504 || !strings.Contains(out, "ErrorCode:GatewayTimeout") {
		t.Errorf("got %d %s", status, out)
	}
}

// send puts a message into a device's queue, over REST.
func (r *rig) send(id, body string, header ...string) {
	r.t.Helper()
	if status, _, out := r.asOwner("POST", "/devices/"+id+"/messages/devicebound", body, header...); status != 204 {
		r.t.Fatalf("sending to %s: %d %s", id, status, out)
	}
}

func (r *rig) waiting(id cradle.DeviceID, want int) {
	r.t.Helper()
	n := -1
	for range 500 {
		var err error
		if n, err = r.hub.WaitingC2D(r.t.Context(), hub.DefaultName, id); err != nil {
			r.t.Fatal(err)
		}
		if n == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Errorf("%d messages wait for %s, want %d", n, id, want)
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
		<-u.ended
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
		<-u.ended
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
		<-u.ended
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
	<-u.ended
	for range iothub.MaxDeliveries - 1 {
		if err := u.connect(); err != nil {
			t.Fatal(err)
		}
		if h := u.next(); h.body != "long" {
			t.Errorf("heard %+v", h)
		}
		<-u.ended
	}
	u.on = nil
	u.online(u.filter(), iothub.TwinAnswers)
	u.quiet()
	r.waiting("dev", 0)
}

// https sends a device's own request.
func (u *unit) https(method, path, body string, header ...string) (int, http.Header, string) {
	u.r.t.Helper()
	return u.r.request(method, path, sas.Sign(strings.TrimPrefix(u.r.reg.BaseURL, "https://")+strings.TrimPrefix(u.resource(), host), "", u.key, time.Now().Add(time.Hour)), body, header...)
}

func TestDeviceOverHTTPS(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		u, other := r.keyed("dev"), r.keyed("other")
		events, bound := "/devices/dev/messages/events?api-version=2021-04-12", "/devices/dev/messages/devicebound"
		if status, _, out := u.https("POST", events, `{"t":1}`, "iothub-app-Seq", "1", "iothub-messageid", "m", "iothub-contenttype", "application/json", "iothub-contentencoding", "utf-8"); status != 204 {
			t.Errorf("got %d %s", status, out)
		}
		batch := `[{"body":"aGk=","properties":{"iothub-app-k":"v","iothub-messageid":"b"}},{"body":"text","base64Encoded":false}]`
		if status, _, out := u.https("POST", events, batch, "Content-Type", "application/vnd.microsoft.iothub.json"); status != 204 {
			t.Errorf("batch: got %d %s", status, out)
		}
		m := r.module(u, "mod")
		if status, _, out := m.https("POST", "/devices/dev/modules/mod/messages/events", "m", "iothub-app-x", "y"); status != 204 {
			t.Errorf("module: got %d %s", status, out)
		}
		es := r.events("")
		if len(es) != 4 {
			t.Fatalf("got %d events", len(es))
		}
		if e := es[0]; string(e.Body) != `{"t":1}` || e.Props["seq"] != "1" || e.System["message_id"] != "m" || e.System["content_encoding"] != "utf-8" {
			t.Errorf("got %+v", e)
		}
		if b, _ := es[1].Bytes(); string(b) != "hi" || es[1].Props["k"] != "v" || es[1].System["message_id"] != "b" {
			t.Errorf("got %+v", es[1])
		}
		if b, _ := es[3].Bytes(); string(b) != "m" || es[3].System[iothub.PropModule] != "mod" || es[3].Device != "dev" {
			t.Errorf("got %+v", es[3])
		}
		for what, c := range map[string]struct {
			u            *unit
			method, path string
			body, kind   string
			want         int
		}{
			"another's key":         {other, "POST", events, "x", "", 401},
			"a module as device":    {m, "POST", events, "x", "", 401},
			"a device as module":    {u, "POST", "/devices/dev/modules/mod/messages/events", "x", "", 401},
			"no such device":        {u, "POST", "/devices/nobody/messages/events", "x", "", 401},
			"batch without base64":  {u, "POST", events, `[{"body":"?"}]`, "application/vnd.microsoft.iothub.json", 400},
			"empty batch":           {u, "POST", events, `[]`, "application/vnd.microsoft.iothub.json; charset=utf-8", 400},
			"too large":             {u, "POST", events, strings.Repeat("x", 600<<10), "", 413},
			"larger than a message": {u, "POST", events, strings.Repeat("x", 300<<10), "", 413},
			"the registry":          {u, "GET", "/devices/dev", "", "", 401},
			"another's modules":     {u, "GET", "/devices/other/modules", "", "", 401},
			"sending to itself":     {u, "POST", bound, "x", "", 401},
		} {
			if status, _, out := c.u.https(c.method, c.path, c.body, "Content-Type", c.kind); status != c.want {
				t.Errorf("%s: got %d %s", what, status, out)
			}
		}
		if status, _, _ := r.request("POST", events, "", "x"); status != 401 {
			t.Errorf("no token: got %d", status)
		}
		if got := len(r.events("")); got != 4 {
			t.Errorf("refused requests left %d events", got)
		}
		// Its own module identities, as IoT Identity Service asks for them.
		if status, _, out := u.https("GET", "/devices/dev/modules?api-version=2017-11-08-preview", ""); status != 200 || !strings.Contains(out, `"moduleId":"mod"`) {
			t.Errorf("modules: got %d %s", status, out)
		}
		if status, _, out := u.https("PUT", "/devices/dev/modules/own", `{"moduleId":"own","deviceId":"dev","authentication":{"type":"sas"}}`); status/100 != 2 {
			t.Errorf("own module: got %d %s", status, out)
		}

		// Messages to the device: taken, abandoned, taken again, completed.
		if status, _, _ := u.https("GET", bound, ""); status != 204 {
			t.Errorf("empty queue: got %d", status)
		}
		r.send("dev", "one", "iothub-app-key", "v", "iothub-messageid", "id-1")
		r.send("dev", "two")
		status, h, body := u.https("GET", bound, "")
		if status != 200 || body != "one" || h.Get("iothub-messageid") != "id-1" || h.Get("iothub-app-key") != "v" || h.Get("iothub-deliverycount") != "1" || h.Get("iothub-to") != "/devices/dev/messages/devicebound" {
			t.Fatalf("got %d %v %s", status, h, body)
		}
		lock := strings.Trim(h.Get("ETag"), `"`)
		if _, _, body := u.https("GET", bound, ""); body != "two" {
			t.Errorf("while the first is locked: got %q", body)
		}
		if status, _, _ := other.https("DELETE", "/devices/other/messages/devicebound/"+lock, ""); status != 412 {
			t.Errorf("another device's lock: got %d", status)
		}
		if status, _, out := u.https("POST", bound+"/"+lock+"/abandon", ""); status != 204 {
			t.Errorf("abandon: got %d %s", status, out)
		}
		_, h, body = u.https("GET", bound, "")
		if body != "one" || h.Get("iothub-deliverycount") != "2" {
			t.Errorf("abandoned: got %v %s", h, body)
		}
		if status, _, out := u.https("DELETE", bound+"/"+lock, ""); status != 412 || !strings.Contains(out, "DeviceMessageLockLost") {
			t.Errorf("the old lock: got %d %s", status, out)
		}
		if status, _, _ := u.https("DELETE", bound+"/"+strings.Trim(h.Get("ETag"), `"`)+"?reject", ""); status != 204 {
			t.Errorf("reject: got %d", status)
		}
		r.waiting("dev", 1)
		r.skew.Store(int64(2 * iothub.C2DLock)) // the other lock ends
		if _, _, body := u.https("GET", bound, ""); body != "two" {
			t.Errorf("after the lock: got %q", body)
		}
	})
}

// postBy sends telemetry over HTTPS with a TLS client certificate; it returns the status.
func (r *rig) postBy(i ident, path string) int {
	r.t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots, Certificates: []tls.Certificate{i.cert}}}}
	defer c.CloseIdleConnections()
	resp, err := c.Post(r.reg.BaseURL+path, "", strings.NewReader("x"))
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestCertificateOverHTTPS: the TLS client certificate does as well as a token.
func TestCertificateOverHTTPS(t *testing.T) {
	r := newRig(t, sqlite(t))
	i := r.register("dev")
	if got := r.postBy(i, "/devices/dev/messages/events"); got != 204 {
		t.Errorf("got %d", got)
	}
	if got := r.postBy(newIdent(t, "dev"), "/devices/dev/messages/events"); got != 401 {
		t.Errorf("another certificate: got %d", got)
	}
	if got := len(r.events("")); got != 1 {
		t.Errorf("%d events", got)
	}
}
