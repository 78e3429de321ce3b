package provider_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
)

// An account whose root is kept elsewhere: nothing is issued until its CAs are certified there, then a device lives as
// any other, and its certificates lead to that root.
func TestExternalRoot(t *testing.T) {
	for name, url := range map[string]func() string{
		"sqlite":   func() string { return filepath.Join(t.TempDir(), "p.db") },
		"postgres": func() string { return testenv.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRigWith(t, url(), provider.CAs{Key: keystore.P384, External: true})
			root := newCeremony(t, "Example Root")
			if _, cas, err := r.p.Account(t.Context(), "acme"); err != nil || len(cas) != 0 {
				t.Fatalf("before the ceremony the account has %d CAs, %v", len(cas), err)
			}
			o := &order.Order{Account: "acme", OEM: "maker1", Model: "gw1", Quantity: 1, SerialPrefix: "SN", SerialFirst: "1", SerialLast: "1", Tiers: []cradle.Tier{cradle.Simulator},
				TPMMakers: []cradle.MakerID{"soft"}, Naming: "{account}-{serial}", ProviderURL: "https://localhost", ServicesAnchors: pemText(r.p.Services()),
				AccountAnchors: pemText(root.Cert), ProvisioningEndpoint: "https://localhost", IDScope: "0ne1", AutoAccept: true}
			o.Complete(r.now())
			_, err := r.p.CreateOrder(t.Context(), r.signed(o), func(cradle.AccountID) error { return nil })
			refused(t, err, cradle.NotFound, "no root CA")
			r.basicUser(cradle.Operational, "line", "")
			_, err = r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "gw-1", newKey(t), false))
			refused(t, err, cradle.Busy, "waits for its certificate")
			for _, k := range []provider.AuthorityKind{provider.OnboardingCA, provider.OperationalCA} {
				in := r.certify(root, k, "", cradle.Evaluation, false)
				for _, w := range in.Warnings {
					if !strings.Contains(w, "attestation register") {
						t.Errorf("%s: %s", k, w)
					}
				}
			}
			_, err = r.p.CreateOrder(t.Context(), r.signed(o), func(cradle.AccountID) error { return nil })
			refused(t, err, cradle.Busy, "idevid CA of account acme (evaluation) waits")
			in := r.certify(root, provider.IDevIDCA, "maker1", cradle.Evaluation, false)
			if !slices.ContainsFunc(in.Warnings, func(w string) bool { return strings.Contains(w, "IDevIDs that it signs end with it") }) {
				t.Errorf("warnings %q", in.Warnings)
			}
			o = r.order(func(o *order.Order) { o.AccountAnchors = pemText(root.Cert) })
			u := r.active(o, r.station(o), "SN0001")
			r.trusts(root.Cert, u.op, cradle.LDevID) // which a device asks once for both
			for p, c := range map[cradle.Profile]*x509.Certificate{cradle.IDevID: u.idevid, cradle.IAK: u.iak, cradle.LDevID: u.ldevid, cradle.Operational: u.op} {
				r.trusts(root.Cert, c, p)
				// A verifier that demands the tier's policy is content: the CA has it.
				openssl(t, "verify", "-CAfile", pemFile(t, root.Cert.Raw), "-untrusted", pemFile(t, r.cacerts(p)...), "-explicit_policy",
					"-policy", cradle.TierPolicy(cradle.Simulator).String(), pemFile(t, c.Raw))
			}
			r.check()
		})
	}
}

