package hub

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

var (
	errOffline    = errors.New("device is not online")
	errNoAnswer   = errors.New("device did not answer")
	errBadAnswer  = errors.New("device answered what is no answer")
	errManyCalls  = errors.New("too many calls")
	errMailFull   = errors.New("too many messages wait")
	errNoSuchLock = errors.New("lock is lost")
)

// Offline reports whether a method found no device that takes it.
func Offline(err error) bool { return errors.Is(err, errOffline) }

// NoAnswer reports whether a device did not answer a method in time; it may have run.
func NoAnswer(err error) bool { return errors.Is(err, errNoAnswer) }

// BadAnswer reports whether a device's answer to a method was no JSON.
func BadAnswer(err error) bool { return errors.Is(err, errBadAnswer) }

// maxCalls bounds the method calls that wait for one device.
const maxCalls = 32

// methodAnswer is what a device sent back.
type methodAnswer struct {
	status  int
	payload []byte
}

// InvokeMethod calls a method of a device or module and waits for the answer. Errors: NotFound (no such device; with
// Offline: not connected, or not subscribed to methods, within the connect timeout), Busy (with NoAnswer: no
// answer in time; too many calls wait), Internal with BadAnswer.
//
// BUG(hub): only devices that are connected to this process are found; with several replicas the caller must reach the
// one that has the device's connection.
func (h *Hub) InvokeMethod(ctx context.Context, hub Name, device cradle.DeviceID, module iothub.ModuleID, m *iothub.Method) (*iothub.MethodResult, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	if _, err := h.owner(ctx, hub, device, module); err != nil {
		return nil, err
	}
	s, err := h.listening(ctx, key{hub, device, module}, time.Duration(m.ConnectTimeoutInSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	a, err := s.call(ctx, m.MethodName, m.Payload, time.Duration(m.ResponseTimeoutInSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	payload := json.RawMessage(a.payload)
	switch {
	case len(payload) == 0:
		payload = json.RawMessage("null")
	case !json.Valid(payload):
		return nil, &cradle.Error{Kind: cradle.Invalid, Detail: "the device's answer is not JSON", Err: errBadAnswer}
	}
	return &iothub.MethodResult{Status: a.status, Payload: payload}, nil
}

// listening waits for a session that takes method calls.
func (h *Hub) listening(ctx context.Context, k key, wait time.Duration) (*Session, error) {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		come, release := h.sessions.await(k) // before looking, so that nobody comes unseen
		if s := h.sessions.get(k); s != nil && s.Hears(HearMethods) {
			release()
			return s, nil
		}
		select {
		case <-come:
			release()
		case <-timeout.C:
			release()
			return nil, &cradle.Error{Kind: cradle.NotFound, Detail: "the device is not online, or has not subscribed to methods", Err: errOffline,
				Hint: "give connectTimeoutInSeconds to wait for it"}
		case <-ctx.Done():
			release()
			return nil, ctx.Err()
		}
	}
}

// call hands a call over and waits. The answer can only come by this session: who else knows the id cannot give it.
func (s *Session) call(ctx context.Context, name string, payload []byte, wait time.Duration) (*methodAnswer, error) {
	rid := strconv.FormatUint(s.hub.rid.Add(1), 16)
	answer := make(chan methodAnswer, 1)
	s.mu.Lock()
	full := len(s.calls) >= maxCalls
	open := s.ready && !s.gone.Load()
	if open && !full {
		if s.calls == nil {
			s.calls = map[string]chan methodAnswer{}
		}
		s.calls[rid] = answer
	}
	s.mu.Unlock()
	switch {
	case !open:
		return nil, wentAway()
	case full:
		return nil, manyCalls()
	}
	defer func() {
		s.mu.Lock()
		delete(s.calls, rid)
		if len(s.calls) == 0 {
			s.calls = nil
		}
		s.mu.Unlock()
	}()
	if !s.sink.Method(rid, name, payload) {
		return nil, manyCalls()
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case a, ok := <-answer:
		if !ok {
			return nil, wentAway()
		}
		return &a, nil
	case <-timeout.C:
		return nil, &cradle.Error{Kind: cradle.Busy, Detail: "the device did not answer within " + wait.String(), Err: errNoAnswer,
			Hint: "the method may have run"}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func wentAway() error {
	return &cradle.Error{Kind: cradle.NotFound, Detail: "the device went offline before it answered", Err: errOffline, Hint: "the method may have run"}
}

func manyCalls() error {
	return &cradle.Error{Kind: cradle.Busy, Detail: "too many method calls wait for the device", Err: errManyCalls, Hint: "call again when some were answered"}
}

// Respond takes the device's answer to a method call; an answer that nobody waits for, or comes twice, is ignored.
func (s *Session) Respond(rid string, status int, payload []byte) error {
	if len(payload) > iothub.MaxMethodPayload {
		return cradle.Errorf(cradle.TooLarge, "method answer of %d bytes, at most %d", len(payload), iothub.MaxMethodPayload)
	}
	s.mu.Lock()
	c := s.calls[rid]
	delete(s.calls, rid)
	s.mu.Unlock()
	if c != nil {
		c <- methodAnswer{status, payload}
	}
	return nil
}

// Twin gives the device's view of its twin to deliver, which must not block: in order with changes of the desired
// properties.
func (s *Session) Twin(ctx context.Context, deliver func(twin []byte)) error {
	unlock := s.hub.locks.lock(s.key)
	defer unlock()
	t, err := s.hub.readTwin(ctx, s.key.hub, s.key.device, s.key.module)
	if err != nil {
		return err
	}
	s.desired, s.readTwin = t.Desired.Version, true
	deliver(encodeJSON(map[string]json.RawMessage{"desired": t.Desired.encode(true, false), "reported": t.Report.encode(true, false)}))
	return nil
}

// Report applies the device's merge patch to its reported properties and returns their new version; it is durable
// then. Errors: Invalid, TooLarge, Busy, NotFound (the device was removed).
func (s *Session) Report(ctx context.Context, patch []byte) (version int64, err error) {
	if s.gone.Load() {
		return 0, refuse("session was dropped")
	}
	return s.hub.report(ctx, s.key, s.generation, patch)
}

// tellDesired hands a change of desired properties to the device, if it is connected and wants to hear it. The
// caller holds the key's lock.
func (h *Hub) tellDesired(k key, version int64, patch map[string]any) {
	patch[keyVersion] = version
	s := h.sessions.get(k)
	if h.talk.others.Load() {
		h.tell(word{About: aboutDesired, Hub: k.hub, Device: k.device, Module: k.module, Version: version, Patch: encodeJSON(patch)})
	}
	switch {
	case s == nil || !s.Hears(HearDesired):
	case s.desired != 0 && version != s.desired+1: // another replica's change comes late
		h.sessions.leave(s)
		s.end("its desired properties were changed at another replica")
	case s.sink.Desired(version, encodeJSON(patch)):
		s.heardDesired(version)
	default:
		h.sessions.leave(s)
		s.end("device does not take what is sent to it")
	}
}
