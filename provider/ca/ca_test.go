package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func key(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issuer(t *testing.T, class cradle.Class) *ca.Issuer {
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

func TestLintRefuses(t *testing.T) {
	iss := issuer(t, cradle.Evaluation)
	for _, c := range []struct {
		name   string
		change func(*ca.Leaf)
		part   string
	}{
		{"tier of the other class", func(l *ca.Leaf) { l.Tier = cradle.DiscreteTPM }, "does not sign under policy"},
		{"key not proved, by an issuer of proved keys", func(l *ca.Leaf) { l.Proved = false }, "does not sign under policy"},
		{"another account", func(l *ca.Leaf) { l.Account = "other" }, "not to account"},
		{"device id not canonical", func(l *ca.Leaf) { l.Device = "Upper Case" }, "device"},
		{"ends before it begins", func(l *ca.Leaf) { l.NotAfter = l.NotBefore }, "not before"},
		{"begins before its issuer", func(l *ca.Leaf) { l.NotBefore = now.Add(-24 * time.Hour) }, "beyond the issuer"},
		{"ends after its issuer", func(l *ca.Leaf) { l.NotAfter = ca.Forever.Add(time.Hour) }, "beyond the issuer"},
		{"weak curve", func(l *ca.Leaf) { l.Public = key(t, elliptic.P224()).Public() }, "EC on P-224 is not allowed"},
		{"the issuer's own key", func(l *ca.Leaf) { l.Public = iss.Key.Public() }, "issuer's own"},
		{"unknown profile", func(l *ca.Leaf) { l.Profile, l.Rules = "root", nil }, "no such profile"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := leaf(t, key(t, elliptic.P256()).Public())
			c.change(&l)
			p := ca.NewPermit("i", ca.NewSerial())
			_, err := ca.Issue(iss, p, l)
			if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.part) {
				t.Fatalf("got %v, want %q", err, c.part)
			}
			// A lint leaves the permit unspent.
			if _, err := ca.Issue(iss, p, leaf(t, key(t, elliptic.P256()).Public())); err != nil {
				t.Errorf("the permit after a refusal: %v", err)
			}
		})
	}
	if _, err := ca.Issue(iss, ca.NewPermit("i", big.NewInt(0)), leaf(t, key(t, elliptic.P256()).Public())); err == nil {
		t.Error("serial 0 was signed")
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

func TestSerials(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		n := ca.NewSerial()
		if n.Sign() <= 0 || n.BitLen() < 64 || n.BitLen() > 159 { // 802.1AR; RFC 5280 §4.1.2.2: at most 20 octets
			t.Fatalf("serial %x", n)
		}
		if s := n.Text(16); seen[s] {
			t.Fatalf("serial %s twice", s)
		} else {
			seen[s] = true
		}
	}
}
