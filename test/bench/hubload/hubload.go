// Package hubload is load on the provisioning service and the hub: registrations, telemetry, and connections that do
// nothing. Devices have operational certificates of the account (fleet.Clients) and speak over the network, from this
// process, what Azure's devices speak.
package hubload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/test/bench/fleet"
)

// Server is where the load goes.
type Server struct {
	Addr    string
	Roots   *x509.CertPool
	IDScope string
	Clients *fleet.Clients
}

// tls is the i-th device's: TLS 1.3, a full handshake for every connection.
func (s *Server) tls(i int) *tls.Config {
	cert := s.Clients.TLS(i)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.Roots, ServerName: "localhost",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }}
}

func (s *Server) dial(ctx context.Context, i int) (*tls.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second, KeepAlive: -1}, Config: s.tls(i)}
	c, err := d.DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

// RegisterHTTPS registers the i-th device over a new connection: register, and polls while it is told to.
func (s *Server) RegisterHTTPS(ctx context.Context, i int) error {
	var d net.Dialer
	hc := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: s.tls(i), MaxIdleConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, s.Addr)
		},
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}}
	defer hc.CloseIdleConnections()
	_, err := (&dps.Client{HTTP: hc, Endpoint: "https://localhost", IDScope: s.IDScope}).Register(ctx, string(s.Clients.List[i].ID))
	return err
}

// sdk is what Microsoft's SDK for Node.js adds to its user name.
const sdk = "&ClientVersion=azure-iot-provisioning-device%2F1.9.1"

// RegisterMQTT does the same over MQTT, as that SDK does.
func (s *Server) RegisterMQTT(ctx context.Context, i int) error {
	id := string(s.Clients.List[i].ID)
	conn, err := s.dial(ctx, i)
	if err != nil {
		return err
	}
	answers := make(chan [2]string, 4)
	c, err := mqtt.Dial(ctx, conn, mqtt.Options{ClientID: id, Username: dps.UserName(s.IDScope, id, dps.DeviceAPIVersion) + sdk, KeepAlive: time.Minute, Clean: true,
		OnMessage: func(topic string, payload []byte) error {
			answers <- [2]string{topic, string(payload)}
			return nil
		}})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer c.Close()
	if err := c.Subscribe(ctx, dps.ResponseFilter, mqtt.AtLeastOnce); err != nil {
		return err
	}
	r, body := dps.Request{RID: "1"}, fmt.Appendf(nil, `{"registrationId":%q}`, id)
	for {
		if err := c.Publish(ctx, r.Topic(), mqtt.AtLeastOnce, body); err != nil {
			return err
		}
		var a [2]string
		select {
		case a = <-answers:
		case err := <-ended:
			return fmt.Errorf("connection ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
		status, op, wait, err := parseAnswer(a[0], a[1])
		switch {
		case err != nil:
			return err
		case status == dps.Assigned:
			return nil
		case status != dps.Assigning && status != "" && status != dps.Unassigned:
			return fmt.Errorf("registration of %s: %s", id, a[1])
		}
		if r.Poll { // the first may follow at once
			wait = max(wait, 250*time.Millisecond)
		}
		time.Sleep(wait)
		r, body = dps.Request{Poll: true, RID: "2", Operation: op}, nil
	}
}

// parseAnswer reads what the service publishes: the operation's status and id, and the pause it asks for.
func parseAnswer(topic, payload string) (status dps.Status, operation string, wait time.Duration, err error) {
	_, rest, _ := strings.Cut(topic, "/res/")
	code, query, _ := strings.Cut(rest, "/?")
	if !strings.HasPrefix(code, "2") {
		return "", "", 0, fmt.Errorf("%s: %s", topic, payload)
	}
	for p := range strings.SplitSeq(query, "&") {
		if v, ok := strings.CutPrefix(p, "retry-after="); ok {
			if wait, err = time.ParseDuration(v + "s"); err != nil {
				return "", "", 0, err
			}
		}
	}
	var op dps.OperationStatus
	if err := json.Unmarshal([]byte(payload), &op); err != nil {
		return "", "", 0, err
	}
	return op.Status, op.OperationID, wait, nil
}

// Devices connects devices 0 to n-1 to the hub, several at once, each with a goroutine that reads.
func (s *Server) Devices(ctx context.Context, n int) (*Devices, error) {
	d := &Devices{list: make([]*mqtt.Client, n)}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for i := range n {
		g.Go(func() error {
			id := s.Clients.List[i].ID
			conn, err := s.dial(gctx, i)
			if err != nil {
				return err
			}
			c, err := mqtt.Dial(gctx, conn, mqtt.Options{ClientID: string(id), Username: iothub.UserName("localhost", id), KeepAlive: 20 * time.Minute, Clean: true})
			if err != nil {
				return err
			}
			d.list[i] = c
			go c.Run(context.WithoutCancel(ctx))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		d.Close()
		return nil, err
	}
	d.topic = func(i int) string { return iothub.EventsTopic(s.Clients.List[i].ID) }
	return d, nil
}

// Devices are connected.
type Devices struct {
	list  []*mqtt.Client
	topic func(i int) string
}

// Close disconnects them.
func (d *Devices) Close() {
	for _, c := range d.list {
		if c != nil {
			c.Close()
		}
	}
}

// body is one message's.
var body = []byte(`{"temperature":21.5,"humidity":44,"sequence":"` + strings.Repeat("0", 70) + `"}`)

// Publish has every device send messages of 120 bytes at QoS 1 for that long, window of them without their PUBACK at
// once, and returns how many were acknowledged.
func (d *Devices) Publish(ctx context.Context, window int, long time.Duration) (int64, error) {
	var acked atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	end := time.Now().Add(long)
	for i, c := range d.list {
		g.Go(func() error {
			var under []<-chan error
			for open := true; open || len(under) > 0; {
				if open = open && time.Now().Before(end); open && len(under) < window {
					done, err := c.Send(d.topic(i), mqtt.AtLeastOnce, body)
					if err != nil {
						return err
					}
					under = append(under, done)
					continue
				}
				if len(under) == 0 {
					break
				}
				select {
				case err := <-under[0]:
					if err != nil {
						return err
					}
				case <-ctx.Done():
					return ctx.Err()
				}
				acked.Add(1)
				under = under[1:]
			}
			return nil
		})
	}
	err := g.Wait()
	return acked.Load(), err
}

// Once has every device send one message and waits for all.
func (d *Devices) Once(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(256)
	for i, c := range d.list {
		g.Go(func() error { return c.Publish(ctx, d.topic(i), mqtt.AtLeastOnce, body) })
	}
	return g.Wait()
}
