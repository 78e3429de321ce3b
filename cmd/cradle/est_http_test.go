package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/est"
)

var statusLine = regexp.MustCompile(`HTTP/1\.[01] (\d{3}) `)

// Requests that HTTP, TLS or the paths of EST forbid. Each is one refusal, or a connection that is closed where HTTP
// says so; nothing of it is taken for another request, and nothing changes.
func TestRefusedByHTTP(t *testing.T) {
	s := newESTRig(t)
	csr := b64(csrOf(t, "gw-2", testca.Key(t)))
	auth := basicHeader("line", linePassword) + "\r\n"
	head := "POST /.well-known/est/" + label + "/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n" + auth
	next := request("GET", label+"/cacerts", "") // what a smuggler hopes for
	length := fmt.Sprintf("Content-Length: %d\r\n", len(csr))
	for _, tc := range []struct {
		name, send string
		code       string // of the one answer
		want       string // in head or body
	}{
		// Two messages out of one (RFC 9112 §6.1, §6.3, §11.2).
		{"two lengths", head + length + "Content-Length: 5\r\n\r\n" + csr, "400", ""},
		{"no number", head + "Content-Length: five\r\n\r\n" + csr, "400", ""},
		{"negative length", head + "Content-Length: -1\r\n\r\n" + csr, "400", ""},
		{"signed length", head + "Content-Length: +5\r\n\r\n" + csr, "400", ""},
		{"list of lengths", head + "Content-Length: 5, 6\r\n\r\n" + csr, "400", ""},
		{"huge length", head + "Content-Length: 99999999999999999999\r\n\r\n" + csr, "400", ""},
		{"CL.TE", head + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", 5+len(next), next), "400", "the body is empty"},
		{"TE.CL", head + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1\r\nA\r\n0\r\n\r\n" + next, "400", "not base64"},
		{"TE.TE", head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + next, "501", ""},
		{"unknown coding", head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next, "501", ""},
		{"two codings", head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + next, "501", ""},
		{"blank before the colon", head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + next, "400", ""},
		{"folded coding", head + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + next, "400", "the body is empty"},
		{"folded type", strings.Replace(head, "application/pkcs10", "application/\r\n pkcs10", 1) + "Connection: close\r\n" + length + "\r\n" + csr, "415", "is not application/pkcs10"},
		{"chunk without size", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + next, "400", "not complete"},
		{"negative chunk", head + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + next, "400", "not complete"},
		{"chunk ended by a bare LF", head + "Transfer-Encoding: chunked\r\n\r\n1\nA\n0\n\n" + next, "400", "not complete"},
		{"endless chunk extension", head + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 1<<16) + "\r\nA\r\n0\r\n\r\n", "400", "not complete"},
		{"HTTP/1.0 with a coding", strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1) + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, "400", "the body is empty"},
		{"two types", head + "Content-Type: text/plain\r\nConnection: close\r\n" + length + "\r\n" + csr, "415", "not application/pkcs10"},
		{"a request as body", strings.Replace(head, "pkcs10", "x", 1) + "Connection: close\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(next)) + next, "415", ""},

		// The head.
		{"bare CR in a value", head + "X: a\rTransfer-Encoding: chunked\r\n\r\n" + csr, "400", ""},
		{"NUL in a value", head + "X: a\x00b\r\n\r\n" + csr, "400", ""},
		{"blank in a name", head + "X Y: z\r\n\r\n" + csr, "400", ""},
		{"no name", head + ": z\r\n\r\n" + csr, "400", ""},
		{"first line folded", "GET /.well-known/est/cacerts HTTP/1.1\r\n Host: localhost\r\n\r\n", "400", ""},
		{"no Host", "GET /.well-known/est/cacerts HTTP/1.1\r\n\r\n", "400", "missing required Host"},
		{"two Hosts", "GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n", "400", ""},
		{"malformed Host", "GET /.well-known/est/cacerts HTTP/1.1\r\nHost: a b\r\n\r\n", "400", "malformed Host"},
		{"HTTP/0.9", "GET /.well-known/est/cacerts\r\n", "400", ""},
		{"HTTP/3", "GET /.well-known/est/cacerts HTTP/3.0\r\nHost: localhost\r\n\r\n", "505", ""},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404", ""},
		{"a long header", head + "X: " + strings.Repeat("x", 40<<10) + "\r\n\r\n", "431", ""},
		{"many headers", head + strings.Repeat("X: y\r\n", 8<<10) + "\r\n", "431", ""},
		{"a long path", "GET /.well-known/est/" + strings.Repeat("x", 40<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", "431", ""},
		{"unknown expectation", head + "Expect: 200-maybe\r\nConnection: close\r\n" + length + "\r\n" + csr, "417", ""},

		// Methods: 405 with Allow.
		{"GET of simpleenroll", request("GET", label+"/simpleenroll", ""), "405", "\r\nAllow: POST\r\n"},
		{"post in lower case", request("post", label+"/simpleenroll", csr), "405", "\r\nAllow: POST\r\n"},
		{"POST of cacerts", request("POST", label+"/cacerts", "x"), "405", "\r\nAllow: GET, HEAD\r\n"},
		{"POST of csrattrs", request("POST", label+"/csrattrs", "x"), "405", "\r\nAllow: GET, HEAD\r\n"},
		{"DELETE of nonce", request("DELETE", label+"/nonce", ""), "405", "\r\nAllow: GET, POST\r\n"},
		{"TRACE", request("TRACE", label+"/cacerts", ""), "405", "\r\nAllow: GET, HEAD\r\n"},
		{"OPTIONS of serverkeygen", request("OPTIONS", label+"/serverkeygen", ""), "405", "\r\nAllow: POST\r\n"},
		{"GET of tpmenroll", request("GET", label+"/tpmenroll", ""), "405", "\r\nAllow: POST\r\n"},

		// Paths and labels (RFC 7030 §3.2.2).
		{"encoded slash", request("GET", "acme-operational%2Fcacerts", ""), "404", "no such EST resource"},
		{"encoded slash in the prefix", "GET /.well-known%2fest/cacerts HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "404", "no such EST resource"},
		{"dot dot", request("GET", "globex-operational/../"+label+"/cacerts", ""), "404", "no such EST resource"},
		{"encoded dot dot", request("GET", "%2e%2e/cacerts", ""), "404", ""},
		{"double slash", request("GET", label+"//cacerts", ""), "404", "no such EST resource"},
		{"leading slash", request("GET", "/"+label+"/cacerts", ""), "404", "no such EST resource"},
		{"trailing slash", request("GET", label+"/cacerts/", ""), "404", "no such EST resource"},
		{"NUL", request("GET", label+"%00/cacerts", ""), "404", "no such EST resource"},
		{"line break", request("GET", label+"%0d%0aX:%20y/cacerts", ""), "404", "no such EST resource"},
		{"unicode", request("GET", "acm%C3%A9-operational/cacerts", ""), "404", "no such EST resource"},
		{"unicode look-alike", request("GET", "acme%EF%BC%8Doperational/cacerts", ""), "404", "no such EST resource"},
		{"backslash", request("GET", label+"%5ccacerts", ""), "404", "no such EST resource"},
		{"semicolon", request("GET", label+";a=b/cacerts", ""), "404", "no such EST resource"},
		{"upper case", request("GET", "ACME-operational/cacerts", ""), "404", "no such EST label"},
		{"long label", request("GET", strings.Repeat("a", 300)+"/cacerts", ""), "404", "no such EST resource"},
		{"an operation as label", request("GET", "cacerts/cacerts", ""), "404", "no such EST resource"},
		{"unknown account", request("GET", "evil-operational/cacerts", ""), "404", "no such EST label"},
		{"unknown operation", request("GET", label+"/cacert", ""), "404", "no such EST resource"},
		{"no operation", request("GET", label, ""), "404", "no such EST resource"},
		{"broken escape", request("GET", label+"%zz/cacerts", ""), "400", ""},
		{"blank in the path", request("GET", label+" /cacerts", ""), "400", ""},
		{"no label and no account's name", request("GET", "cacerts", ""), "404", "no account is known by the server name"},

		// Bodies.
		{"too large", post("simpleenroll", strings.Repeat("A", est.MaxBody+4), auth[:len(auth)-2]), "413", "more than 65536 bytes"},
		{"too large, chunked", head + "Transfer-Encoding: chunked\r\n\r\n20000\r\n" + strings.Repeat("A", 0x20000) + "\r\n0\r\n\r\n", "413", "more than 65536 bytes"},
		{"other media type", strings.Replace(post("simpleenroll", csr, auth[:len(auth)-2]), "pkcs10", "pkcs10+x", 1), "415", "pkcs10+x"},
		{"no media type", request("POST", label+"/simpleenroll", csr, auth[:len(auth)-2]), "415", "Content-Type: application/pkcs10"},
		{"full CMC", request("POST", label+"/fullcmc", csr, auth[:len(auth)-2], "Content-Type: application/pkcs7-mime"), "501", "not implemented"},
		{"nonce: no object", request("POST", label+"/nonce", "[]", "Content-Type: "+est.TypeNonce), "400", "Cradle-Reason: the body is not a JSON object"},
		{"nonce: bad length", request("POST", label+"/nonce", `{"len":7}`, "Content-Type: "+est.TypeNonce), "400", "Cradle-Reason: nonce request: len 7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.unchanged(t, func() {
				got := s.send(s.tls(nil), tc.send)
				all := statusLine.FindAllStringSubmatch(got, -1)
				if len(all) != 1 || all[0][1] != tc.code || !strings.Contains(got, tc.want) {
					t.Errorf("got %.600q\nwant one answer %s with %q", got, tc.code, tc.want)
				}
			})
		})
	}
}

// Connections that are not TLS as it must be (RFC 9325), or that never become a request.
func TestRefusedConnections(t *testing.T) {
	s := newESTRig(t)
	old := func(change func(*tls.Config)) func(t *testing.T) {
		return func(t *testing.T) {
			c := s.tls(nil)
			change(c)
			if conn, err := tls.Dial("tcp", s.addr, c); err == nil {
				conn.Close()
				t.Errorf("accepted with %s", tls.CipherSuiteName(conn.ConnectionState().CipherSuite))
			}
		}
	}
	raw := func(bytes string) func(t *testing.T) {
		return func(t *testing.T) {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, bytes)
			if got, _ := io.ReadAll(conn); strings.Contains(string(got), "200 OK") {
				t.Errorf("%.100q", got)
			}
		}
	}
	for name, f := range map[string]func(t *testing.T){
		"TLS 1.0": old(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }),
		"TLS 1.1": old(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }),
		"RC4": old(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA}
		}),
		"triple DES": old(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
		}),
		"RSA key exchange": old(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}),
		"another protocol": old(func(c *tls.Config) {
			c.NextProtos = []string{"http/1.1"}
			c.MaxVersion = tls.VersionTLS11
			c.MinVersion = tls.VersionTLS10
		}),
		"plain HTTP":         raw(request("GET", label+"/cacerts", "")),
		"garbage":            raw(strings.Repeat("\x16\x03\x01\xff", 100)),
		"handshake cut off":  raw("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"),
		"a key without hold": stolen(s),
	} {
		t.Run(name, func(t *testing.T) { s.unchanged(t, func() { f(t) }) })
	}
}

