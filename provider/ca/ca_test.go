package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func key(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issuer(t testing.TB, class cradle.Class) *ca.Issuer {
	t.Helper()
	k := key(t, elliptic.P256())
	c, err := ca.SelfSign(k, ca.Authority{Organization: "acme", CommonName: "acme CA", Class: class, NotBefore: now.Add(-time.Hour), NotAfter: ca.Forever})
	if err != nil {
		t.Fatal(err)
	}
	return &ca.Issuer{ID: ca.Digest(c.Raw), Cert: c, Key: k}
}

func leaf(t *testing.T, pub crypto.PublicKey) ca.Leaf {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	rules := ca.DefaultProfile(cradle.Operational)
	return ca.Leaf{Profile: cradle.Operational, Rules: &rules, Account: "acme", Device: "acme-1", Serial: "SN1", Tier: cradle.Simulator, Proved: true,
		EKDigest: make([]byte, 32), Public: pub, SPKI: spki, NotBefore: now, NotAfter: now.Add(time.Hour)}
}

func TestIssue(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	for _, p := range []cradle.Profile{cradle.IDevID, cradle.IAK, cradle.LDevID, cradle.Operational} {
		l := leaf(t, key(t, elliptic.P256()).Public())
		l.Profile = p
		rules := ca.DefaultProfile(p)
		if l.Rules = &rules; rules.Kind.Birth() {
			l.NotAfter = ca.Forever
		}
		serial := ca.NewSerial()
		c, err := ca.Issue(iss, ca.NewPermit("i", serial), l)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		if c.SerialNumber.Cmp(serial) != 0 || c.CheckSignatureFrom(iss.Cert) != nil || c.IsCA || c.Version != 3 {
			t.Errorf("%s: wrong serial, signature or kind", p)
		}
		device := p == cradle.IDevID || p == cradle.IAK
		if (len(c.ExtKeyUsage) == 0) != device || (c.Subject.SerialNumber == "SN1") != device {
			t.Errorf("%s: EKU %v, serialNumber %q", p, c.ExtKeyUsage, c.Subject.SerialNumber)
		}
		if len(c.Policies) != 2 || !c.Policies[0].Equal(cradle.TierPolicy(cradle.Simulator)) || !c.Policies[1].Equal(cradle.PolicyKeyProved) {
			t.Errorf("%s: policies %v", p, c.Policies)
		}
	}
}

func TestPermitIsSpentOnce(t *testing.T) {
	iss, p := issuer(t, cradle.Evaluation), ca.NewPermit("i", ca.NewSerial())
	if _, err := ca.Issue(iss, p, leaf(t, key(t, elliptic.P256()).Public())); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(iss, p, leaf(t, key(t, elliptic.P256()).Public())); err == nil {
		t.Error("a permit signed twice")
	}
}

func TestPermitIsForItsSerial(t *testing.T) {
	d, err := ca.NewDraft(issuer(t, cradle.Evaluation), ca.NewSerial(), leaf(t, key(t, elliptic.P256()).Public()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Sign(ca.NewPermit("i", ca.NewSerial())); err == nil {
		t.Error("a draft was signed under another serial number than its own")
	}
	if _, err := d.Sign(ca.NewPermit("i", d.SerialNumber())); err != nil {
		t.Error(err)
	}
}

func TestSerials(t *testing.T) {
	seen := map[string]bool{}
	ones := [96]int{}
	for i := range 1000 {
		begun := now.Add(time.Duration(i) * time.Second / 64)
		for _, n := range []*big.Int{ca.NewSerial(), ca.LeafSerial(begun)} {
			if n.Sign() <= 0 || n.BitLen() < 64 || n.BitLen() > 159 { // 802.1AR; RFC 5280 §4.1.2.2: at most 20 octets
				t.Fatalf("serial %x", n)
			}
			if s := n.Text(16); seen[s] {
				t.Fatalf("serial %s twice", s)
			} else {
				seen[s] = true
			}
		}
		n := ca.LeafSerial(begun)
		if got, want := new(big.Int).Rsh(n, 96).Int64(), begun.UnixMilli()*64/1000|1<<38; got != want {
			t.Fatalf("serial of %s begins with %x, want %x", begun, got, want)
		}
		for b := range ones {
			ones[b] += int(n.Bit(b))
		}
	}
	for b, n := range ones {
		if n < 350 || n > 650 { // nine standard deviations
			t.Errorf("bit %d is set in %d of 1000 serial numbers", b, n)
		}
	}
}
