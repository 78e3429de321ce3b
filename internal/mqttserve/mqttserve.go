// Package mqttserve accepts MQTT 3.1.1 connections for the services that speak it. It reads CONNECT under limits
// that hold before anybody is authenticated (its size, the time it may take, how many such connections
// an address may have), answers clients of another protocol version, and hands the connection over.
//
// The pieces: Server holds the limits and counts, over all ports and transports; For and WebSocket make the
// entrances for one Handler; Conn is what a Handler gets, whose reader holds no buffer while the connection
// is idle.
//
// It authenticates nobody. A connection counts as waiting until its Handler calls Conn.Authenticated; a Handler that
// lets clients in before it knows who they are bounds the time until then itself.
package mqttserve

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
)

// Handler serves connections whose CONNECT was read.
type Handler interface {
	// ServeMQTT answers connect, then serves c until it ends. ctx ends when the server shuts down. connect is
	// of MQTT 3.1.1; nothing else in it was checked against anything. c is closed afterwards.
	ServeMQTT(ctx context.Context, c *Conn, connect *mqtt.Connect)
}

// HandlerFunc is a Handler.
type HandlerFunc func(context.Context, *Conn, *mqtt.Connect)

// ServeMQTT implements Handler.
func (f HandlerFunc) ServeMQTT(ctx context.Context, c *Conn, connect *mqtt.Connect) {
	f(ctx, c, connect)
}

// Config of a Server. The zero value is usable.
type Config struct {
	Log        *slog.Logger  // nil means slog.Default()
	Connect    time.Duration // time for the whole of CONNECT; 0 means 10 s
	MaxConnect int           // body of CONNECT in bytes (user name, SAS token, will); 0 means 8 KiB
	MaxWaiting int           // connections that are not authenticated yet; 0 means 4096
	MaxPerIP   int           // of those, of one IPv4 address or IPv6 /64; 0 means 1024 (a fleet may share an address)
}

// Server accepts connections. It is safe for concurrent use.
type Server struct {
	c       Config
	waiting waiting
}

// New makes a Server; nothing runs before a connection comes.
func New(c Config) *Server {
	c.Log = cmp.Or(c.Log, slog.Default())
	c.Connect = cmp.Or(c.Connect, 10*time.Second)
	c.MaxConnect = cmp.Or(c.MaxConnect, 8<<10)
	c.MaxWaiting = cmp.Or(c.MaxWaiting, 4096)
	c.MaxPerIP = cmp.Or(c.MaxPerIP, 1024)
	return &Server{c: c, waiting: waiting{max: c.MaxWaiting, maxPerIP: c.MaxPerIP}}
}

// For makes the entrance of h for connections whose TLS handshake is complete, as front.Route has it.
func (s *Server) For(h Handler) func(context.Context, net.Conn, tls.ConnectionState) {
	return func(ctx context.Context, nc net.Conn, state tls.ConnectionState) {
		s.serve(ctx, h, &Conn{Conn: nc, State: state, Transport: TCP})
	}
}

// serve takes one connection from its first byte to its end, and closes it.
func (s *Server) serve(ctx context.Context, h Handler, c *Conn) {
	defer c.Close()
	ip := addressOf(c.RemoteAddr())
	err := s.waiting.enter(ip)
	if err == nil {
		c.leave = func() { s.waiting.leave(ip) }
		defer c.Authenticated()
		var p *mqtt.Connect
		if p, err = s.connect(ctx, c); err == nil {
			h.ServeMQTT(ctx, c, p)
			return
		}
	}
	if err != io.EOF && ctx.Err() == nil { // who connects and goes is not news
		s.refused(c, err)
	}
}

// refused is apart from serve, whose frame lies on the stack of every connection.
func (s *Server) refused(c *Conn, err error) {
	s.c.Log.Info("mqtt connection refused", "remote", c.RemoteAddr().String(), "transport", c.Transport, "server_name", c.State.ServerName, "reason", err.Error())
}

// connect reads CONNECT.
func (s *Server) connect(ctx context.Context, c *Conn) (*mqtt.Connect, error) {
	if err := c.SetReadDeadline(time.Now().Add(s.c.Connect)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(past) })
	defer stop()
	raw, err := c.ReadPacket(s.c.MaxConnect)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, cradle.Errorf(cradle.Invalid, "no CONNECT within %v", s.c.Connect)
	case err != nil:
		return nil, err
	case raw.Type() != mqtt.CONNECT:
		return nil, cradle.Errorf(cradle.Invalid, "%v before CONNECT", raw.Type())
	}
	p, err := mqtt.ParseConnect(raw)
	if err != nil {
		return nil, err
	}
	if !p.Known() {
		// MQTT 3.1.1 §3.1.2.2; a client of version 5 understands only its own CONNACK (MQTT 5 §3.2).
		answer := mqtt.Connack{Code: mqtt.BadProtocol}.Append(nil)
		if p.Protocol == "MQTT" && p.Level == 5 {
			answer = []byte{byte(mqtt.CONNACK) << 4, 3, 0, unsupportedVersion, 0}
		}
		c.SetWriteDeadline(time.Now().Add(s.c.Connect))
		c.Write(answer)
		return nil, cradle.Errorf(cradle.Invalid, "protocol %.20q level %d is not MQTT 3.1.1", p.Protocol, p.Level)
	}
	return p, nil
}

// unsupportedVersion is MQTT 5's reason code for that.
const unsupportedVersion = 0x84

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)
