package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/provider/attest"
)

// clientAuthority is a CA of clients.
type clientAuthority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (a *clientAuthority) sign(t testing.TB, pub crypto.PublicKey, tmpl *x509.Certificate) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(int64(len(tmpl.Subject.CommonName)) + 1)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key))(t)))(t)
}

func (a *clientAuthority) sub(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) *clientAuthority {
	t.Helper()
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "Client sub CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{2}}
	if change != nil {
		change(tmpl)
	}
	return &clientAuthority{a.sign(t, key.Public(), tmpl), key}
}

func clientRoot(t testing.TB, key crypto.Signer) *clientAuthority {
	t.Helper()
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "Client root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1}}
	a := &clientAuthority{tmpl, key}
	a.cert = a.sign(t, key.Public(), tmpl)
	return a
}

func clientRows(t testing.TB) []row {
	root := clientRoot(t, p256(t))
	sub := root.sub(t, p256(t), nil)
	weak := clientRoot(t, must(rsa.GenerateKey(rand.Reader, 1024))(t))
	stranger := clientRoot(t, p256(t)) // of the same name
	leaf := func(a *clientAuthority, pub crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
		tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "unit", SerialNumber: "SN1"}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
		if change != nil {
			change(tmpl)
		}
		return a.sign(t, pub, tmpl)
	}
	unit := p256(t).Public()
	type client struct {
		chain  []*x509.Certificate
		trust  attest.ClientTrust
		issued func([]byte) bool
		at     time.Time
	}
	var rows []row
	add := func(name string, code attest.Code, held string, change func(c *client)) {
		c := &client{chain: []*x509.Certificate{leaf(sub, unit, nil), sub.cert}, trust: attest.ClientTrust{Anchors: []*x509.Certificate{root.cert}}, at: now,
			issued: func([]byte) bool { return false }}
		change(c)
		rows = append(rows, row{name: "client: " + name, code: code, held: held, verify: func() attest.Reasons {
			return attest.VerifyClient(c.at, c.chain, c.trust, c.issued)
		}})
	}
	bent := func(name string, code attest.Code, held string, bend func(*x509.Certificate)) {
		add(name, code, held, func(c *client) { c.chain[0] = leaf(sub, unit, bend) })
	}
	const x509Too = "crypto/x509 looks at it too"

	add("intermediate sent", "", "", func(*client) {})
	add("intermediate registered", "", "", func(c *client) {
		c.chain, c.trust.Intermediates = c.chain[:1], []*x509.Certificate{sub.cert}
	})
	add("signed by the anchor", "", "", func(c *client) { c.chain = []*x509.Certificate{leaf(root, unit, nil)} })
	add("anchor is the subordinate CA alone", "", "", func(c *client) {
		c.chain, c.trust.Anchors = c.chain[:1], []*x509.Certificate{sub.cert}
	})
	bent("odd extended key usage", "", "", func(x *x509.Certificate) { x.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} })
	bent("server's extended key usage", "", "", func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	bent("no key usage", "", "", func(x *x509.Certificate) { x.KeyUsage = 0 })
	bent("critical subjectAltName with a hardwareModuleName alone", "", "", func(x *x509.Certificate) {
		x.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true,
			Value: []byte{0x30, 0x0e, 0xa0, 0x0c, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 8, 4, 0xa0, 0x00}}}
	})

	add("none", attest.ClientMissing, "", func(c *client) { c.chain = nil })
	add("very long chain", attest.ClientOversize, "", func(c *client) { c.chain = slices.Repeat(c.chain, 20) })
	bent("a CA certificate", attest.ClientIsCA, "", func(x *x509.Certificate) { x.IsCA = true })
	bent("key agreement alone", attest.ClientUsage, "", func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageKeyAgreement })
	add("RSA 1024", attest.ClientKey, "", func(c *client) { c.chain[0] = leaf(sub, must(rsa.GenerateKey(rand.Reader, 1024))(t).Public(), nil) })
	add("P-224", attest.ClientKey, "", func(c *client) {
		c.chain[0] = leaf(sub, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t).Public(), nil)
	})
	bent("unknown critical extension", attest.ClientCritical, "", func(x *x509.Certificate) {
		x.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	})
	bent("expired", attest.ClientValidity, x509Too, func(x *x509.Certificate) { x.NotBefore, x.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) })
	bent("not yet valid", attest.ClientValidity, x509Too, func(x *x509.Certificate) { x.NotBefore, x.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour) })
	add("intermediate not sent", attest.ClientUntrusted, "", func(c *client) { c.chain = c.chain[:1] })
	add("another root of the same name", attest.ClientUntrusted, "", func(c *client) { c.chain = []*x509.Certificate{leaf(stranger, unit, nil)} })
	add("it brings its own root", attest.ClientUntrusted, "", func(c *client) { c.chain = []*x509.Certificate{leaf(stranger, unit, nil), stranger.cert} })
	add("self-signed", attest.ClientUntrusted, "", func(c *client) {
		k := p256(t)
		c.chain = []*x509.Certificate{(&clientAuthority{&x509.Certificate{Subject: pkix.Name{CommonName: "unit"}}, k}).sign(t, k.Public(), &x509.Certificate{Subject: pkix.Name{CommonName: "unit"}})}
	})
	add("signed by another unit", attest.ClientUntrusted, "", func(c *client) {
		k := p256(t)
		mate := leaf(sub, k.Public(), nil)
		c.chain = []*x509.Certificate{leaf(&clientAuthority{mate, k}, unit, nil), mate, sub.cert}
	})
	add("intermediate below one that allows none", attest.ClientPath, "", func(c *client) {
		k := p256(t)
		tight := root.sub(t, k, func(x *x509.Certificate) { x.MaxPathLenZero = true; x.SubjectKeyId = []byte{3} })
		below := tight.sub(t, p256(t), func(x *x509.Certificate) { x.SubjectKeyId, x.Subject.CommonName = []byte{4}, "Below" })
		c.chain = []*x509.Certificate{leaf(below, unit, nil), below.cert, tight.cert}
	})
	add("names that its CA may not give", attest.ClientPath, "", func(c *client) {
		tight := root.sub(t, p256(t), func(x *x509.Certificate) {
			x.PermittedDNSDomainsCritical, x.PermittedDNSDomains, x.SubjectKeyId = true, []string{"example.com"}, []byte{5}
		})
		c.chain = []*x509.Certificate{leaf(tight, unit, func(x *x509.Certificate) { x.DNSNames = []string{"unit.example.org"} }), tight.cert}
	})
	add("a CA of ours without record", attest.ClientOurs, "", func(c *client) {
		c.issued = func(spki []byte) bool { return bytes.Equal(spki, root.cert.RawSubjectPublicKeyInfo) }
	})
	add("a root of RSA 1024", attest.ClientCAKey, "", func(c *client) {
		c.chain, c.trust.Anchors = []*x509.Certificate{leaf(weak, unit, nil)}, []*x509.Certificate{weak.cert}
	})
	return rows
}
