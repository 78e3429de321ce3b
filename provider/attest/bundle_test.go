package attest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
)

func pemOf(der ...[]byte) []byte {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return out
}

// TestReadBundle: what is read, and that whatever is not is refused by its number and name.
func TestReadBundle(t *testing.T) {
	root := maker(t, "Test TPM root")
	ca := root.intermediate(t, "Test TPM CA 1", nil, nil)
	leaf := ca.issue(t, p256(t).Public(), nil)
	good := pemOf(root.cert.Raw, ca.cert.Raw)
	text := []byte("# Subject: CN=x\n\n")
	for name, c := range map[string]struct {
		bundle []byte
		n      int
	}{
		"two": {good, 2}, "with text": {bytes.Join([][]byte{text, pemOf(root.cert.Raw), text, pemOf(ca.cert.Raw), text}, nil), 2},
		"CRLF": {bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), 2}, "twice": {append(bytes.Clone(good), good...), 2}, "DER": {root.cert.Raw, 1},
		"no newline at the end": {bytes.TrimSpace(good), 2},
	} {
		got, err := attest.ReadBundle(c.bundle)
		if err != nil || len(got) != c.n || !got[0].Equal(root.cert) {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
	}
	weak := root.intermediate(t, "Weak CA", must(rsa.GenerateKey(rand.Reader, 1024))(t), nil)
	notSign := root.intermediate(t, "No signer", nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	broken := bytes.Clone(ca.cert.Raw)
	i := bytes.Index(broken, []byte{0x02, 0x01, 0x02}) // version 3 as a name of the version's place
	if i > 0 {
		broken[i+2] = 9
	}
	cut := good[:len(good)-40]
	for name, c := range map[string]struct {
		bundle []byte
		want   []string
	}{
		"empty":                  {nil, []string{"no certificate"}},
		"text":                   {[]byte("hello"), []string{"no certificate"}},
		"a key":                  {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), []string{"block 1 of 1", "PRIVATE KEY"}},
		"an OpenSSL trusted one": {pem.EncodeToMemory(&pem.Block{Type: "TRUSTED CERTIFICATE", Bytes: root.cert.Raw}), []string{"TRUSTED"}},
		"cut off":                {cut, []string{"block 2 of 2", "cut off"}},
		"cut off in the middle":  {append(bytes.Clone(pemOf(root.cert.Raw)[:300]), good...), []string{"block 1 of 3", "cut off"}},
		"bad base64":             {bytes.Replace(good, []byte("\nMII"), []byte("\nM*I"), 1), []string{"block 1 of 2"}},
		"not DER":                {append(bytes.Clone(good), pemOf([]byte("junk"))...), []string{"certificate 3 of 3", "DER"}},
		"rubbish behind":         {pemOf(root.cert.Raw, append(bytes.Clone(ca.cert.Raw), 0)), []string{"certificate 2 of 2", "Test TPM CA 1", "follows"}},
		"an end entity":          {pemOf(root.cert.Raw, leaf), []string{"certificate 2 of 2", "no CA"}},
		"may not sign":           {pemOf(notSign.cert.Raw), []string{"certificate 1 of 1 (CN=No signer)", "no CA"}},
		"weak key":               {pemOf(weak.cert.Raw), []string{"CN=Weak CA", "1024"}},
		"unknown version":        {pemOf(root.cert.Raw, broken), []string{"certificate 2 of 2 (CN=Test TPM CA 1)"}},
	} {
		got, err := attest.ReadBundle(c.bundle)
		if got != nil || cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
}

// FuzzReadBundle: what is read is CA certificates, each once, and writes and reads again as the same; what is not
// is refused as invalid or too large.
func FuzzReadBundle(f *testing.F) {
	root := maker(f, "Test TPM root")
	ca := root.intermediate(f, "Test TPM CA 1", nil, nil)
	f.Add(pemOf(root.cert.Raw, ca.cert.Raw))
	f.Add(root.cert.Raw)
	f.Add([]byte("text\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN -----BEGIN CERTIFICATE-----"))
	f.Add(pemOf([]byte{0x30, 0x80, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := attest.ReadBundle(b)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge || certs != nil {
				t.Fatalf("%v: %v", k, err)
			}
			return
		}
		var raw [][]byte
		for _, c := range certs {
			if !c.IsCA {
				t.Fatalf("%s is no CA", c.Subject)
			}
			raw = append(raw, c.Raw)
		}
		again, err := attest.ReadBundle(pemOf(raw...))
		if err != nil || len(again) != len(certs) {
			t.Fatalf("%d certificates, then %d, %v", len(certs), len(again), err)
		}
	})
}
