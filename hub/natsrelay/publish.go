package natsrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// message is an event as NATS gets it.
func message(name hub.Name, e *hub.Event) (*nats.Msg, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e.Wire(name)); err != nil {
		return nil, err
	}
	module, _ := e.Properties.Get(iothub.PropModule)
	m := nats.NewMsg(Subject(name, e.Device, iothub.ModuleID(module)))
	m.Data = bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	m.Header.Set(jetstream.MsgIDHeader, e.ID(name))
	return m, nil
}

// wrongLast is JetStream's code when the last message of the stream is not the one that was expected.
const wrongLast = 10070

// publish sends events and returns when all are acknowledged. Each names the one before it, so that JetStream
// refuses those that come behind one that it lost: on any error what it has of them is the first so many.
// (It checks for duplicates first: events sent again do not break the chain.)
func (r *Relay) publish(ctx context.Context, js jetstream.JetStream, name hub.Name, es []hub.Event) error {
	acks := make([]jetstream.PubAckFuture, 0, len(es))
	var failed error
	for i := range es {
		m, err := message(name, &es[i])
		if err != nil {
			return err
		}
		opts := []jetstream.PublishOpt{jetstream.WithRetryAttempts(0)}
		if i > 0 {
			opts = append(opts, jetstream.WithExpectLastMsgID(es[i-1].ID(name)))
		}
		f, err := js.PublishMsgAsync(m, opts...)
		if err != nil {
			failed = fmt.Errorf("sending event %d: %w", es[i].Cursor, err)
			break
		}
		acks = append(acks, f)
	}
	for i, f := range acks {
		err := wait(ctx, f)
		if api := (&jetstream.APIError{}); errors.As(err, &api) && api.ErrorCode == wrongLast && failed == nil {
			// Somebody else publishes in this stream too: the rest goes one by one.
			err = one(ctx, js, name, es[i:])
			drain(ctx, acks[i:])
			return err
		}
		if err != nil {
			drain(ctx, acks[i:])
			return fmt.Errorf("event %d was not acknowledged: %w", es[i].Cursor, err)
		}
	}
	return failed
}

func wait(ctx context.Context, f jetstream.PubAckFuture) error {
	t := time.NewTimer(ackTime)
	defer t.Stop()
	select {
	case <-f.Ok():
		return nil
	case err := <-f.Err():
		return err
	case <-t.C:
		return errors.New("no answer")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drain waits for the outcome of what is still under way, so that it does not mix with what is sent next.
func drain(ctx context.Context, acks []jetstream.PubAckFuture) {
	for _, f := range acks {
		if wait(ctx, f) != nil && ctx.Err() != nil {
			return
		}
	}
}

// one sends events one by one, each after the acknowledgement of the one before.
func one(ctx context.Context, js jetstream.JetStream, name hub.Name, es []hub.Event) error {
	for i := range es {
		m, err := message(name, &es[i])
		if err != nil {
			return err
		}
		pctx, cancel := context.WithTimeout(ctx, ackTime)
		_, err = js.PublishMsg(pctx, m, jetstream.WithRetryAttempts(0))
		cancel()
		if err != nil {
			return fmt.Errorf("event %d was not acknowledged: %w", es[i].Cursor, err)
		}
	}
	return nil
}
