package estserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/estserver"
)

// enrollRaw begins an enrolment by hand on a connection of its own.
func (s *server) enrollRaw(head string) *tls.Conn {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots, ServerName: "localhost", Certificates: []tls.Certificate{s.device}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	body := base64.StdEncoding.EncodeToString(newCSR(s.t, "d"))
	if _, err := fmt.Fprintf(conn, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n%s\r\n%s", len(body), head, body); err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// A client that hangs up in the middle does not stop the issuance, and shutting down waits for it.
func TestHangUpDoesNotCancelIssuance(t *testing.T) {
	s := start(t, nil)
	entered, goOn := make(chan struct{}), make(chan struct{})
	s.ca.before = func(ctx context.Context) error {
		close(entered)
		<-goOn
		return ctx.Err()
	}
	conn := s.enrollRaw("")
	<-entered
	conn.Close()
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	close(goOn)
	<-stopped
	if n := s.ca.issued(); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

// Too slow a provider is told so by its context, and the client to come again.
func TestProviderTimeout(t *testing.T) {
	s := start(t, func(c *estserver.Config) { c.Timeout = time.Millisecond })
	s.ca.before = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	r := s.do(s.client(s.device), "POST", "simpleenroll", base64.StdEncoding.EncodeToString(newCSR(t, "d")), map[string]string{"Content-Type": "application/pkcs10"})
	if r.code != 503 || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "too long") {
		t.Errorf("%d %q", r.code, r.body)
	}
}

// Over the limit requests are shed with a time to come again, and served afterwards.
func TestShedding(t *testing.T) {
	s := start(t, func(c *estserver.Config) { c.MaxInFlight, c.MaxWait, c.RetryAfter = 1, time.Millisecond, 5 })
	entered, goOn := make(chan struct{}), make(chan struct{})
	s.ca.before = func(context.Context) error { close(entered); <-goOn; return nil }
	first := s.enrollRaw("Connection: close\r\n")
	<-entered
	r := s.do(s.client(), "GET", "cacerts", "", nil)
	if after, _ := strconv.Atoi(r.header.Get("Retry-After")); r.code != 503 || after < 5 || after > 10 {
		t.Errorf("%d, Retry-After %q", r.code, r.header.Get("Retry-After"))
	}
	close(goOn)
	if got, err := io.ReadAll(first); err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 200 ")) {
		t.Errorf("the first: %.40q, %v", got, err)
	}
	if r := s.do(s.client(), "GET", "cacerts", "", nil); r.code != 200 {
		t.Errorf("afterwards: %d", r.code)
	}
}

func TestPanicIsOneRequest(t *testing.T) {
	s := start(t, nil)
	c := s.client(s.device)
	s.ca.before = func(context.Context) error { panic("secret bug") }
	r := s.do(c, "POST", "simpleenroll", base64.StdEncoding.EncodeToString(newCSR(t, "d")), map[string]string{"Content-Type": "application/pkcs10"})
	if r.code != 500 || strings.Contains(r.body, "secret") {
		t.Errorf("%d %q", r.code, r.body)
	}
	if log := s.logs.Take(); !strings.Contains(log, "secret bug") || !strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("log: %s", log)
	}
	if r := s.do(c, "GET", "cacerts", "", nil); r.code != 200 {
		t.Errorf("afterwards: %d", r.code)
	}
}

// est.md §2d: strongSwan reads the head in at most 1024 bytes and the rest in one more read of TLS.
func TestAnswerIsOneRecord(t *testing.T) {
	s := start(t, nil)
	for _, padding := range []int{0, 3000, 8000} { // below net/http's buffers, and above
		s.ca.padding = padding
		conn := s.enrollRaw("")
		record := make([]byte, 1<<16) // one Read of tls.Conn is at most one record
		n, err := conn.Read(record)
		if err != nil {
			t.Fatal(err)
		}
		head, body, ok := strings.Cut(string(record[:n]), "\r\n\r\n")
		if !ok || len(head) > 1000 || !strings.Contains(head, "Content-Length: "+strconv.Itoa(len(body))) {
			t.Errorf("padding %d: a first record of %d bytes, head %q", padding, n, head)
		}
	}
}

func TestWithoutTLS(t *testing.T) {
	h := estserver.New(estserver.Config{Provider: newCA(t), Log: slog.New(slog.DiscardHandler)})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/.well-known/est/cacerts", nil))
	if w.Code != 403 || !strings.Contains(w.Body.String(), "TLS only") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// curl and openssl, as RFC 7030 users script them.
func TestCurlAndOpenSSL(t *testing.T) {
	testenv.Require(t, "curl", "openssl")
	s := start(t, nil)
	dir := t.TempDir()
	write := func(name, typ string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
		cmd.Dir = dir
		_, port, _ := strings.Cut(s.addr, ":")
		cmd.Env = append(os.Environ(), "EST=https://localhost:"+port+"/.well-known/est/acme-operational",
			"CURL=curl -sS --noproxy * --resolve localhost:"+port+":127.0.0.1 --cacert server.pem --cert device.pem --key device.key")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	serverCert := s.connState().PeerCertificates[0]
	write("server.pem", "CERTIFICATE", serverCert.Raw)
	write("device.pem", "CERTIFICATE", s.device.Certificate[0])
	write("device.key", "PRIVATE KEY", pkcs8(t, s.device.PrivateKey))

	list := sh(`set -f; $CURL -f $EST/cacerts | base64 -di | openssl pkcs7 -inform DER -print_certs -out cas.pem && grep -h subject cas.pem`)
	if i, j := strings.Index(list, "acme operational"), strings.Index(list, "acme root"); i < 0 || j < i {
		t.Errorf("cacerts: %s", list)
	}
	sh(`openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout new.key -subj /CN=device-1 -out new.csr`)
	for _, form := range []string{`new.csr`, `<(openssl req -in new.csr -outform DER | base64)`, `<(openssl req -in new.csr -outform DER | base64 -w0)`} {
		for _, op := range []string{"simpleenroll", "simplereenroll"} {
			out := sh(`set -f; $CURL -f -H 'Content-Type: application/pkcs10' --data-binary @` + form + ` $EST/` + op +
				` | base64 -di | openssl pkcs7 -inform DER -print_certs -out new.pem && openssl verify -partial_chain -trusted cas.pem new.pem`)
			if !strings.Contains(out, "new.pem: OK") {
				t.Errorf("%s with %s: %s", op, form, out)
			}
		}
	}
	out := sh(`set -f; $CURL -w '%{http_code}' --data-binary @new.csr $EST/simpleenroll`)
	if !strings.Contains(out, "send the header Content-Type: application/pkcs10") || !strings.HasSuffix(out, "415") {
		t.Errorf("without content type: %s", out)
	}
	out = sh(`set -f; $CURL -f -H 'Content-Type: ` + est.TypeNonce + `' -d '{"len":32}' $EST/nonce`)
	if !strings.HasPrefix(out, `{"nonce":"BwcH`) {
		t.Errorf("nonce: %s", out)
	}
}
