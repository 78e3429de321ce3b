package evidence_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"reflect"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// The tests build their DER with encoding/asn1, apart from the package's own writer.
type raw = asn1.RawValue

var nameless pkix.Name

func seq(parts ...[]byte) []byte { return tagged(asn1.TagSequence, parts...) }
func set(parts ...[]byte) []byte { return tagged(asn1.TagSet, parts...) }

func tagged(tag int, parts ...[]byte) []byte {
	return marshal(raw{Tag: tag, IsCompound: true, Bytes: bytes.Join(parts, nil)})
}

func marshal(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func activationOID() []byte {
	b, err := cradle.OIDActivation.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return marshal(raw{Tag: asn1.TagOID, Bytes: b})
}

// request wraps attributes into a signed PKCS#10 request.
func request(t testing.TB, attributes ...[]byte) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := evidence.CreateCSR(nameless, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	var csr struct {
		Info struct {
			Version    int
			Subject    raw
			SPKI       raw
			Attributes []raw `asn1:"tag:0"`
		}
		Algorithm raw
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &csr); err != nil {
		t.Fatal(err)
	}
	info := seq(marshal(0), csr.Info.Subject.FullBytes, csr.Info.SPKI.FullBytes,
		marshal(raw{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: bytes.Join(attributes, nil)}))
	digest := sha256.Sum256(info)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return seq(info, csr.Algorithm.FullBytes, marshal(asn1.BitString{Bytes: sig, BitLength: len(sig) * 8}))
}

func attribute(values ...[]byte) []byte { return seq(marshal(evidence.OIDEvidence), set(values...)) }

func TestAttribute(t *testing.T) {
	oct := func(s string) []byte { return marshal([]byte(s)) }
	certify := seq(marshal(evidence.OIDCertify), seq(oct("attest"), oct("sig"), oct("pub")))
	challenge := seq(activationOID(), seq(oct("challenge")))
	hint := marshal(raw{Tag: asn1.TagUTF8String, Bytes: []byte("attestation.example")})
	hinted := seq(marshal(evidence.OIDCertify), seq(oct("attest"), oct("sig"), oct("pub")), hint)
	unknown := seq(marshal(asn1.ObjectIdentifier{1, 2, 3}), marshal(5))
	other := marshal(raw{Class: asn1.ClassContextSpecific, Tag: 3, IsCompound: true, Bytes: marshal(asn1.ObjectIdentifier{1, 2, 3})})
	nine := bytes.Repeat([]byte{0x30, 0x00}, 9)
	full := func(in ...[]byte) []byte { return attribute(seq(seq(in...))) }

	for name, c := range map[string]struct {
		attributes [][]byte
		want       string // in the error
		certify    bool
		challenge  bool
		certs      int
	}{
		"both":                {[][]byte{full(certify, challenge)}, "", true, true, 0},
		"other order":         {[][]byte{full(challenge, certify)}, "", true, true, 0},
		"certify alone":       {[][]byte{full(certify)}, "", true, false, 0},
		"old hint":            {[][]byte{full(hinted, challenge)}, "", true, true, 0},
		"unknown is skipped":  {[][]byte{full(unknown, certify, challenge, unknown)}, "", true, true, 0},
		"certs":               {[][]byte{attribute(seq(seq(certify, challenge), seq([]byte{0x30, 0}, other, []byte{0x30, 0})))}, "", true, true, 2},
		"foreign attribute":   {[][]byte{seq(marshal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}), set(hint)), full(certify)}, "", true, false, 0},
		"only unknown":        {[][]byte{full(unknown)}, "no statement that is understood", false, false, 0},
		"two attributes":      {[][]byte{full(certify), full(challenge)}, "two evidence attributes", false, false, 0},
		"two values":          {[][]byte{attribute(seq(seq(certify)), seq(seq(challenge)))}, "exactly one value", false, false, 0},
		"no value":            {[][]byte{attribute()}, "exactly one value", false, false, 0},
		"no set":              {[][]byte{seq(marshal(evidence.OIDEvidence))}, "no SET", false, false, 0},
		"something after set": {[][]byte{seq(marshal(evidence.OIDEvidence), set(seq(seq(certify))), hint)}, "no SET", false, false, 0},
		"no statements":       {[][]byte{full()}, "no statements", false, false, 0},
		"empty bundle":        {[][]byte{attribute(seq())}, "no statements", false, false, 0},
		"not a bundle":        {[][]byte{attribute(hint)}, "not one DER SEQUENCE", false, false, 0},
		"two certifies":       {[][]byte{full(certify, certify)}, "two TPM statements", false, false, 0},
		"two challenges":      {[][]byte{full(certify, challenge, challenge)}, "two challenges", false, false, 0},
		"without public":      {[][]byte{full(seq(marshal(evidence.OIDCertify), seq(oct("attest"), oct("sig"))))}, "without tpmTPublic", false, false, 0},
		"four fields":         {[][]byte{full(seq(marshal(evidence.OIDCertify), seq(oct("a"), oct("b"), oct("c"), oct("d"))))}, "more than 3", false, false, 0},
		"empty attest":        {[][]byte{full(seq(marshal(evidence.OIDCertify), seq(oct(""), oct("b"), oct("c"))))}, "tpmSAttest is empty", false, false, 0},
		"integer field":       {[][]byte{full(seq(marshal(evidence.OIDCertify), seq(oct("a"), marshal(5), oct("c"))))}, "not an OCTET STRING", false, false, 0},
		"empty challenge":     {[][]byte{full(seq(activationOID(), seq(oct(""))))}, "challenge statement", false, false, 0},
		"no type":             {[][]byte{full(seq(oct("x"), oct("y")))}, "no type", false, false, 0},
		"no content":          {[][]byte{full(seq(marshal(evidence.OIDCertify)))}, "without content", false, false, 0},
		"third field":         {[][]byte{full(seq(activationOID(), seq(oct("c")), oct("d")))}, "unknown third field", false, false, 0},
		"fourth field":        {[][]byte{full(seq(activationOID(), seq(oct("c")), hint, hint))}, "unknown third field", false, false, 0},
		"empty certs":         {[][]byte{attribute(seq(seq(certify), seq()))}, "certs", false, false, 0},
		"nine certs":          {[][]byte{attribute(seq(seq(certify), seq(nine)))}, "more than 8", false, false, 0},
		"big cert":            {[][]byte{attribute(seq(seq(certify), seq(seq(oct(string(make([]byte, 8192)))))))}, "at most 8192", false, false, 0},
		"cert of another tag": {[][]byte{attribute(seq(seq(certify), seq(hint)))}, "neither a certificate", false, false, 0},
		"after certs":         {[][]byte{attribute(seq(seq(certify), seq([]byte{0x30, 0}), hint))}, "something follows", false, false, 0},
		"big attest":          {[][]byte{full(seq(marshal(evidence.OIDCertify), seq(oct(string(make([]byte, 2049))), oct("b"), oct("c"))))}, "at most 2048", false, false, 0},
		"big challenge":       {[][]byte{full(seq(activationOID(), seq(oct(string(make([]byte, 8193))))))}, "at most 8192", false, false, 0},
	} {
		csr, err := evidence.ParseCSR(request(t, c.attributes...))
		refused(t, name, err, c.want)
		if err != nil || c.want != "" {
			continue
		}
		b := csr.Bundle
		if (b.Certify != nil) != c.certify || (len(b.Challenge) > 0) != c.challenge || len(b.Certs) != c.certs {
			t.Errorf("%s: got %+v", name, b)
		}
		if c.certify && (string(b.Certify.Attest) != "attest" || string(b.Certify.Signature) != "sig" || string(b.Certify.Public) != "pub") {
			t.Errorf("%s: got %+v", name, b.Certify)
		}
		if c.challenge && string(b.Challenge) != "challenge" {
			t.Errorf("%s: got challenge %q", name, b.Challenge)
		}
	}
}

