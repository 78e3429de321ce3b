package mqttserve

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/cradle-iot/cradle/internal/front"
)

// WebSocketPath is where Azure's SDKs ask for MQTT over WebSocket.
const WebSocketPath = "/$iothub/websocket"

const subprotocol = "mqtt" // MQTT 3.1.1 §6

// WebSocket makes the entrance of h for MQTT over WebSocket (MQTT 3.1.1 §6): binary frames, whose bounds mean
// nothing. The TLS connection beneath is the client's, its certificate with it.
func (s *Server) WebSocket(h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || !offers(r, subprotocol) {
			s.c.Log.Info("mqtt connection refused", "remote", r.RemoteAddr, "transport", WebSocket, "reason", "no WebSocket of subprotocol "+subprotocol+" was asked for")
			http.Error(w, "this is MQTT 3.1.1 over WebSocket: ask for subprotocol "+subprotocol, http.StatusBadRequest)
			return
		}
		// A web page of another site cannot borrow a browser's client certificate: Accept compares Origin with Host.
		ws, err := websocket.Accept(lean{w}, r, &websocket.AcceptOptions{Subprotocols: []string{subprotocol}, CompressionMode: websocket.CompressionDisabled})
		if err != nil { // it has answered
			s.c.Log.Info("mqtt connection refused", "remote", r.RemoteAddr, "transport", WebSocket, "reason", err.Error())
			return
		}
		state := *r.TLS
		front.Session(r, func(ctx context.Context) { s.serve(ctx, h, newWebSocket(ws, state)) })
	})
}

func newWebSocket(ws *websocket.Conn, state tls.ConnectionState) *Conn {
	nc := websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
	return &Conn{Conn: &wsConn{Conn: nc, ws: ws}, State: state, Transport: WebSocket}
}

// offers reports whether the client named the subprotocol.
func offers(r *http.Request, protocol string) bool {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(p), protocol) {
				return true
			}
		}
	}
	return false
}

// wsConn is a WebSocket as a net.Conn.
type wsConn struct {
	net.Conn
	ws *websocket.Conn
}

// Read ends with the errors that other connections have.
func (c *wsConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, wsError(err)
}

func (c *wsConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, wsError(err)
}

func wsError(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled): // NetConn cancels at a deadline
		return os.ErrDeadlineExceeded
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return err
}

// leave is how long a client gets to answer that the WebSocket closes (RFC 6455 §7.1.1).
const leave = time.Second

// Close says so, and does not wait for long.
func (c *wsConn) Close() error {
	t := time.AfterFunc(leave, func() { c.ws.CloseNow() })
	defer t.Stop()
	return c.Conn.Close()
}

// lean gives hijackers small buffers, since a WebSocket keeps them for its life.
type lean struct{ http.ResponseWriter }

const (
	leanRead  = 512  // larger reads pass it by
	leanWrite = 1024 // larger frames are written in parts
)

// Hijack implements http.Hijacker.
func (l lean) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(l.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered()) // what the client sent before our answer
	r := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(early)), nc), max(leanRead, len(early)))
	if _, err := r.Peek(len(early)); err != nil { // the library takes over what is buffered, and then nc
		nc.Close()
		return nil, nil, err
	}
	return nc, bufio.NewReadWriter(r, bufio.NewWriterSize(nc, leanWrite)), nil
}
