package status_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	_ "crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/status"
)

// source is a provider of two CAs in memory. Its certificates are but serial numbers.
type source struct {
	mu        sync.Mutex
	now       time.Time
	issuers   []provider.StatusIssuer
	keys      map[string]*provider.OCSPKey
	certs     map[cradle.CertSerial]provider.CertStatus
	away      error
	questions int
}

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func newSource(t testing.TB) *source {
	t.Helper()
	s := &source{now: start, keys: map[string]*provider.OCSPKey{}, certs: map[cradle.CertSerial]provider.CertStatus{}}
	for _, name := range []string{"one", "two"} {
		k := newKey()
		cert, err := ca.SelfSign(k, ca.Authority{Organization: "acme", CommonName: name, NotBefore: start.Add(-time.Hour), NotAfter: ca.Forever})
		if err != nil {
			t.Fatal(err)
		}
		iss := &ca.Issuer{ID: ca.Digest(cert.Raw), Cert: cert, Key: k}
		rk := newKey()
		rc, err := ca.Responder(iss, rk.Public(), start.Add(-time.Minute), start.Add(14*24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		s.issuers = append(s.issuers, provider.StatusIssuer{ID: iss.ID, Cert: cert})
		s.keys[iss.ID] = &provider.OCSPKey{Cert: rc, Key: rk}
	}
	s.certs["a1"] = provider.CertStatus{Authority: s.issuers[0].ID}
	s.certs["a2"] = provider.CertStatus{Authority: s.issuers[0].ID, Revoked: start.Add(-time.Hour), Code: cradle.KeyCompromise}
	s.certs["b1"] = provider.CertStatus{Authority: s.issuers[1].ID}
	return s
}

func (s *source) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *source) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

func (s *source) StatusIssuers() []provider.StatusIssuer { return s.issuers }

func (s *source) CertStatus(_ context.Context, issuers []string, serial cradle.CertSerial) (provider.CertStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.questions++
	if s.away != nil {
		return provider.CertStatus{}, s.away
	}
	if c, ok := s.certs[serial]; ok && slices.Contains(issuers, c.Authority) {
		return c, nil
	}
	return provider.CertStatus{}, cradle.Errorf(cradle.NotFound, "none")
}

func (s *source) OCSPKey(_ context.Context, authority string) (*provider.OCSPKey, error) {
	return s.keys[authority], nil
}

func (s *source) CRL(_ context.Context, authority string, shard int64) (provider.Shard, []byte, error) {
	if shard != 1 {
		return provider.Shard{}, nil, cradle.Errorf(cradle.NotFound, "no CRL shard %d", shard)
	}
	return provider.Shard{CRLNumber: 7, ThisUpdate: start, NextUpdate: start.Add(time.Hour)}, []byte("crl of " + authority), nil
}

func (s *source) ShardURLs(context.Context, string) ([]string, error) {
	return []string{"http://x/1.crl", "http://x/3.crl"}, nil
}

func digest(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

var hashOIDs = map[crypto.Hash]asn1.ObjectIdentifier{crypto.SHA1: {1, 3, 14, 3, 2, 26}, crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3}, crypto.MD5: {1, 2, 840, 113549, 2, 5}}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func seq(parts ...[]byte) []byte { return wrap(asn1.ClassUniversal, asn1.TagSequence, parts...) }

func explicit(tag int, parts ...[]byte) []byte {
	return wrap(asn1.ClassContextSpecific, tag, parts...)
}

func wrap(class, tag int, parts ...[]byte) []byte {
	return must(asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: bytes.Join(parts, nil)}))
}

func certID(h crypto.Hash, iss *x509.Certificate, serial string) []byte {
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(iss.RawSubjectPublicKeyInfo, &spki); err != nil {
		panic(err)
	}
	n, _ := new(big.Int).SetString(serial, 16)
	return seq(seq(must(asn1.Marshal(hashOIDs[h])), asn1.NullBytes), must(asn1.Marshal(digest(h, iss.RawSubject))),
		must(asn1.Marshal(digest(h, spki.Key.Bytes))), must(asn1.Marshal(n)))
}

