package attest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
)

// pathRows bend what stands between the EK certificate and the anchor.
func pathRows(t testing.TB) []row {
	root := maker(t, "Test TPM root")
	other := maker(t, "Other TPM root")
	ec := p256(t)
	var rows []row
	add := func(name string, code attest.Code, change func(c *ekCase)) {
		c := &ekCase{now: now, anchors: []attest.Anchor{root.anchor()}}
		change(c)
		rows = append(rows, row{name: "path: " + name, code: code, verify: c.verify})
	}
	// below puts one intermediate, which the device sends, between anchor and EK.
	below := func(name string, code attest.Code, key crypto.Signer, bend func(*x509.Certificate)) {
		add(name, code, func(c *ekCase) {
			ca := root.intermediate(t, "Test TPM CA 1", key, bend)
			c.cert, c.chain = ca.issue(t, ec.Public(), nil), [][]byte{ca.cert.Raw}
		})
	}

	below("one intermediate", "", nil, nil)
	below("P-384 intermediate", "", must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t), nil)
	add("three intermediates out of order among rubbish", "", func(c *ekCase) {
		a := root.intermediate(t, "A", nil, nil)
		b := a.intermediate(t, "B", nil, nil)
		d := b.intermediate(t, "C", nil, nil)
		c.cert = d.issue(t, ec.Public(), nil)
		c.chain = [][]byte{[]byte("rubbish"), b.cert.Raw, d.cert.Raw, other.cert.Raw, a.cert.Raw, root.cert.Raw}
	})
	add("pinned intermediate, no root", "", func(c *ekCase) {
		ca := root.intermediate(t, "Test TPM CA 1", nil, nil)
		c.cert, c.anchors = ca.issue(t, ec.Public(), nil), []attest.Anchor{ca.anchor()}
	})
	add("issuer named in another string type", "", func(c *ekCase) {
		ca := authority{reencoded(t, root), root.key}
		c.cert = ca.issue(t, ec.Public(), nil)
	})
	add("two anchors of one name", "", func(c *ekCase) {
		twin := maker(t, "Test TPM root")
		c.cert = root.issue(t, ec.Public(), func(x *x509.Certificate) { x.AuthorityKeyId = nil })
		c.anchors = []attest.Anchor{twin.anchor(), root.anchor()}
	})
	add("expired intermediate, where the rules let it", "", func(c *ekCase) {
		ca := root.intermediate(t, "Old CA", nil, func(x *x509.Certificate) { x.NotAfter = now.Add(-time.Hour) })
		c.cert, c.chain, c.rules.ExpiredEK = ca.issue(t, ec.Public(), nil), [][]byte{ca.cert.Raw}, true
	})

	add("intermediate not sent", attest.EKUntrusted, func(c *ekCase) {
		c.cert = root.intermediate(t, "Test TPM CA 1", nil, nil).issue(t, ec.Public(), nil)
	})
	add("six intermediates", attest.EKUntrusted, func(c *ekCase) {
		ca := root
		for i := range 6 {
			ca = ca.intermediate(t, fmt.Sprint("CA ", i), nil, nil)
			c.chain = append(c.chain, ca.cert.Raw)
		}
		c.cert = ca.issue(t, ec.Public(), nil)
	})
	add("two CAs that signed each other", attest.EKUntrusted, func(c *ekCase) {
		a := maker(t, "A")
		b := a.intermediate(t, "B", nil, nil)
		again := b.intermediate(t, "A", a.key, nil)
		c.cert, c.chain = b.issue(t, ec.Public(), nil), [][]byte{b.cert.Raw, again.cert.Raw}
	})
	add("intermediate with a forged signature", attest.EKSignature, func(c *ekCase) {
		ca := maker(t, "Mine")
		fake := *root.cert
		fake.PublicKey = ca.key.Public()
		mine := authority{&fake, ca.key}.intermediate(t, "Test TPM CA 1", nil, nil)
		c.cert, c.chain = mine.issue(t, ec.Public(), nil), [][]byte{mine.cert.Raw}
	})
	add("SHA-1 signature", attest.EKSignature, func(c *ekCase) {
		ca := root.intermediate(t, "RSA CA", must(rsa.GenerateKey(rand.Reader, 2048))(t), nil)
		sha1 := swap("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05")
		c.cert, c.chain = resign(t, ca.issue(t, ec.Public(), nil), ca.key, crypto.SHA1, sha1, sha1), [][]byte{ca.cert.Raw}
	})
	add("many CAs of one name", attest.EKSignature, func(c *ekCase) {
		sameID := func(x *x509.Certificate) { x.SubjectKeyId = []byte{1} }
		for range 8 {
			c.chain = append(c.chain, root.intermediate(t, "Crowd", nil, sameID).cert.Raw)
		}
		c.cert = root.intermediate(t, "Crowd", nil, sameID).issue(t, ec.Public(), nil)
	})

	add("distrusted root", attest.CADistrusted, func(c *ekCase) {
		c.cert, c.anchors[0].Distrusted = root.issue(t, ec.Public(), nil), true
	})
	add("distrusted intermediate, sent by the device", attest.CADistrusted, func(c *ekCase) {
		ca := root.intermediate(t, "Test TPM CA 1", nil, nil)
		again := root.intermediate(t, "Test TPM CA 1", ca.key, nil) // another certificate of the same key
		gone := ca.anchor()
		gone.Cert, gone.Distrusted = other.intermediate(t, "Test TPM CA 1 (cross)", ca.key, nil).cert, true
		c.cert, c.chain = ca.issue(t, ec.Public(), nil), [][]byte{again.cert.Raw}
		c.anchors = append(c.anchors, gone)
	})
	add("trusted intermediate of a distrusted root", attest.CADistrusted, func(c *ekCase) {
		ca := root.intermediate(t, "Test TPM CA 1", nil, nil)
		c.cert = ca.issue(t, ec.Public(), nil)
		c.anchors[0].Distrusted = true
		c.anchors = append(c.anchors, ca.anchor())
	})
	below("intermediate without CA:TRUE", attest.CANotCA, nil, func(x *x509.Certificate) { x.IsCA = false; x.KeyUsage = x509.KeyUsageDigitalSignature })
	below("intermediate without keyCertSign", attest.CANotCA, nil, func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageCRLSign })
	add("EK certificate signed by another EK", attest.CANotCA, func(c *ekCase) {
		owned := p256(t)
		der := root.issue(t, owned.Public(), func(x *x509.Certificate) { x.Subject = pkix.Name{CommonName: "EK 1"} })
		ek := authority{must(x509.ParseCertificate(der))(t), owned}
		c.cert, c.chain = ek.issue(t, ec.Public(), nil), [][]byte{der}
	})
	rows[len(rows)-1].also = []attest.Code{attest.CACritical} // its SAN
	add("longer than the anchor allows", attest.CAPathLen, func(c *ekCase) {
		a := root.intermediate(t, "A", nil, func(x *x509.Certificate) { x.MaxPathLenZero = true })
		b := a.intermediate(t, "B", nil, nil)
		c.cert, c.chain, c.anchors = b.issue(t, ec.Public(), nil), [][]byte{b.cert.Raw}, []attest.Anchor{a.anchor()}
	})
	below("expired intermediate", attest.CAValidity, nil, func(x *x509.Certificate) { x.NotAfter = now.Add(-time.Hour) })
	below("intermediate of tomorrow", attest.CAValidity, nil, func(x *x509.Certificate) { x.NotBefore = now.Add(24 * time.Hour) })
	add("expired anchor", attest.CAValidity, func(c *ekCase) {
		ca := root.intermediate(t, "Old CA", nil, func(x *x509.Certificate) { x.NotAfter = now.Add(-time.Hour) })
		c.cert, c.anchors = ca.issue(t, ec.Public(), nil), []attest.Anchor{ca.anchor()}
	})
	below("intermediate with an unknown critical extension", attest.CACritical, nil, func(x *x509.Certificate) {
		x.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	})
	below("P-224 intermediate", attest.CAKey, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t), nil)
	below("Ed25519 intermediate", attest.EKSignature, ed25519.NewKeyFromSeed(make([]byte, 32)), nil)
	rows[len(rows)-1].held = "its key is refused too"
	below("RSA 1024 intermediate", attest.CAKey, must(rsa.GenerateKey(rand.Reader, 1024))(t), nil)

	// The issuer's key is pinned as a simulator's; the device shows a path by which the same key would be
	// a discrete TPM's.
	add("device chooses a better anchor", attest.TierForbidden, func(c *ekCase) {
		ca := root.intermediate(t, "Simulator CA", nil, nil)
		sim, discrete := ca.anchor(), other.anchor()
		sim.Tier, discrete.Tier = cradle.Simulator, cradle.DiscreteTPM
		cross := other.intermediate(t, "Simulator CA", ca.key, nil)
		c.cert, c.chain = ca.issue(t, ec.Public(), nil), [][]byte{cross.cert.Raw}
		c.anchors, c.rules.Tiers = []attest.Anchor{discrete, sim}, []cradle.Tier{cradle.DiscreteTPM}
	})
	add("one key in two tiers", attest.TierForbidden, func(c *ekCase) {
		ca := root.intermediate(t, "CA", nil, nil)
		strong, weak := ca.anchor(), ca.anchor()
		strong.Tier, weak.Tier = cradle.DiscreteTPM, cradle.Simulator
		c.cert, c.anchors = ca.issue(t, ec.Public(), nil), []attest.Anchor{strong, weak}
		c.rules.Tiers = []cradle.Tier{cradle.DiscreteTPM}
	})
	return rows
}

