package dpsserver_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

const put = "$dps/registrations/PUT/iotdps-register/?$rid="

// A registration with each form of user name.
func TestMQTT(t *testing.T) {
	s, addr := newMQTT(t, nil)
	scope := s.svc.Identity().IDScope
	for id, user := range map[string]string{
		"dev-1": scope + "/registrations/dev-1/api-version=2019-03-31&ClientVersion=Microsoft.Azure.Devices.Provisioning.Client%2F2.0.0",
		"dev-2": scope + "/registrations/dev-2/api-version=2019-03-31",
		"Dev-3": strings.ToUpper(scope) + "/registrations/DEV-3/api-version=2025-07-01-preview&ClientVersion=c",
		"dev:4": scope + "/registrations/dev%3A4/?api-version=2021-06-01",
	} {
		d := s.dial(addr, mqtt.Options{ClientID: id, Username: user, KeepAlive: 180 * time.Second}, s.ca.Leaf(id, nil))
		d.subscribe()
		status, query, b := d.ask(put+"0b1e-"+id, `{"registrationId":"`+id+`","payload":{"a":1}}`)
		var op dps.OperationStatus
		if err := json.Unmarshal(b, &op); err != nil || status != "202" || query != "$rid=0b1e-"+id+"&retry-after=0" || op.Status != dps.Assigning || op.OperationID == "" {
			t.Fatalf("%s: register: %s %s %s", id, status, query, b)
		}
		status, query, b = d.ask(get("77", op.OperationID), " ")
		var done dps.OperationStatus
		if err := json.Unmarshal(b, &done); err != nil || status != "200" || query != "$rid=77" || done.Status != dps.Assigned || done.OperationID != op.OperationID ||
			done.RegistrationState.AssignedHub != "localhost:8443" || done.RegistrationState.DeviceID != strings.ToLower(id) {
			t.Fatalf("%s: poll: %s %s %s", id, status, query, b)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A poll that is held back holds up nothing else on its connection, and a connection has few requests under way.
func TestMQTTHeldPoll(t *testing.T) {
	s, addr := newMQTT(t, func(c *dpsserver.Config) { c.Hold = time.Minute })
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.hub.Before(func(string, cradle.DeviceID) {
		once.Do(func() { close(entered) })
		<-release
	})
	d := s.dial(addr, mqtt.Options{ClientID: "dev-1", Username: s.user("dev-1")}, s.ca.Leaf("dev-1", nil))
	d.subscribe()
	_, _, b := d.ask(put+"1", `{}`)
	var op dps.OperationStatus
	if err := json.Unmarshal(b, &op); err != nil {
		t.Fatal(err)
	}
	<-entered // the hub's answer is what the polls wait for
	const calls = 4
	for range calls {
		if err := d.Publish(t.Context(), get("held", op.OperationID), mqtt.AtLeastOnce, []byte(" ")); err != nil {
			t.Fatal(err)
		}
	}
	d.subscribe() // answered meanwhile
	if status, query, b := d.ask(get("5", op.OperationID), " "); status != "429" || query != "$rid=5&retry-after=1" || !strings.Contains(string(b), "too many requests") {
		t.Errorf("fifth: %s %s %s", status, query, b)
	}
	close(release)
	for range calls {
		if status, query, b := d.hear(); status != "200" || query != "$rid=held" {
			t.Errorf("held: %s %s %s", status, query, b)
		}
	}
}

// PUBACKs go out with the answer, or by themselves when it is long in coming, in the order of what they acknowledge
// (MQTT-4.6.0-2).
func TestMQTTAcknowledgements(t *testing.T) {
	s, addr := newMQTT(t, func(c *dpsserver.Config) { c.Hold = time.Minute })
	entered, release := make(chan struct{}), make(chan struct{})
	s.hub.Before(func(string, cradle.DeviceID) {
		close(entered)
		<-release
	})
	roots := x509.NewCertPool()
	roots.AddCert(s.http.Certificate())
	nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "example.com", Certificates: []tls.Certificate{s.ca.Leaf("dev-1", nil)}})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	r := bufio.NewReader(nc)
	read := func() mqtt.Packet {
		t.Helper()
		p, err := mqtt.Read(r, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	acknowledged := func(id uint16) {
		t.Helper()
		p := read()
		if got, err := mqtt.ParseID(p); p.Type() != mqtt.PUBACK || err != nil || got != id {
			t.Fatalf("got %v %d %v, want the PUBACK of %d", p.Type(), got, err, id)
		}
	}
	answered := func(status string) (op dps.OperationStatus) {
		t.Helper()
		p, err := mqtt.ParsePublish(read())
		if err != nil || !strings.HasPrefix(p.Topic, "$dps/registrations/res/"+status+"/") {
			t.Fatalf("got %q %v, want %s", p.Topic, err, status)
		}
		if err := json.Unmarshal(p.Payload, &op); err != nil {
			t.Fatal(err)
		}
		return op
	}
	publish := func(id uint16, topic string) []byte {
		return (&mqtt.Publish{QoS: 1, ID: id, Topic: topic, Payload: []byte("{}")}).Append(nil)
	}
	user := s.user("dev-1")
	nc.Write(join((&mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: "dev-1", Username: &user}).Append(nil),
		(&mqtt.Subscribe{ID: 1, Subscriptions: []mqtt.Subscription{{Filter: dps.ResponseFilter}}}).Append(nil)))
	if c, s := read(), read(); c.Type() != mqtt.CONNACK || s.Type() != mqtt.SUBACK {
		t.Fatal(c.Type(), s.Type())
	}
	nc.Write(publish(2, put+"1"))
	acknowledged(2)
	op := answered("202")
	<-entered
	nc.Write(join(publish(3, get("2", op.OperationID)), publish(4, get("3", op.OperationID))))
	acknowledged(3) // though their answers wait for the hub
	acknowledged(4)
	close(release)
	answered("200")
	answered("200")
	nc.Write(join(publish(5, get("4", op.OperationID)), mqtt.AppendEmpty(nil, mqtt.DISCONNECT)))
}

// A held poll does not outlive its connection.
func TestMQTTHeldPollOfAGoneDevice(t *testing.T) {
	s, addr := newMQTT(t, func(c *dpsserver.Config) { c.Hold = time.Hour })
	entered, release := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	var once sync.Once
	s.hub.Before(func(string, cradle.DeviceID) {
		once.Do(func() { close(entered) })
		<-release
	})
	d := s.dial(addr, mqtt.Options{ClientID: "dev-1", Username: s.user("dev-1")}, s.ca.Leaf("dev-1", nil))
	d.subscribe()
	_, _, b := d.ask(put+"1", `{}`)
	var op dps.OperationStatus
	if err := json.Unmarshal(b, &op); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := d.Publish(t.Context(), get("2", op.OperationID), mqtt.AtLeastOnce, []byte(" ")); err != nil {
		t.Fatal(err)
	}
	d.Close() // mqttPort's cleanup waits for the connection's goroutine, which waits for the poll
}

// Every refusal is an answer in JSON that says what failed, is logged once with its reason, and changes nothing.
func TestMQTTRefusals(t *testing.T) {
	s, addr := newMQTT(t, nil)
	good := s.ca.Leaf("dev-1", nil)
	foreign := provisioningtest.NewCA(t, "acme", "foreign")
	revoked := s.ca.Leaf("dev-1", nil)
	s.feed.BlockCert(sha256.Sum256(revoked.Leaf.Raw))
	user, scope := s.user("dev-1"), s.svc.Identity().IDScope
	for _, c := range []struct {
		name     string
		id, user string
		cert     *tls.Certificate
		topic    string
		body     string
		status   string
		text     string
	}{
		{"no certificate", "dev-1", user, nil, put + "1", "{}", "401", "certificate"},
		{"CA not registered", "dev-1", user, ptr(foreign.Leaf("dev-1", nil)), put + "1", "{}", "401", "signing certificate not registered"},
		{"expired", "dev-1", user, ptr(s.ca.Leaf("dev-1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })), put + "1", "{}", "401", "expired"},
		{"certificate revoked", "dev-1", user, &revoked, put + "1", "{}", "401", "superseded"},
		{"CN differs", "dev-1", user, ptr(s.ca.Leaf("dev-2", nil)), put + "1", "{}", "401", `certificate is for \"dev-2\"`},
		{"other id scope", "dev-1", dps.UserName("0ne99999999", "dev-1", "2019-03-31"), &good, put + "1", "{}", "404", "id scope"},
		{"no user name", "dev-1", "", &good, put + "1", "{}", "400", "no MQTT user name"},
		{"a hub's user name", "dev-1", "hub/dev-1/?api-version=2021-04-12", &good, put + "1", "{}", "400", "is not {idScope}/registrations"},
		{"client id differs", "dev-2", user, &good, put + "1", "{}", "400", `client id is \"dev-2\"`},
		{"api-version missing", "dev-1", scope + "/registrations/dev-1", &good, put + "1", "{}", "400", "api-version is missing"},
		{"api-version too old", "dev-1", dps.UserName(scope, "dev-1", "2018-11-01"), &good, put + "1", "{}", "400", "api-version"},
		{"not JSON", "dev-1", user, &good, put + "1", "nonsense", "400", "JSON"},
		{"id in body differs", "dev-1", user, &good, put + "1", `{"registrationId":"dev-2"}`, "400", "body is for"},
		{"TPM", "dev-1", user, &good, put + "1", `{"tpm":{"endorsementKey":"AA==","storageRootKey":"AA=="}}`, "400", "TPM attestation is not served over MQTT; register over HTTPS"},
		{"bad id", "dev 1", dps.UserName(scope, "dev 1", "2019-03-31"), &good, put + "1", "{}", "400", "registration id"},
		{"unknown operation", "dev-1", user, &good, get("1", "5.1.2"), " ", "404", "dev-1"},
		{"poll without operation", "dev-1", user, &good, "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1", " ", "400", "no operationId"},
		{"poll of a stranger", "dev-1", user, nil, get("1", "5.1.2"), " ", "401", "certificate"},
		{"other topic", "dev-1", user, &good, "$dps/registrations/POST/x/?$rid=1", "{}", "404", "none of the provisioning service"},
		{"hub's topic", "dev-1", user, &good, "devices/dev-1/messages/events/$rid=1?$rid=1", "{}", "404", "none of the provisioning service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.log.Reset()
			var certs []tls.Certificate
			if c.cert != nil {
				certs = append(certs, *c.cert)
			}
			d := s.dial(addr, mqtt.Options{ClientID: c.id, Username: c.user}, certs...)
			d.subscribe()
			status, query, b := d.ask(c.topic, c.body)
			var e dps.Error
			if err := json.Unmarshal(b, &e); err != nil || status != c.status || query != "$rid=1" || !strings.HasPrefix(status, string(b[bytes.IndexByte(b, ':')+1:][:3])) || e.TrackingID == "" {
				t.Errorf("got %s %s %s", status, query, b)
			}
			if !strings.Contains(string(b), c.text) {
				t.Errorf("got %s, want … %q", b, c.text)
			}
			if n := strings.Count(s.log.String(), `"msg":"request refused"`); n != 1 || !strings.Contains(s.log.String(), e.TrackingID) {
				t.Errorf("%d log lines: %s", n, s.log)
			}
			if s.hub.Device("dev-1") != nil {
				t.Error("the hub has heard of it")
			}
			if _, err := s.svc.Registration(t.Context(), "dev-1"); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("registration: %v", err)
			}
		})
	}
	s.feed.SetStale(true)
	d := s.dial(addr, mqtt.Options{ClientID: "dev-1", Username: user}, good)
	d.subscribe()
	if status, query, b := d.ask(put+"1", "{}"); status != "503" || query != "$rid=1&retry-after=5" {
		t.Errorf("stale feed: %s %s %s", status, query, b)
	}
}

func ptr[T any](v T) *T { return &v }

// What ends the connection, and what is not granted. Nothing is registered by any of it.
func TestMQTTRules(t *testing.T) {
	s, addr := newMQTT(t, nil)
	cert := s.ca.Leaf("dev-1", nil)
	roots := x509.NewCertPool()
	roots.AddCert(s.http.Certificate())
	user := s.user("dev-1")
	hello := (&mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: "dev-1", Username: &user, // clean=0: there is no session to go on with
		Will: &mqtt.Will{Topic: "a", Message: []byte("x")}}).Append(nil)
	accepted := mqtt.Connack{}.Append(nil)
	subscribe := func(id uint16, q mqtt.QoS, filters ...string) []byte {
		p := mqtt.Subscribe{ID: id}
		for _, f := range filters {
			p.Subscriptions = append(p.Subscriptions, mqtt.Subscription{Filter: f, QoS: q})
		}
		return p.Append(nil)
	}
	suback := func(id uint16, granted ...mqtt.QoS) []byte {
		return (&mqtt.Suback{ID: id, Granted: granted}).Append(nil)
	}
	request := func(q mqtt.QoS) []byte {
		return (&mqtt.Publish{QoS: q, ID: 9 * uint16(min(q, 1)), Topic: put + "1", Payload: []byte("{}")}).Append(nil)
	}
	bye := mqtt.AppendEmpty(nil, mqtt.DISCONNECT)
	for name, c := range map[string]struct {
		send []byte
		want []byte
		log  string
	}{
		"QoS 2 subscription": {join(subscribe(1, 2, dps.ResponseFilter), bye), suback(1, 1), ""},
		"QoS 0 subscription": {join(subscribe(1, 0, dps.ResponseFilter), bye), suback(1, 0), ""},
		"wildcards":          {join(subscribe(1, 1, "#", "$dps/#", "$dps/registrations/res/+", "+/+/res/#", "$dps/registrations/res/200"), bye), suback(1, 128, 128, 128, 128, 128), ""},
		"ping":               {join(mqtt.AppendEmpty(nil, mqtt.PINGREQ), bye), mqtt.AppendEmpty(nil, mqtt.PINGRESP), ""},
		"unsubscribe":        {join((&mqtt.Unsubscribe{ID: 3, Filters: []string{dps.ResponseFilter}}).Append(nil), bye), mqtt.AppendID(nil, mqtt.UNSUBACK, 3), ""},
		"QoS 2 message":      {join(subscribe(1, 1, dps.ResponseFilter), request(2)), suback(1, 1), "QoS 2"},
		"not subscribed":     {request(1), nil, "before $dps/registrations/res/# was subscribed"},
		"unsubscribed":       {join(subscribe(1, 1, dps.ResponseFilter), (&mqtt.Unsubscribe{ID: 3, Filters: []string{dps.ResponseFilter}}).Append(nil), request(1)), join(suback(1, 1), mqtt.AppendID(nil, mqtt.UNSUBACK, 3)), "was subscribed"},
		"second CONNECT":     {hello, nil, "unexpected CONNECT"},
		"server's packet":    {mqtt.Connack{}.Append(nil), nil, "unexpected CONNACK"},
		"malformed":          {[]byte{0x82, 2, 0, 1}, nil, "cut short"},
		"too large":          {[]byte{0x30, 0xff, 0xff, 0x7f}, nil, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			s.log.Reset()
			nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "example.com", Certificates: []tls.Certificate{cert}})
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := nc.Write(join(hello, c.send)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(nc)
			if want := join(accepted, c.want); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got % x %v, want % x", got, err, want)
			}
			if log := s.log.String(); c.log == "" && log != "" || !strings.Contains(log, c.log) {
				t.Errorf("log %s", log)
			}
			if _, err := s.svc.Registration(t.Context(), "dev-1"); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("registration: %v", err)
			}
		})
	}
}

