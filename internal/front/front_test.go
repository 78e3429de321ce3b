package front_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Leakless(m) }

func newCert(t testing.TB, name string) tls.Certificate {
	t.Helper()
	return testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}, nil).TLS()
}

// start runs a server on a port of its own until the test ends; stop ends it earlier and gives Run's error.
func start(t *testing.T, c front.Config) (addr string, stop func() error) {
	t.Helper()
	if c.Certificate == nil {
		cert := newCert(t, "server")
		c.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	ln, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- front.New(c).Run(ctx, ln) }()
	var result error
	var stopped bool
	stop = func() error {
		if !stopped {
			stopped = true
			cancel()
			result = <-ended
		}
		return result
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return ln.Addr().String(), stop
}

func clientConfig(name string, certs ...tls.Certificate) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true, Certificates: certs}
}

func dial(t *testing.T, addr string, c *tls.Config) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// get makes one request on a new connection and returns status and body.
func get(t *testing.T, addr, path string, c *tls.Config) (int, string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func say(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text) })
}

func TestRoutesByServerName(t *testing.T) {
	addr, _ := start(t, front.Config{
		Hosts:   map[string]front.Route{"est.example": {HTTP: say("est")}, "*.dps.example": {HTTP: say("dps")}},
		Default: front.Route{HTTP: say("default")},
	})
	for name, want := range map[string]string{
		"est.example": "est", "EST.Example": "est", "a.dps.example": "dps", "dps.example": "default",
		"a.b.dps.example": "default", "other": "default", "": "default",
	} {
		if _, got := get(t, addr, "/", clientConfig(name)); got != want {
			t.Errorf("%q is served by %q, want %q", name, got, want)
		}
	}
}