// reencoded is a's certificate with its name in UTF8String instead of PrintableString.
func reencoded(t testing.TB, a authority) *x509.Certificate {
	var dn pkix.RDNSequence
	if _, err := asn1.Unmarshal(a.cert.RawSubject, &dn); err != nil {
		t.Fatal(err)
	}
	cn := dn[0][0].Value.(string)
	value := asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(cn)}
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	type rdnSET []attribute
	raw := must(asn1.Marshal([]rdnSET{{{asn1.ObjectIdentifier{2, 5, 4, 3}, value}}}))(t)
	c := *a.cert
	c.RawSubject = raw
	return &c
}

// TestCacheIsNotTrust: what one set has verified another set must not accept for that, and a cached intermediate
// is judged again each time.
func TestCacheIsNotTrust(t *testing.T) {
	root, other := maker(t, "Root"), maker(t, "Other")
	ca := root.intermediate(t, "CA", nil, func(x *x509.Certificate) { x.NotAfter = now.AddDate(1, 0, 0) })
	ec := p256(t)
	cert, chain := ca.issue(t, ec.Public(), nil), [][]byte{ca.cert.Raw}
	cache := new(attest.Cache)
	verify := func(at time.Time, a attest.Anchor, cert []byte) attest.Reasons {
		_, why := attest.NewAnchorSet([]attest.Anchor{a}).WithCache(cache).VerifyEK(at, cert, chain, attest.Rules{}, nil)
		return why
	}
	for range 2 {
		if why := verify(now, root.anchor(), cert); !why.OK() {
			t.Fatal(why)
		}
		if why := verify(now, other.anchor(), cert); !why.Has(attest.EKUntrusted) {
			t.Errorf("another anchor: %v", why)
		}
		if why := verify(now.AddDate(2, 0, 0), root.anchor(), cert); !why.Has(attest.CAValidity) {
			t.Errorf("later: %v", why)
		}
		gone := root.anchor()
		gone.Distrusted = true
		if why := verify(now, gone, cert); !why.Has(attest.CADistrusted) {
			t.Errorf("distrusted: %v", why)
		}
		impostor := maker(t, "Root") // same name, other key
		if why := verify(now, impostor.anchor(), cert); why.OK() {
			t.Error("a root of the same name was accepted")
		}
		if why := verify(now, root.anchor(), authority{ca.cert, ec}.forge(t, ec.Public())); !why.Has(attest.EKSignature) {
			t.Errorf("forged leaf: %v", why)
		}
	}
}

