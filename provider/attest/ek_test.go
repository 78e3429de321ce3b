package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/provider/attest"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// ekCase is what one EK certificate is judged with.
type ekCase struct {
	now     time.Time
	cert    []byte
	chain   [][]byte
	anchors []attest.Anchor
	rules   attest.Rules
	denied  attest.Denied
}

func (c *ekCase) verify() attest.Reasons {
	_, why := attest.NewAnchorSet(c.anchors).VerifyEK(c.now, c.cert, c.chain, c.rules, c.denied)
	return why
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func maker(t testing.TB, name string) authority {
	m := must(softkey.NewMaker(name))(t)
	return authority{m.Cert, m.Key}
}

// issue signs template for pub; the template may be bent before.
func (a authority) issue(t testing.TB, pub crypto.PublicKey, bend func(*x509.Certificate)) []byte {
	t.Helper()
	template := softkey.EKTemplate(pub)
	if bend != nil {
		bend(template)
	}
	return must(x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key))(t)
}

// intermediate makes a CA below a.
func (a authority) intermediate(t testing.TB, name string, key crypto.Signer, bend func(*x509.Certificate)) authority {
	t.Helper()
	if key == nil {
		key = p256(t)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(-5, 0, 0), NotAfter: now.AddDate(20, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if bend != nil {
		bend(template)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(t)
	return authority{must(x509.ParseCertificate(der))(t), key}
}

func (a authority) anchor() attest.Anchor {
	return attest.Anchor{Maker: "test", Tier: cradle.SoftwareKey, Cert: a.cert}
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// resign changes the bytes to be signed of a certificate and signs them again, for what
// x509.CreateCertificate refuses to write.
func resign(t testing.TB, der []byte, key crypto.Signer, hash crypto.Hash, change func(tbs []byte) []byte, changeAlg func([]byte) []byte) []byte {
	t.Helper()
	var c struct{ TBS, Alg, Sig asn1.RawValue }
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		t.Fatal(err)
	}
	tbs := change(bytes.Clone(c.TBS.FullBytes))
	h := hash.New()
	h.Write(tbs)
	sig := must(key.Sign(rand.Reader, h.Sum(nil), hash))(t)
	alg := c.Alg.FullBytes
	if changeAlg != nil {
		alg = changeAlg(bytes.Clone(alg))
	}
	return must(asn1.Marshal(struct {
		TBS, Alg asn1.RawValue
		Sig      asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, asn1.RawValue{FullBytes: alg}, asn1.BitString{Bytes: sig, BitLength: len(sig) * 8}}))(t)
}

func swap(from, to string) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(from), []byte(to)) }
}

// rocaModulus is a modulus of 2048 bits with the fingerprint: a power of 65537 modulo the product of the
// small primes.
func rocaModulus() *big.Int {
	product := big.NewInt(1)
	for p := int64(3); p <= 167; p += 2 {
		if big.NewInt(p).ProbablyPrime(0) {
			product.Mul(product, big.NewInt(p))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(1234567), product)
	k := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(3), 2046), product)
	n.Add(n, k.Mul(k, product))
	if n.Bit(0) == 0 {
		n.Add(n, product)
	}
	return n
}

