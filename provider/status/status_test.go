package status_test

import (
	"bytes"
	"crypto"
	_ "crypto/md5"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/status"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// What a status is called in the table below, by its tag.
const good, revoked, unknown = 0, 1, 2

func TestOCSPAnswers(t *testing.T) {
	s := newServer(t)
	one, two := s.issuers[0].Cert, s.issuers[1].Cert
	stranger, err := ca.SelfSign(newKey(), ca.Authority{Organization: "x", CommonName: "one", NotBefore: start, NotAfter: ca.Forever})
	if err != nil {
		t.Fatal(err)
	}
	id := func(serial string) []byte { return certID(crypto.SHA1, one, serial) }
	many := func(n int) [][]byte {
		var out [][]byte
		for range n {
			out = append(out, id("a1"))
		}
		return out
	}
	a := id("a1")
	for name, c := range map[string]struct {
		request  []byte
		result   int
		statuses []int
	}{
		"good":                          {request(nil, a), 0, []int{good}},
		"revoked":                       {request(nil, id("a2")), 0, []int{revoked}},
		"never issued":                  {request(nil, id("abcdef")), 0, []int{unknown}},
		"issued by the other CA":        {request(nil, id("b1")), 0, []int{unknown}},
		"serial zero":                   {request(nil, id("0")), 0, []int{unknown}},
		"negative serial":               {request(nil, id("-a1")), 0, []int{unknown}},
		"SHA-256":                       {request(nil, certID(crypto.SHA256, one, "a1")), 0, []int{good}},
		"SHA-384":                       {request(nil, certID(crypto.SHA384, one, "a2")), 0, []int{revoked}},
		"SHA-512":                       {request(nil, certID(crypto.SHA512, one, "a1")), 0, []int{good}},
		"three of one issuer":           {request(nil, a, id("a2"), id("ff")), 0, []int{good, revoked, unknown}},
		"sixteen":                       {request(nil, many(16)...), 0, make([]int, 16)},
		"seventeen":                     {request(nil, many(17)...), 1, nil},
		"none":                          {request(nil), 1, nil},
		"two issuers":                   {request(nil, a, certID(crypto.SHA1, two, "b1")), 6, nil},
		"unknown issuer":                {request(nil, certID(crypto.SHA1, stranger, "a1")), 6, nil},
		"MD5":                           {request(nil, certID(crypto.MD5, one, "a1")), 1, nil},
		"empty":                         {nil, 1, nil},
		"not DER":                       {[]byte("GET / HTTP/1.1"), 1, nil},
		"something behind it":           {append(request(nil, a), 0), 1, nil},
		"cut off":                       {request(nil, a)[:40], 1, nil},
		"version v1, written out":       {seq(seq(explicit(0, must(asn1.Marshal(0))), seq(seq(a)))), 0, []int{good}},
		"version v2":                    {seq(seq(explicit(0, must(asn1.Marshal(1))), seq(seq(a)))), 1, nil},
		"who asks":                      {seq(seq(explicit(1, explicit(4, seq())), seq(seq(a)))), 0, []int{good}},
		"a signature that is read over": {seq(seq(seq(seq(a))), explicit(0, seq())), 0, []int{good}},
		"critical extension":            {seq(seq(seq(seq(a)), explicit(2, seq(extension(asn1.ObjectIdentifier{1, 2, 3}, true, nil))))), 1, nil},
		"other extension":               {seq(seq(seq(seq(a)), explicit(2, seq(extension(asn1.ObjectIdentifier{1, 2, 3}, false, nil))))), 0, []int{good}},
		"critical single extension":     {seq(seq(seq(seq(a, explicit(0, seq(extension(asn1.ObjectIdentifier{1, 2, 3}, true, nil))))))), 1, nil},
		"short hash":                    {request(nil, bytes.Replace(a, []byte{4, 20}, []byte{4, 19}, 1)), 1, nil},
		"too long":                      {request(bytes.Repeat([]byte{1}, 9000), a), 1, nil},
		"nested deep":                   {bytes.Repeat([]byte{0x30, 0x80}, 2000), 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := s.ask(c.request); got.result != c.result || !slices.Equal(got.statuses, c.statuses) {
				t.Errorf("result %d, statuses %v; want %d, %v", got.result, got.statuses, c.result, c.statuses)
			}
		})
	}
}

