package est_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

var (
	oidAES256    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	oidAESWrap   = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 45}
	oidECDH      = asn1.ObjectIdentifier{1, 3, 132, 1, 11, 1}
	capabilities = []pkix.AlgorithmIdentifier{{Algorithm: oidAES256}}
)

func TestKeyWish(t *testing.T) {
	_, key := newCSR(t, "d")
	wrapDER := raw(t, pkix.AlgorithmIdentifier{Algorithm: oidAESWrap})
	for name, in := range map[string]est.KeyWish{
		"none":       {},
		"symmetric":  {DecryptKeyID: []byte("k1"), Capabilities: capabilities},
		"asymmetric": {AsymmetricKeyID: []byte{1, 2}, Capabilities: append(capabilities[:1:1], pkix.AlgorithmIdentifier{Algorithm: oidECDH, Parameters: wrapDER})},
	} {
		attributes, err := in.Attributes()
		if err != nil {
			t.Fatal(err)
		}
		csr, err := est.CreateRequest(pkix.Name{CommonName: "d"}, key, attributes...)
		if err != nil {
			t.Fatal(err)
		}
		req, err := x509.ParseCertificateRequest(csr)
		if err != nil || req.CheckSignature() != nil {
			t.Fatalf("%s: %v, %v", name, err, req.CheckSignature())
		}
		out, err := est.ParseKeyWish(csr)
		if err != nil || !bytes.Equal(out.DecryptKeyID, in.DecryptKeyID) || !bytes.Equal(out.AsymmetricKeyID, in.AsymmetricKeyID) || len(out.Capabilities) != len(in.Capabilities) {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
		if in.Encrypted() != out.Encrypted() || out.Can(oidAES256) != in.Encrypted() || out.Can(oidAESWrap) != (name == "asymmetric") {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

func TestKeyWishRefused(t *testing.T) {
	_, key := newCSR(t, "d")
	id := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, n} }
	octets, caps := raw(t, []byte{1}), raw(t, capabilities)
	smime := est.Attribute{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 15}, Values: []asn1.RawValue{caps}}
	for name, list := range map[string][]est.Attribute{
		"no capabilities": {{Type: id(37), Values: []asn1.RawValue{octets}}},
		"both kinds":      {{Type: id(37), Values: []asn1.RawValue{octets}}, {Type: id(54), Values: []asn1.RawValue{octets}}, smime},
		"twice":           {{Type: id(37), Values: []asn1.RawValue{octets}}, {Type: id(37), Values: []asn1.RawValue{octets}}, smime},
		"two values":      {{Type: id(54), Values: []asn1.RawValue{octets, raw(t, []byte{2})}}, smime},
		"no octets":       {{Type: id(54), Values: []asn1.RawValue{caps}}, smime},
		"empty":           {{Type: id(54), Values: []asn1.RawValue{raw(t, []byte{})}}, smime},
		"long":            {{Type: id(54), Values: []asn1.RawValue{raw(t, make([]byte, 300))}}, smime},
		"many":            {{Type: id(54), Values: []asn1.RawValue{octets}}, {Type: smime.Type, Values: []asn1.RawValue{raw(t, bytesOf(capabilities[0], 65))}}},
		"two lists":       {{Type: id(54), Values: []asn1.RawValue{octets}}, smime, smime},
	} {
		csr, err := est.CreateRequest(pkix.Name{}, key, list...)
		if err != nil {
			t.Fatal(err)
		}
		if w, err := est.ParseKeyWish(csr); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %+v, %v", name, w, err)
		}
	}
	if _, err := est.ParseKeyWish([]byte("no CSR")); cradle.KindOf(err) != cradle.Invalid {
		t.Error(err)
	}
}

