package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// lintCase bends a good certificate in one way. Profiles are bent past their bounds, as a faulty store or version could.
type lintCase struct {
	name   string
	clause string // of the check that refuses
	part   string
	bend   func(*bent)
}

type bent struct {
	iss    *ca.Issuer
	serial *big.Int
	ca.Leaf
}

func (b *bent) use(t *testing.T, pub any) {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	b.Public, b.SPKI = pub, spki
}

func lintCases(t *testing.T) []lintCase {
	good := fixedKeys(t)[5].Public().(*rsa.PublicKey)
	ext := func(e ...ca.Extension) func(*bent) { return func(b *bent) { b.Rules.Extensions = e } }
	return []lintCase{
		{"serial 0", "RFC 5280 §4.1.2.2", "serial number", func(b *bent) { b.serial = big.NewInt(0) }},
		{"negative serial", "RFC 5280 §4.1.2.2", "serial number", func(b *bent) { b.serial = big.NewInt(-5) }},
		{"serial of 161 bits", "RFC 5280 §4.1.2.2", "serial number", func(b *bent) { b.serial = new(big.Int).Lsh(big.NewInt(1), 160) }},
		{"serial of 33 bits", "802.1AR-2018 §8.3", "less than 64", func(b *bent) { b.serial = new(big.Int).Lsh(big.NewInt(1), 32) }},
		{"device id not canonical", "device ids", "device", func(b *bent) { b.Device = "Upper Case" }},
		{"ends before it begins", "RFC 5280 §4.1.2.5", "not before", func(b *bent) { b.NotAfter = b.NotBefore }},
		{"fractions of seconds", "RFC 5280 §4.1.2.5.2", "fractions", func(b *bent) { b.NotBefore = b.NotBefore.Add(time.Millisecond) }},
		{"begins before its issuer", "RFC 5280 §6.1", "beyond the issuer", func(b *bent) { b.NotBefore = now.Add(-24 * time.Hour) }},
		{"ends after its issuer", "RFC 5280 §6.1", "beyond the issuer", func(b *bent) { b.NotAfter = ca.Forever.Add(time.Hour) }},
		{"longer than its profile", "profile: validity", "longer", func(b *bent) { b.NotAfter = now.Add(48 * time.Hour) }},
		{"an end, where the profile has none", "profile: validity", "99991231235959Z", func(b *bent) { b.Rules.Validity = ca.Endless }},
		{"an issuer that is no CA", "RFC 5280 §4.2.1.9", "is no CA", func(b *bent) { c := *b.iss.Cert; c.IsCA = false; b.iss.Cert = &c }},
		{"an issuer that signs no certificates", "RFC 5280 §4.2.1.9", "is no CA", func(b *bent) { c := *b.iss.Cert; c.KeyUsage = x509.KeyUsageCRLSign; b.iss.Cert = &c }},
		{"another account", "an account's CA signs for it alone", "not to account", func(b *bent) { b.Account = "other" }},
		{"a tier of the other class", "evaluation never signs for production", "does not sign under policy", func(b *bent) { b.Tier = cradle.DiscreteTPM }},
		{"a key not proved, by an issuer of proved keys", "evaluation never signs for production", "does not sign under policy", func(b *bent) { b.Proved = false }},
		{"a name that is too long", "RFC 5280 appendix A.1", "OU", func(b *bent) { b.Rules.Subject = append(b.Rules.Subject, "OU="+strings.Repeat("x", 65)) }},
		{"a name with an empty value", "RFC 5280 appendix A.1", "OU", func(b *bent) { b.Rules.Subject = append(b.Rules.Subject, "OU=") }},
		{"a serial number with an underscore", "RFC 5280 appendix A.1", "no PrintableString", func(b *bent) {
			b.Serial = "SN_1"
			b.Rules.Subject = append(b.Rules.Subject, "serialNumber={serial}")
		}},
		{"a country in lower case", "RFC 5280 appendix A.1", "no country code", func(b *bent) { b.Rules.Subject = append(b.Rules.Subject, "C=de") }},
		{"a domain component beyond ASCII", "RFC 5280 appendix A.1", "no IA5String", func(b *bent) { b.Rules.Subject = append(b.Rules.Subject, "DC=ä") }},
		{"no name at all", "RFC 5280 §4.1.2.6", "neither subject", func(b *bent) { b.Rules.Subject = nil }},
		{"an extension twice", "RFC 5280 §4.2", "twice", ext(ca.Extension{OID: "1.2.3", Value: "hex:0500"}, ca.Extension{OID: "1.2.3", Value: "hex:0500"})},
		{"an extension that is the CA's", "RFC 5280 §4.2", "twice", ext(ca.Extension{OID: "2.5.29.35", Value: "hex:3000"})},
		{"a second subjectAltName", "RFC 5280 §4.2", "subjectAltName stands twice", func(b *bent) {
			b.Rules.SubjectAltName = []string{"URI:urn:x:1"}
			b.Rules.Extensions = []ca.Extension{{OID: "2.5.29.17", Value: "hex:3000"}}
		}},
		{"no key usage", "RFC 5280 §4.2.1.3", "no key usage is left", func(b *bent) { b.Rules.KeyUsage = nil }},
		{"a key usage that no EC key has", "RFC 5280 §4.2.1.3", "no key usage is left", func(b *bent) { b.Rules.KeyUsage = []string{"keyEncipherment"} }},
		{"encipherOnly alone", "RFC 5280 §4.2.1.3", "without keyAgreement", func(b *bent) { b.Rules.KeyUsage = []string{"encipherOnly"} }},
		{"a usage without its key usage", "RFC 5280 §4.2.1.12", "clientAuth", func(b *bent) { b.Rules.KeyUsage = []string{"nonRepudiation"} }},
		{"an IDevID with an end", "802.1AR-2018 §8", "notAfter of an IDevID", func(b *bent) { b.Rules.Kind = ca.KindIDevID }},
		{"an IDevID without a serial number", "802.1AR-2018 §8", "without the device's serial number", func(b *bent) {
			b.Rules.Kind, b.Rules.Validity, b.NotAfter, b.Serial = ca.KindIDevID, ca.Endless, ca.Forever, ""
		}},
		{"an IDevID without a TPM", "802.1AR-2018 §8", "without the digest", func(b *bent) {
			b.Rules.Kind, b.Rules.Validity, b.NotAfter, b.EKDigest = ca.KindIDevID, ca.Endless, ca.Forever, nil
		}},
		{"a weak curve", "profile: keys", "EC on P-224 is not allowed", func(b *bent) { b.use(t, key(t, elliptic.P224()).Public()) }},
		{"a key type that the profile does not list", "profile: keys", "rsa-2048 is not allowed; use ec-p256", func(b *bent) { b.Rules.Keys = []ca.KeyType{ca.ECP256}; b.use(t, good) }},
		{"RSA of 1024 bits", "profile: keys", "rsa-1024 is not allowed", func(b *bent) { b.use(t, &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537}) }},
		{"RSA with exponent 3", "key strength", "exponent 3", func(b *bent) { b.use(t, &rsa.PublicKey{N: good.N, E: 3}) }},
		{"RSA with a small factor", "key strength", "small factor", func(b *bent) {
			n := new(big.Int).Div(good.N, big.NewInt(3))
			if n.Mul(n, big.NewInt(3)).Bit(0) == 0 {
				n.Sub(n, big.NewInt(3))
			}
			b.use(t, &rsa.PublicKey{N: n, E: 65537})
		}},
		{"the issuer's own key", "own key", "issuer's own", func(b *bent) { b.use(t, b.iss.Key.Public()) }},
		{"no SubjectPublicKeyInfo", "RFC 5280 §4.1.2.7", "not the key's", func(b *bent) { b.SPKI = nil }},
		{"a SubjectPublicKeyInfo with more in it", "RFC 5280 §4.1.2.7", "not the key's", func(b *bent) { // encoding/asn1 reads over it
			b.SPKI = append(append([]byte{0x30, b.SPKI[1] + 2}, b.SPKI[2:]...), 5, 0)
			if pub, err := x509.ParsePKIXPublicKey(b.SPKI); err != nil || !b.Public.(*ecdsa.PublicKey).Equal(pub) {
				t.Errorf("no longer read as the same key: %v", err)
			}
		}},
		{"another key's SubjectPublicKeyInfo", "RFC 5280 §4.1.2.7", "not the key's", func(b *bent) {
			pub := b.Public
			b.use(t, key(t, elliptic.P256()).Public())
			b.Public = pub
		}},
		{"a fact that is not known", "", "needs {order}, which is not known", func(b *bent) { b.Rules.Subject, b.Order = append(b.Rules.Subject, "OU={order}"), "" }},
		{"no profile", "", "no such profile", func(b *bent) { b.Profile, b.Rules = "root", nil }},
	}
}

