package device

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

// internet is the real Network. It keeps no connection between acts: they are hours apart.
type internet struct{}

// requestTimeout bounds one HTTP request, handshake included. A discrete TPM signs in up to a second, a loaded
// server may queue.
const requestTimeout = 45 * time.Second

func httpClient(c *tls.Config) *http.Client {
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSClientConfig:        c,
		TLSHandshakeTimeout:    20 * time.Second,
		ResponseHeaderTimeout:  40 * time.Second,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        10 * time.Second,
		MaxResponseHeaderBytes: 32 << 10,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: less memory, and nothing runs in parallel
	}}
}

// provider is a Provider over HTTP.
type provider struct {
	http *http.Client
	url  string
}

func (internet) Provider(url string, c *tls.Config) Provider { return &provider{httpClient(c), url} }

func (p *provider) EST(label string) EST {
	return &est.Client{HTTP: p.http, URL: p.url + est.WellKnown + label}
}

func (p *provider) Close() { p.http.CloseIdleConnections() }

func (internet) Register(ctx context.Context, endpoint, idScope string, c *tls.Config, id string) (*dps.Assignment, error) {
	h := httpClient(c)
	defer h.CloseIdleConnections()
	return (&dps.Client{HTTP: h, Endpoint: endpoint, IDScope: idScope}).Register(ctx, id)
}

func (p *provider) Time(ctx context.Context, nonce []byte) (*timestamp.Statement, error) {
	h := *p.http
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+timestamp.Path+"?nonce="+timestamp.EncodeNonce(nonce), nil)
	if err != nil {
		return nil, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return nil, cradle.Errorf(cradle.NotFound, "the provider states no time")
	default:
		return nil, cradle.Errorf(cradle.Busy, "the provider answers a question for the time with %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, timestamp.MaxBody+1)) // to its end, so that the connection can be kept
	if err != nil {
		return nil, err
	}
	return timestamp.Parse(body)
}

func (internet) Connect(ctx context.Context, hub string, c *tls.Config, o mqtt.Options) (Hub, error) {
	_, addr, err := hubAddress(hub)
	if err != nil {
		return nil, err
	}
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 15 * time.Second, KeepAlive: -1}, Config: c}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	client, err := mqtt.Dial(ctx, conn, o)
	if err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	return client, nil
}
