package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// mqttConnect is the first byte of every MQTT CONNECT: packet type 1, flags 0.
const mqttConnect = 0x10

// ErrClosed is returned by Serve after Shutdown.
var ErrClosed = errors.New("front: server closed")

// Server serves one Config on any number of listeners.
type Server struct {
	c    Config
	tls  *tls.Config
	http *http.Server
	feed *feed // connections that turned out to be HTTP

	ctx    context.Context // of MQTT handlers; ends when Shutdown begins
	cancel context.CancelFunc
	limit  limiter
	crew   crew

	arrivals sync.WaitGroup // connections up to their hand-over
	sessions sync.WaitGroup // MQTT connections

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	mqtt      map[*conn]struct{}

	web atomic.Int64 // HTTP connections
}

// New makes a Server; nothing runs before Serve. It panics without a certificate source.
func New(c Config) *Server {
	if c.Certificate == nil {
		panic("internal error: front without a certificate")
	}
	c.defaults()
	s := &Server{
		c:         c,
		tls:       c.tlsConfig(),
		feed:      newFeed(),
		limit:     limiter{maxPending: c.MaxHandshakes, maxPerIP: c.MaxPerIP},
		listeners: map[net.Listener]struct{}{},
		mqtt:      map[*conn]struct{}{},
	}
	s.limit.init()
	s.crew.work = make(chan *admitted)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           http.HandlerFunc(serveHTTP),
		ReadHeaderTimeout: min(c.HandshakeTimeout, c.ReadTimeout),
		ReadTimeout:       c.ReadTimeout,
		WriteTimeout:      c.WriteTimeout,
		IdleTimeout:       c.IdleTimeout,
		MaxHeaderBytes:    16 << 10,
		ConnContext:       func(ctx context.Context, nc net.Conn) context.Context { return context.WithValue(ctx, connKey{}, nc) },
		ErrorLog:          log.New(slogWriter{c.Log}, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.web.Add(1)
			case http.StateClosed, http.StateHijacked:
				s.web.Add(-1)
			}
		},
	}
	return s
}

// Connections counts what is open: up to the end of the handshake, HTTP, and MQTT (over WebSocket too).
func (s *Server) Connections() (handshakes, web, mqtt int) {
	s.limit.mu.Lock()
	handshakes = s.limit.pending.Len()
	s.limit.mu.Unlock()
	s.mu.Lock()
	mqtt = len(s.mqtt)
	s.mu.Unlock()
	return handshakes, int(s.web.Load()), mqtt
}

// serveHTTP gives the request to the service of the connection's server name. net/http has set r.TLS from
// conn.ConnectionState.
func serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	c.owed = true
	if !c.grown {
		c.grown = true
		growStack(0)
	}
	c.route.HTTP.ServeHTTP(w, r)
}

