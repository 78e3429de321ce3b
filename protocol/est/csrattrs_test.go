package est_test

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
)

func ptr[T any](v T) *T { return &v }

var (
	oidCN        = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerial    = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidSAN       = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage  = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidMAC       = asn1.ObjectIdentifier{1, 3, 6, 1, 1, 1, 1, 22}
	keyUsageDER  = []byte{0x03, 0x02, 0x07, 0x80}
	keyUsage     = pkix.Extension{Id: oidKeyUsage, Critical: true, Value: keyUsageDER}
	sampleLists  = est.CSRAttributes{OIDs: []asn1.ObjectIdentifier{est.OIDChallengePassword, oidMAC, est.OIDECDSAWithSHA384}, Attributes: []est.Attribute{est.ECKey(est.OIDP384)}}
	sampleFilled = est.CSRAttributes{
		OIDs:       []asn1.ObjectIdentifier{est.OIDRSAWithSHA256},
		Attributes: []est.Attribute{est.RSAKey(3072), est.ExtensionRequest(keyUsage)},
		Template: &est.Template{
			Subject:    [][]est.NameTemplate{{{Type: oidCN, Value: ptr("acme-SN0001")}}, {{Type: oidSerial}}},
			Key:        est.RSAKeyTemplate(3072),
			Extensions: []est.ExtensionTemplate{{ID: oidKeyUsage, Critical: true, Value: keyUsageDER}},
		},
	}
	samplePartial = est.CSRAttributes{Template: &est.Template{
		Subject: [][]est.NameTemplate{}, Key: est.ECKeyTemplate(est.OIDP256),
		Extensions: []est.ExtensionTemplate{{ID: oidKeyUsage, Critical: true, Value: keyUsageDER}, {ID: oidSAN}},
		Attributes: []est.Attribute{{Type: oidMAC, Values: []asn1.RawValue{{FullBytes: []byte{0x0c, 0x01, 'x'}}}}},
	}}
)

func TestCSRAttributesRoundTrip(t *testing.T) {
	for name, in := range map[string]est.CSRAttributes{
		"nothing": {}, "lists": sampleLists, "filled template": sampleFilled, "partial template": samplePartial,
		"empty template": {Template: &est.Template{}}, "Ed25519": {Template: &est.Template{Key: est.Ed25519KeyTemplate()}},
	} {
		der, err := in.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out, err := est.ParseCSRAttributes(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := out.Encode()
		if err != nil || !bytes.Equal(der, again) {
			t.Errorf("%s: encodes differently: %v\n%x\n%x", name, err, der, again)
		}
		if in.Template != nil && (!reflect.DeepEqual(in.Template.Subject, out.Template.Subject) || !reflect.DeepEqual(in.Template.Extensions, out.Template.Extensions)) {
			t.Errorf("%s: template %+v", name, out.Template)
		}
		if in.Empty() != out.Empty() || !reflect.DeepEqual(in.OIDs, out.OIDs) || len(in.Attributes) != len(out.Attributes) {
			t.Errorf("%s: %+v", name, out)
		}
	}
	if der, _ := (est.CSRAttributes{}).Encode(); !bytes.Equal(der, []byte{0x30, 0}) {
		t.Errorf("nothing is %x", der)
	}
}

// The message of RFC 7030 §4.5.2: attributes in any order, with an example of its text that RFC 8951 corrected.
func TestCSRAttributesOfRFC8951(t *testing.T) {
	// OBJECT challengePassword, SEQUENCE { ecPublicKey, SET { secp384r1 } }, SEQUENCE { extensionRequest,
	// SET { macAddress } } is the example that RFC 9908 §3.2 calls wrong.
	der, err := base64.StdEncoding.DecodeString("MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw==")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := est.ParseCSRAttributes(der); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), "extension request") {
		t.Errorf("the example of RFC 7030: %v", err)
	}
	mixed, err := asn1.Marshal([]asn1.RawValue{raw(t, est.ECKey(est.OIDP256)), raw(t, est.OIDChallengePassword)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := est.ParseCSRAttributes(mixed)
	if err != nil || len(got.OIDs) != 1 || len(got.Attributes) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

func raw(t *testing.T, v any) asn1.RawValue {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{FullBytes: der}
}

func TestCSRAttributesRefused(t *testing.T) {
	twice := est.ExtensionRequest(keyUsage, keyUsage)
	for name, a := range map[string]est.CSRAttributes{
		"two extension requests":  {Attributes: []est.Attribute{est.ExtensionRequest(keyUsage), est.ExtensionRequest()}},
		"an extension twice":      {Attributes: []est.Attribute{twice}},
		"twice in the template":   {Template: &est.Template{Extensions: []est.ExtensionTemplate{{ID: oidSAN}, {ID: oidSAN}}}},
		"no values":               {Attributes: []est.Attribute{{Type: oidMAC}}},
		"an empty RDN":            {Template: &est.Template{Subject: [][]est.NameTemplate{{}}}},
		"size without RSA":        {Template: &est.Template{Key: &est.KeyTemplate{Algorithm: est.ECKeyTemplate(est.OIDP256).Algorithm, RSABits: 256}}},
		"request among the rest":  {Template: &est.Template{Attributes: []est.Attribute{est.ExtensionRequest(keyUsage)}}},
		"too many":                {OIDs: make([]asn1.ObjectIdentifier, 65)},
		"not an identifier":       {OIDs: []asn1.ObjectIdentifier{{9, 9}}},
		"a huge key":              {Template: &est.Template{Key: est.RSAKeyTemplate(1 << 20)}},
		"a name that is not text": {Template: &est.Template{Subject: [][]est.NameTemplate{{{Type: oidCN, Value: ptr("\xff")}}}}},
	} {
		if der, err := a.Encode(); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %x, %v", name, der, err)
		}
	}
	good, err := sampleFilled.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"empty": nil, "truncated": good[:len(good)-1], "trailing": append(bytes.Clone(good), 0), "not a list": {0x04, 0},
		"a number in the list": {0x30, 3, 2, 1, 1},
	} {
		if _, err := est.ParseCSRAttributes(der); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := est.ParseCSRAttributes(make([]byte, est.MaxDER+1)); cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("too large: %v", err)
	}
}

