package provider_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
)

// ceremony is a root that is kept outside: openssl and a folder.
type ceremony struct {
	t    *testing.T
	dir  string
	Cert *x509.Certificate
}

const opensslConf = `[req]
distinguished_name = dn
[dn]
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[issuing]
authorityKeyIdentifier = keyid
[sub]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
`

func newCeremony(t *testing.T, name string) *ceremony {
	c := &ceremony{t: t, dir: t.TempDir()}
	c.write("conf", []byte(opensslConf))
	openssl(t, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-sha384", "-days", "7300", "-subj", "/O=Example Corp/CN="+name,
		"-config", c.file("conf"), "-extensions", "root", "-keyout", c.file("key.pem"), "-out", c.file("root.pem"))
	c.Cert = c.read("root.pem")
	return c
}

func (c *ceremony) file(name string) string { return filepath.Join(c.dir, name) }

func (c *ceremony) write(name string, b []byte) {
	c.t.Helper()
	if err := os.WriteFile(c.file(name), b, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *ceremony) read(name string) *x509.Certificate {
	c.t.Helper()
	b, err := os.ReadFile(c.file(name))
	if err != nil {
		c.t.Fatal(err)
	}
	p, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

// sign has openssl sign a request as it stands.
func (c *ceremony) sign(csr []byte) *x509.Certificate {
	c.t.Helper()
	c.write("ca.csr", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	openssl(c.t, "req", "-verify", "-noout", "-in", c.file("ca.csr"))
	openssl(c.t, "x509", "-req", "-in", c.file("ca.csr"), "-CA", c.file("root.pem"), "-CAkey", c.file("key.pem"), "-CAcreateserial", "-days", "3650", "-sha384",
		"-copy_extensions", "copyall", "-extfile", c.file("conf"), "-extensions", "issuing", "-out", c.file("ca.pem"))
	return c.read("ca.pem")
}

// certify asks for a CA's request, has it signed and installs what comes back.
func (r *rig) certify(c *ceremony, kind provider.AuthorityKind, oem cradle.OEMID, class cradle.Class, fresh bool) *provider.Installed {
	r.t.Helper()
	csr, err := r.p.CASigningRequest(r.t.Context(), "acme", kind, oem, class, fresh)
	if err != nil {
		r.t.Fatal(err)
	}
	in, err := r.p.InstallCAs(r.t.Context(), "acme", []*x509.Certificate{c.sign(csr), c.Cert})
	if err != nil {
		r.t.Fatal(err)
	}
	return in
}

func (r *rig) cacerts(profile cradle.Profile) [][]byte {
	r.t.Helper()
	ep, err := r.p.Endpoint(r.t.Context(), cradle.Label("acme", profile))
	if err != nil {
		r.t.Fatal(err)
	}
	certs, err := r.p.CACerts(ep)
	if err != nil {
		r.t.Fatal(err)
	}
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}

// trusts verifies, by openssl and by crypto/x509, that who trusts root alone accepts leaf with what cacerts serves.
func (r *rig) trusts(root, leaf *x509.Certificate, profile cradle.Profile) {
	r.t.Helper()
	served := r.cacerts(profile)
	verifies(r.t, leaf, root.Raw, served...)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, der := range served {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			r.t.Fatal(err)
		}
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: r.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		r.t.Errorf("%s, trusting %s: %v", leaf.Subject, root.Subject, err)
	}
}
