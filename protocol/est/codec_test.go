package est_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
)

// newCert makes a self-signed certificate.
func newCert(t testing.TB, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	p := testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}}, nil)
	return p.Cert, p.Key
}

func newCSR(t testing.TB, name string) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func TestCertsKeepTheirOrder(t *testing.T) {
	var ders [][]byte
	for _, n := range []string{"leaf", "issuing", "root with a longer name", "a"} {
		c, _ := newCert(t, n)
		ders = append(ders, c.Raw)
	}
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {2}} {
		var in [][]byte
		for _, i := range order {
			in = append(in, ders[i])
		}
		msg, err := est.EncodeCerts(in...)
		if err != nil {
			t.Fatal(err)
		}
		got, err := est.DecodeCerts(msg)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(in) {
			t.Fatalf("%d certificates, want %d", len(got), len(in))
		}
		for i := range in {
			if !bytes.Equal(got[i].Raw, in[i]) {
				t.Errorf("order %v: certificate %d moved", order, i)
			}
		}
	}
}

// TestCertsAreDER compares with encoding/asn1, at the sizes where a length takes one byte more.
func TestCertsAreDER(t *testing.T) {
	type info struct {
		Type    asn1.ObjectIdentifier
		Content any `asn1:"explicit,tag:0"`
	}
	type signed struct {
		Version    int
		Algorithms asn1.RawValue
		Content    struct{ Type asn1.ObjectIdentifier }
		Certs      asn1.RawValue
		Signers    asn1.RawValue
	}
	set := asn1.RawValue{Tag: asn1.TagSet, IsCompound: true}
	for _, n := range []int{1, 80, 95, 100, 127, 128, 200, 230, 255, 256, 1000, 65480} {
		cert := make([]byte, n)
		want, err := asn1.Marshal(info{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, signed{1, set,
			struct{ Type asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}},
			asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: cert}, set}})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := est.EncodeCerts(cert); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %v, %x..., want %x...", n, err, got[:min(len(got), 40)], want[:40])
		}
	}
}

func TestCertsLimits(t *testing.T) {
	c, _ := newCert(t, "c")
	if _, err := est.EncodeCerts(); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("no certificates: %v", err)
	}
	many := make([][]byte, est.MaxCerts+1)
	for i := range many {
		many[i] = c.Raw
	}
	if _, err := est.EncodeCerts(many...); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("too many: %v", err)
	}
	full, err := est.EncodeCerts(many[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := est.DecodeCerts(full); err != nil || len(got) != est.MaxCerts {
		t.Errorf("%d certificates: %v", len(got), err)
	}
	if _, err := est.DecodeCerts(make([]byte, est.MaxDER+1)); cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("too many bytes: %v", err)
	}
}

func TestCertsRefused(t *testing.T) {
	c, _ := newCert(t, "c")
	msg, err := est.EncodeCerts(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	ber := append([]byte{0x30, 0x80}, msg[4:]...) // indefinite length
	for name, der := range map[string][]byte{
		"empty": nil, "truncated": msg[:len(msg)-1], "trailing": append(bytes.Clone(msg), 0),
		"BER": append(ber, 0, 0), "certificate": c.Raw, "not signedData": bytes.Replace(msg, []byte{1, 7, 2}, []byte{1, 7, 1}, 1),
		"broken certificate": bytes.Replace(msg, c.RawSubjectPublicKeyInfo[:8], make([]byte, 8), 1),
	} {
		if got, err := est.DecodeCerts(der); err == nil || cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %d certificates, error %v", name, len(got), err)
		}
	}
}

// OpenSSL reads what we write, and we read what it writes, its certificate list with a CRL-less
// SignedData of its own making.
func TestCertsOpenSSL(t *testing.T) {
	testenv.Require(t, "openssl")
	a, _ := newCert(t, "first")
	b, _ := newCert(t, "second")
	msg, err := est.EncodeCerts(a.Raw, b.Raw)
	if err != nil {
		t.Fatal(err)
	}
	run := func(stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
		return out
	}
	list := string(run(msg, "pkcs7", "-inform", "DER", "-print_certs", "-noout"))
	if i, j := strings.Index(list, "first"), strings.Index(list, "second"); i < 0 || j < i {
		t.Errorf("openssl reads %q", list)
	}
	var chain []byte
	for _, c := range []*x509.Certificate{b, a} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	theirs := run(chain, "crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin", "-outform", "PEM")
	der, err := est.DecodeBody(theirs, est.PEMPKCS7...)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := est.DecodeCerts(der); err != nil || len(got) != 2 {
		t.Errorf("%d certificates, %v", len(got), err)
	}
}