// TestLint: each bend is refused by the check that it is for, the permit is left unspent, and Check says the same. Every check
// that input can reach has its case.
func TestLint(t *testing.T) {
	base := issuer(t, cradle.Evaluation)
	seen := map[string]bool{}
	for _, c := range lintCases(t) {
		t.Run(c.name, func(t *testing.T) {
			iss := *base
			b := &bent{iss: &iss, serial: ca.NewSerial(), Leaf: leaf(t, key(t, elliptic.P256()).Public())}
			c.bend(b)
			p := ca.NewPermit("i", b.serial)
			_, err := ca.Issue(b.iss, p, b.Leaf)
			if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.part) || c.clause != "" && !strings.HasSuffix(err.Error(), "("+c.clause+")") {
				t.Fatalf("got %v\nwant %q (%s)", err, c.part, c.clause)
			}
			seen[c.clause] = true
			if _, derr := ca.NewDraft(b.iss, b.serial, b.Leaf); derr == nil || derr.Error() != err.Error() {
				t.Errorf("NewDraft says %v, Issue %v", derr, err)
			}
			if !strings.HasPrefix(c.clause, "RFC 5280 §4.1.2.2") && c.clause != "802.1AR-2018 §8.3" { // the permit's serial number is good
				if _, err := ca.Issue(base, p, leaf(t, key(t, elliptic.P256()).Public())); err != nil {
					t.Errorf("the permit after a refusal: %v", err)
				}
			}
		})
	}
	for _, clause := range ca.Clauses() {
		switch clause {
		case "RFC 5280 §4.2.1.6", // newDraft makes subjectAltName critical by itself
			"RFC 3279 §2.3.1, RFC 8813 §3, RFC 8410 §5", // keyUsage leaves out what the key cannot do
			"RFC 5480 §2.2": // Go makes no such key
		default:
			if !seen[clause] {
				t.Errorf("no case for the check of %s", clause)
			}
		}
	}
}