func TestRequestHasTLSState(t *testing.T) {
	addr, _ := start(t, front.Config{Default: front.Route{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.TLS == nil:
			fmt.Fprint(w, "nil")
		case len(r.TLS.PeerCertificates) == 0:
			fmt.Fprintf(w, "%s: nobody over %s", r.TLS.ServerName, r.Proto)
		default:
			fmt.Fprintf(w, "%s: %s resumed %v", r.TLS.ServerName, r.TLS.PeerCertificates[0].Subject.CommonName, r.TLS.DidResume)
		}
	})}})
	if _, got := get(t, addr, "/", clientConfig("name")); got != "name: nobody over HTTP/1.1" {
		t.Errorf("without a certificate: %q", got)
	}
	for i, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13, tls.VersionTLS12, tls.VersionTLS13} {
		c := clientConfig("name", newCert(t, "device-7"))
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		c.MinVersion, c.MaxVersion = version, version
		if i > 1 {
			c.NextProtos = []string{"http/1.1"} // the other of the server's two configurations
		}
		for _, want := range []string{"name: device-7 resumed false", "name: device-7 resumed true"} {
			if _, got := get(t, addr, "/", c); got != want {
				t.Errorf("%s: %q, want %q", tls.VersionName(version), got, want)
			}
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	addr, _ := start(t, front.Config{Default: front.Route{HTTP: say("x")}})
	c := clientConfig("")
	c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := tls.Dial("tcp", addr, c); err == nil {
		conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

// Clients whose certificate's issuer is not in the list leave the certificate out, and a list would tell who the
// tenants are.
func TestCertificateIsAskedForWithoutCANames(t *testing.T) {
	addr, _ := start(t, front.Config{Default: front.Route{HTTP: say("x")}})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		asked := false
		c := clientConfig("")
		c.MinVersion, c.MaxVersion = version, version
		c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			if len(r.AcceptableCAs) > 0 {
				t.Errorf("%s: %d CA names", tls.VersionName(version), len(r.AcceptableCAs))
			}
			return &tls.Certificate{}, nil
		}
		if code, _ := get(t, addr, "/", c); code != 200 || !asked {
			t.Errorf("%s: %d, asked %v", tls.VersionName(version), code, asked)
		}
	}
}

// What net/http answers by itself is logged: no handler sees it.
func TestRefusedHeadsAreLogged(t *testing.T) {
	var logs testenv.Buffer
	log := slog.New(slog.NewTextHandler(&logs, nil))
	addr, stop := start(t, front.Config{Default: front.Route{HTTP: say("x")}, Log: log})
	conn := dial(t, addr, clientConfig(""))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")
	got, _ := io.ReadAll(conn)
	if !bytes.HasPrefix(got, []byte("HTTP/1.1 200 OK")) || !bytes.Contains(got, []byte("HTTP/1.1 400 Bad Request")) {
		t.Errorf("%q", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if text := logs.String(); strings.Count(text, "http request refused") != 1 || !strings.Contains(text, `status="400 Bad Request`) {
		t.Errorf("log: %s", text)
	}
}

func TestRoutesByFirstByte(t *testing.T) {
	cert := newCert(t, "device-7")
	addr, _ := start(t, front.Config{
		Hosts: map[string]front.Route{"web": {HTTP: say("http")}},
		Default: front.Route{HTTP: say("http"), MQTT: func(ctx context.Context, conn net.Conn, state tls.ConnectionState) {
			b := make([]byte, 14)
			if _, err := io.ReadFull(conn, b); err != nil {
				t.Error(err)
			}
			fmt.Fprintf(conn, "%s %x", state.PeerCertificates[0].Subject.CommonName, b)
		}},
	})
	packet := []byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
	for _, alpn := range [][]string{nil, {"mqtt"}, {"h2", "http/1.1"}} { // an unknown name in ALPN is no obstacle
		c := clientConfig("", cert)
		c.NextProtos = alpn
		conn := dial(t, addr, c)
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if want := fmt.Sprintf("device-7 %x", packet); err != nil || string(got) != want {
			t.Errorf("ALPN %v: %q, %v; want %q", alpn, got, err, want)
		}
	}
	if _, got := get(t, addr, "/", clientConfig("")); got != "http" {
		t.Errorf("HTTP: %q", got)
	}
	conn := dial(t, addr, clientConfig("web"))
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("MQTT under a name without: %q", got)
	}
}

func TestCertificateIsExchangedLive(t *testing.T) {
	var cert atomic.Pointer[tls.Certificate]
	first, second := newCert(t, "first"), newCert(t, "second")
	cert.Store(&first)
	addr, _ := start(t, front.Config{
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert.Load(), nil },
		Default:     front.Route{HTTP: say("x")},
	})
	for _, c := range []*tls.Certificate{&first, &second} {
		cert.Store(c)
		got := dial(t, addr, clientConfig("")).ConnectionState().PeerCertificates[0]
		if !got.Equal(c.Leaf) {
			t.Errorf("got %s, want %s", got.Subject, c.Leaf.Subject)
		}
	}
}

// A held answer of more than net/http's buffers arrives as one TLS record.
func TestHold(t *testing.T) {
	body := strings.Repeat("x", 12000)
	addr, _ := start(t, front.Config{Default: front.Route{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		release := front.Hold(r.Context())
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = io.WriteString(w, body)
		w.(http.Flusher).Flush()
		if err := release(); err != nil {
			t.Error(err)
		}
	})}})
	conn := dial(t, addr, clientConfig(""))
	for range 2 { // the connection is as good as before
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		record := make([]byte, 1<<16) // one Read of tls.Conn is at most one record
		n, err := conn.Read(record)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(record[:n])), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != body {
			t.Errorf("%d bytes in the first record, %v", len(got), err)
		}
	}
	if err := front.Hold(context.Background())(); err != nil { // elsewhere it does nothing
		t.Error(err)
	}
}

func TestPortTaken(t *testing.T) {
	ln, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := ln.Addr().String()
	_, err = front.Listen(t.Context(), addr)
	if cradle.KindOf(err) != cradle.Conflict {
		t.Fatalf("got %v", err)
	}
	if _, hint := cradle.Public(err); hint != "this or another process listens on "+addr+"; choose another address" {
		t.Errorf("hint %q", hint)
	}
	for _, bad := range []string{"", "nonsense", "127.0.0.1:99999", "192.0.2.1:0"} {
		if _, err := front.Listen(t.Context(), bad); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestListenerBreaks(t *testing.T) {
	cert := newCert(t, "server")
	ln, err := front.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	s := front.New(front.Config{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }})
	if err := s.Run(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestPaths(t *testing.T) {
	p := front.Paths{
		{"/.well-known/est/", say("est")},
		{"/devices", say("hub")}, {"/devices/", say("hub")},
		{"/*/registrations/", say("dps")},
		{"/enrollmentGroups/*", say("group")},
	}
	for path, want := range map[string]string{
		"/.well-known/est/a/cacerts": "est", "/.well-known/est": "", "/devices": "hub", "/devices/": "hub", "/devices/d1/modules": "hub",
		"/devicesX": "", "/0ne1/registrations/d1/register": "dps", "//registrations/d1": "", "/a/b/registrations/": "",
		"/enrollmentGroups/g": "group", "/enrollmentGroups/g/x": "", "/enrollmentGroups/": "", "/": "", "": "",
	} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, &http.Request{URL: &url.URL{Path: path}})
		got := w.Body.String()
		if w.Code == http.StatusNotFound {
			got = ""
		}
		if got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}