// What an external CA signed wrongly is refused with its reason, and nothing is stored.
func TestInstallRefuses(t *testing.T) {
	r := newRigWith(t, filepath.Join(t.TempDir(), "p.db"), provider.CAs{External: true})
	csr, err := r.p.CASigningRequest(t.Context(), "acme", provider.OperationalCA, "", cradle.Evaluation, false)
	if err != nil {
		t.Fatal(err)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	rootKey := newKey(t)
	make := func(c *x509.Certificate, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
		t.Helper()
		der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	newRoot := func(change func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: r.now().Add(-time.Hour), NotAfter: r.now().Add(1e5 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
		change(c)
		return make(c, c, rootKey.Public(), rootKey)
	}
	root := newRoot(func(*x509.Certificate) {})
	same := func(*x509.Certificate) {}
	for _, c := range []struct {
		name   string
		root   *x509.Certificate
		change func(*x509.Certificate)
		part   string
	}{
		{"no CA", root, func(c *x509.Certificate) { c.IsCA = false }, "CA:TRUE"},
		{"no keyCertSign", root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }, "keyCertSign"},
		{"no cRLSign", root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }, "cRLSign"},
		{"another name", root, func(c *x509.Certificate) { c.Subject.CommonName = "Example Issuing CA" }, "the request was for"},
		{"another account's name", root, func(c *x509.Certificate) { c.Subject.Organization = []string{"other"} }, "the request was for"},
		{"more in the name", root, func(c *x509.Certificate) { c.Subject.Country = []string{"DE"} }, "the request was for"},
		{"expired", root, func(c *x509.Certificate) { c.NotAfter = r.now().Add(-time.Minute) }, "expired"},
		{"not valid yet", root, func(c *x509.Certificate) { c.NotBefore = r.now().Add(time.Hour) }, "not valid before"},
		{"for servers alone", root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "clientAuth"},
		{"a root that may have no CA below it", newRoot(func(c *x509.Certificate) { c.MaxPathLenZero = true }), same, "too many intermediates"},
		{"a root that is no CA", newRoot(func(c *x509.Certificate) { c.IsCA = false; c.MaxPathLen = -1 }), same, "does not lead to a self-signed root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: []string{"acme"}, CommonName: req.Subject.CommonName},
				NotBefore: r.now().Add(-2 * time.Minute), NotAfter: r.now().Add(1e4 * time.Hour), BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
				Policies: cradle.ClassPolicies(cradle.Evaluation, true)}
			c.change(tmpl)
			_, err := r.p.InstallCAs(t.Context(), "acme", []*x509.Certificate{make(tmpl, c.root, req.PublicKey, rootKey), c.root})
			refused(t, err, cradle.Invalid, c.part)
		})
	}
	good := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: []string{"acme"}, CommonName: req.Subject.CommonName},
		NotBefore: r.now().Add(-2 * time.Minute), NotAfter: r.now().Add(1e4 * time.Hour), BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	_, err = r.p.InstallCAs(t.Context(), "acme", []*x509.Certificate{make(good, root, newKey(t).Public(), rootKey), root})
	refused(t, err, cradle.Invalid, "none of the 2 certificates holds the key")
	_, err = r.p.InstallCAs(t.Context(), "acme", []*x509.Certificate{make(good, root, req.PublicKey, rootKey)})
	refused(t, err, cradle.Invalid, "does not lead to a self-signed root")
	if cas, keys, err := r.p.CAs(t.Context(), "acme"); err != nil || len(cas) != 0 || len(keys) != 6 {
		t.Errorf("after the refusals: %d CAs, %d keys wait, %v", len(cas), len(keys), err)
	}

	signed := []*x509.Certificate{make(good, root, req.PublicKey, rootKey), root}
	in, err := r.p.InstallCAs(t.Context(), "acme", signed)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.p.InstallCAs(t.Context(), "acme", signed)
	refused(t, err, cradle.Conflict, "is installed already")
	for _, part := range []string{"lacks the certificate policies " + cradle.TierPolicy(cradle.Simulator).String(), "may sign further CAs", "attestation register"} {
		if !slices.ContainsFunc(in.Warnings, func(w string) bool { return strings.Contains(w, part) }) {
			t.Errorf("no warning %q in %q", part, in.Warnings)
		}
	}
	good.SubjectKeyId = []byte{1, 2, 3}
	_, err = r.p.InstallCAs(t.Context(), "acme", []*x509.Certificate{make(good, root, req.PublicKey, rootKey), root})
	refused(t, err, cradle.Invalid, "subjectKeyIdentifier is 010203")
}

