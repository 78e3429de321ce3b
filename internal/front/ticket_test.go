package front_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/cradle-iot/cradle/internal/front"
)

// writes counts a server's calls of Write to its connections.
type writes struct {
	net.Listener
	n atomic.Int32
}

func (w *writes) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	return &counted{c, w}, err
}

type counted struct {
	net.Conn
	w *writes
}

func (c *counted) Write(p []byte) (int, error) {
	c.w.n.Add(1)
	return c.Conn.Write(p)
}

// The session ticket of a full TLS 1.3 handshake goes out with the first answer, and is as good.
func TestTicketGoesWithTheFirstAnswer(t *testing.T) {
	ln, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	count := &writes{Listener: ln}
	server := newCert(t, "server")
	s := front.New(front.Config{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &server, nil },
		Default: front.Route{HTTP: say("x")}, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, count) }()
	cert := newCert(t, "device-7")
	for version, want := range map[uint16]int32{tls.VersionTLS12: 3, tls.VersionTLS13: 2} { // flights of the handshake, and the answer
		c := clientConfig("name", cert)
		c.MinVersion, c.MaxVersion = version, version
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for _, resumed := range []bool{false, true} {
			before := count.n.Load()
			conn := dial(t, ln.Addr().String(), c)
			if got := conn.ConnectionState().DidResume; got != resumed {
				t.Errorf("%s: resumed %v, want %v", tls.VersionName(version), got, resumed)
			}
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "x" {
				t.Errorf("%q, %v", b, err)
			}
			if got := count.n.Load() - before; !resumed && got != want {
				t.Errorf("%s: %d writes, want %d", tls.VersionName(version), got, want)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Error(err)
			}
			_, _ = io.ReadAll(conn) // the server's end of it
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A refusal at the end of a TLS 1.3 handshake, where tickets are kept back, is told.
func TestAlertOfAHandshakeIsSent(t *testing.T) {
	addr, _ := start(t, front.Config{Default: front.Route{HTTP: say("x")}})
	cert := newCert(t, "device-7")
	cert.PrivateKey = newCert(t, "another").PrivateKey // CertificateVerify is wrong
	c := clientConfig("name")
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	conn := dial(t, addr, c)
	_, err := conn.Read(make([]byte, 1))
	var alert *net.OpError
	if !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("got %v, want an alert", err)
	}
}
