package hubserver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// credentials is a connection's part in the renewal of its device's certificate ($iothub/credentials). One request is under
// way at a time, in a goroutine that ends with the connection; what it came to is in the store.
type credentials struct {
	mu      sync.Mutex
	working string // request that a goroutine is at
}

// credential takes a request for a certificate. It returns when the request is on record; an error ends the connection.
func (c *conn) credential(ctx context.Context, topic string, payload []byte) error {
	id, err := iothub.ParseCredentialTopic(topic)
	if err != nil {
		return err // it cannot be answered
	}
	q, code, err := iothub.ParseCredentialRequest(payload)
	if err != nil {
		c.refuseCredential(id, &hub.CredentialError{Code: code, Message: err.Error()})
		return nil
	}
	r, err := c.sess.AskCredential(ctx, id, q)
	if err != nil {
		c.refuseCredential(id, err)
		return nil
	}
	c.finishCredential(ctx, r)
	return nil
}

// hearCredentials is for the device's subscription: what was not answered yet is answered now.
func (c *conn) hearCredentials(ctx context.Context) error {
	r, err := c.sess.OpenCredential(ctx)
	if err == nil && r != nil {
		c.finishCredential(ctx, r)
	}
	return err
}

// finishCredential answers a request: 202 while it is active, then what becomes of it.
func (c *conn) finishCredential(ctx context.Context, r *hub.CredentialRequest) {
	if r.State == hub.CredentialActive {
		c.publishCredential("202", r.ID, iothub.CredentialAccepted{CorrelationID: r.Correlation, OperationExpires: r.Expires})
	}
	c.creds.mu.Lock()
	mine := c.creds.working != r.ID
	c.creds.working = r.ID
	c.creds.mu.Unlock()
	if !mine {
		return
	}
	go func() {
		done, err := c.sess.FinishCredential(ctx, r)
		c.creds.mu.Lock()
		if c.creds.working == r.ID {
			c.creds.working = ""
		}
		c.creds.mu.Unlock()
		switch {
		case err == nil:
			c.tellCredential(ctx, done)
		case ctx.Err() == nil:
			c.refuseCredential(r.ID, err)
		}
	}()
}

// tellCredential sends a request's end.
func (c *conn) tellCredential(ctx context.Context, r *hub.CredentialRequest) {
	var sent bool
	if r.State == hub.CredentialIssued {
		sent = c.publishCredential("200", r.ID, iothub.CredentialIssued{CorrelationID: r.Correlation, Certificates: r.Certificates()})
	} else {
		sent = c.refuseCredential(r.ID, &hub.CredentialError{Code: r.Code, Message: r.Message, Request: r})
	}
	if sent && !r.Told {
		if err := c.sess.Told(ctx, r); err != nil {
			c.log.Warn("answer to a request for a certificate is not noted", "device", c.name(), "reason", reason(err))
		}
	}
}

func (c *conn) refuseCredential(id string, err error) bool {
	refused := &hub.CredentialError{Code: iothub.CredentialServer, Message: "internal error"}
	if !errors.As(err, &refused) && cradle.KindOf(err) == cradle.Busy {
		refused.Code, refused.Message, refused.RetryAfter = iothub.CredentialBusy, "the hub's store does not answer", 5*time.Second
	}
	e := iothub.CredentialError{ErrorCode: refused.Code, Message: refused.Message, TrackingID: rand.Text(), Timestamp: time.Now().UTC(), RetryAfter: int((refused.RetryAfter + time.Second - 1) / time.Second)}
	if r := refused.Request; r != nil {
		e.CorrelationID = r.Correlation
		e.Info = &iothub.CredentialInfo{RequestID: r.ID, CorrelationID: r.Correlation}
		if !r.Expires.IsZero() {
			e.Info.OperationExpires = &r.Expires
		}
	}
	c.log.Warn("hub refused a request for a certificate", "hub", c.hub, "device", c.name(), "request", id, "code", e.ErrorCode, "reason", reason(err), "tracking_id", e.TrackingID)
	return c.publishCredential(strconv.Itoa(refused.Code/1000), id, e)
}

// publishCredential sends an answer to a device that has subscribed, at most once: one that misses it sends its request
// again, or subscribes again.
func (c *conn) publishCredential(status, request string, body any) bool {
	if !c.sess.Hears(hub.HearCredentials) {
		return false
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return c.answer((&mqtt.Publish{Topic: iothub.CredentialResponse(status, request), Payload: b}).Append(nil)) == nil
}