// An account moves to another root while its devices work: who trusts the old root, and who trusts the new one,
// verifies all of them.
func TestMoveToExternalRoot(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	old, before := r.root(cradle.Evaluation), u.op
	root := newCeremony(t, "Example Root")

	in := r.certify(root, provider.OperationalCA, "", cradle.Evaluation, false)
	if len(in.CAs) != 2 || !slices.ContainsFunc(in.Warnings, func(w string) bool { return strings.Contains(w, "cradle ca cross") }) {
		t.Errorf("installed %d CAs, warnings %q", len(in.CAs), in.Warnings)
	}
	if _, err := r.p.CrossRoots(t.Context(), "acme", cradle.Evaluation); err != nil { // NewWithOld, by the key that is here
		t.Fatal(err)
	}
	in = r.certify(root, provider.RootCA, "", cradle.Evaluation, false) // OldWithNew, by the key that is not
	if len(in.CAs) != 0 || len(in.Crossed) != 1 {
		t.Errorf("installed %d CAs, %d crosses", len(in.CAs), len(in.Crossed))
	}
	after, err := r.renew(u, u.op)
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range []*x509.Certificate{before, after} {
		r.trusts(old, leaf, cradle.Operational)
		r.trusts(root.Cert, leaf, cradle.Operational)
	}
	r.trusts(old, u.ldevid, cradle.LDevID) // the onboarding CA did not move
	r.trusts(root.Cert, u.ldevid, cradle.LDevID)
	if ldevid, err := r.enrollKey(u, cradle.LDevID, u.idevid); err != nil {
		t.Error(err)
	} else {
		r.trusts(old, ldevid, cradle.LDevID)
	}
	r.check()
}

// The key of an issuing CA is rolled: old certificates stay good, the next ones come from the new key.
func TestRoll(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	st := r.station(o)
	u := r.active(o, st, "SN0001")
	root := r.root(cradle.Evaluation)
	for _, c := range []struct {
		kind provider.AuthorityKind
		oem  cradle.OEMID
	}{{provider.OperationalCA, ""}, {provider.OnboardingCA, ""}, {provider.UnprovedCA, ""}, {provider.IDevIDCA, "maker1"}} {
		a, err := r.p.RollCA(t.Context(), "acme", c.kind, c.oem, cradle.Evaluation)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(a.Cert)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(cert.Subject.CommonName, " G2") {
			t.Errorf("the %s CA is called %q", c.kind, cert.Subject.CommonName)
		}
		verifies(t, cert, root.Raw)
	}
	op, err := r.renew(u, u.op) // authenticated by a certificate of the old key
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(op.Issuer.CommonName, " G2") || strings.HasSuffix(u.op.Issuer.CommonName, " G2") {
		t.Errorf("renewal went from %q to %q", u.op.Issuer, op.Issuer)
	}
	u2 := r.active(o, st, "SN0002")
	for _, c := range []*x509.Certificate{u.op, op, u2.op} {
		r.trusts(root, c, cradle.Operational)
	}
	for _, c := range []*x509.Certificate{u.idevid, u2.idevid} {
		r.trusts(root, c, cradle.IDevID)
	}
	r.check()

	// And the root: those who trust either one verify what is below either one.
	if _, err := r.p.RollCA(t.Context(), "acme", provider.RootCA, "", cradle.Evaluation); err != nil {
		t.Fatal(err)
	}
	next := r.root(cradle.Evaluation)
	if _, err := r.p.RollCA(t.Context(), "acme", provider.OperationalCA, "", cradle.Evaluation); err != nil {
		t.Fatal(err)
	}
	op3, err := r.renew(u, op)
	if err != nil {
		t.Fatal(err)
	}
	for _, anchor := range []*x509.Certificate{root, next} {
		for _, c := range []*x509.Certificate{u.op, op, op3} {
			r.trusts(anchor, c, cradle.Operational)
		}
	}
	cas, keys, err := r.p.CAs(t.Context(), "acme")
	if err != nil || len(keys) != 0 {
		t.Fatalf("%d keys wait, %v", len(keys), err)
	}
	active := 0
	for _, a := range cas {
		if a.State == provider.ActiveCA {
			active++
		}
	}
	if active != 9 || len(cas) != 9+6 { // four of each class, the IDevID CA; four rolls, the root's, the operational's again
		t.Errorf("%d CAs, %d of them active", len(cas), active)
	}
	r.p = r.replica(r.db) // all of it was stored
	if _, err := r.renew(u, op3); err != nil {
		t.Error(err)
	}
	r.check()
}

