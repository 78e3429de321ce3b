package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/front"
)

// StatusServe says where certificates' standing is asked for.
type StatusServe struct {
	StatusListen string `help:"Address at which CRLs and OCSP are served over plain HTTP too (what they say is signed)." placeholder:"HOST:PORT"`
	StatusURL    string `name:"status-url" help:"URL of CRLs and OCSP that certificates carry, for example http://status.example.com. Default: the TLS port's. It stays in certificates for their life." placeholder:"URL"`
}

// statusURL is the URL that goes into certificates, without a slash at its end.
func (s *StatusServe) statusURL(own string) (string, error) {
	text := strings.TrimSuffix(cmp.Or(s.StatusURL, own), "/")
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || len(text) > 200 {
		return "", cli.Usagef("--status-url %q: write it like http://status.example.com", s.StatusURL)
	}
	return text, nil
}

// Bounds of the plain listener: requests have at most some KB.
const (
	statusTimeout   = 10 * time.Second
	maxStatusHeader = 16 << 10
)

// serveStatus opens the plain listener; what it returns serves until ctx ends.
func serveStatus(ctx context.Context, addr string, h http.Handler) (func() error, error) {
	ln, err := front.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: h, ReadTimeout: statusTimeout, WriteTimeout: statusTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxStatusHeader,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	return func() error {
		stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer stop()
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, nil
}