// request is a whole OCSPRequest over CertIDs.
func request(nonce []byte, ids ...[]byte) []byte {
	var list [][]byte
	for _, id := range ids {
		list = append(list, seq(id))
	}
	parts := [][]byte{seq(list...)}
	if nonce != nil {
		parts = append(parts, explicit(2, seq(extension(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}, false, must(asn1.Marshal(nonce))))))
	}
	return seq(seq(parts...))
}

func extension(id asn1.ObjectIdentifier, critical bool, value []byte) []byte {
	parts := [][]byte{must(asn1.Marshal(id))}
	if critical {
		parts = append(parts, must(asn1.Marshal(true)))
	}
	return seq(append(parts, must(asn1.Marshal(value)))...)
}

// said is what an answer holds, read without our own code and verified against the issuer.
type said struct {
	result   int
	statuses []int // tag of each CertStatus
	byName   bool
	nonce    []byte
	produced time.Time
}

type basic struct {
	Data      asn1.RawValue
	Algorithm struct{ OID asn1.ObjectIdentifier }
	Signature asn1.BitString
	Certs     []asn1.RawValue `asn1:"explicit,tag:0,optional"`
}

func read(t *testing.T, b []byte, iss *x509.Certificate) said {
	t.Helper()
	var outer struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type     asn1.ObjectIdentifier
			Response []byte
		} `asn1:"explicit,tag:0,optional"`
	}
	if rest, err := asn1.Unmarshal(b, &outer); err != nil || len(rest) > 0 {
		t.Fatalf("not an OCSPResponse: %v, % x", err, b)
	}
	out := said{result: int(outer.Status)}
	if outer.Status != 0 {
		return out
	}
	var r basic
	if rest, err := asn1.Unmarshal(outer.Bytes.Response, &r); err != nil || len(rest) > 0 {
		t.Fatalf("not a BasicOCSPResponse: %v", err)
	}
	cert, err := x509.ParseCertificate(r.Certs[0].FullBytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(iss); err != nil {
		t.Fatalf("the responder is not the issuer's: %v", err)
	}
	if err := cert.CheckSignature(x509.ECDSAWithSHA256, r.Data.FullBytes, r.Signature.Bytes); err != nil {
		t.Fatal(err)
	}
	var d struct {
		Responder asn1.RawValue
		Produced  time.Time `asn1:"generalized"`
		Responses []struct {
			ID     asn1.RawValue
			Status asn1.RawValue
			This   time.Time `asn1:"generalized"`
			Next   time.Time `asn1:"generalized,explicit,tag:0,optional"`
		}
		Extensions []struct {
			ID    asn1.ObjectIdentifier
			Value []byte
		} `asn1:"explicit,tag:1,optional"`
	}
	if _, err := asn1.Unmarshal(r.Data.FullBytes, &d); err != nil {
		t.Fatal(err)
	}
	out.byName, out.produced = d.Responder.Tag == 1, d.Produced
	want := cert.RawSubject
	if !out.byName {
		var spki struct {
			Algorithm asn1.RawValue
			Key       asn1.BitString
		}
		if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &spki); err != nil {
			t.Fatal(err)
		}
		h := sha1.Sum(spki.Key.Bytes)
		want = must(asn1.Marshal(h[:]))
	}
	if !bytes.Equal(d.Responder.Bytes, want) {
		t.Errorf("ResponderID [%d] % x", d.Responder.Tag, d.Responder.Bytes)
	}
	for _, s := range d.Responses {
		out.statuses = append(out.statuses, s.Status.Tag)
		if s.This.After(d.Produced) || !s.Next.After(d.Produced) {
			t.Errorf("produced %v, this update %v, next %v", d.Produced, s.This, s.Next)
		}
	}
	for _, e := range d.Extensions {
		if _, err := asn1.Unmarshal(e.Value, &out.nonce); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

type server struct {
	*source
	t   *testing.T
	url string
}

func newServer(t *testing.T) *server {
	t.Helper()
	src := newSource(t)
	h := httptest.NewServer(status.New(status.Config{Source: src, Now: src.clock}))
	t.Cleanup(h.Close)
	return &server{src, t, h.URL}
}

func (s *server) do(method, path string, body []byte, header ...string) (*http.Response, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, b
}

func (s *server) ask(b []byte) said {
	s.t.Helper()
	resp, out := s.do("POST", "/ocsp", b, "Content-Type", "application/ocsp-request")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/ocsp-response" {
		s.t.Errorf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	return read(s.t, out, s.issuers[0].Cert)
}
