package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

// fixedKey signs in the same way each time: ECDSA by RFC 6979, PKCS #1 v1.5 anyway.
type fixedKey struct{ crypto.Signer }

func (k fixedKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Signer.Sign(nil, digest, opts)
}

// fixedKeys are in testdata/keys.pem: five of P-256, RSA of 2048 and 3072 bits, P-384, Ed25519.
func fixedKeys(t *testing.T) []fixedKey {
	t.Helper()
	rest, err := os.ReadFile("testdata/keys.pem")
	if err != nil {
		t.Fatal(err)
	}
	var out []fixedKey
	for b, rest := pem.Decode(rest); b != nil; b, rest = pem.Decode(rest) {
		k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fixedKey{k.(crypto.Signer)})
	}
	return out
}

// TestGolden holds a certificate of every kind, CAs and leaves, against its text in testdata/golden. test/zlint reads
// the same files.
func TestGolden(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1) // serial numbers
	k := fixedKeys(t)
	root, middle, oem, device, other := k[0], k[1], k[2], k[3], k[4]
	rsa2048, rsa3072, p384, ed := k[5], k[6], k[7], k[8]
	got := map[string]*x509.Certificate{}
	keep := func(name string) func(*x509.Certificate, error) *x509.Certificate {
		return func(c *x509.Certificate, err error) *x509.Certificate {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got[name] = c
			return c
		}
	}
	issuer := func(c *x509.Certificate, key crypto.Signer) *ca.Issuer {
		return &ca.Issuer{ID: ca.Digest(c.Raw), Cert: c, Key: key, Points: &ca.Points{
			CRL:  func(time.Time) (string, error) { return "http://pki.example.com/crl/0123456789abcdef/2027.crl", nil },
			OCSP: "http://pki.example.com/ocsp", CA: "http://pki.example.com/ca/0123456789abcdef.cer"}}
	}
	begin, years := now.Add(-ca.Backdate), func(n int) time.Time { return now.AddDate(n, 0, 0) }
	authority := func(name string, parent *ca.Issuer, key fixedKey, a ca.Authority) *ca.Issuer {
		a.NotBefore = begin
		if a.NotAfter.IsZero() {
			a.NotAfter = years(30)
		}
		return issuer(keep(name)(ca.SignAuthority(parent, key.Public(), a, key)), key)
	}
	acmeRoot := authority("ca-root", nil, root, ca.Authority{Organization: "acme", CommonName: "acme production root", Class: cradle.Production, PathLen: 1, NotAfter: ca.Forever})
	authority("ca-root-rsa", nil, rsa3072, ca.Authority{Organization: "acme", CommonName: "acme production root", Class: cradle.Production, PathLen: 1, NotAfter: ca.Forever})
	authority("ca-root-p384", nil, p384, ca.Authority{Organization: "acme", CommonName: "acme evaluation root", Class: cradle.Evaluation, PathLen: 1, NotAfter: ca.Forever})
	onboarding := authority("ca-onboarding", acmeRoot, middle, ca.Authority{Organization: "acme", CommonName: "acme production onboarding CA", Class: cradle.Production})
	operational := authority("ca-operational", acmeRoot, middle, ca.Authority{Organization: "acme", CommonName: "acme production operational CA", Class: cradle.Production})
	unproved := authority("ca-unproved", acmeRoot, middle, ca.Authority{Organization: "acme", CommonName: "acme production unproved CA", Class: cradle.Production, Unproved: true})
	idevid := authority("ca-idevid", acmeRoot, middle, ca.Authority{Organization: "acme", CommonName: "maker1 IDevID CA of acme (production)", Class: cradle.Production, NotAfter: ca.Forever})
	oemRoot := authority("ca-oem-root", nil, oem, ca.Authority{Organization: "maker1", CommonName: "maker1 production IDevID root", Class: cradle.Production, PathLen: 1, NotAfter: ca.Forever})
	authority("ca-idevid-by-oem", oemRoot, middle, ca.Authority{Organization: "acme", CommonName: "maker1 IDevID CA of acme (production)", Class: cradle.Production, NotAfter: ca.Forever})
	stations := authority("ca-station", nil, other, ca.Authority{Organization: "maker1", CommonName: "maker1 station CA"})
	services := authority("ca-services", nil, other, ca.Authority{Organization: "Cradle", CommonName: "Cradle services CA", NotAfter: years(25)})

	keep("station")(ca.Station(stations, device.Public(), "maker1", "order-1", begin, years(1)))
	keep("server")(ca.Server(services, device.Public(), []string{"iot.example.com", "192.0.2.1"}, begin, now.AddDate(0, 3, 0)))
	keep("time")(ca.TimeStamper(services, device.Public(), begin, years(1)))
	keep("key-generator")(ca.KeyGenerator(services, device.Public(), begin, years(1)))
	keep("ocsp-responder")(ca.Responder(operational, device.Public(), begin, now.AddDate(0, 0, 30)))

	leaf := func(name string, iss *ca.Issuer, profile cradle.Profile, toml string, key crypto.PublicKey) {
		t.Helper()
		rules, err := ca.ParseProfile(profile, toml)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		ek := sha256.Sum256([]byte("an endorsement key"))
		l := ca.Leaf{Profile: profile, Rules: &rules, Account: "acme", Device: "acme-sn0001", Serial: "SN0001", Order: "order-1", OEM: "maker1", Tier: cradle.DiscreteTPM,
			Maker: "infineon", Proved: iss != unproved, EKDigest: ek[:], Public: key, SPKI: spki, NotBefore: begin, NotAfter: ca.Forever}
		if rules.Validity != ca.Endless {
			l.NotAfter = now.Add(time.Duration(rules.Validity))
		}
		serial := ca.LeafSerial(now)
		sameAsX509(t, iss, serial, l)
		keep(name)(ca.Issue(iss, ca.NewPermit("i", serial), l))
	}
	leaf("idevid", idevid, cradle.IDevID, "", device.Public())
	leaf("iak", idevid, cradle.IAK, "", other.Public())
	leaf("ldevid", onboarding, cradle.LDevID, "", device.Public())
	leaf("operational", operational, cradle.Operational, "", device.Public())
	leaf("operational-p384", operational, cradle.Operational, "", p384.Public())
	leaf("operational-rsa", operational, cradle.Operational, "", rsa2048.Public())
	leaf("operational-unproved", unproved, cradle.Operational, "", rsa2048.Public())
	leaf("client-gateway", operational, "gateway", `
kind = "client"
validity = "30d"
subject = ["C=DE", "DC=example", "O={account}", "OU={tier}", "CN={device}", "serialNumber={serial}"]
subject_alt_name = ["DNS:{device}.example.com", "URI:urn:dev:{account}:{serial}", "email:{device}@example.com", "IP:192.0.2.7", "IP:2001:db8::7"]
key_usage = ["digitalSignature", "keyEncipherment"]
extended_key_usage = ["clientAuth", "serverAuth"]
[[extension]]
oid = "1.3.6.1.4.1.99999.1"
value = "utf8:{order}"
`, rsa2048.Public())
	leaf("client-ed25519", operational, "lab", "kind = \"client\"\nkeys = [\"ed25519\"]\n", ed.Public())

	files, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".txt"); got[name] == nil {
			if !*update {
				t.Errorf("%s: no such certificate is made", f)
			} else if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range got {
		text := certificateText(t, c)
		file := filepath.Join("testdata/golden", name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil || string(want) != text {
			t.Errorf("%s: %v; rewrite it with -update and look at the difference. Got\n%s", file, err, text)
		}
	}
}

// certificateText is what a certificate says, with the certificate itself at the end.
func certificateText(t *testing.T, c *x509.Certificate) string {
	t.Helper()
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("subject", "%s", rdnText(t, c.RawSubject))
	line("issuer", "%s", rdnText(t, c.RawIssuer))
	line("serial", "%x", c.SerialNumber)
	line("valid", "%s to %s", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	line("key", "%s", keyText(c.PublicKey))
	line("signed by", "%s", c.SignatureAlgorithm)
	for _, e := range c.Extensions {
		critical := ""
		if e.Critical {
			critical = "critical "
		}
		line("extension", "%s %s%s", e.Id, critical, derText(t, e.Value))
	}
	if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func keyText(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return "EC " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d, exponent %d", k.N.BitLen(), k.E)
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", pub)
}

func rdnText(t *testing.T, der []byte) string {
	t.Helper()
	var parts []string
	var rdns []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &rdns); err != nil {
		t.Fatal(err)
	}
	for _, rdn := range rdns {
		var set []struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if _, err := asn1.UnmarshalWithParams(rdn.FullBytes, &set, "set"); err != nil {
			t.Fatal(err)
		}
		for _, a := range set {
			parts = append(parts, fmt.Sprintf("%s=%s(%d)", a.Type, a.Value.Bytes, a.Value.Tag)) // 12 UTF8String, 19 PrintableString, 22 IA5String
		}
	}
	return strings.Join(parts, ", ")
}

// derText writes DER as nested brackets.
func derText(t *testing.T, der []byte) string {
	t.Helper()
	var out []string
	for rest := der; len(rest) > 0; {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			t.Fatal(err)
		}
		out = append(out, valueText(t, v))
	}
	return strings.Join(out, " ")
}

func valueText(t *testing.T, v asn1.RawValue) string {
	t.Helper()
	tag := ""
	if v.Class == asn1.ClassContextSpecific {
		tag = fmt.Sprintf("[%d] ", v.Tag)
	}
	if v.IsCompound {
		return tag + "{" + derText(t, v.Bytes) + "}"
	}
	var id asn1.ObjectIdentifier
	if v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOID {
		if _, err := asn1.Unmarshal(v.FullBytes, &id); err == nil {
			return id.String()
		}
		var big x509.OID // an arc over 2^31
		if err := big.UnmarshalBinary(v.Bytes); err == nil {
			return big.String()
		}
	}
	switch {
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagBoolean:
		return fmt.Sprint(v.Bytes[0] != 0)
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagInteger:
		return new(big.Int).SetBytes(v.Bytes).String()
	case len(v.Bytes) > 0 && !slices.ContainsFunc(v.Bytes, func(c byte) bool { return c < ' ' || c > '~' }):
		return tag + fmt.Sprintf("%q", bytes.TrimSpace(v.Bytes))
	}
	return tag + fmt.Sprintf("%x", v.Bytes)
}