func join(p ...[]byte) []byte { return bytes.Join(p, nil) }

// Who lets CONNECT go and then does not register is not kept, whatever keep alive it names.
func TestMQTTStranger(t *testing.T) {
	s := newServer(t, nil)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		h := dpsserver.New(dpsserver.Config{Service: s.svc, Log: slog.New(slog.NewTextHandler(&log, nil))})
		client, end := net.Pipe()
		go mqttserve.New(mqttserve.Config{}).For(h)(t.Context(), end, tls.ConnectionState{})
		go client.Write((&mqtt.Connect{Protocol: "MQTT", Level: 4, ClientID: "d"}).Append(nil))
		go func() {
			for range 20 {
				time.Sleep(5 * time.Second)
				if _, err := client.Write(mqtt.AppendEmpty(nil, mqtt.PINGREQ)); err != nil {
					return
				}
			}
		}()
		start := time.Now()
		io.Copy(io.Discard, client)
		if d := time.Since(start); d != time.Minute || !strings.Contains(log.String(), "nobody has registered within 1m0s") {
			t.Errorf("kept for %v: %s", d, &log)
		}
		client.Close()
		time.Sleep(time.Minute)
	})
}

// A device that has shown who it is may be silent for as long as its keep alive says.
func TestMQTTKnownStays(t *testing.T) {
	const stranger = 2 * time.Second
	s, addr := newMQTT(t, func(c *dpsserver.Config) { c.Stranger = stranger })
	d := s.dial(addr, mqtt.Options{ClientID: "dev-1", Username: s.user("dev-1")}, s.ca.Leaf("dev-1", nil))
	if err := d.Subscribe(t.Context(), dps.ResponseFilter, mqtt.AtMostOnce); err != nil { // so that it says nothing after the answer
		t.Fatal(err)
	}
	d.ask(put+"1", "{}")
	time.Sleep(2 * stranger)
	d.subscribe()
}