// stolen: whoever has the certificate but not its key does not pass the handshake.
func stolen(s *estRig) func(t *testing.T) {
	return func(t *testing.T) {
		c := s.tls(&tls.Certificate{Certificate: s.holder.Certificate, PrivateKey: testca.Key(t)})
		if got := s.send(c, post("simpleenroll", b64(csrOf(t, "gw-1", testca.Key(t))))); strings.Contains(got, "200 OK") {
			t.Errorf("%.100q", got)
		}
	}
}

// Clients that do not finish what they began lose their connection after the server's own time, half-closed ones at once.
func TestSlowClients(t *testing.T) {
	s := newESTRig(t)
	limit := 2 * time.Second
	s.addr = s.listen(front.Config{HandshakeTimeout: limit, ReadTimeout: limit})
	csr := b64(csrOf(t, "gw-2", testca.Key(t)))
	whole := post("simpleenroll", csr, basicHeader("line", linePassword))
	begun, body, _ := strings.Cut(whole, "\r\n\r\n")
	part := begun + "\r\n\r\n" + body[:len(body)/2]
	before, leaves := s.state()
	t.Cleanup(func() {
		if after, now := s.state(); now != leaves || fmt.Sprint(after) != fmt.Sprint(before) {
			t.Error("the store changed")
		}
	})
	for _, tc := range []struct {
		name, send string
		half       bool   // closes its side
		code       string // empty: closed without an answer
	}{
		{"nothing after the handshake", "", false, ""},
		{"half a head", begun[:40], false, ""},
		{"half a head, half-closed", begun[:40], true, ""},
		{"half a body", part, false, "400"},
		{"half a body, half-closed", part, true, "400"},
		{"no body, half-closed", begun + "\r\n\r\n", true, "400"},
		{"half a chunk", strings.Replace(begun, "Content-Length", "X", 1) + "\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nA", false, "400"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // they all wait
			conn, err := tls.Dial("tcp", s.addr, s.tls(nil))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, tc.send)
			if tc.half {
				if err := conn.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			got := s.read(conn)
			if all := statusLine.FindAllStringSubmatch(got, -1); tc.code == "" && strings.Contains(got, " 200 ") || tc.code != "" && (len(all) != 1 || all[0][1] != tc.code) {
				t.Errorf("%.300q", got)
			}
		})
	}
	t.Run("a byte at a time", func(t *testing.T) {
		conn, err := tls.Dial("tcp", s.addr, s.tls(nil))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			for i := range len(whole) {
				if _, err := conn.Write([]byte{whole[i]}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		if got := s.read(conn); strings.Contains(got, "200 OK") {
			t.Errorf("%.100q", got)
		}
	})
}

// Requests in a row on one connection are answered one by one, in their order, whatever becomes of each.
func TestPipelining(t *testing.T) {
	s := newESTRig(t)
	keep := func(r string) string { return strings.Replace(r, "Connection: close\r\n", "", 1) }
	flat := b64(csrOf(t, "other", testca.Key(t))) // a name that the password may not ask for
	var b bytes.Buffer
	b.WriteString(keep(request("GET", label+"/cacerts", "")))
	b.WriteString(keep(request("GET", "no-label/cacerts", "")))
	b.WriteString(keep(post("simpleenroll", flat, basicHeader("line", linePassword))))
	b.WriteString(keep(post("simpleenroll", "", basicHeader("line", linePassword))))
	b.WriteString(request("GET", label+"/csrattrs", ""))
	s.unchanged(t, func() {
		got := s.send(s.tls(nil), b.String())
		var codes []string
		for _, m := range statusLine.FindAllStringSubmatch(got, -1) {
			codes = append(codes, m[1])
		}
		if c := strings.Join(codes, " "); c != "200 404 403 400 204" && c != "200 404 403 400 200" {
			t.Errorf("answers %s", c)
		}
	})
}
