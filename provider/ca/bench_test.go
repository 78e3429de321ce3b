package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

func BenchmarkIssue(b *testing.B) {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c, err := ca.SelfSign(k, ca.Authority{Organization: "acme", CommonName: "acme CA", Class: cradle.Evaluation, NotBefore: now.Add(-time.Hour), NotAfter: ca.Forever})
	if err != nil {
		b.Fatal(err)
	}
	iss := &ca.Issuer{ID: ca.Digest(c.Raw), Cert: c, Key: ca.Proved(k), Points: &ca.Points{
		CRL:  func(time.Time) (string, error) { return "http://pki.example.com/crl/0123456789abcdef/2027.crl", nil },
		OCSP: "http://pki.example.com/ocsp", CA: "http://pki.example.com/ca/0123456789abcdef.cer"}}
	dk, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	spki, _ := x509.MarshalPKIXPublicKey(dk.Public())
	for _, p := range []cradle.Profile{cradle.IDevID, cradle.Operational} {
		rules := ca.DefaultProfile(p)
		l := ca.Leaf{Profile: p, Rules: &rules, Account: "acme", Device: "acme-1", Serial: "SN1", Tier: cradle.Simulator, Proved: true,
			EKDigest: make([]byte, 32), Public: dk.Public(), SPKI: spki, NotBefore: now, NotAfter: now.Add(time.Hour)}
		if rules.Kind.Birth() {
			l.NotAfter = ca.Forever
		}
		b.Run("draft/"+string(p), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ca.NewDraft(iss, ca.NewSerial(), l); err != nil {
					b.Fatal(err)
				}
			}
		})
		d, err := ca.NewDraft(iss, ca.NewSerial(), l)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("sign/"+string(p), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Sign(ca.NewPermit("i", d.SerialNumber())); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("key", func(b *testing.B) {
		b.ReportAllocs()
		h := make([]byte, 32)
		for b.Loop() {
			ecdsa.SignASN1(rand.Reader, k, h)
		}
	})
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			x509.ParseCertificate(c.Raw)
		}
	})
}