// ekRows bend the certificate itself.
func ekRows(t testing.TB) []row {
	root := maker(t, "Test TPM root")
	foreign := maker(t, "Other TPM root")
	ec, rsaKey := p256(t), must(rsa.GenerateKey(rand.Reader, 2048))(t)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	digest := func(pub crypto.PublicKey) string {
		return hexDigest(must(x509.MarshalPKIXPublicKey(pub))(t))
	}
	var rows []row
	add := func(name string, code attest.Code, held string, change func(c *ekCase)) {
		c := &ekCase{now: now, cert: root.issue(t, ec.Public(), nil), anchors: []attest.Anchor{root.anchor()}}
		change(c)
		rows = append(rows, row{name: "EK: " + name, code: code, held: held, verify: c.verify})
	}
	bent := func(name string, code attest.Code, pub crypto.PublicKey, bend func(*x509.Certificate)) {
		add(name, code, "", func(c *ekCase) { c.cert = root.issue(t, pub, bend) })
	}

	add("P-256", "", "", func(*ekCase) {})
	bent("P-384", "", p384.Public(), nil)
	bent("RSA 2048", "", rsaKey.Public(), nil)
	add("zero bytes of NV after it", "", "", func(c *ekCase) { c.cert = append(c.cert, make([]byte, 700)...) })
	add("TCG header before it", "", "", func(c *ekCase) {
		c.cert = append([]byte{0x10, 0x01, 0x00, byte(len(c.cert) >> 8), byte(len(c.cert))}, c.cert...)
	})
	add("id-RSAES-OAEP in the SPKI, as Infineon wrote", "", "", func(c *ekCase) {
		c.cert = resign(t, root.issue(t, rsaKey.Public(), nil), root.key, crypto.SHA256,
			swap("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07"), nil)
	})
	add("keyEncipherment on an EC key", "", "", func(c *ekCase) {
		c.cert = root.issue(t, ec.Public(), func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageKeyEncipherment })
	})
	add("expired, where the rules let it", "", "", func(c *ekCase) {
		c.cert = root.issue(t, ec.Public(), func(x *x509.Certificate) { x.NotAfter = now.Add(-time.Hour) })
		c.rules.ExpiredEK = true
	})
	add("within every rule", "", "", func(c *ekCase) {
		c.rules = attest.Rules{Tiers: []cradle.Tier{cradle.SoftwareKey}, Makers: []cradle.MakerID{"test"}, EKTypes: []string{attest.P256}}
		c.denied = func(d string) bool { return d == digest(rsaKey.Public()) }
	})

	add("not a certificate", attest.EKMalformed, "", func(c *ekCase) { c.cert = []byte("EK certificate") })
	add("cut off", attest.EKMalformed, "", func(c *ekCase) { c.cert = c.cert[:len(c.cert)-9] })
	add("empty", attest.EKMalformed, "", func(c *ekCase) { c.cert = nil })
	add("negative serial number", attest.EKSerial, "", func(c *ekCase) {
		c.cert = resign(t, c.cert, root.key, crypto.SHA256, func(tbs []byte) []byte {
			i := bytes.Index(tbs, []byte{0x02, 0x10})
			tbs[i+2] |= 0x80
			return tbs
		}, nil)
	})
	add("certificate over the limit", attest.EKOversize, "", func(c *ekCase) { c.cert = append(c.cert, make([]byte, 8<<10)...) })
	add("nine certificates", attest.EKOversize, "", func(c *ekCase) { c.chain = make([][]byte, 9) })
	add("huge certificate in the chain", attest.EKOversize, "", func(c *ekCase) { c.chain = [][]byte{make([]byte, 9<<10)} })
	bent("P-224 key", attest.EKKey, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t).Public(), nil)
	bent("P-521 key", attest.EKKey, must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t).Public(), nil)
	bent("RSA 1024", attest.EKKey, &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).SetBit(big.NewInt(1), 1023, 1), 512, 1), E: 65537}, nil)
	bent("RSA 8192", attest.EKKey, &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 8191, 1), E: 65537}, nil)
	bent("Ed25519 key", attest.EKKey, ed25519.NewKeyFromSeed(make([]byte, 32)).Public(), nil)
	bent("RSA exponent 3", attest.EKExponent, &rsa.PublicKey{N: rsaKey.N, E: 3}, nil)
	bent("ROCA", attest.EKROCA, &rsa.PublicKey{N: rocaModulus(), E: 65537}, nil)
	bent("CA certificate", attest.EKIsCA, ec.Public(), func(x *x509.Certificate) { x.IsCA = true })
	bent("no extended key usage", attest.EKPurpose, ec.Public(), func(x *x509.Certificate) { x.UnknownExtKeyUsage = nil })
	bent("certificate of an attestation key", attest.EKPurpose, ec.Public(), func(x *x509.Certificate) {
		x.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
	})
	bent("TLS client certificate of the TPM's maker", attest.EKPurpose, ec.Public(), func(x *x509.Certificate) {
		x.UnknownExtKeyUsage, x.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageAny, x509.ExtKeyUsageClientAuth}
	})
	bent("key usage digitalSignature beside", attest.EKUsage, ec.Public(), func(x *x509.Certificate) {
		x.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement
	})
	bent("key usage digitalSignature", attest.EKUsage, ec.Public(), func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageDigitalSignature })
	bent("no key usage", attest.EKUsage, ec.Public(), func(x *x509.Certificate) { x.KeyUsage = 0 })
	bent("key usage of EC on RSA", attest.EKUsage, rsaKey.Public(), func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageKeyAgreement })
	bent("unknown critical extension", attest.EKCritical, ec.Public(), func(x *x509.Certificate) {
		x.ExtraExtensions = append(x.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
	})
	bent("expired", attest.EKValidity, ec.Public(), func(x *x509.Certificate) { x.NotAfter = now.Add(-time.Second) })
	bent("not yet valid", attest.EKValidity, ec.Public(), func(x *x509.Certificate) { x.NotBefore = now.Add(time.Hour) })
	add("not yet valid, expiry forgiven", attest.EKValidity, "its issuer is not yet valid either", func(c *ekCase) { c.now = time.Unix(-1, 0); c.rules.ExpiredEK = true })
	add("denied EK", attest.EKDenied, "", func(c *ekCase) { c.denied = func(d string) bool { return d == digest(ec.Public()) } })
	add("denied EK in another encoding", attest.EKDenied, "", func(c *ekCase) {
		c.cert = resign(t, root.issue(t, rsaKey.Public(), nil), root.key, crypto.SHA256,
			swap("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07"), nil)
		c.denied = func(d string) bool { return d == digest(rsaKey.Public()) }
	})
	add("manufacturer of another maker's anchor", attest.EKManufacturer, "", func(c *ekCase) { c.anchors[0].Maker = "infineon" })
	add("anchor of a tier outside the order", attest.TierForbidden, "", func(c *ekCase) {
		c.rules.Tiers = []cradle.Tier{cradle.DiscreteTPM, cradle.FirmwareTPM}
	})
	add("maker outside the order", attest.MakerForbidden, "", func(c *ekCase) { c.rules.Makers = []cradle.MakerID{"infineon", "stm"} })
	add("EK type outside the order", attest.TypeForbidden, "", func(c *ekCase) { c.rules.EKTypes = []string{attest.RSA2048, attest.P384} })

	add("maker never imported", attest.EKUntrusted, "", func(c *ekCase) { c.cert = foreign.issue(t, ec.Public(), nil) })
	add("no maker imported", attest.EKUntrusted, "", func(c *ekCase) { c.anchors = nil })
	add("maker never imported, its root in the chain", attest.EKUntrusted, "", func(c *ekCase) {
		c.cert, c.chain = foreign.issue(t, ec.Public(), nil), [][]byte{foreign.cert.Raw}
	})
	add("self-signed", attest.EKUntrusted, "", func(c *ekCase) {
		x := softkey.EKTemplate(ec.Public())
		x.Subject = pkix.Name{CommonName: "EK"}
		c.cert = must(x509.CreateCertificate(rand.Reader, x, x, ec.Public(), ec))(t)
	})
	add("signed by another key under the maker's name", attest.EKSignature, "", func(c *ekCase) {
		c.cert = authority{root.cert, ec}.forge(t, ec.Public())
	})
	add("key swapped after signing", attest.EKSignature, "", func(c *ekCase) {
		mine := must(x509.MarshalPKIXPublicKey(p256(t).Public()))(t)
		theirs := must(x509.MarshalPKIXPublicKey(ec.Public()))(t)
		c.cert = bytes.Replace(c.cert, theirs, mine, 1)
	})
	return rows
}