// Run serves the listeners until ctx ends, then shuts down within Config.Grace. It returns nil after that, or
// the error of a listener that broke.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	errs := make(chan error, len(listeners))
	for _, ln := range listeners {
		go func() { errs <- s.Serve(ln) }()
	}
	var err error
	left := len(listeners)
	select {
	case <-ctx.Done():
	case err = <-errs:
		left--
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.c.Grace)
	defer cancel()
	_ = s.Shutdown(grace) // what did not end in time was closed
	for ; left > 0; left-- {
		<-errs
	}
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// Serve accepts from ln until Shutdown, and returns ErrClosed then. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		ln.Close()
		return ErrClosed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	defer ln.Close()
	s.feed.start(s.http)
	var delay time.Duration
	for {
		raw, err := ln.Accept()
		if err != nil {
			if s.isClosed() {
				return ErrClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accepting on %s: %w", ln.Addr(), err)
			}
			// Out of file descriptors or a connection reset in the queue: both pass.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.c.Log.Warn("accepting a connection", "addr", ln.Addr().String(), "err", err.Error(), "wait", delay)
			select {
			case <-time.After(delay):
			case <-s.ctx.Done():
			}
			continue
		}
		delay = 0
		c, ok := s.limit.admit(raw)
		if !ok {
			raw.Close()
			continue
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			c.Close()
			return ErrClosed
		}
		s.arrivals.Add(1)
		s.mu.Unlock()
		s.crew.take(s.ctx, c, s.accept)
		s.limit.wait(s.ctx)
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// accept takes one connection from TCP to its service.
func (s *Server) accept(a *admitted) {
	defer s.arrivals.Done()
	c, err := s.handshake(a)
	s.limit.settle(a)
	if err != nil {
		a.Close()
		if !errors.Is(err, io.EOF) { // who connects and goes is not news
			s.c.Log.Debug("tls handshake", "remote", a.RemoteAddr().String(), "err", err.Error())
		}
		return
	}
	switch {
	case c.first[0] == mqttConnect && c.route.MQTT != nil:
		s.sessions.Add(1) // before arrivals.Done
		go s.session(c, func(ctx context.Context) { c.route.MQTT(ctx, c, c.state) })
	case c.first[0] != mqttConnect && c.route.HTTP != nil:
		if !s.feed.put(c) {
			c.Close()
		}
	default:
		s.c.Log.Debug("no such service under this name", "remote", a.RemoteAddr().String(), "server_name", c.state.ServerName, "first_byte", c.first[0])
		c.Close()
	}
}

// handshake does the TLS handshake and reads the first byte, all before one deadline.
func (s *Server) handshake(a *admitted) (*conn, error) {
	if err := a.SetDeadline(time.Now().Add(s.c.HandshakeTimeout)); err != nil {
		return nil, err
	}
	c := &conn{Conn: tls.Server(a, s.tls), unread: 1, s: s}
	a.ticket.holding = true
	if err := c.Conn.Handshake(); err != nil { // Shutdown ends it by closePending
		a.release()
		return nil, err
	}
	a.ticket.holding = false
	if _, err := io.ReadFull(c.Conn, c.first[:]); err != nil {
		return nil, err
	}
	if err := a.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	c.state = c.Conn.ConnectionState()
	c.route = s.c.route(c.state.ServerName)
	return c, nil
}

// session runs one MQTT connection; it was counted in sessions.
func (s *Server) session(c *conn, serve func(context.Context)) {
	defer s.sessions.Done()
	defer c.Close()
	growStack(0)
	s.mu.Lock()
	s.mqtt[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.mqtt, c)
		s.mu.Unlock()
		if p := recover(); p != nil {
			s.c.Log.Error("panic in an MQTT connection", "remote", c.RemoteAddr().String(), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	serve(s.ctx)
}

// Shutdown stops accepting, ends handshakes, tells MQTT handlers by their context, and waits for
// requests and MQTT connections to end. When ctx ends first, it closes what is left and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for ln := range s.listeners {
		ln.Close()
	}
	s.mu.Unlock()
	s.cancel()
	s.limit.closePending()
	s.arrivals.Wait() // short: each was closed or is being handed over

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.sessions.Wait()
	}()
	err := s.feed.shutdown(ctx, s.http)
	select {
	case <-ended:
	case <-ctx.Done():
		err = ctx.Err()
		s.mu.Lock()
		for c := range s.mqtt {
			c.Close()
		}
		s.mu.Unlock()
		select {
		case <-ended:
		case <-time.After(time.Second): // a handler that does not notice that its connection is closed
		}
	}
	if err != nil {
		s.http.Close()
	}
	return err
}

// slogWriter turns net/http's messages into debug lines: nearly all of them tell of clients that went away. A
// panic in a handler is one of ours.
type slogWriter struct{ log *slog.Logger }

func (w slogWriter) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if strings.Contains(string(p), "panic") {
		level = slog.LevelError
	}
	w.log.Log(context.Background(), level, "http", "msg", strings.TrimSpace(string(p)))
	return len(p), nil
}
