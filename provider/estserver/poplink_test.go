package estserver_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// csrWithPassword makes a CSR with a challengePassword; crypto/x509 cannot.
func csrWithPassword(t *testing.T, password string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	must := func(v any) []byte {
		t.Helper()
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	attribute := must(struct {
		Type   asn1.ObjectIdentifier
		Values []string `asn1:"set"`
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, []string{password}})
	info := must(struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{0, pkix.Name{CommonName: "d"}.ToRDNSequence(), asn1.RawValue{FullBytes: spki}, []asn1.RawValue{{FullBytes: attribute}}})
	digest := sha256.Sum256(info)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	csr := must(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	req, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = req.CheckSignature()
	}
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
