package timestamp_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

var now = time.Date(2026, 5, 4, 3, 2, 1, 123456789, time.UTC)

type signer struct {
	key   *ecdsa.PrivateKey
	chain [][]byte
	pool  *x509.CertPool
}

func newSigner(t *testing.T, usages ...x509.ExtKeyUsage) signer {
	t.Helper()
	tmpl := testca.CA("services")
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), now.AddDate(9, 0, 0)
	ca := testca.New(t, tmpl, nil)
	leaf := testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: "time"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		ExtKeyUsage: usages, KeyUsage: x509.KeyUsageDigitalSignature}, ca)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return signer{leaf.Key, [][]byte{leaf.Cert.Raw}, pool}
}

func TestStatement(t *testing.T) {
	s := newSigner(t, x509.ExtKeyUsageTimeStamping)
	nonce := bytes.Repeat([]byte{7}, 32)
	st, err := timestamp.Sign(s.key, s.chain, nonce, now)
	if err != nil {
		t.Fatal(err)
	}
	wire, _ := json.Marshal(st)
	got, err := timestamp.Parse(wire)
	if err != nil {
		t.Fatal(err)
	}
	at, err := got.Verify(nonce, s.pool)
	if err != nil || !at.Equal(now) {
		t.Fatalf("got %v, %v, want %v", at, err, now)
	}
	if n, err := timestamp.ParseNonce(timestamp.EncodeNonce(nonce)); err != nil || !bytes.Equal(n, nonce) {
		t.Errorf("nonce came back as %x, %v", n, err)
	}
}

func TestRefusals(t *testing.T) {
	good := newSigner(t, x509.ExtKeyUsageTimeStamping)
	nonce := bytes.Repeat([]byte{7}, 32)
	sign := func(s signer, at time.Time) *timestamp.Statement {
		st, err := timestamp.Sign(s.key, s.chain, nonce, at)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	tls := newSigner(t, x509.ExtKeyUsageTimeStamping, x509.ExtKeyUsageServerAuth)
	for name, c := range map[string]struct {
		make func() (*timestamp.Statement, *x509.CertPool)
	}{
		"another nonce": {func() (*timestamp.Statement, *x509.CertPool) {
			st := sign(good, now)
			st.Nonce = bytes.Repeat([]byte{8}, 32)
			return st, good.pool
		}},
		"changed time": {func() (*timestamp.Statement, *x509.CertPool) {
			st := sign(good, now)
			st.Time = now.Add(time.Hour).Format(time.RFC3339Nano)
			return st, good.pool
		}},
		"other anchors":    {func() (*timestamp.Statement, *x509.CertPool) { return sign(good, now), tls.pool }},
		"a TLS server key": {func() (*timestamp.Statement, *x509.CertPool) { return sign(tls, now), tls.pool }},
		"outside the key's life": {func() (*timestamp.Statement, *x509.CertPool) {
			return sign(good, now.AddDate(2, 0, 0)), good.pool
		}},
		"no chain": {func() (*timestamp.Statement, *x509.CertPool) {
			st := sign(good, now)
			st.Chain = nil
			return st, good.pool
		}},
	} {
		t.Run(name, func(t *testing.T) {
			st, pool := c.make()
			_, err := st.Verify(nonce, pool)
			if k := cradle.KindOf(err); k != cradle.Unauthorized && k != cradle.Invalid {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
	if _, err := timestamp.Sign(good.key, good.chain, nil, now); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("an empty nonce: got %v", err)
	}
}
