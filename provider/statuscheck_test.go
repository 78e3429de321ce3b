package provider_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/status"
)

// statusRig is a rig whose certificates point to a status service that runs.
type statusRig struct {
	*rig
	url string
	dir string
}

func newStatusRig(t *testing.T, store string, cas ...provider.CAs) *statusRig {
	t.Helper()
	testenv.Require(t, "openssl")
	var h http.Handler
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	cas = append(cas, provider.CAs{})
	r := openRig(&rig{t: t, url: store, config: []func(*provider.Config){func(c *provider.Config) { c.StatusURL = srv.URL }}}, cas[0])
	h = status.New(status.Config{Source: r.p, Now: r.now})
	return &statusRig{r, srv.URL, t.TempDir()}
}

func (r *statusRig) file(name string, certs ...*x509.Certificate) string {
	r.t.Helper()
	var b bytes.Buffer
	for _, c := range certs {
		b.WriteString(pemText(c))
	}
	file := filepath.Join(r.dir, name)
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return file
}

func (r *statusRig) openssl(args ...string) (string, error) {
	out, err := exec.CommandContext(r.t.Context(), "openssl", args...).CombinedOutput()
	return string(out), err
}

// issuer returns the CA that signed a certificate.
func (r *statusRig) issuer(c *x509.Certificate) *x509.Certificate {
	r.t.Helper()
	for _, a := range r.p.StatusIssuers() {
		if c.CheckSignatureFrom(a.Cert) == nil {
			return a.Cert
		}
	}
	r.t.Fatalf("nobody here signed %q", c.Subject)
	return nil
}

// crl downloads the CRL that a certificate names, as PEM.
func (r *statusRig) crl(c *x509.Certificate) (string, *x509.RevocationList) {
	r.t.Helper()
	resp, err := http.Get(c.CRLDistributionPoints[0])
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s %v", c.CRLDistributionPoints[0], resp.Status, err)
	}
	list, err := x509.ParseRevocationList(b.Bytes())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(r.issuer(c)); err != nil {
		r.t.Fatal(err)
	}
	in := filepath.Join(r.dir, "crl.der")
	if err := os.WriteFile(in, b.Bytes(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	out := filepath.Join(r.dir, "crl.pem")
	if text, err := r.openssl("crl", "-inform", "DER", "-in", in, "-out", out); err != nil {
		r.t.Fatal(text)
	}
	pem, err := os.ReadFile(out)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(pem), list
}

// agree asks openssl in each way it can ask, and the store.
func (r *statusRig) agree(c *x509.Certificate, want cradle.Reason, revoked bool) {
	r.t.Helper()
	iss := r.issuer(c)
	root := r.root(cradle.Evaluation)
	leaf, issFile := r.file("leaf.pem", c), r.file("issuer.pem", iss)
	trust := r.file("trust.pem", root, iss)
	s, err := r.p.CertStatus(r.t.Context(), []string{ca.Digest(iss.Raw)}, ca.SerialString(c.SerialNumber))
	if err != nil || !s.Revoked.IsZero() != revoked || s.Code != want {
		r.t.Errorf("store: %+v, %v; want revoked %v, %s", s, err, revoked, want)
	}
	for _, ask := range [][]string{{"-no_nonce", "/ocsp"}, {"-nonce", "/ocsp"}, {"-sha256", "-no_nonce", "/ocsp"}, {"-sha384", "/ocsp/by-name"}} {
		last := len(ask) - 1
		args := append([]string{"ocsp", "-issuer", issFile}, ask[:last]...)
		args = append(args, "-cert", leaf, "-url", r.url+ask[last], "-CAfile", trust)
		text, err := r.openssl(args...)
		says := ": good"
		if revoked {
			says = ": revoked"
		}
		if err != nil || !strings.Contains(text, "Response verify OK") || !strings.Contains(text, says) || revoked && want != 0 && !strings.Contains(text, "Reason: "+want.String()) {
			r.t.Errorf("openssl ocsp %v: %v\n%s\nwant %q, reason %s", ask, err, text, says, want)
		}
		if ask[0] == "-nonce" && strings.Contains(text, "no nonce") {
			r.t.Errorf("openssl ocsp: %s", text)
		}
	}
	list, _ := r.crl(c)
	_, rootList := r.crl(iss)
	if len(rootList.RevokedCertificateEntries) != 0 {
		r.t.Errorf("the root's CRL has entries")
	}
	crls := filepath.Join(r.dir, "crls.pem")
	rootCRL, _ := r.crl(iss)
	if err := os.WriteFile(crls, []byte(list+rootCRL), 0o600); err != nil {
		r.t.Fatal(err)
	}
	for _, check := range []string{"-crl_check", "-crl_check_all"} {
		text, err := r.openssl("verify", check, "-CRLfile", crls, "-CAfile", r.file("root.pem", root), "-untrusted", issFile, leaf)
		if revoked != strings.Contains(text, "certificate revoked") || revoked != (err != nil) {
			r.t.Errorf("openssl verify %s: %v\n%s\nwant revoked %v", check, err, text, revoked)
		}
	}
}

// TestStatusAgrees: openssl ocsp, openssl verify -crl_check and the store say the same of certificates that are good, revoked, on hold,
// released, and never issued.
func TestStatusAgrees(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newStatusRig(t, url)
		o := r.order(nil)
		station := r.station(o)
		u, v := r.active(o, station, "SN0001"), r.active(o, station, "SN0002")
		r.agree(u.op, 0, false)
		r.agree(u.idevid, 0, false)
		change := func(c *x509.Certificate, ch provider.StateChange, reason string) {
			t.Helper()
			if _, _, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(c.SerialNumber), ch, reason); err != nil {
				t.Fatal(err)
			}
		}
		change(u.op, provider.Suspend, "")
		r.agree(u.op, cradle.CertificateHold, true)
		change(u.op, provider.Release, "")
		r.agree(u.op, 0, false)
		change(u.op, provider.Revoke, "keyCompromise")
		r.agree(u.op, cradle.KeyCompromise, true)
		r.agree(u.ldevid, 0, false)
		id := cradle.DeviceID(v.op.Subject.CommonName)
		for _, step := range []struct {
			change  provider.StateChange
			code    cradle.Reason
			revoked bool
		}{{provider.Suspend, cradle.CertificateHold, true}, {provider.Release, 0, false}, {provider.Suspend, cradle.CertificateHold, true}, {provider.Retire, cradle.CessationOfOperation, true}} {
			if _, err := r.p.ChangeState(t.Context(), "acme", id, step.change, ""); err != nil {
				t.Fatal(err)
			}
			r.agree(v.op, step.code, step.revoked)
			r.agree(v.idevid, step.code, step.revoked)
		}
		iss := r.file("issuer.pem", r.issuer(u.op))
		text, err := r.openssl("ocsp", "-issuer", iss, "-serial", "0x1234567890abcdef", "-url", r.url+"/ocsp", "-CAfile", r.file("trust.pem", r.root(cradle.Evaluation), r.issuer(u.op)))
		if err != nil || !strings.Contains(text, "Response verify OK") || !strings.Contains(text, ": unknown") {
			t.Errorf("a serial that was never issued: %v\n%s", err, text)
		}
		r.check()
	})
}

// TestStatusOfOtherKeys: the same under issuing keys of other kinds.
func TestStatusOfOtherKeys(t *testing.T) {
	for _, alg := range []keystore.Algorithm{keystore.P384, keystore.RSA3072} {
		t.Run(string(alg), func(t *testing.T) {
			if alg != keystore.P384 {
				testenv.Long(t) // its keys take their time
			}
			r := newStatusRig(t, t.TempDir()+"/p.db", provider.CAs{Key: alg})
			o := r.order(nil)
			u := r.active(o, r.station(o), "SN0001")
			r.agree(u.op, 0, false)
			if _, err := r.p.ChangeState(t.Context(), "acme", idOf(u), provider.Revoke, "affiliationChanged"); err != nil {
				t.Fatal(err)
			}
			r.agree(u.op, cradle.AffiliationChanged, true)
			r.agree(u.idevid, cradle.AffiliationChanged, true)
		})
	}
}

// TestCRLShards: a shard takes so many certificates, a replica goes on with its own after a restart, and entries leave after
// the certificate's end, one CRL later.
func TestCRLShards(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newStatusRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		point := u.op.CRLDistributionPoints[0]
		_, first := r.crl(u.op)
		if _, same := r.crl(u.op); same.Number.Cmp(first.Number) != 0 {
			t.Error("a CRL was made anew although nothing changed")
		}
		r.p = r.replica(r.db) // a restart
		renewed, err := r.renew(u, u.op)
		if err != nil || renewed.CRLDistributionPoints[0] != point {
			t.Fatalf("after a restart the shard is %v, %v; want %s", renewed.CRLDistributionPoints, err, point)
		}
		if _, _, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(u.op.SerialNumber), provider.Revoke, ""); err != nil {
			t.Fatal(err)
		}
		_, second := r.crl(u.op)
		if second.Number.Cmp(first.Number) <= 0 || len(second.RevokedCertificateEntries) != 1 {
			t.Fatalf("CRL %v with %d entries after %v", second.Number, len(second.RevokedCertificateEntries), first.Number)
		}
		r.advance(13 * time.Hour) // the certificate lasts an hour
		if _, err := r.enrollKey(u, cradle.Operational, u.ldevid); err != nil {
			t.Fatal(err)
		}
		for i, entries := range []int{1, 0} {
			if i > 0 {
				r.advance(25 * time.Hour)
			}
			if err := r.p.Round(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, l := r.crl(u.op)
			if len(l.RevokedCertificateEntries) != entries || l.Number.Cmp(second.Number) <= 0 {
				t.Errorf("%d. CRL after the certificate's end: %d entries, number %v after %v; want %d", i+1, len(l.RevokedCertificateEntries), l.Number, second.Number, entries)
			}
			second = l
		}
	})
}

// TestShardsFill: the shard that is full is closed, and two replicas do not share one.
func TestShardsFill(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		name := func(n int64) string { return fmt.Sprintf("http://x/%d.crl", n) }
		open := func(replica string) provider.Shard {
			t.Helper()
			s, err := r.db.OpenShard(t.Context(), "ca", replica, name)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		a, b := open("a"), open("b")
		if a.Number == b.Number || a.URL != name(a.Number) {
			t.Fatalf("two replicas got the shards %+v and %+v", a, b)
		}
		if again := open("a"); again.Number != a.Number {
			t.Errorf("asked again: shard %d", again.Number)
		}
		a.Issued, a.LastExpiry = provider.ShardSize, r.now().Add(time.Hour)
		if err := r.db.FillShards(t.Context(), []provider.Shard{a}); err != nil {
			t.Fatal(err)
		}
		if next := open("a"); next.Number != 3 {
			t.Errorf("after it was full: shard %d", next.Number)
		}
		name = func(n int64) string { return fmt.Sprintf("http://y/%d.crl", n) }
		if moved := open("b"); moved.Number != 4 {
			t.Errorf("after the URL changed: shard %d", moved.Number)
		}
		if urls, err := r.db.ShardURLs(t.Context(), "ca", r.now().Add(2*time.Hour)); err != nil || fmt.Sprint(urls) != "[http://x/2.crl http://x/3.crl http://y/4.crl]" {
			t.Errorf("shards with living certificates in two hours: %v, %v", urls, err)
		}
	})
}

// TestCRLSaved: of two that make a CRL at once one is kept; the lease is held by one, until it ends.
func TestCRLSaved(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		s, err := r.db.OpenShard(t.Context(), "ca", "a", func(int64) string { return "u" })
		if err != nil {
			t.Fatal(err)
		}
		s.CRLNumber, s.Made = 7, 1
		if err := r.db.SaveCRL(t.Context(), s, 0, []byte("first")); err != nil {
			t.Fatal(err)
		}
		refused(t, r.db.SaveCRL(t.Context(), s, 0, []byte("second")), cradle.Conflict, "newer CRL")
		if got, der, err := r.db.ShardCRL(t.Context(), "ca", s.Number); err != nil || string(der) != "first" || got.CRLNumber != 7 {
			t.Errorf("kept %q %+v, %v", der, got, err)
		}
		now := r.now()
		for _, c := range []struct {
			holder string
			after  time.Duration
			want   bool
		}{{"a", 0, true}, {"b", 0, false}, {"a", time.Second, true}, {"b", 9 * time.Second, false}, {"b", 12 * time.Second, true}, {"a", 12 * time.Second, false}} {
			at := now.Add(c.after)
			if held, err := r.db.Lease(t.Context(), "x", c.holder, at, at.Add(10*time.Second)); err != nil || held != c.want {
				t.Errorf("%s at %v: held %v, %v", c.holder, c.after, held, err)
			}
		}
	})
}

