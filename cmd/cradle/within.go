package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// within carries requests between services of this process, which are those that they would send to another vendor's,
// without a connection: TLS to oneself would be a tenth of what a device's registration costs.
type within struct {
	ready chan struct{} // closed when to is set
	to    http.Handler
}

func newWithin() *within { return &within{ready: make(chan struct{})} }

// serve sets who answers, once.
func (t *within) serve(h http.Handler) {
	t.to = h
	close(t.ready)
}

func (t *within) client() *http.Client { return &http.Client{Timeout: 30 * time.Second, Transport: t} }

// RoundTrip implements http.RoundTripper. Requests that come before serve wait.
func (t *within) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	ctx := r.Context()
	body := r.Body
	if body == nil {
		body = http.NoBody
	}
	defer body.Close()
	select {
	case <-t.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	in := r.WithContext(ctx) // a copy
	in.URL = &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	in.Host, in.RequestURI, in.RemoteAddr, in.Body, in.Header = r.Host, r.URL.RequestURI(), "127.0.0.1:0", body, r.Header.Clone()
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	w := &answer{header: http.Header{}, status: http.StatusOK}
	defer func() {
		if p := recover(); p != nil { // net/http would have closed the connection
			resp, err = nil, fmt.Errorf("the service panicked: %v", p)
		}
	}()
	t.to.ServeHTTP(w, in)
	return &http.Response{Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: w.header,
		Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r}, nil
}

// answer is what a handler has written.
type answer struct {
	header http.Header
	status int
	wrote  bool
	body   bytes.Buffer
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if !w.wrote {
		w.status, w.wrote = status, true
	}
}

func (w *answer) Write(p []byte) (int, error) {
	w.wrote = true
	return w.body.Write(p)
}
