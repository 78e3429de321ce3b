package dps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// Client registers a device over HTTPS. Its fields are set before use and not changed after.
type Client struct {
	// HTTP carries the device's certificate in its TLS configuration.
	HTTP *http.Client
	// Endpoint is the service's URL, for example "https://dps.example.com:8443".
	Endpoint string
	IDScope  string
	// Wait is the pause before a poll when the service names none; default 2 s.
	Wait time.Duration
}

// Assignment is where a device belongs.
type Assignment struct {
	Hub      string // host, or host:port
	DeviceID cradle.DeviceID
}

// The first poll may follow at once if the service says so; from the second on these bound what a
// Retry-After may ask for.
const (
	shortestWait = 250 * time.Millisecond
	longestWait  = time.Minute
)

// Register registers and polls until the service has decided or ctx ends. It does not repeat a
// refused or broken request: the caller owns backoff, and finds what the service asked for in
// Error.RetryAfter. An error of kind cradle.Busy or without a kind (network) is worth repeating; the
// others need somebody to mend something first.
func (c *Client) Register(ctx context.Context, registrationID string) (*Assignment, error) {
	base := strings.TrimSuffix(c.Endpoint, "/") + "/" + url.PathEscape(c.IDScope) + "/registrations/" + url.PathEscape(registrationID)
	query := "?api-version=" + DeviceAPIVersion
	op, wait, err := c.do(ctx, http.MethodPut, base+"/register"+query, http.Header{HeaderPrefer: {"wait=10"}}, DeviceRegistration{RegistrationID: registrationID})
	for polls := 0; ; polls++ {
		if err != nil {
			return nil, err
		}
		switch op.Status {
		case Assigned:
			s := op.RegistrationState
			if s == nil || s.AssignedHub == "" || s.DeviceID == "" {
				return nil, cradle.Errorf(cradle.Invalid, "provisioning service answers assigned but names no hub")
			}
			return &Assignment{Hub: s.AssignedHub, DeviceID: cradle.DeviceID(s.DeviceID)}, nil
		case Assigning, Unassigned:
			if op.OperationID == "" {
				return nil, cradle.Errorf(cradle.Invalid, "provisioning service answers %q without operationId", op.Status)
			}
		case Failed:
			e := &Error{Message: "registration failed", HTTPStatus: http.StatusOK}
			if s := op.RegistrationState; s != nil {
				e.ErrorCode, e.Message = s.ErrorCode, s.ErrorMessage
			}
			return nil, &cradle.Error{Kind: cradle.Forbidden, Detail: e.Error(), Err: e}
		default:
			return nil, cradle.Errorf(cradle.Forbidden, "provisioning service answers status %q", op.Status)
		}
		if polls > 0 {
			wait = max(wait, shortestWait)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		poll := base + "/operations/" + url.PathEscape(op.OperationID) + query
		op, wait, err = c.do(ctx, http.MethodGet, poll, nil, nil)
	}
}

func (c *Client) do(ctx context.Context, method, u string, header http.Header, body any) (*OperationStatus, time.Duration, error) {
	op := new(OperationStatus)
	h, err := roundTrip(ctx, c.HTTP, method, u, header, body, op)
	if err != nil {
		return nil, 0, err
	}
	if op.Status == "" && op.OperationID != "" {
		op.Status = Assigning // IoT Identity Service reads only operationId here, so may others send only it
	}
	wait := c.Wait
	if wait == 0 {
		wait = 2 * time.Second
	}
	if d, ok := retryAfter(h); ok {
		wait = min(d, longestWait)
	}
	return op, wait, nil
}

// maxAnswer bounds an answer in bytes: a page of enrolments with their twins is the largest.
const maxAnswer = 128 * MaxBody

// roundTrip sends body as JSON, or as it is when it is bytes, and decodes a 2xx answer into out (nil: ignores it). Other answers
// come back as a cradle.Error that wraps an *Error.
func roundTrip(ctx context.Context, hc *http.Client, method, u string, header http.Header, body, out any) (http.Header, error) {
	var rd io.Reader
	if raw, ok := body.([]byte); ok {
		rd = bytes.NewReader(raw)
	} else if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u, rd)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "provisioning service URL: %v", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	req.Header.Set("Accept", "application/json")
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, refusal(resp, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "provisioning service answers %s with something that is not its JSON: %v", resp.Status, err)
		}
	}
	return resp.Header, nil
}

func refusal(resp *http.Response, body []byte) error {
	e := new(Error)
	if json.Unmarshal(body, e) != nil || e.Message == "" {
		e.Message = resp.Status
	}
	e.HTTPStatus = resp.StatusCode
	e.RetryAfter, _ = retryAfter(resp.Header)
	kind := cradle.Internal
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		kind = cradle.Unauthorized
	case http.StatusForbidden:
		kind = cradle.Forbidden
	case http.StatusNotFound:
		kind = cradle.NotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		kind = cradle.Conflict
	case http.StatusRequestEntityTooLarge:
		kind = cradle.TooLarge
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		kind = cradle.Busy
	default:
		if resp.StatusCode/100 == 4 {
			kind = cradle.Invalid
		}
	}
	return &cradle.Error{Kind: kind, Detail: e.Error(), Err: e}
}

// RetryAfter returns what the service asked for in a refusal, or 0.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

func retryAfter(h http.Header) (time.Duration, bool) {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 || n > 24*3600 {
		return 0, false
	}
	return time.Duration(n) * time.Second, true
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
