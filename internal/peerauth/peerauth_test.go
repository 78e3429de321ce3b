package peerauth_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/peerauth"
	"github.com/cradle-iot/cradle/internal/testca"
)

var now = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	}
	return testca.Sign(t, tmpl, &testca.Pair{Cert: parent, Key: key}, pub)
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
}

func newCA(t testing.TB, name string) authority {
	k := testca.Key(t)
	tmpl := caTemplate(name)
	return authority{sign(t, tmpl, tmpl, &k.PublicKey, k), k}
}

func (a authority) leaf(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "d1"}, KeyUsage: x509.KeyUsageDigitalSignature}
	if change != nil {
		change(tmpl)
	}
	return sign(t, tmpl, a.cert, &testca.Key(t).PublicKey, a.key)
}

func TestReasons(t *testing.T) {
	ca, other := newCA(t, "ca"), newCA(t, "other")
	impostor := newCA(t, "ca") // same name, another key
	sameID := caTemplate("ca") // same name and key id, another key
	sameID.SubjectKeyId = ca.cert.SubjectKeyId
	k := testca.Key(t)
	twin := authority{sign(t, sameID, sameID, &k.PublicKey, k), k}

	pool := peerauth.NewPool[string](0)
	if err := pool.Add(ca.cert, "acme"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		leaf   *x509.Certificate
		reason peerauth.Reason
		tag    string
	}{
		{"good", ca.leaf(t, nil), "", "acme"},
		{"no end", ca.leaf(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = now.Add(-time.Hour), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		}), "", "acme"},
		{"clientAuth", ca.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "", "acme"},
		{"unusual use", ca.leaf(t, func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 11, 1, 2}} }), "", "acme"},
		{"none", nil, peerauth.NoCertificate, ""},
		{"unknown", other.leaf(t, nil), peerauth.UnknownIssuer, ""},
		{"same name", impostor.leaf(t, nil), peerauth.UnknownIssuer, ""},
		{"forged", twin.leaf(t, nil), peerauth.BadSignature, ""},
		{"expired", ca.leaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Second) }), peerauth.Expired, "acme"},
		{"early", ca.leaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Second), now.Add(time.Hour) }), peerauth.NotYetValid, "acme"},
		{"expired and forged", twin.leaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Second) }), peerauth.BadSignature, ""},
		{"CA", ca.leaf(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), peerauth.WrongUse, ""},
		{"pinned CA itself", ca.cert, peerauth.WrongUse, ""},
		{"encryption", ca.leaf(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), peerauth.WrongUse, ""},
		{"server", ca.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), peerauth.WrongUse, ""},
		{"critical", ca.leaf(t, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), peerauth.WrongUse, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // the second time from memory, with the same result
				tag, err := pool.Verify(tc.leaf, now)
				check(t, err, tc.reason)
				if tag != tc.tag {
					t.Errorf("tag %q, want %q", tag, tc.tag)
				}
			}
		})
	}
}

func check(t *testing.T, err error, want peerauth.Reason) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	var e *peerauth.Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Fatalf("got %v, want reason %q", err, want)
	}
	if cradle.KindOf(err) != cradle.Unauthorized {
		t.Errorf("kind %v", cradle.KindOf(err))
	}
}

// What is remembered is the signature, never the time.
func TestTimeIsCheckedEachTime(t *testing.T) {
	ca := newCA(t, "ca")
	pool := peerauth.NewPool[int](0)
	if err := pool.Add(ca.cert, 7); err != nil {
		t.Fatal(err)
	}
	leaf := ca.leaf(t, nil)
	for _, step := range []struct {
		at   time.Time
		want peerauth.Reason
	}{
		{now, ""}, {now.Add(2 * time.Hour), peerauth.Expired}, {now, ""},
		{now.Add(-2 * time.Hour), peerauth.NotYetValid}, {now, ""},
	} {
		_, err := pool.Verify(leaf, step.at)
		check(t, err, step.want)
	}
}