// TestNonces: RFC 9654 §2.1: 1 to 128 octets come back in a fresh answer, others are malformed.
func TestNonces(t *testing.T) {
	s := newServer(t)
	id := certID(crypto.SHA1, s.issuers[0].Cert, "a1")
	for _, n := range []int{0, 1, 16, 32, 33, 128, 129} {
		nonce := bytes.Repeat([]byte{7}, n)
		want := 0
		if n == 0 || n > 128 {
			want, nonce = 1, nil
		}
		got := s.ask(request(bytes.Repeat([]byte{7}, n), id))
		if got.result != want || !bytes.Equal(got.nonce, nonce) {
			t.Errorf("nonce of %d bytes: result %d, nonce % x", n, got.result, got.nonce)
		}
	}
	s.ask(request(nil, id))
	s.change(func() { s.now = s.now.Add(10 * time.Minute) })
	if got := s.ask(request([]byte("0123456789abcdef"), id)); !got.produced.Equal(s.clock()) {
		t.Errorf("an answer with a nonce was produced %v, now is %v", got.produced, s.clock())
	}
	if got := s.ask(request(nil, id)); !got.produced.Equal(start) {
		t.Errorf("an answer without was produced %v, want the one of %v", got.produced, start)
	}
}

// TestCachedAnswers: an answer is given again byte for byte, but never after the store says otherwise.
func TestCachedAnswers(t *testing.T) {
	s := newServer(t)
	req := request(nil, certID(crypto.SHA1, s.issuers[0].Cert, "a1"))
	get := "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(req))
	resp, first := s.do("GET", get, nil)
	h := resp.Header
	if h.Get("Cache-Control") != "public, no-transform, must-revalidate, max-age=60" || h.Get("ETag") == "" || h.Get("Expires") != start.Add(time.Minute).Format(http.TimeFormat) ||
		h.Get("Last-Modified") != start.Add(-time.Minute).Format(http.TimeFormat) {
		t.Errorf("headers %v", h)
	}
	if resp, again := s.do("GET", get, nil, "If-None-Match", h.Get("ETag")); resp.StatusCode != http.StatusNotModified || len(again) > 0 {
		t.Errorf("asked again with its ETag: %s", resp.Status)
	}
	s.change(func() { s.now = s.now.Add(20 * time.Minute) })
	if _, again := s.do("POST", "/ocsp", req); !bytes.Equal(again, first) {
		t.Error("the answer was signed anew though nothing changed")
	}
	s.change(func() {
		s.certs["a1"] = provider.CertStatus{Authority: s.issuers[0].ID, Revoked: s.now, Code: cradle.CertificateHold}
	})
	if got := s.ask(req); got.statuses[0] != revoked {
		t.Fatal("an old answer was given after the hold")
	}
	s.change(func() { s.certs["a1"] = provider.CertStatus{Authority: s.issuers[0].ID} })
	if got := s.ask(req); got.statuses[0] != good {
		t.Error("an old answer was given after the release")
	}
	s.change(func() { s.now = s.now.Add(45 * time.Minute) })
	if got := s.ask(req); !got.produced.Equal(s.clock()) {
		t.Errorf("produced %v, now is %v: too old", got.produced, s.clock())
	}
	unknownSerial := request(nil, certID(crypto.SHA1, s.issuers[0].Cert, "dd"))
	if resp, _ := s.do("GET", "/ocsp/"+url.PathEscape(base64.StdEncoding.EncodeToString(unknownSerial)), nil); resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("unknown may be cached: %v", resp.Header)
	}
	s.change(func() { s.away = cradle.Errorf(cradle.Busy, "the store is away") })
	if got := s.ask(req); got.result != 3 {
		t.Errorf("with the store away: result %d, want tryLater", got.result)
	}
	s.change(func() { s.away = fmt.Errorf("secret text") })
	if resp, b := s.do("POST", "/ocsp", req); read(t, b, nil).result != 2 || bytes.Contains(b, []byte("secret")) || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("a failing store: %v % x", resp.Header, b)
	}
}

