package front_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/front"
)

// A connection that says nothing, in TCP or inside TLS, ends at the handshake's deadline.
func TestSilentConnectionsEnd(t *testing.T) {
	addr, _ := start(t, front.Config{HandshakeTimeout: 2 * time.Second, Default: front.Route{HTTP: say("x")}})
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := dial(t, addr, clientConfig("")) // within the two seconds
	if n, err := raw.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes before any handshake", n)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a silent TLS connection was answered")
	}
}

// Slow handshakes that fill every place do not keep others out.
func TestSlowLoris(t *testing.T) {
	addr, _ := start(t, front.Config{HandshakeTimeout: time.Hour, MaxHandshakes: 4, Default: front.Route{HTTP: say("served")}})
	for range 12 {
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if _, err := raw.Write([]byte{22, 3, 1}); err != nil { // the beginning of a ClientHello
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, got := get(t, addr, "/", clientConfig("")); got != "served" {
			t.Errorf("got %q", got)
		}
	}
}

func TestConnectionsPerAddress(t *testing.T) {
	addr, _ := start(t, front.Config{MaxPerIP: 2, Default: front.Route{HTTP: say("served")}})
	a := dial(t, addr, clientConfig(""))
	dial(t, addr, clientConfig(""))
	if c, err := tls.Dial("tcp", addr, clientConfig("")); err == nil {
		c.Close()
		t.Error("a third connection was let in")
	}
	a.Close()
	for { // the place is free once the server has seen the end
		c, err := tls.Dial("tcp", addr, clientConfig(""))
		if err == nil {
			c.Close()
			break
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// The requests that run end in peace; MQTT handlers are told; new connections are refused.
func TestShutdownIsGraceful(t *testing.T) {
	running, finish, begun, told := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	addr, stop := start(t, front.Config{
		Default: front.Route{
			HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(running)
				<-finish
				fmt.Fprint(w, "finished")
			}),
			MQTT: func(ctx context.Context, conn net.Conn, _ tls.ConnectionState) {
				close(begun)
				<-ctx.Done()
				close(told)
			},
		},
	})
	silent := dial(t, addr, clientConfig("")) // stays before its first byte
	mqtt := dial(t, addr, clientConfig(""))
	if _, err := mqtt.Write([]byte{0x10}); err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() {
		_, body := get(t, addr, "/", clientConfig(""))
		answer <- body
	}()
	<-running
	<-begun
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	<-told
	close(finish)
	if got := <-answer; got != "finished" {
		t.Errorf("the running request got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the silent connection is still open")
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("still listening")
	}
}

// What does not end within the grace is closed.
func TestShutdownEndsInTime(t *testing.T) {
	in := make(chan struct{}, 2)
	gone := make(chan struct{})
	addr, stop := start(t, front.Config{
		Grace: 50 * time.Millisecond,
		Default: front.Route{
			HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				in <- struct{}{}
				<-r.Context().Done()
				close(gone)
			}),
			MQTT: func(_ context.Context, conn net.Conn, _ tls.ConnectionState) {
				in <- struct{}{}
				_, _ = io.Copy(io.Discard, conn) // deaf to its context
			},
		},
	})
	mqtt := dial(t, addr, clientConfig(""))
	_, _ = mqtt.Write([]byte{0x10})
	web := dial(t, addr, clientConfig(""))
	_, _ = io.WriteString(web, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-in
	<-in
	if err := stop(); err != nil {
		t.Error(err)
	}
	<-gone
}

func TestPanicsStayInTheirConnection(t *testing.T) {
	addr, _ := start(t, front.Config{Default: front.Route{
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic("test")
			}
			fmt.Fprint(w, "served")
		}),
		MQTT: func(context.Context, net.Conn, tls.ConnectionState) { panic("test") },
	}})
	mqtt := dial(t, addr, clientConfig(""))
	_, _ = mqtt.Write([]byte{0x10})
	_, _ = io.ReadAll(mqtt)
	web := dial(t, addr, clientConfig(""))
	_, _ = io.WriteString(web, "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
	_, _ = io.ReadAll(web)
	if _, got := get(t, addr, "/", clientConfig("")); got != "served" {
		t.Errorf("got %q", got)
	}
}