func TestBody(t *testing.T) {
	data := make([]byte, 200)
	_, _ = rand.Read(data)
	flat := base64.StdEncoding.EncodeToString(data)
	if got := string(est.EncodeBody(data, false)); got != flat {
		t.Errorf("unbroken: %q", got)
	}
	lines := string(est.EncodeBody(data, true))
	for l := range strings.SplitAfterSeq(lines, "\n") {
		if len(l) > 77 || strings.TrimSpace(l) != "" && !strings.HasSuffix(l, "\n") || strings.Contains(l, "\r") {
			t.Errorf("line %q", l)
		}
	}
	armoured := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: data}))
	for name, body := range map[string]string{
		"flat": flat, "lines": lines, "newline": flat + "\n", "PEM": armoured, "PEM CRLF": strings.ReplaceAll(armoured, "\n", "\r\n"),
		"PEM with space around": " \n" + armoured + "\n\n", "NEW": strings.ReplaceAll(armoured, "CERTIFICATE", "NEW CERTIFICATE"),
		"odd space": " " + flat[:3] + "\t" + flat[3:50] + " \r\r\n" + flat[50:],
	} {
		if got, err := est.DecodeBody([]byte(body), est.PEMRequest...); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v", name, err)
		}
	}
	csr, _ := newCSR(t, "d")
	for name, body := range map[string]string{
		"empty": "", "white": " \r\n", "raw DER": string(csr), "hex": "30:82", "truncated": flat[:len(flat)-2], "no padding": "QQ", "url alphabet": "_-8=",
		"bits after the end": "QR==", "two": flat + flat, "other PEM": strings.ReplaceAll(armoured, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"cut PEM": armoured[:len(armoured)-10], "two PEM": armoured + armoured, "NUL": "QUJD\x00", "text after PEM": armoured + "x",
	} {
		got, err := est.DecodeBody([]byte(body), est.PEMRequest...)
		if cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %x, %v", name, got, err)
			continue
		}
		if _, hint := cradle.Public(err); hint == "" {
			t.Errorf("%s: no hint", name)
		}
	}
	if _, err := est.DecodeBody(bytes.Repeat([]byte("A"), est.MaxBody+1)); cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("too large: %v", err)
	}
}

func TestNonceJSON(t *testing.T) {
	for body, ok := range map[string]bool{
		`{}`:                                    true,
		` { "len": 32 } `:                       true,
		`{"len":8}`:                             true,
		`{"len":64}`:                            true,
		`{"type":"2.25.1","reqInfo":{"a":"b"}}`: true,
		`{"type":"2.25.1"}`:                     true,
		`{"future":1}`:                          true,
		``:                                      false,
		`null`:                                  false,
		`[]`:                                    false,
		`[{}]`:                                  false, // revision 05
		`{"len":7}`:                             false,
		`{"len":65}`:                            false,
		`{"len":0}`:                             false,
		`{"len":"32"}`:                          false,
		`{"len":1e99}`:                          false,
		`{"reqInfo":{}}`:                        false,
		`{"type":"x"}`:                          false,
		`{"type":1}`:                            false,
		`{}{}`:                                  false,
		`{} x`:                                  false,
		`{`:                                     false,
	} {
		r, err := est.ParseNonceRequest([]byte(body))
		if ok != (err == nil) || err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %+v, %v", body, r, err)
		}
	}
	for body, ok := range map[string]bool{
		`{"nonce":""}`:                                  true,
		`{"nonce":"AAECAwQFBgc","expiry":60}`:           true,
		`{"nonce":"","type":"2.25.1","respInfo":{}}`:    true,
		`{"nonce":"AAECAwQFBg"}`:                        false, // 7 bytes
		`{"nonce":"AAECAwQFBgc="}`:                      false, // padded
		`{"nonce":"AAECAwQFBg+"}`:                       false, // other alphabet
		`{"nonce":"","expiry":-1}`:                      false,
		`{"nonce":"","expiry":"2026-01-01T00:00:00Z"}`:  false, // revision 05
		`{"nonce":"","respInfo":{}}`:                    false,
		`{"nonce":"` + strings.Repeat("A", 4*22) + `"}`: false,
	} {
		r, err := est.ParseNonceResponse([]byte(body))
		if ok != (err == nil) || err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %+v, %v", body, r, err)
		}
	}
	out, err := json.Marshal(est.NonceResponse{Nonce: []byte{0xff, 0xfe, 0, 1, 2, 3, 4, 5, 6, 7}, Expiry: 300})
	if want := `{"nonce":"__4AAQIDBAUGBw","expiry":300}`; err != nil || string(out) != want {
		t.Errorf("%s, %v; want %s", out, err, want)
	}
	if out, _ := json.Marshal(est.NonceResponse{}); string(out) != `{"nonce":""}` {
		t.Errorf("empty nonce: %s", out)
	}
}