func bytesOf[T any](v T, n int) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func TestChallengePassword(t *testing.T) {
	_, key := newCSR(t, "d")
	text := func(s string) est.Attribute {
		return est.Attribute{Type: est.OIDChallengePassword, Values: []asn1.RawValue{raw(t, s)}}
	}
	for name, tc := range map[string]struct {
		attributes []est.Attribute
		want       string
		bad        bool
	}{
		"none": {}, "one": {attributes: []est.Attribute{text("abc")}, want: "abc"}, "two": {attributes: []est.Attribute{text("abc"), text("abd")}, bad: true},
		"a number": {attributes: []est.Attribute{{Type: est.OIDChallengePassword, Values: []asn1.RawValue{raw(t, 5)}}}, bad: true},
	} {
		csr, err := est.CreateRequest(pkix.Name{}, key, tc.attributes...)
		if err != nil {
			t.Fatal(err)
		}
		got, err := est.ChallengePassword(csr)
		if string(got) != tc.want || tc.bad != (cradle.KindOf(err) == cradle.Invalid && err != nil) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestTPMEnrollMessages(t *testing.T) {
	c, _ := newCert(t, "EK")
	csr, _ := newCSR(t, "d")
	in := est.TPMEnrollRequest{CSR: csr, EKChain: [][]byte{c.Raw, c.Raw}, EKPublic: []byte("ek"), AKPublic: []byte("ak")}
	typ, body, err := in.Encode()
	if err != nil {
		t.Fatal(err)
	}
	out, err := est.ParseTPMEnrollRequest(typ, body)
	if err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%+v, %v", out, err)
	}
	text := string(body)
	for name, tc := range map[string]struct{ typ, body string }{
		"another type":   {"application/pkcs10", text},
		"no boundary":    {"multipart/mixed", text},
		"wrong boundary": {"multipart/mixed; boundary=x", text},
		"long boundary":  {"multipart/mixed; boundary=" + strings.Repeat("x", 80), text},
		"cut off":        {typ, text[:len(text)/2]},
		"no end":         {typ, strings.TrimSuffix(text, "--\r\n")},
		"part order":     {typ, strings.Replace(text, "application/pkcs10", "application/octet-stream", 1)},
		"not base64":     {typ, strings.Replace(text, "\r\n\r\n", "\r\n\r\n!", 1)},
		"five parts":     {typ, strings.Replace(text, "--estTPMEnrollBoundary--", "--estTPMEnrollBoundary\r\n\r\nAAAA\r\n--estTPMEnrollBoundary--", 1)},
		"empty":          {typ, ""},
		"too large":      {typ, strings.Repeat("x", est.MaxBody+1)},
	} {
		if _, err := est.ParseTPMEnrollRequest(tc.typ, []byte(tc.body)); err == nil || cradle.KindOf(err) != cradle.Invalid && cradle.KindOf(err) != cradle.TooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
	answer := est.TPMEnrollResponse{CredentialBlob: []byte{1}, EncryptedSecret: []byte{2}, Certificate: []byte{3}}
	typ, body = answer.Encode()
	if got, err := est.ParseTPMEnrollResponse(typ, body); err != nil || !reflect.DeepEqual(got, answer) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := est.ParseTPMEnrollResponse(typ, bytes.ReplaceAll(body, []byte("octet-stream"), []byte("pkcs8"))); cradle.KindOf(err) != cradle.Invalid {
		t.Error(err)
	}
}

// FuzzTPMEnroll: what parses can be written and says the same again.
func FuzzTPMEnroll(f *testing.F) {
	c, _ := newCert(f, "EK")
	typ, body, err := est.TPMEnrollRequest{CSR: []byte{1}, EKChain: [][]byte{c.Raw}, EKPublic: []byte("ek"), AKPublic: []byte("ak")}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(typ, body)
	f.Add("multipart/mixed; boundary=\"a b\"", []byte("--a b\r\n\r\nAA==\r\n--a b--"))
	f.Fuzz(func(t *testing.T, typ string, body []byte) {
		q, err := est.ParseTPMEnrollRequest(typ, body)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		typ, body, err = q.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := est.ParseTPMEnrollRequest(typ, body); err != nil || !reflect.DeepEqual(q, again) {
			t.Fatalf("%+v became %+v, %v", q, again, err)
		}
	})
}

// FuzzParseKeyWish: errors are ours, and what asks for encryption says how.
func FuzzParseKeyWish(f *testing.F) {
	_, key := newCSR(f, "d")
	for _, w := range []est.KeyWish{{}, {DecryptKeyID: []byte("k1"), Capabilities: capabilities}, {AsymmetricKeyID: []byte("k2"), Capabilities: capabilities}} {
		attributes, err := w.Attributes()
		if err != nil {
			f.Fatal(err)
		}
		csr, err := est.CreateRequest(pkix.Name{CommonName: "d"}, key, attributes...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(csr)
	}
	f.Fuzz(func(t *testing.T, csr []byte) {
		w, err := est.ParseKeyWish(csr)
		if err != nil && cradle.KindOf(err) != cradle.Invalid && cradle.KindOf(err) != cradle.TooLarge {
			t.Fatalf("kind %v: %v", cradle.KindOf(err), err)
		}
		if err == nil && w.Encrypted() && (len(w.Capabilities) == 0 || len(w.DecryptKeyID) > 0 == (len(w.AsymmetricKeyID) > 0)) {
			t.Fatalf("%+v", w)
		}
		if _, err := est.ChallengePassword(csr); err != nil && cradle.KindOf(err) != cradle.Invalid && cradle.KindOf(err) != cradle.TooLarge {
			t.Fatalf("kind %v: %v", cradle.KindOf(err), err)
		}
	})
}

// answering answers every request with one message and gives a client for it.
func answering(t *testing.T, status int, contentType string, body []byte) *est.Client {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		w.Write(body)
	}))
	t.Cleanup(s.Close)
	return &est.Client{HTTP: s.Client(), URL: s.URL + "/.well-known/est"}
}

