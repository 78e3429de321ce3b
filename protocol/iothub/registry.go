package iothub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// MaxAnswer bounds what a client reads of one registry answer, in bytes.
const MaxAnswer = 4 << 20

// tokenLife is how long a token made for one request is valid; generous for skewed clocks.
const tokenLife = time.Hour

// AnyETag as If-Match means "whatever is there".
const AnyETag = "*"

// Registry is the client of a hub's device registry. It works against Azure IoT Hub as well. Its
// methods are safe for concurrent use.
//
// Errors have these kinds: NotFound (no such device), Conflict (device exists, or If-Match does not
// hold: read again), Unauthorized (key or policy), Invalid (the message is wrong), Busy (hub
// unreachable, throttling or out of order: retry later; the request may have been carried out). What a hub asks for
// in Retry-After is in cradle.Error.RetryAfter.
type Registry struct {
	HTTP    *http.Client // nil means http.DefaultClient
	BaseURL string       // "https://host[:port]"
	KeyName string       // policy, for example "iothubowner"
	Key     []byte       // the policy's key, decoded
	Hub     string       // name of the hub where one host serves several; empty means by host name
}

// NewRegistry makes a client from a connection string.
func NewRegistry(c *http.Client, cs *sas.ConnectionString) *Registry {
	return &Registry{HTTP: c, BaseURL: cs.BaseURL(), KeyName: cs.KeyName, Key: cs.Key}
}

// GetDevice reads one entry.
func (r *Registry) GetDevice(ctx context.Context, id cradle.DeviceID) (*Device, error) {
	d := new(Device)
	_, err := r.do(ctx, http.MethodGet, "/devices/"+url.PathEscape(string(id)), nil, "", nil, d)
	if err != nil {
		return nil, fmt.Errorf("reading hub device %s: %w", id, err)
	}
	return d, nil
}

// PutDevice creates (ifMatch empty; Conflict when it exists) or updates (ifMatch an ETag, or AnyETag;
// NotFound when it does not exist, Conflict when the ETag has moved) an entry and returns it as stored.
func (r *Registry) PutDevice(ctx context.Context, d *Device, ifMatch string) (*Device, error) {
	out := new(Device)
	_, err := r.do(ctx, http.MethodPut, "/devices/"+url.PathEscape(string(d.DeviceID)), nil, ifMatch, d, out)
	if err != nil {
		return nil, fmt.Errorf("writing hub device %s: %w", d.DeviceID, err)
	}
	return out, nil
}

// WriteDevice is PutDevice for those to whom it is enough that the hub has taken the entry.
func (r *Registry) WriteDevice(ctx context.Context, d *Device, ifMatch string) error {
	resp, err := r.request(ctx, http.MethodPut, "/devices/"+url.PathEscape(string(d.DeviceID)), nil, ifMatch, d)
	if err != nil {
		return fmt.Errorf("writing hub device %s: %w", d.DeviceID, err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); !strings.Contains(kind, "json") { // something else that answers in the hub's place
		return fmt.Errorf("writing hub device %s: %w", d.DeviceID, cradle.Errorf(cradle.Busy, "hub's answer is not what it should be: it is %.100q", kind))
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, MaxAnswer)) // so that the connection can be used again
	return nil
}

// DeleteDevice removes an entry and drops its connection; ifMatch as in PutDevice, empty means AnyETag.
func (r *Registry) DeleteDevice(ctx context.Context, id cradle.DeviceID, ifMatch string) error {
	if ifMatch == "" {
		ifMatch = AnyETag
	}
	_, err := r.do(ctx, http.MethodDelete, "/devices/"+url.PathEscape(string(id)), nil, ifMatch, nil, nil)
	if err != nil {
		return fmt.Errorf("deleting hub device %s: %w", id, err)
	}
	return nil
}

// ListDevices reads up to limit entries in order of device id, from continuation on (empty: from the
// start). The returned continuation is empty after the last page.
func (r *Registry) ListDevices(ctx context.Context, continuation string, limit int) ([]Device, string, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("top", fmt.Sprint(limit))
	}
	if continuation != "" {
		q.Set("continuation", continuation)
	}
	var out []Device
	h, err := r.do(ctx, http.MethodGet, "/devices", q, "", nil, &out)
	if err != nil {
		return nil, "", fmt.Errorf("listing hub devices: %w", err)
	}
	return out, h.Get(ContinuationHeader), nil
}

// ContinuationHeader carries the place where the next page of a list starts.
const ContinuationHeader = "x-ms-continuation"

// Further headers of queries.
const (
	MaxItemsHeader = "x-ms-max-item-count" // lines that a page may have
	ItemTypeHeader = "x-ms-item-type"      // what the lines are: Twin or raw
)

func (r *Registry) do(ctx context.Context, method, path string, q url.Values, ifMatch string, in, out any) (http.Header, error) {
	resp, err := r.request(ctx, method, path, q, ifMatch, in)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return nil, busy(err)
	}
	if len(b) > MaxAnswer {
		return nil, cradle.Errorf(cradle.TooLarge, "hub's answer is larger than %d bytes", MaxAnswer)
	}
	if out == nil {
		return resp.Header, nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return nil, cradle.Errorf(cradle.Busy, "hub's answer is not what it should be: %v", err)
	}
	return resp.Header, nil
}

// request sends and turns every answer that is not a success into an error; the caller closes the body.
func (r *Registry) request(ctx context.Context, method, path string, q url.Values, ifMatch string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	if q == nil {
		q = url.Values{}
	}
	q.Set("api-version", APIVersion)
	if r.Hub != "" {
		q.Set("hub", r.Hub)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(r.BaseURL, "/")+path+"?"+q.Encode(), body)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "hub address %q: %v", r.BaseURL, err)
	}
	req.Header.Set("Authorization", sas.Sign(req.URL.Host, r.KeyName, r.Key, time.Now().Add(tokenLife)))
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	if ifMatch != "" {
		req.Header.Set("If-Match", QuoteETag(ifMatch))
	}
	c := r.HTTP
	if c == nil {
		c = http.DefaultClient
	}
	resp, err := c.Do(req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, busy(err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func busy(err error) error {
	return cradle.Errorf(cradle.Busy, "hub is not reachable: %w", err).WithHint("it is tried again later; is the hub running?")
}

// QuoteETag writes an entity tag as the header has it (RFC 9110 §8.8.3); AnyETag stays as it is.
func QuoteETag(tag string) string {
	if tag == AnyETag || strings.HasPrefix(tag, `"`) {
		return tag
	}
	return `"` + tag + `"`
}

// UnquoteETag is the inverse of QuoteETag and accepts tags without quotes.
func UnquoteETag(h string) string {
	return strings.Trim(strings.TrimPrefix(strings.TrimSpace(h), "W/"), `"`)
}