// What is read encodes again to a message that reads the same.
func FuzzDecodeCerts(f *testing.F) {
	a, _ := newCert(f, "a")
	b, _ := newCert(f, "b")
	one, _ := est.EncodeCerts(a.Raw)
	two, _ := est.EncodeCerts(a.Raw, b.Raw)
	f.Add(one)
	f.Add(two)
	f.Add(bytes.Replace(two, []byte{0x31, 0}, []byte{0xa1, 0}, 1))
	f.Fuzz(func(t *testing.T, der []byte) {
		certs, err := est.DecodeCerts(der)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		if len(certs) == 0 || len(certs) > est.MaxCerts {
			t.Fatalf("%d certificates", len(certs))
		}
		var raw [][]byte
		for _, c := range certs {
			raw = append(raw, c.Raw)
		}
		msg, err := est.EncodeCerts(raw...)
		if err != nil {
			t.Fatalf("does not encode again: %v", err)
		}
		again, err := est.DecodeCerts(msg)
		if err != nil || len(again) != len(certs) {
			t.Fatalf("second reading: %d of %d, %v", len(again), len(certs), err)
		}
		for i := range again {
			if !bytes.Equal(again[i].Raw, certs[i].Raw) {
				t.Fatalf("certificate %d differs", i)
			}
		}
	})
}

// What is read has one base64 form: the input without white space and armour.
func FuzzDecodeBody(f *testing.F) {
	f.Add([]byte("QUJD\r\nRA=="))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nQUJD\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte{0x30, 0x82, 1, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		der, err := est.DecodeBody(body, est.PEMRequest...)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		flat := strings.Join(strings.Fields(string(body)), "")
		for _, p := range est.PEMRequest {
			p = strings.ReplaceAll(p, " ", "")
			flat = strings.TrimSuffix(strings.TrimPrefix(flat, "-----BEGIN"+p+"-----"), "-----END"+p+"-----")
		}
		if got := string(est.EncodeBody(der, false)); got != flat {
			t.Fatalf("%q became %q", flat, got)
		}
		again, err := est.DecodeBody(est.EncodeBody(der, true))
		if err != nil && len(est.EncodeBody(der, true)) <= est.MaxBody || err == nil && !bytes.Equal(again, der) {
			t.Fatalf("with lines: %v", err)
		}
	})
}

// What is read is within the bounds and, written again, is read as the same.
// TestNonceEncode: what Encode writes is what encoding/json does.
func TestNonceEncode(t *testing.T) {
	for _, r := range []est.NonceResponse{{}, {Nonce: make([]byte, 8)}, {Nonce: bytes.Repeat([]byte{0xfb}, 64), Expiry: 300},
		{Nonce: make([]byte, 32), Expiry: 1, Type: est.TypeActivation, RespInfo: json.RawMessage(`{"challenge":"AAECAw=="}`)}, {Type: "2.25.1"}} {
		want, err := json.Marshal(r)
		if got := r.Encode(); err != nil || string(got) != string(want) {
			t.Errorf("got %s, want %s, %v", got, want, err)
		}
	}
}

func FuzzNonceJSON(f *testing.F) {
	f.Add([]byte(`{"len":32,"type":"2.25.1","reqInfo":{"a":[1,2]}}`))
	f.Add([]byte(`{"nonce":"AAECAwQFBgc","expiry":60,"type":"2.25.1","respInfo":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if r, err := est.ParseNonceRequest(body); err == nil {
			if r.Len != 0 && (r.Len < est.MinNonce || r.Len > est.MaxNonce) || len(r.ReqInfo) > 0 && r.Type == "" {
				t.Fatalf("out of bounds: %+v", r)
			}
			out, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			again, err := est.ParseNonceRequest(out)
			if err != nil || again.Len != r.Len || again.Type != r.Type {
				t.Fatalf("%s: %+v, %v", out, again, err)
			}
		}
		if r, err := est.ParseNonceResponse(body); err == nil {
			if n := len(r.Nonce); n != 0 && (n < est.MinNonce || n > est.MaxNonce) || r.Expiry < 0 {
				t.Fatalf("out of bounds: %+v", r)
			}
			out, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := est.ParseNonceResponse(r.Encode()); err != nil || !bytes.Equal(again.Nonce, r.Nonce) || again.Expiry != r.Expiry ||
				again.Type != r.Type || !bytes.Equal(again.RespInfo, r.RespInfo) {
				t.Fatalf("%s: %+v, %v", r.Encode(), again, err)
			}
			again, err := est.ParseNonceResponse(out)
			if err != nil || !bytes.Equal(again.Nonce, r.Nonce) || again.Expiry != r.Expiry || again.Type != r.Type {
				t.Fatalf("%s: %+v, %v", out, again, err)
			}
		}
	})
}
