package admin

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
)

// Context is the file context.json: where the provider is, whom to trust, and the token. Mode 0600.
type Context struct {
	URL      string           `json:"url"`
	Anchors  string           `json:"anchors"` // PEM of the services CA
	Token    string           `json:"token"`
	Account  cradle.AccountID `json:"account,omitempty"`   // set in an account's own context
	OrderKey string           `json:"order_key,omitempty"` // file of the account's order key, relative to the context's folder
}

// ReadContext reads a context file.
func ReadContext(file string) (*Context, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.NotFound, "context: %w", err).
			WithHint("start the services with: cradle serve, or name a context with --context FILE")
	}
	var c Context
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s is no context: %w", file, strictjson.Reason(err)).
			WithHint("cradle serve and cradle account create each write a context.json")
	}
	if c.OrderKey != "" && !filepath.IsAbs(c.OrderKey) {
		c.OrderKey = filepath.Join(filepath.Dir(file), c.OrderKey)
	}
	return &c, nil
}

// Problem is the body of an error answer.
type Problem struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// StatusOf maps an error kind to its HTTP status.
func StatusOf(k cradle.Kind) int {
	switch k {
	case cradle.Invalid:
		return http.StatusBadRequest
	case cradle.Unauthorized:
		return http.StatusUnauthorized
	case cradle.Forbidden:
		return http.StatusForbidden
	case cradle.NotFound:
		return http.StatusNotFound
	case cradle.Conflict:
		return http.StatusConflict
	case cradle.Busy:
		return http.StatusServiceUnavailable
	case cradle.TooLarge:
		return http.StatusRequestEntityTooLarge
	case cradle.Pending:
		return http.StatusAccepted
	}
	return http.StatusInternalServerError
}

// Client calls the admin API.
type Client struct {
	HTTP  *http.Client
	URL   string
	Token string
}

// NewClient makes a client that trusts the context's anchors alone.
func NewClient(c *Context, transport func(roots *x509.CertPool) http.RoundTripper) (*Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.Anchors)) {
		return nil, cradle.Errorf(cradle.Invalid, "context holds no anchors")
	}
	return &Client{HTTP: &http.Client{Transport: transport(roots), Timeout: 2 * time.Minute}, URL: c.URL, Token: c.Token}, nil
}

// Call sends in (nil: no body) and decodes the answer into out (nil: ignored).
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 256<<20)).Decode(out); err != nil {
		return fmt.Errorf("answer of %s %s: %w", method, path, err)
	}
	return nil
}

// Stream copies the answer's body to w.
func (c *Client) Stream(ctx context.Context, path string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+Prefix+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, cradle.Errorf(cradle.Busy, "provider at %s: %w", c.URL, err).WithHint("is it running? start it with: cradle serve")
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil || p.Detail == "" {
		return nil, cradle.Errorf(cradle.Internal, "%s %s: %s", method, path, resp.Status)
	}
	return nil, &cradle.Error{Kind: cradle.ParseKind(p.Kind), Detail: p.Detail, Hint: p.Hint}
}
