package dpsserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"regexp"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/mqttserve"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
)

// mqttPort serves h behind a real port.
func mqttPort(t *testing.T, s *server, h mqttserve.Handler) string {
	t.Helper()
	l, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	f := front.New(front.Config{
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &s.http.TLS.Certificates[0], nil },
		Default:     front.Route{MQTT: mqttserve.New(mqttserve.Config{Log: log}).For(h)},
		Log:         log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return l.Addr().String()
}

// newMQTT is the whole service with a port for MQTT.
func newMQTT(t *testing.T, change func(*dpsserver.Config)) (*server, string) {
	t.Helper()
	var h *dpsserver.Handler
	s := newServer(t, func(c *dpsserver.Config) {
		if change != nil {
			change(c)
		}
		h = dpsserver.New(*c)
	})
	s.enrol()
	return s, mqttPort(t, s, h)
}

// device is a client that keeps what it hears.
type device struct {
	*mqtt.Client
	t     *testing.T
	heard chan message
	ended chan error
}

type message struct {
	topic   string
	payload []byte
}

// dial connects as a registration id with a user name.
func (s *server) dial(addr string, o mqtt.Options, certs ...tls.Certificate) *device {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(s.http.Certificate())
	nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "example.com", Certificates: certs})
	if err != nil {
		s.t.Fatal(err)
	}
	d := &device{t: s.t, heard: make(chan message, 16), ended: make(chan error, 1)}
	o.Clean = true
	o.OnMessage = func(topic string, payload []byte) error {
		d.heard <- message{topic, payload}
		return nil
	}
	if d.Client, err = mqtt.Dial(s.t.Context(), nc, o); err != nil {
		s.t.Fatal(err)
	}
	go func() { d.ended <- d.Run(context.Background()) }()
	s.t.Cleanup(func() { d.Close() })
	return d
}

func (s *server) user(id string) string {
	return dps.UserName(s.svc.Identity().IDScope, id, "2019-03-31")
}

func (d *device) subscribe() {
	d.t.Helper()
	if err := d.Subscribe(d.t.Context(), dps.ResponseFilter, mqtt.AtLeastOnce); err != nil {
		d.t.Fatal(err)
	}
}

var response = regexp.MustCompile(`^\$dps/registrations/res/(.*)/\?(.*)$`) // as the Node SDK matches it

// ask publishes a request and returns the answer's status, the rest of its topic and the payload.
func (d *device) ask(topic, payload string) (status, query string, body []byte) {
	d.t.Helper()
	if err := d.Publish(d.t.Context(), topic, mqtt.AtLeastOnce, []byte(payload)); err != nil {
		d.t.Fatal(err)
	}
	return d.hear()
}

func (d *device) hear() (status, query string, body []byte) {
	d.t.Helper()
	select {
	case m := <-d.heard:
		part := response.FindStringSubmatch(m.topic)
		if part == nil || !json.Valid(m.payload) {
			d.t.Fatalf("answer %q %q", m.topic, m.payload)
		}
		return part[1], part[2], m.payload
	case err := <-d.ended:
		d.t.Fatalf("connection ended: %v", err)
	case <-time.After(testenv.Patience):
		d.t.Fatal("no answer")
	}
	return
}

func get(rid, operation string) string {
	return "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=" + rid + "&operationId=" + operation
}