// A certificate without subject names the device in a critical subjectAltName (RFC 5280 §4.1.2.6, §4.2.1.6).
func TestEmptySubject(t *testing.T) {
	l := leaf(t, key(t, elliptic.P256()).Public())
	l.Rules.Subject, l.Rules.SubjectAltName = nil, []string{"URI:urn:dev:{device}"}
	c, err := ca.Issue(issuer(t, cradle.Evaluation), ca.NewPermit("i", ca.NewSerial()), l)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Extensions {
		if e.Id.String() == "2.5.29.17" && e.Critical && len(c.Subject.Names) == 0 {
			return
		}
	}
	t.Error("subjectAltName is not critical")
}

// RSA and EC keys get what their algorithm can do of the profile's key usage.
func TestKeyUsageFitsKey(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	for _, c := range []struct {
		pub  any
		want x509.KeyUsage
	}{
		{key(t, elliptic.P384()).Public(), x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement},
		{fixedKeys(t)[5].Public(), x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment},
	} {
		b := &bent{Leaf: leaf(t, key(t, elliptic.P256()).Public())}
		b.Rules.KeyUsage = []string{"digitalSignature", "keyEncipherment", "keyAgreement"}
		b.use(t, c.pub)
		cert, err := ca.Issue(iss, ca.NewPermit("i", ca.NewSerial()), b.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		if cert.KeyUsage != c.want {
			t.Errorf("%T: key usage %b, want %b", c.pub, cert.KeyUsage, c.want)
		}
	}
}
