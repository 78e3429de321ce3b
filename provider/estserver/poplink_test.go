package estserver_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/protocol/est"
)

// csrWithPassword makes a CSR with a challengePassword.
func csrWithPassword(t *testing.T, password string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := asn1.Marshal(password)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := est.CreateRequest(pkix.Name{CommonName: "d"}, key, est.Attribute{Type: est.OIDChallengePassword, Values: []asn1.RawValue{{FullBytes: text}}})
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// RFC 7030 §3.5: a challengePassword that is present is verified.
func TestPOPLinking(t *testing.T) {
	s := start(t, nil)
	exporter := func(c tls.ConnectionState) []byte {
		b, err := c.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	unique := func(c tls.ConnectionState) []byte { return c.TLSUnique }
	for _, tc := range []struct {
		name    string
		version uint16
		binding func(tls.ConnectionState) []byte
		code    int
	}{
		{"TLS 1.2 tls-unique", tls.VersionTLS12, unique, 200},
		{"TLS 1.3 tls-exporter", tls.VersionTLS13, exporter, 200},
		{"TLS 1.3 without a tls-unique", tls.VersionTLS13, unique, 400},
		{"another connection's", tls.VersionTLS12, func(tls.ConnectionState) []byte { return make([]byte, 12) }, 400},
		{"TLS 1.2 tls-exporter", tls.VersionTLS12, exporter, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", s.addr, &tls.Config{
				RootCAs: s.roots, ServerName: "localhost", Certificates: []tls.Certificate{s.device}, MinVersion: tc.version, MaxVersion: tc.version,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			csr := csrWithPassword(t, base64.StdEncoding.EncodeToString(tc.binding(conn.ConnectionState())))
			body := base64.StdEncoding.EncodeToString(csr)
			fmt.Fprintf(conn, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tc.code || tc.code == 400 && !strings.Contains(string(text), "POP linking failed") {
				t.Errorf("%d %s, %v; want %d", resp.StatusCode, text, err, tc.code)
			}
		})
	}
}

// A resumed TLS 1.2 session has a tls-unique of its own (with the extended master secret, RFC 7627), so clients may resume.
func TestPOPLinkingOnResumedSession(t *testing.T) {
	s := start(t, nil)
	conf := &tls.Config{RootCAs: s.roots, ServerName: "localhost", Certificates: []tls.Certificate{s.device}, MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	var first []byte
	for i := range 2 {
		conn, err := tls.Dial("tcp", s.addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		state := conn.ConnectionState()
		if state.DidResume != (i == 1) || bytes.Equal(state.TLSUnique, first) {
			t.Fatalf("connection %d: resumed %v, tls-unique %x", i, state.DidResume, state.TLSUnique)
		}
		first = state.TLSUnique
		body := base64.StdEncoding.EncodeToString(csrWithPassword(t, base64.StdEncoding.EncodeToString(state.TLSUnique)))
		fmt.Fprintf(conn, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("connection %d: %v, %v", i, resp, err)
		}
	}
}