// forge signs an EK certificate with a key that is not the one of a's certificate.
func (a authority) forge(t testing.TB, pub crypto.PublicKey) []byte {
	real := *a.cert
	real.PublicKey = a.key.Public() // CreateCertificate compares
	return must(x509.CreateCertificate(rand.Reader, softkey.EKTemplate(pub), &real, pub, a.key))(t)
}

func hexDigest(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// The facts to record come from certificate and anchor.
func TestEKFacts(t *testing.T) {
	root := maker(t, "Root")
	inter := root.intermediate(t, "Intermediate", nil, nil)
	key := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	for _, oaep := range []bool{false, true} {
		cert := inter.issue(t, key.Public(), nil)
		if oaep {
			cert = resign(t, cert, inter.key, crypto.SHA256, swap("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07"), nil)
		}
		ek, why := attest.NewAnchorSet([]attest.Anchor{root.anchor()}).VerifyEK(now, append(cert, 0, 0), [][]byte{inter.cert.Raw}, attest.Rules{}, nil)
		if !why.OK() {
			t.Fatal(why)
		}
		got := ek.Facts
		spki := must(x509.MarshalPKIXPublicKey(key.Public()))(t)
		want := attest.EKFacts{Digest: hexDigest(spki), Type: attest.RSA2048, Maker: "test", Tier: cradle.SoftwareKey,
			Anchor: hexDigest(root.cert.Raw), Certificate: hexDigest(cert),
			Manufacturer: "id:534F4654", Model: "softkey", Version: "id:00000001"}
		if len(got.Issuers) != 2 || got.Issuers[0] != hexDigest(inter.cert.RawSubjectPublicKeyInfo) || got.Issuers[1] != hexDigest(root.cert.RawSubjectPublicKeyInfo) {
			t.Errorf("issuers %q", got.Issuers)
		}
		got.Issuers = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if k, ok := ek.Public.(*rsa.PublicKey); !ok || !k.Equal(key.Public()) {
			t.Errorf("got key %v", ek.Public)
		}
	}
}