func TestRemovedIssuerForgetsItsLeaves(t *testing.T) {
	ca := newCA(t, "ca")
	pool := peerauth.NewPool[int](0)
	leaf := ca.leaf(t, nil)
	if err := pool.Add(ca.cert, 1); err != nil {
		t.Fatal(err)
	}
	_, err := pool.Verify(leaf, now)
	check(t, err, "")
	pool.Remove(ca.cert)
	_, err = pool.Verify(leaf, now)
	check(t, err, peerauth.UnknownIssuer)
	if err := pool.Add(ca.cert, 2); err != nil {
		t.Fatal(err)
	}
	if tag, err := pool.Verify(leaf, now); err != nil || tag != 2 {
		t.Errorf("after adding again: %v, %v", tag, err)
	}
	if err := pool.Add(ca.cert, 3); err != nil || pool.Len() != 1 {
		t.Fatalf("adding twice: %v, %d issuers", err, pool.Len())
	}
	if tag, _ := pool.Verify(leaf, now); tag != 3 {
		t.Errorf("a new tag is not seen: %v", tag)
	}
}

// An issuing CA that is certified twice (by its own root and across) is one key under one name; the
// certificate that is valid counts.
func TestCrossCertifiedIssuer(t *testing.T) {
	ca := newCA(t, "ca")
	old := caTemplate("ca")
	old.NotBefore, old.NotAfter, old.SubjectKeyId = now.Add(-48*time.Hour), now.Add(-time.Minute), ca.cert.SubjectKeyId
	oldCert := sign(t, old, old, &ca.key.PublicKey, ca.key)
	pool := peerauth.NewPool[string](0)
	if err := pool.Add(oldCert, "old"); err != nil {
		t.Fatal(err)
	}
	leaf := ca.leaf(t, nil)
	tag, err := pool.Verify(leaf, now)
	check(t, err, peerauth.IssuerInvalid)
	if tag != "old" {
		t.Errorf("tag %q", tag)
	}
	if err := pool.Add(ca.cert, "new"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		tag, err = pool.Verify(leaf, now)
		check(t, err, "")
		if tag != "new" {
			t.Errorf("tag %q", tag)
		}
	}
}

func TestAddRefusesLeaf(t *testing.T) {
	ca := newCA(t, "ca")
	if err := peerauth.NewPool[int](0).Add(ca.leaf(t, nil), 1); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("got %v", err)
	}
}

// The memory is bounded, and forgetting changes no answer.
func TestBounded(t *testing.T) {
	ca := newCA(t, "ca")
	pool := peerauth.NewPool[int](3)
	if err := pool.Add(ca.cert, 1); err != nil {
		t.Fatal(err)
	}
	var leaves []*x509.Certificate
	for range 8 {
		leaves = append(leaves, ca.leaf(t, nil))
	}
	for range 2 {
		for _, l := range leaves {
			_, err := pool.Verify(l, now)
			check(t, err, "")
			if n := pool.Remembered(); n > 3 {
				t.Fatalf("%d remembered", n)
			}
		}
	}
}

func TestConcurrent(t *testing.T) {
	pool := peerauth.NewPool[string](2)
	var cas []authority
	var leaves []*x509.Certificate
	for i := range 3 {
		ca := newCA(t, fmt.Sprint("ca", i%2)) // two share a name
		cas = append(cas, ca)
		leaves = append(leaves, ca.leaf(t, nil))
		if err := pool.Add(ca.cert, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				n := (g + i) % 2 // 0 and 1 are never removed
				if tag, err := pool.Verify(leaves[n], now); err != nil || tag != fmt.Sprint(n) {
					t.Errorf("leaf %d: %v %v", n, tag, err)
				}
				_, _ = pool.Verify(leaves[2], now)
				if g == 0 {
					pool.Remove(cas[2].cert)
					_ = pool.Add(cas[2].cert, "2")
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkVerifyRemembered(b *testing.B) {
	ca := newCA(b, "ca")
	pool := peerauth.NewPool[int](0)
	_ = pool.Add(ca.cert, 1)
	leaf := ca.leaf(b, nil)
	for b.Loop() {
		if _, err := pool.Verify(leaf, now); err != nil {
			b.Fatal(err)
		}
	}
}