// TestMakersBundle: the public CA certificates of TPM makers are usable as anchors, and the intermediates chain
// to the roots by our path building, those with differently encoded names too.
func TestMakersBundle(t *testing.T) {
	dir := os.Getenv("CRADLE_TPM_CA")
	if dir == "" {
		t.Skip("CRADLE_TPM_CA names no folder with roots.pem and intermediates.pem")
	}
	read := func(file string) (out []*x509.Certificate) {
		rest := must(os.ReadFile(dir + "/" + file))(t)
		for {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				return out
			}
			c, err := attest.ParseAnchor(b.Bytes)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			out = append(out, c)
		}
	}
	var anchors []attest.Anchor
	roots, inters := read("roots.pem"), read("intermediates.pem")
	for _, c := range roots {
		anchors = append(anchors, attest.Anchor{Maker: "m", Tier: cradle.DiscreteTPM, Cert: c})
	}
	var chain [][]byte
	for _, c := range inters {
		chain = append(chain, c.Raw)
	}
	set := attest.NewAnchorSet(anchors)
	for _, c := range inters {
		if why := attest.PathTo(set, c, chain); !why.OK() {
			t.Errorf("%s: %v", c.Subject, why)
		}
	}
	t.Logf("%d roots, %d intermediates", len(roots), len(inters))
}