func TestHTTP(t *testing.T) {
	s := newServer(t)
	one := s.issuers[0]
	name := provider.StatusName(one.ID)
	req := request(nil, certID(crypto.SHA1, one.Cert, "a1"))
	plain := base64.StdEncoding.EncodeToString(req)
	for _, form := range []string{url.PathEscape(plain), plain, url.PathEscape(url.PathEscape(plain)), base64.RawURLEncoding.EncodeToString(req), strings.TrimRight(plain, "=")} {
		_, b := s.do("GET", "/ocsp/"+form, nil)
		if got := read(t, b, one.Cert); got.result != 0 || got.byName {
			t.Errorf("GET %s: %+v", form, got)
		}
	}
	for _, method := range []string{"GET", "POST"} {
		path, body := "/ocsp/by-name", req
		if method == "GET" {
			path, body = path+"/"+url.PathEscape(plain), nil
		}
		_, b := s.do(method, path, body)
		if got := read(t, b, one.Cert); got.result != 0 || !got.byName {
			t.Errorf("%s by name: %+v", method, got)
		}
	}
	for _, c := range []struct {
		method, path string
		body         int
		code         int
		kind         string
	}{
		{"GET", "/crl/" + name + "/1.crl", 0, 200, "application/pkix-crl"},
		{"HEAD", "/crl/" + name + "/1.crl", 0, 200, "application/pkix-crl"},
		{"GET", "/crl/" + name + "/", 0, 200, "text/uri-list"},
		{"GET", "/crl/" + name, 0, 404, ""},
		{"GET", "/crl/0123456789abcdef/", 0, 404, ""},
		{"GET", "/crl/" + name + "/2.crl", 0, 404, ""},
		{"GET", "/crl/" + name + "/01.crl", 0, 404, ""},
		{"GET", "/crl/" + name + "/-1.crl", 0, 404, ""},
		{"GET", "/crl/" + name + "/1", 0, 404, ""},
		{"GET", "/crl/" + name + "/../1.crl", 0, 404, ""},
		{"GET", "/crl/0123456789abcdef/1.crl", 0, 404, ""},
		{"POST", "/crl/" + name + "/1.crl", 0, 405, ""},
		{"GET", "/ca/" + name + ".cer", 0, 200, "application/pkix-cert"},
		{"GET", "/ca/" + name, 0, 404, ""},
		{"GET", "/ca/x.cer", 0, 404, ""},
		{"PUT", "/ocsp", 10, 405, ""},
		{"GET", "/ocsp", 0, 405, ""},
		{"POST", "/ocsp/AAAA", 10, 405, ""},
		{"POST", "/ocsp", 1 << 20, 200, "application/ocsp-response"},
		{"GET", "/ocsp/*", 0, 200, "application/ocsp-response"},
		{"GET", "/ocsp/" + strings.Repeat("A", 20000), 0, 200, "application/ocsp-response"},
		{"GET", "/other", 0, 404, ""},
	} {
		resp, b := s.do(c.method, c.path, make([]byte, c.body))
		if resp.StatusCode != c.code || c.kind != "" && resp.Header.Get("Content-Type") != c.kind {
			t.Errorf("%s %.80s: %s %s, want %d %s", c.method, c.path, resp.Status, resp.Header.Get("Content-Type"), c.code, c.kind)
		}
		if c.kind == "application/ocsp-response" && read(t, b, nil).result != 1 {
			t.Errorf("%s %.80s: result %d, want malformedRequest", c.method, c.path, read(t, b, nil).result)
		}
	}
	resp, b := s.do("GET", "/crl/"+name+"/1.crl", nil)
	if string(b) != "crl of "+one.ID || resp.Header.Get("ETag") != `"`+name+`-1-7"` || !strings.Contains(resp.Header.Get("Cache-Control"), "max-age=60") {
		t.Errorf("%q, %v", b, resp.Header)
	}
	if resp, _ := s.do("GET", "/crl/"+name+"/1.crl", nil, "If-None-Match", resp.Header.Get("ETag")); resp.StatusCode != http.StatusNotModified {
		t.Errorf("with its ETag: %s", resp.Status)
	}
}

