package ca_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// sameAsX509 issues a certificate and has crypto/x509 make one of the same draft: what is signed must be the same bytes.
// It reports whether the draft passed the checks.
func sameAsX509(t *testing.T, iss *ca.Issuer, serial *big.Int, l ca.Leaf) bool {
	t.Helper()
	d, err := ca.NewDraft(iss, serial, l)
	if err != nil {
		if cradle.KindOf(err) != cradle.Invalid {
			t.Fatalf("a refusal of kind %v: %v", cradle.KindOf(err), err)
		}
		return false
	}
	signed, err := d.Sign(ca.NewPermit("i", serial))
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParseCertificate(signed)
	if err != nil {
		t.Fatal(err)
	}
	template, err := d.Template()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, iss.Cert, l.Public, iss.Key)
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.RawTBSCertificate, want.RawTBSCertificate) {
		t.Fatalf("signed\n%x\ncrypto/x509 makes\n%x", got.RawTBSCertificate, want.RawTBSCertificate)
	}
	if got.SignatureAlgorithm != want.SignatureAlgorithm || !ca.Signs(iss.Cert, got) {
		t.Fatalf("the signature (%v, want %v) does not verify", got.SignatureAlgorithm, want.SignatureAlgorithm)
	}
	if got.SerialNumber.Cmp(serial) != 0 || !bytes.Equal(got.RawSubjectPublicKeyInfo, l.SPKI) || got.IsCA || !got.NotAfter.Equal(l.NotAfter) || !got.NotBefore.Equal(l.NotBefore) {
		t.Fatal("serial number, key, kind or validity are not what was decided")
	}
	return true
}

// FuzzEncode holds certificates of any profile and device against what crypto/x509 makes of them.
func FuzzEncode(f *testing.F) {
	long := strings.Repeat("x", 200)
	f.Add(uint8(0), []byte{0x7f, 1, 2, 3, 4, 5, 6, 7, 8}, "acme-1", "SN1", int64(1767323045), int64(86400), "", "", uint16(1), "1.2.3", []byte{5, 0}, false, "http://a/1.crl", "")
	f.Add(uint8(1), []byte{0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, "d", "SN/1", int64(2524607999), int64(1), "OU=Ä "+long[:30], "DNS:a.example", uint16(0x1ff), "1.3.6.1.4.1.99999.1", []byte{4, 1, 0}, true, "http://"+long, "http://ocsp")
	f.Add(uint8(2), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0}, "d", "1", int64(2524608000), int64(1), "serialNumber={serial}", "IP:::1", uint16(0x91), "2.999.3", append([]byte{4, 0x81, 200}, long...), false, "", "")
	f.Add(uint8(3), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "d", "1", int64(-700000000), int64(3000000000), "DC=x", "URI:urn:x:"+long, uint16(9), "1.2.840.113549", []byte{4, 0}, false, "x", "y")
	f.Add(uint8(4), []byte{0x40, 0, 0, 0, 0, 0, 0, 0, 0}, "d", "1", int64(-2000000000), int64(1), "C=DE", "email:a@b", uint16(0x111), "", []byte{}, false, "", "z")
	p384 := key(f, elliptic.P384())
	keys := []*ecdsa.PrivateKey{key(f, elliptic.P256()), key(f, elliptic.P384()), key(f, elliptic.P256())}
	certs := make([]*x509.Certificate, 2)
	for i := range certs {
		var err error
		if certs[i], err = ca.SelfSign(keys[i], ca.Authority{Organization: "acme", CommonName: "acme CA", Class: cradle.Evaluation,
			NotBefore: time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: ca.Forever}); err != nil {
			f.Fatal(err)
		}
	}
	usages := []string{"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}
	f.Fuzz(func(t *testing.T, kind uint8, serial []byte, device, unit string, from, life int64, name, alt string, usage uint16, oid string, ext []byte, critical bool, crl, ocsp string) {
		rules := ca.DefaultProfile([]cradle.Profile{cradle.IDevID, cradle.IAK, cradle.LDevID, cradle.Operational, "client"}[kind%5])
		if kind%5 == 4 {
			p, err := ca.ParseProfile("client", "kind = \"client\"\n")
			if err != nil {
				t.Fatal(err)
			}
			rules = p
		}
		rules.KeyUsage = nil
		for i, u := range usages {
			if usage>>i&1 != 0 {
				rules.KeyUsage = append(rules.KeyUsage, u)
			}
		}
		if usage>>9&1 != 0 {
			rules.ExtendedKeyUsage = append(rules.ExtendedKeyUsage, "1.2.840.113741.1.2.3")
		}
		if name != "" {
			rules.Subject = append(rules.Subject, name)
		}
		if alt != "" {
			rules.SubjectAltName = append(rules.SubjectAltName, alt)
		}
		if oid != "" {
			rules.Extensions = []ca.Extension{{OID: oid, Critical: critical, Value: "hex:" + hex.EncodeToString(ext)}}
		}
		pub := keys[2-int(kind>>5&1)].Public()
		if kind>>6&1 != 0 {
			rules.Keys = append(rules.Keys, ca.ECP384)
			pub = p384.Public()
		}
		spki, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		l := ca.Leaf{Profile: "p", Rules: &rules, Account: "acme", Device: cradle.DeviceID(device), Serial: unit, Order: "o", OEM: "m", Tier: cradle.Simulator, Maker: "k",
			Proved: true, EKDigest: make([]byte, 32), Public: pub, SPKI: spki, NotBefore: time.Unix(from, 0), NotAfter: time.Unix(from, 0).Add(time.Duration(life) * time.Second)}
		if rules.Validity == ca.Endless {
			l.NotAfter = ca.Forever
		} else {
			rules.Validity = ca.Duration(100 * 365 * 24 * time.Hour)
		}
		iss := &ca.Issuer{Cert: certs[kind>>7], Key: keys[kind>>7]}
		if crl != "" && ocsp != "" {
			iss.Points = &ca.Points{CRL: func(time.Time) (string, error) { return crl, nil }, OCSP: ocsp, CA: ocsp + "/ca"}
		}
		sameAsX509(t, iss, new(big.Int).SetBytes(serial), l)
	})
}