func TestClientCSRAttributes(t *testing.T) {
	der, err := sampleFilled.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := answering(t, 200, est.TypeCSRAttrs, est.EncodeBody(der, true)).CSRAttributes(t.Context())
	if err != nil || got.Template == nil || len(got.OIDs) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, code := range []int{204, 404} {
		if got, err := answering(t, code, "", nil).CSRAttributes(t.Context()); err != nil || !got.Empty() {
			t.Errorf("%d: %+v, %v", code, got, err)
		}
	}
	if _, err := answering(t, 500, "", nil).CSRAttributes(t.Context()); cradle.KindOf(err) != cradle.Busy {
		t.Errorf("500: %v", err)
	}
}

func TestClientServerKeyGen(t *testing.T) {
	cert, key := newCert(t, "generated")
	_, other := newCert(t, "other")
	pkcs8 := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	one, err := est.EncodeCerts(cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	two, err := est.EncodeCerts(cert.Raw, cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	plain := newRequest(t)
	secret := newRequest(t, est.KeyWish{DecryptKeyID: []byte("k"), Capabilities: capabilities})
	keyPart, certPart := est.Part{ContentType: est.TypePKCS8, Body: pkcs8(key)}, est.Part{ContentType: est.TypeCertsOnly, Body: one}
	sealed := est.Part{ContentType: est.TypeKey, Body: []byte("sealed")}
	for name, tc := range map[string]struct {
		csr   []byte
		parts []est.Part
		ok    bool
	}{
		"plain":               {plain, []est.Part{keyPart, certPart}, true},
		"the other order":     {plain, []est.Part{certPart, keyPart}, true},
		"encrypted":           {secret, []est.Part{sealed, certPart}, true},
		"encrypted, last":     {secret, []est.Part{certPart, sealed}, true},
		"plain against wish":  {secret, []est.Part{keyPart, certPart}, false},
		"encrypted unasked":   {plain, []est.Part{sealed, certPart}, false},
		"another's key":       {plain, []est.Part{{ContentType: est.TypePKCS8, Body: pkcs8(other)}, certPart}, false},
		"no key":              {plain, []est.Part{{ContentType: est.TypePKCS8, Body: []byte("x")}, certPart}, false},
		"two certificates":    {plain, []est.Part{keyPart, {ContentType: est.TypeCertsOnly, Body: two}}, false},
		"two keys":            {plain, []est.Part{keyPart, keyPart}, false},
		"one part":            {plain, []est.Part{keyPart}, false},
		"three parts":         {plain, []est.Part{keyPart, certPart, certPart}, false},
		"a part of some type": {plain, []est.Part{keyPart, {ContentType: "text/plain", Body: one}}, false},
	} {
		typ, body := est.EncodeParts("b", true, tc.parts...)
		got, err := answering(t, 200, typ, body).ServerKeyGen(context.Background(), tc.csr)
		if tc.ok && (err != nil || !got.Cert.Equal(cert) || (got.Sealed != nil) == (got.PKCS8 != nil)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if !tc.ok && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func newRequest(t *testing.T, wish ...est.KeyWish) []byte {
	t.Helper()
	var attributes []est.Attribute
	for _, w := range wish {
		list, err := w.Attributes()
		if err != nil {
			t.Fatal(err)
		}
		attributes = append(attributes, list...)
	}
	_, key := newCSR(t, "d")
	csr, err := est.CreateRequest(pkix.Name{CommonName: "d"}, key, attributes...)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
