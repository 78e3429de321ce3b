package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// conn is a TLS connection whose first byte has been read. net/http and MQTT handlers get it.
type conn struct {
	*tls.Conn
	state tls.ConnectionState // after the handshake; not changed again
	route Route

	first  [1]byte
	unread int // bytes of first that Read has yet to give

	s     *Server
	owed  bool         // a handler was called, whose answer is yet to come; only net/http's goroutine of the connection uses it
	grown bool         // that goroutine's stack was
	over  atomic.Int32 // 1: the client has said that it sends no more; 2: and was answered after that

	hold bool // Write keeps instead of sending; only the goroutine of the one request running uses it
	kept []byte
}

type connKey struct{}

// ConnectionState is what net/http asks for to fill r.TLS, on any connection that has this method.
func (c *conn) ConnectionState() tls.ConnectionState { return c.state }

// Read gives the first byte once, then the connection's bytes.
func (c *conn) Read(p []byte) (int, error) {
	if c.unread > 0 && len(p) > 0 {
		c.unread = 0
		p[0] = c.first[0]
		return 1, nil
	}
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		c.over.CompareAndSwap(0, 1)
	}
	return n, err
}

// Write sends p, or keeps it between Hold and its release.
func (c *conn) Write(p []byte) (int, error) {
	c.over.CompareAndSwap(1, 2)
	c.watch(p)
	if c.hold {
		c.kept = append(c.kept, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// watch logs what net/http refuses by itself, which no handler sees: a head that is malformed or too large, two
// lengths, an unknown transfer coding. Such an answer begins though no handler was called for it.
func (c *conn) watch(p []byte) {
	rest, ok := bytes.CutPrefix(p, []byte("HTTP/1."))
	if !ok || len(rest) < 5 || rest[2] == '1' { // 1xx goes before an answer
		return
	}
	if !c.owed {
		status, _, _ := bytes.Cut(rest[2:], []byte("\r\n"))
		c.s.c.Log.Info("http request refused", "remote", c.RemoteAddr().String(), "server_name", c.state.ServerName, "status", string(status[:min(len(status), 100)]))
	}
	c.owed = false
}

// Hold keeps back what the request's connection writes until release is called, which sends all of it in one
// write: one TLS record up to 16 KiB. ctx is the request's. It is for whole answers of known small size; between the two the
// handler writes, flushes and does not return. On a connection that is not of this package it does nothing.
func Hold(ctx context.Context) (release func() error) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return func() error { return nil }
	}
	c.hold = true
	return func() error {
		kept := c.kept
		c.hold, c.kept = false, nil
		_, err := c.Conn.Write(kept)
		return err
	}
}

// Session makes a session of the request's connection, as MQTT connections are: serve runs in a goroutine of its own
// after the handler has hijacked the connection and returned, its ctx ends when the server shuts down, and the
// connection is closed when it returns, or when it takes too long at the end. When the server has shut down already, the
// connection is closed and serve does not run. The request must have come through a Server of this package.
func Session(r *http.Request, serve func(ctx context.Context)) {
	c := r.Context().Value(connKey{}).(*conn)
	c.s.mu.Lock()
	closed := c.s.closed
	if !closed {
		c.s.sessions.Add(1)
	}
	c.s.mu.Unlock()
	if closed {
		c.Close()
		return
	}
	go c.s.session(c, serve)
}

// feed is the net.Listener through which net/http gets its connections.
type feed struct {
	once   sync.Once
	ch     chan *conn
	closed chan struct{}
	stop   sync.Once
	ended  chan struct{} // closed when http.Server.Serve has returned
}

func newFeed() *feed {
	return &feed{ch: make(chan *conn), closed: make(chan struct{}), ended: make(chan struct{})}
}

// start runs net/http on the feed, once.
func (f *feed) start(s *http.Server) {
	f.once.Do(func() {
		go func() {
			defer close(f.ended)
			_ = s.Serve(f) // always http.ErrServerClosed
		}()
	})
}

// shutdown ends net/http gracefully.
func (f *feed) shutdown(ctx context.Context, s *http.Server) error {
	f.once.Do(func() { close(f.ended) }) // never started
	err := s.Shutdown(ctx)
	f.Close() // Shutdown does it too, but not before Serve has begun
	<-f.ended
	return err
}

// put hands c over; false when the server has closed.
func (f *feed) put(c *conn) bool {
	select {
	case f.ch <- c:
		return true
	case <-f.closed:
		return false
	}
}

// Accept implements net.Listener.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.ch:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *feed) Close() error {
	f.stop.Do(func() { close(f.closed) })
	return nil
}

// Addr implements net.Listener.
func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }
