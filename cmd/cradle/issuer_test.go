package main

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/provider/ca"
)

// ownRA is a process of the installation with a data folder of its own; days are added to its clock.
func (s *estRig) ownRA(days *int) *ownRA {
	return &ownRA{prov: s.p, dir: filepath.Join(s.t.TempDir(), "ra"), url: "https://" + s.addr, log: slog.New(slog.DiscardHandler),
		now: func() time.Time { return time.Now().AddDate(0, 0, *days) },
		client: func(cert ...tls.Certificate) *http.Client {
			tr := &http.Transport{TLSClientConfig: s.tls(&cert[0])}
			s.t.Cleanup(tr.CloseIdleConnections)
			return &http.Client{Transport: tr}
		}}
}

// TestOwnRegistrationAuthority: over the provider's own EST, with a credential that an operator's act began, that replaces
// itself, that further processes get one of their own of, and that ends when the operator says so.
func TestOwnRegistrationAuthority(t *testing.T) {
	s := newESTRig(t)
	var days int
	o := s.ownRA(&days)
	issue := func(o *ownRA, id, cn string) ([][]byte, error) {
		return o.IssueByCSR(t.Context(), "acme", "operational", cradle.DeviceID(id), csrOf(t, cn, testca.Key(t)))
	}
	refused := func(err error, kind cradle.Kind, part string) {
		t.Helper()
		if err == nil || cradle.KindOf(err) != kind || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v (%v), want %v: %s", err, cradle.KindOf(err), kind, part)
		}
	}
	_, err := issue(o, "lamp-1", "lamp-1")
	refused(err, cradle.Forbidden, "no registration authority")
	first, err := o.add(t.Context(), ca.Registrar{Account: "acme", Profile: cradle.Operational, Name: ownRAName}, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(o.dir, "acme-operational.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	chain, err := issue(o, "lamp-1", "LAMP-1")
	if err != nil || len(chain) != 3 {
		t.Fatalf("%d certificates, %v", len(chain), err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil || leaf.Subject.CommonName != "lamp-1" || leaf.Issuer.CommonName != "acme evaluation registration CA" {
		t.Errorf("%v by %v, %v", leaf.Subject, leaf.Issuer, err)
	}
	// Asked for what it may not have; none of it reaches another label.
	_, err = issue(o, "lamp-1", "lamp-2")
	refused(err, cradle.Invalid, "common name")
	_, err = issue(o, "gw-1", "gw-1") // came by a password
	refused(err, cradle.Forbidden, "did not come by this credential")
	for _, policy := range []string{"../x", "", "Operational"} {
		_, err = o.IssueByCSR(t.Context(), "acme", policy, "lamp-1", csrOf(t, "lamp-1", testca.Key(t)))
		refused(err, cradle.Invalid, "policy")
	}
	_, err = o.IssueByCSR(t.Context(), "globex", "operational", "lamp-1", csrOf(t, "lamp-1", testca.Key(t)))
	refused(err, cradle.Forbidden, "no registration authority")

	// The hubs renew what a registration brought, and nothing else.
	if _, err := (renewals{o}).IssueByCSR(t.Context(), "acme", "operational", "lamp-1", csrOf(t, "lamp-1", testca.Key(t))); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"lamp-9", "gw-1"} {
		_, err = (renewals{o}).IssueByCSR(t.Context(), "acme", "operational", cradle.DeviceID(id), csrOf(t, id, testca.Key(t)))
		refused(err, cradle.Forbidden, "did not come by a registration")
	}

	// A process that starts anew reads its file; another one gets a credential of its own.
	again := &ownRA{prov: o.prov, dir: o.dir, url: o.url, log: o.log, now: o.now, client: o.client}
	other := s.ownRA(&days)
	for _, o := range []*ownRA{again, other} {
		if _, err := issue(o, "lamp-1", "lamp-1"); err != nil {
			t.Error(err)
		}
	}
	live := func() (n int) {
		t.Helper()
		all, err := s.p.Registrars(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Cert.Revoked.IsZero() {
				n++
			}
		}
		return n
	}
	if n := live(); n != 2 {
		t.Errorf("%d credentials, want one for each process", n)
	}
	days = 21 // of 30
	if _, err := issue(o, "lamp-1", "lamp-1"); err != nil {
		t.Error(err)
	}
	all, err := s.p.Registrars(t.Context(), "acme")
	if err != nil || len(all) != 3 || all[0].Cert.Digest != first.Cert.Digest || all[0].Cert.Revoked.IsZero() || live() != 2 {
		t.Errorf("after its replacement: %d, %v", len(all), err)
	}
	if _, err := s.p.EndRegistrar(t.Context(), "acme", cradle.Operational, ownRAName, "", "test"); err != nil {
		t.Fatal(err)
	}
	for _, o := range []*ownRA{o, other, s.ownRA(&days)} {
		if _, err := issue(o, "lamp-1", "lamp-1"); cradle.KindOf(err) != cradle.Forbidden {
			t.Errorf("after the operator's end: %v", err)
		}
	}
	if n := live(); n != 0 {
		t.Errorf("%d credentials came back", n)
	}
}