// One external root of both classes and of two accounts: allowed, and said.
func TestSharedExternalRoot(t *testing.T) {
	r := newRigWith(t, filepath.Join(t.TempDir(), "p.db"), provider.CAs{External: true})
	root := newCeremony(t, "Example Root")
	r.certify(root, provider.OperationalCA, "", cradle.Production, false)
	in := r.certify(root, provider.OperationalCA, "", cradle.Evaluation, false)
	if !slices.ContainsFunc(in.Warnings, func(w string) bool { return strings.Contains(w, "share one root") }) {
		t.Errorf("warnings %q", in.Warnings)
	}
	if _, err := r.p.CreateAccount(t.Context(), "other", spki(t, newKey(t)), nil, provider.CAs{External: true}); err != nil {
		t.Fatal(err)
	}
	csr, err := r.p.CASigningRequest(t.Context(), "other", provider.OperationalCA, "", cradle.Production, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.p.InstallCAs(t.Context(), "other", []*x509.Certificate{root.sign(csr), root.Cert}); err != nil {
		t.Fatal(err)
	}
	r.check()
}

func TestRollRefuses(t *testing.T) {
	r := newRigWith(t, filepath.Join(t.TempDir(), "p.db"), provider.CAs{External: true})
	root := newCeremony(t, "Example Root")
	r.certify(root, provider.OperationalCA, "", cradle.Production, false)
	for _, c := range []struct {
		kind  provider.AuthorityKind
		oem   cradle.OEMID
		class cradle.Class
		want  cradle.Kind
		part  string
	}{
		{provider.OperationalCA, "", cradle.Production, cradle.Conflict, "is kept elsewhere"},
		{provider.RootCA, "", cradle.Production, cradle.Conflict, "is kept elsewhere"},
		{provider.OnboardingCA, "", cradle.Production, cradle.NotFound, "no active"},
		{provider.StationCA, "", cradle.Production, cradle.Invalid, "no \"station\" CA"},
		{provider.IDevIDCA, "", cradle.Production, cradle.Invalid, "belongs to an OEM"},
		{provider.OperationalCA, "maker1", cradle.Production, cradle.Invalid, "belongs to an OEM"},
		{provider.OperationalCA, "", "", cradle.Invalid, "no such class"},
	} {
		_, err := r.p.RollCA(t.Context(), "acme", c.kind, c.oem, c.class)
		refused(t, err, c.want, c.part)
	}
	_, err := r.p.CASigningRequest(t.Context(), "acme", provider.RootCA, "", cradle.Production, false)
	refused(t, err, cradle.Invalid, "no production root that was replaced")
	_, err = r.p.CrossRoots(t.Context(), "acme", cradle.Production)
	refused(t, err, cradle.Conflict, "one production root only")
	// A new key below the external root, signed there.
	in := r.certify(root, provider.OperationalCA, "", cradle.Production, true)
	if c, err := x509.ParseCertificate(in.CAs[0].Cert); err != nil || !strings.HasSuffix(c.Subject.CommonName, " G2") {
		t.Errorf("installed %v, %v", c.Subject, err)
	}
}