// The bytes are those of the drafts' module, written by another encoder.
func TestAttributeBytes(t *testing.T) {
	b := sample()
	got, err := b.Attribute()
	if err != nil {
		t.Fatal(err)
	}
	want := attribute(seq(
		seq(
			seq(marshal(evidence.OIDCertify), seq(marshal(b.Certify.Attest), marshal(b.Certify.Signature), marshal(b.Certify.Public))),
			seq(activationOID(), seq(marshal(b.Challenge))),
		),
		seq(b.Certs...)))
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	b.Certs = [][]byte{{0x04, 0x00}}
	_, err = b.Attribute()
	refused(t, "certificate", err, "not one DER SEQUENCE")
	_, err = evidence.Bundle{}.Attribute()
	refused(t, "empty", err, "no statement")
}

func TestLargeCSR(t *testing.T) {
	_, err := evidence.ParseCSR(make([]byte, evidence.MaxCSR+1))
	if cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("got %v", err)
	}
}

// FuzzCSR: what parses encodes again to the same attribute, unless something was skipped, and then to one that
// parses to the same; errors are ours.
// sameRequest: a request whose evidence was taken out before crypto/x509 read it is what crypto/x509 reads in it whole.
func sameRequest(t *testing.T, got *x509.CertificateRequest, der []byte) {
	t.Helper()
	want, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatalf("crypto/x509 refuses it: %v", err)
	}
	if (got.CheckSignature() == nil) != (want.CheckSignature() == nil) {
		t.Fatalf("signature: %v, by crypto/x509 %v", got.CheckSignature(), want.CheckSignature())
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

// TestCSRIsReadAsByX509: with evidence beside other attributes, in any order, and with none.
func TestCSRIsReadAsByX509(t *testing.T) {
	b := sample()
	attr, err := b.Attribute()
	if err != nil {
		t.Fatal(err)
	}
	wish := seq(marshal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}), set(seq(seq(marshal(asn1.ObjectIdentifier{2, 5, 29, 17}), marshal(seq([]byte("\x82\x04a.bc")))))))
	password := seq(marshal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}), set(marshal("secret")))
	for name, attributes := range map[string][][]byte{"alone": {attr}, "first": {attr, wish, password}, "between": {wish, attr, password}, "last": {password, wish, attr}, "none": nil, "others": {wish, password}} {
		der := request(t, attributes...)
		csr, err := evidence.ParseCSR(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sameRequest(t, csr.Request, der)
		if err := csr.Request.CheckSignature(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if wished := len(csr.Request.DNSNames) == 1; wished != (len(attributes) > 1) {
			t.Errorf("%s: names %v", name, csr.Request.DNSNames)
		}
		if (csr.Bundle != nil) != (len(attributes)%2 == 1) {
			t.Errorf("%s: bundle %v", name, csr.Bundle)
		}
	}
}

func FuzzCSR(f *testing.F) {
	b := sample()
	attr, err := b.Attribute()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request(f))
	f.Add(request(f, attr))
	f.Add(request(f, attr, attr))
	hint := marshal(raw{Tag: asn1.TagUTF8String, Bytes: []byte("h")})
	f.Add(request(f, attribute(seq(seq(seq(activationOID(), seq(marshal([]byte("c"))), hint))))))
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, exact, err := evidence.ParseExact(der)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("error of kind %v: %v", k, err)
			}
			return
		}
		sameRequest(t, csr.Request, der)
		if csr.Bundle == nil {
			return
		}
		attr, err := csr.Bundle.Attribute()
		if err != nil {
			t.Fatalf("what was parsed does not encode: %v", err)
		}
		if got := bytes.Contains(csr.Request.RawTBSCertificateRequest, attr); exact && !got {
			t.Fatalf("encodes to other bytes: %x", attr)
		}
		again, exact, err := evidence.ParseExact(request(t, attr))
		if err != nil || !exact {
			t.Fatalf("does not parse again: exact %v, %v", exact, err)
		}
		if b, _ := again.Bundle.Attribute(); !bytes.Equal(b, attr) {
			t.Fatal("parses again to something else")
		}
	})
}
