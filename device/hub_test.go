package device_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// The provisioning service.

func (w *world) Register(ctx context.Context, endpoint, scope string, c *tls.Config, id string) (a *dps.Assignment, err error) {
	err = w.call(ctx, "register", func() error {
		peer, err := w.handshake(c, "dps.example")
		if err != nil {
			return err
		}
		if peer == nil || peer.CheckSignatureFrom(w.operational.cert) != nil || time.Now().After(peer.NotAfter) || id != unit || scope != "0ne1" {
			return cradle.Errorf(cradle.Unauthorized, "not one of the group")
		}
		if w.blocked {
			return cradle.Errorf(cradle.Forbidden, "registration is disabled")
		}
		w.registered[thumb(peer.Raw)] = true
		if t := thumb(peer.Raw); t != w.primary {
			if w.primary == "" {
				w.primary = t
			} else {
				w.secondary = t
			}
		}
		a = &dps.Assignment{Hub: "hub.example:9883", DeviceID: unit}
		return nil
	})
	return a, err
}

// The hub.

type hubConn struct {
	w     *world
	thumb string
	end   chan struct{}
	once  sync.Once
}

func (w *world) Connect(ctx context.Context, hub string, c *tls.Config, o mqtt.Options) (h device.Hub, err error) {
	err = w.call(ctx, "connect", func() error {
		peer, err := w.handshake(c, "hub.example")
		if err != nil {
			return err
		}
		t := thumb(peer.Raw)
		if w.blocked || time.Now().After(peer.NotAfter) || t != w.primary && t != w.secondary {
			return &mqtt.ConnackError{Code: mqtt.NotAuthorized}
		}
		if hub != "hub.example:9883" || o.ClientID != unit || o.Username != iothub.UserName("hub.example", unit) {
			w.t.Errorf("CONNECT to %s as %s, %s", hub, o.ClientID, o.Username)
		}
		if t == w.secondary {
			w.primary, w.secondary = t, ""
		}
		if w.conn != nil {
			w.conn.cut()
		}
		w.conn = &hubConn{w: w, thumb: t, end: make(chan struct{})}
		w.connects = append(w.connects, t)
		h = w.conn
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (h *hubConn) cut() { h.once.Do(func() { close(h.end) }) }

func (h *hubConn) Close() error { h.cut(); return nil }

func (h *hubConn) Run(ctx context.Context) error {
	select {
	case <-h.end:
		return mqtt.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *hubConn) Send(topic string, qos mqtt.QoS, payload []byte) (<-chan error, error) {
	select {
	case <-h.end:
		return nil, mqtt.ErrClosed
	default:
	}
	w := h.w
	ack := make(chan error, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	fault := w.fault
	if err := fault("publish", false); err != nil {
		if err == errHang {
			return ack, nil
		}
		h.cut()
		return nil, err
	}
	id, bag, err := iothub.ParseTelemetryTopic(topic)
	seq, ok := bag.Get(iothub.PropSequence)
	var body struct{ Seq json.Number }
	if err != nil || id != unit || !ok || qos != mqtt.AtLeastOnce || json.Unmarshal(payload, &body) != nil || body.Seq.String() != seq {
		w.t.Errorf("telemetry on %s: %s", topic, payload)
	}
	w.seqs = append(w.seqs, seq)
	if err := fault("publish", true); err != nil {
		h.cut()
		ack <- err
		return ack, nil
	}
	ack <- nil
	return ack, nil
}