// TestResponderRenews: the responder is shared, and replaced when half of its life is over.
func TestResponderRenews(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		id := ca.Digest(r.root(cradle.Evaluation).Raw)
		key := func(p *provider.Provider) *provider.OCSPKey {
			t.Helper()
			k, err := p.OCSPKey(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		other := r.replica(r.db)
		k := key(r.p)
		if !key(other).Cert.Equal(k.Cert) {
			t.Error("two replicas have two responders")
		}
		if err := k.Cert.CheckSignatureFrom(r.root(cradle.Evaluation)); err != nil || k.Cert.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning {
			t.Errorf("%v, %v", err, k.Cert.ExtKeyUsage)
		}
		r.advance(8 * 24 * time.Hour)
		fresh := key(other)
		if fresh.Cert.Equal(k.Cert) || !key(r.p).Cert.Equal(fresh.Cert) {
			t.Error("not renewed, or not by both alike")
		}
		r.check()
	})
}

// TestStatusOfFrontEnd: a process without issuing keys serves CRLs and OCSP that the one with the keys makes, within a round of it.
func TestStatusOfFrontEnd(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url, func(c *provider.Config) { c.StatusURL = "http://status.example.com" })
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		signer := r.p
		r.config = append(r.config, func(c *provider.Config) { c.Signer, c.Replica = noSigner{}, "front" })
		front := r.replica(r.db)
		issuer, shard := r.certificate(u.op).Authority, provider.ShardOf(u.op.Raw)
		_, err := front.OCSPKey(t.Context(), issuer)
		refused(t, err, cradle.Busy, "no OCSP responder")
		_, _, err = front.CRL(t.Context(), issuer, shard)
		refused(t, err, cradle.Busy, "not made yet")
		root := ca.Digest(r.root(cradle.Evaluation).Raw)
		_, _, err = front.CRL(t.Context(), root, 1)
		refused(t, err, cradle.Busy, "not made yet")
		for range 2 { // the front end goes first, and must not keep the signer from it
			if err := front.Round(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := signer.Round(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		r.advance(3 * time.Second)
		if k, err := front.OCSPKey(t.Context(), issuer); err != nil || k.Key == nil {
			t.Errorf("%v", err)
		}
		if _, der, err := front.CRL(t.Context(), root, 1); err != nil || len(der) == 0 {
			t.Errorf("the root's CRL: %v", err)
		}
		before, _, err := front.CRL(t.Context(), issuer, shard)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := front.ChangeCertificate(t.Context(), "acme", ca.SerialString(u.op.SerialNumber), provider.Revoke, ""); err != nil {
			t.Fatal(err)
		}
		if old, _, err := front.CRL(t.Context(), issuer, shard); err != nil || old.CRLNumber != before.CRLNumber {
			t.Errorf("the CRL in between: %+v, %v", old, err)
		}
		if err := signer.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, der, err := front.CRL(t.Context(), issuer, shard)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := x509.ParseRevocationList(der); err != nil || len(l.RevokedCertificateEntries) != 1 {
			t.Errorf("after the signer's round: %v", err)
		}
		// A responder that is due is used on, and renewed by the signer.
		r.advance(8 * 24 * time.Hour)
		k, err := front.OCSPKey(t.Context(), issuer)
		if err != nil {
			t.Fatal(err)
		}
		if err := signer.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.advance(3 * time.Second)
		if fresh, err := front.OCSPKey(t.Context(), issuer); err != nil || fresh.Cert.Equal(k.Cert) {
			t.Errorf("not renewed: %v", err)
		}
	})
}

// noSigner is a signer apart that is never asked.
type noSigner struct{ provider.Signer }