// OpenSSL sees the structure of RFC 9908 in what we write.
func TestCSRAttributesOpenSSL(t *testing.T) {
	testenv.Require(t, "openssl")
	der, err := samplePartial.Encode()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("openssl", "asn1parse", "-inform", "DER")
	cmd.Stdin = bytes.NewReader(der)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var seen []string
	for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		_, what, _ := strings.Cut(line, "l=")
		_, what, _ = strings.Cut(what, ": ")
		seen = append(seen, strings.Join(strings.Fields(what), " "))
	}
	want := []string{
		"SEQUENCE", "SEQUENCE", "OBJECT :1.2.840.113549.1.9.16.2.61", "SET", "SEQUENCE", "INTEGER :00", "SEQUENCE",
		"cont [ 0 ]", "SEQUENCE", "OBJECT :id-ecPublicKey", "OBJECT :prime256v1", "cont [ 1 ]",
	}
	if len(seen) < len(want) || !reflect.DeepEqual(seen[:len(want)], want) {
		t.Errorf("got\n%s", strings.Join(seen, "\n"))
	}
	for _, s := range []string{"OBJECT :1.2.840.113549.1.9.16.2.62", "OBJECT :X509v3 Key Usage", "OCTET STRING [HEX DUMP]:03020780", "OBJECT :X509v3 Subject Alternative Name"} {
		if !strings.Contains(strings.Join(seen, "\n"), s) {
			t.Errorf("no %q in\n%s", s, strings.Join(seen, "\n"))
		}
	}
}

func FuzzParseCSRAttributes(f *testing.F) {
	for _, a := range []est.CSRAttributes{{}, sampleLists, sampleFilled, samplePartial} {
		der, err := a.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		a, err := est.ParseCSRAttributes(der)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		// What parses can be written, and then says the same.
		again, err := a.Encode()
		if err != nil {
			t.Fatalf("parsed, but not encoded: %v", err)
		}
		b, err := est.ParseCSRAttributes(again)
		if err != nil || len(a.OIDs) != len(b.OIDs) || len(a.Attributes) != len(b.Attributes) || (a.Template == nil) != (b.Template == nil) {
			t.Fatalf("%+v became %+v, %v", a, b, err)
		}
	})
}