// TestShed: a request over a limit is told when to come again, and nothing is asked for it.
func TestShed(t *testing.T) {
	src := newSource(t)
	h := status.New(status.Config{Source: src, Now: src.clock, Admit: func(*http.Request) error {
		return &cradle.Error{Kind: cradle.Busy, Detail: "too many requests", RetryAfter: 7 * time.Second}
	}})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/ocsp", bytes.NewReader(request(nil, certID(crypto.SHA1, src.issuers[0].Cert, "a1")))))
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "7" || src.questions != 0 {
		t.Errorf("%d, %v, %d questions to the store", w.Code, w.Header(), src.questions)
	}
}

// TestRequestsOfOpenSSL: what openssl writes is read, and read as openssl means it.
func TestRequestsOfOpenSSL(t *testing.T) {
	testenv.Require(t, "openssl")
	src := newSource(t)
	dir := t.TempDir()
	iss, out := filepath.Join(dir, "iss.der"), filepath.Join(dir, "req.der")
	if err := os.WriteFile(iss, src.issuers[0].Cert.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-serial", "0xa1"}, {"-sha256", "-serial", "161"}, {"-no_nonce", "-serial", "0x7fffffffffffffffffffffffffffffffffffffff"}, {"-serial", "1", "-serial", "2", "-serial", "3"}} {
		if text, err := exec.CommandContext(t.Context(), "openssl", append([]string{"ocsp", "-issuer", iss, "-reqout", out}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		r, err := status.ParseRequest(b)
		if err != nil {
			t.Errorf("%v: %v", args, err)
			continue
		}
		if want := strings.Count(strings.Join(args, " "), "-serial"); len(r.Certs) != want || (r.Nonce == nil) != slices.Contains(args, "-no_nonce") {
			t.Errorf("%v: %d certificates, nonce % x", args, len(r.Certs), r.Nonce)
		}
	}
}

// FuzzParseRequest: whatever comes, errors have a kind, and what parses is within the limits and means the same
// when it is written again by other code and read again.
func FuzzParseRequest(f *testing.F) {
	src := newSource(f)
	a := certID(crypto.SHA1, src.issuers[0].Cert, "a1")
	b := certID(crypto.SHA256, src.issuers[0].Cert, "a2")
	for _, seed := range [][]byte{request(nil, a), request([]byte("0123456789abcdef"), a, b), seq(seq(explicit(0, must(asn1.Marshal(0))), explicit(1, explicit(4, seq())), seq(seq(a)))),
		seq(seq(seq(seq(a, explicit(0, seq(extension(asn1.ObjectIdentifier{1, 2, 3}, false, nil)))))), explicit(0, seq()))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := status.ParseRequest(in)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("error of kind %v: %v", k, err)
			}
			return
		}
		if len(r.Certs) == 0 || len(r.Certs) > 16 || len(r.Nonce) > 128 || r.Nonce != nil && len(r.Nonce) == 0 {
			t.Fatalf("%d certificates, nonce of %d", len(r.Certs), len(r.Nonce))
		}
		var ids [][]byte
		for _, c := range r.Certs {
			if len(c.NameHash) != c.Hash.Size() || len(c.KeyHash) != c.Hash.Size() || c.Serial == nil {
				t.Fatalf("%+v", c)
			}
			ids = append(ids, seq(seq(must(asn1.Marshal(hashOIDs[c.Hash])), asn1.NullBytes), must(asn1.Marshal(c.NameHash)), must(asn1.Marshal(c.KeyHash)), must(asn1.Marshal(c.Serial))))
		}
		again, err := status.ParseRequest(request(r.Nonce, ids...))
		if err != nil {
			if cradle.KindOf(err) == cradle.TooLarge { // the parameters that were left out made it longer
				return
			}
			t.Fatalf("written again: %v", err)
		}
		if len(again.Certs) != len(r.Certs) || !bytes.Equal(again.Nonce, r.Nonce) {
			t.Fatalf("written again it is %+v, was %+v", again, r)
		}
		for i, c := range again.Certs {
			if c.Serial.Cmp(r.Certs[i].Serial) != 0 || c.Hash != r.Certs[i].Hash || !bytes.Equal(c.KeyHash, r.Certs[i].KeyHash) {
				t.Fatalf("written again it is %+v, was %+v", c, r.Certs[i])
			}
		}
	})
}
