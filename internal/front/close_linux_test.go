package front_test

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/front"
)

// Who is still there is told of the end by close_notify (RFC 8446 §6.1); who has closed between two requests is not written to.
func TestCloseNotify(t *testing.T) {
	waiting := make(chan struct{}, 1)
	addr, _ := start(t, front.Config{Default: front.Route{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			waiting <- struct{}{}
			<-r.Context().Done() // net/http has read the close_notify
		}
		fmt.Fprint(w, "x")
	})}})
	for _, c := range []struct {
		name       string
		before     bool // the client says that it sends no more before it is answered
		fin, alert bool // it closes its side of TCP too; it is told of the end
	}{
		{"half closed before the answer", true, false, true},
		{"half closed before the answer, TCP too", true, true, true},
		{"half closed after the answer", false, false, true},
		{"closed after the answer", false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, w := tapped(t, addr, clientConfig(""))
			raw := w.Conn.(*net.TCPConn)
			raw.SetReadDeadline(time.Now().Add(30 * time.Second))
			in := bufio.NewReader(conn)
			end := func() {
				if c.fin {
					cork(t, raw) // so that FIN is with the alert
				}
				if err := conn.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if c.fin {
					if err := raw.CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
			}
			path := "/"
			if c.before {
				path = "/wait"
			}
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path)
			if c.before {
				<-waiting
				end()
			}
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "x" {
				t.Errorf("the answer is %q, %v", b, err)
			}
			if !c.before {
				end()
			}
			if _, err := in.ReadByte(); err != io.EOF { // crypto/tls takes an end without an alert for one too
				t.Errorf("the end is %v", err)
			}
			last := 0 // length of the last record; an alert's is two bytes, its type and AES-GCM's tag (RFC 8446 §5.2)
			for b := w.came; len(b) > 5; b = b[min(5+last, len(b)):] {
				last = int(binary.BigEndian.Uint16(b[3:]))
			}
			if got := last == 2+1+16; got != c.alert {
				t.Errorf("close_notify: %v, want %v", got, c.alert)
			}
		})
	}
}

// cork keeps small packets back until more comes (tcp(7)).
func cork(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, 1)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// tap is a client's end of TCP, read by one goroutine, that keeps what came.
type tap struct {
	net.Conn
	came []byte
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if n > 0 {
		t.came = append(t.came, p[:n]...)
	}
	return n, err
}

func tapped(t *testing.T, addr string, c *tls.Config) (*tls.Conn, *tap) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	w := &tap{Conn: raw}
	conn := tls.Client(w, c)
	t.Cleanup(func() { conn.Close() })
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return conn, w
}