// A rate that is exceeded is 429 on both transports, and nothing is looked at.
func TestAdmit(t *testing.T) {
	var asked []string
	s, addr := newMQTT(t, func(c *dpsserver.Config) {
		c.Admit = func(remote string, certificate []byte, id string) error {
			asked = append(asked, id)
			if host, _, err := net.SplitHostPort(remote); err != nil || host != "127.0.0.1" || certificate == nil {
				t.Errorf("asked about %q, certificate %d bytes", remote, len(certificate))
			}
			return &cradle.Error{Kind: cradle.Busy, Detail: "too many", RetryAfter: 1500 * time.Millisecond}
		}
	})
	cert := s.ca.Leaf("dev-1", nil)
	resp, b := s.call(s.client(cert), "PUT", s.path("dev-1")+"/register"+v, "{}")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "2" || !strings.Contains(string(b), `"errorCode":429001`) {
		t.Errorf("HTTPS: %d %v %s", resp.StatusCode, resp.Header, b)
	}
	d := s.dial(addr, mqtt.Options{ClientID: "dev-1", Username: s.user("dev-1")}, cert)
	d.subscribe()
	if status, query, b := d.ask(put+"1", "{}"); status != "429" || query != "$rid=1&retry-after=2" || !strings.Contains(string(b), `"errorCode":429001`) {
		t.Errorf("MQTT: %s %s %s", status, query, b)
	}
	if len(asked) != 2 {
		t.Errorf("asked %v", asked)
	}
	if _, err := s.svc.Registration(t.Context(), provisioning.RegistrationID("dev-1")); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("registration: %v", err)
	}
}
