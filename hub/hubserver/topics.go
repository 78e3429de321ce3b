package hubserver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// subscription returns what a topic filter stands for; false when it is not granted.
func (c *conn) subscription(filter string, qos mqtt.QoS) (hub.Subscriptions, bool) {
	switch filter {
	case iothub.MethodCalls:
		return hub.HearMethods, true
	case iothub.TwinAnswers:
		return hub.HearTwin, true
	case iothub.CredentialFilter:
		return hub.HearCredentials, true
	case iothub.DesiredChanges:
		return hub.HearDesired, true
	case iothub.DeviceboundFilter(c.device):
		if c.module != "" {
			return 0, false // modules have no queue, as in Azure
		}
		if qos == mqtt.AtMostOnce {
			return hub.HearMessagesAtMost, true
		}
		return hub.HearMessages, true
	}
	return 0, false
}

// bothMessages are the two qualities of the one filter.
const bothMessages = hub.HearMessages | hub.HearMessagesAtMost

// subscribe grants filters, one by one. QoS 2 is granted as 1.
func (c *conn) subscribe(ctx context.Context, raw mqtt.Packet) error {
	p, err := mqtt.ParseSubscribe(raw)
	if err != nil {
		return err
	}
	ack := mqtt.Suback{ID: p.ID}
	var add, remove hub.Subscriptions
	for _, sub := range p.Subscriptions {
		what, ok := c.subscription(sub.Filter, sub.QoS)
		q := mqtt.Refused
		if ok {
			q = min(sub.QoS, mqtt.AtLeastOnce)
			if what&bothMessages != 0 { // a new subscription replaces the old one (MQTT §3.8.4)
				add, remove = add&^bothMessages, remove|bothMessages
			}
			add |= what
		} else {
			c.log.Info("hub refused a subscription", "hub", c.hub, "device", c.name(), "filter", sub.Filter)
		}
		ack.Granted = append(ack.Granted, q)
	}
	heard := hub.Subscriptions(0)
	if c.sess.Hears(hub.HearCredentials) {
		heard = hub.HearCredentials // what was open was answered then
	}
	if add != 0 {
		if err := c.sess.Subscribe(ctx, add, remove); err != nil {
			return err
		}
	}
	if err := c.answer(ack.Append(nil)); err != nil {
		return err
	}
	return c.listen(ctx, add&^heard)
}

// listen lets new subscriptions take effect.
func (c *conn) listen(ctx context.Context, news hub.Subscriptions) error {
	c.sess.Listen(news)
	if news&hub.HearCredentials != 0 {
		return c.hearCredentials(ctx)
	}
	return nil
}

func (c *conn) unsubscribe(ctx context.Context, raw mqtt.Packet) error {
	p, err := mqtt.ParseUnsubscribe(raw)
	if err != nil {
		return err
	}
	var remove hub.Subscriptions
	for _, f := range p.Filters {
		what, _ := c.subscription(f, mqtt.AtLeastOnce)
		if what&bothMessages != 0 {
			what = bothMessages
		}
		remove |= what
	}
	if remove != 0 {
		if err := c.sess.Subscribe(ctx, 0, remove); err != nil {
			return err
		}
	}
	return c.answer(mqtt.AppendID(nil, mqtt.UNSUBACK, p.ID))
}

// message makes telemetry of a topic and a payload.
func (c *conn) message(topic string, payload []byte) (hub.Message, error) {
	device, module, bag, err := iothub.ParseEventsTopic(topic)
	if err != nil {
		return hub.Message{}, err
	}
	if device != c.device || module != c.module {
		return hub.Message{}, cradle.Errorf(cradle.Forbidden, "topic %.200q is another device's", topic)
	}
	return hub.Message{Properties: bag, Body: payload}, nil
}

// request answers what the device published under "$iothub/". Errors end the connection; what is wrong with the
// request's content is told to the device instead.
func (c *conn) request(ctx context.Context, topic string, payload []byte) error {
	if iothub.IsCredentialTopic(topic) {
		return c.credential(ctx, topic, payload)
	}
	r, err := iothub.ParseRequest(topic)
	if err != nil {
		return err
	}
	switch r.Path {
	case iothub.TwinGet:
		if !c.sess.Hears(hub.HearTwin) {
			return nil // nobody would hear the answer
		}
		pushed := true
		err := c.sess.Twin(ctx, func(twin []byte) { pushed = c.respond("twin", http.StatusOK, r.ID, 0, twin) })
		if !pushed {
			return errSlow
		}
		if err != nil {
			return c.refuse("twin", r, err)
		}
		return nil
	case iothub.TwinReport:
		version, err := c.sess.Report(ctx, payload)
		if err != nil {
			return c.refuse("twin", r, err)
		}
		if c.sess.Hears(hub.HearTwin) && !c.respond("twin", http.StatusNoContent, r.ID, version, nil) {
			return errSlow
		}
		return nil
	}
	if status, ok := r.MethodStatus(); ok {
		return c.sess.Respond(r.ID, status, payload)
	}
	return cradle.Errorf(cradle.Invalid, "nothing is served under topic %.200q", topic)
}

var errSlow = cradle.Errorf(cradle.Busy, "device does not take what is sent to it")

// respond publishes the answer to a request.
func (c *conn) respond(area string, status int, rid string, version int64, body []byte) bool {
	return c.publish(mqtt.Publish{Topic: iothub.ResponseTopic(area, status, rid, version), Payload: body})
}

// requestError is how SDKs recognise a refused request: by its body.
type requestError struct {
	ErrorCode    int    `json:"errorCode"`
	TrackingID   string `json:"trackingId"`
	Message      string `json:"message"`
	TimestampUTC string `json:"timestampUtc"`
}

// refuse tells the device why a request was refused, and the log too.
func (c *conn) refuse(area string, r iothub.Request, err error) error {
	status := statusOf(err)
	detail, hint := cradle.Public(err)
	if hint != "" {
		detail += ": " + hint
	}
	e := requestError{status * 1000, rand.Text(), detail, time.Now().UTC().Format(time.RFC3339)}
	c.log.Info("hub refused a device's request", "hub", c.hub, "device", c.name(), "request", r.Path, "status", status, "tracking", e.TrackingID, "reason", reason(err))
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if c.sess.Hears(hub.HearTwin) && !c.respond(area, status, r.ID, 0, body) {
		return errSlow
	}
	return nil
}

// statusOf is the status of a refused request over MQTT.
func statusOf(err error) int {
	switch cradle.KindOf(err) {
	case cradle.Invalid:
		return http.StatusBadRequest
	case cradle.TooLarge:
		return http.StatusRequestEntityTooLarge
	case cradle.NotFound:
		return http.StatusNotFound
	case cradle.Unauthorized, cradle.Forbidden:
		return http.StatusForbidden
	case cradle.Busy, cradle.Conflict:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
