package attest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cradle-iot/cradle/internal/weakkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// ClientTrust is what an operator registered to recognise clients of another CA. It lets a client in to enrol and
// makes it nothing else: it is no issued client of ours (RFC 7030 §3.3.2).
type ClientTrust struct {
	Anchors       []*x509.Certificate
	Intermediates []*x509.Certificate
}

// ParseClientCA reads a CA certificate that is to vouch for clients.
func ParseClientCA(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if !c.BasicConstraintsValid || !c.IsCA {
		return nil, fmt.Errorf("%s is not a CA certificate", nameOf(c))
	}
	if detail := weakCAKey(c); detail != "" {
		return nil, errors.New(detail)
	}
	return c, nil
}

// clientSubject is what the checks of a client certificate look at.
type clientSubject struct {
	now    time.Time
	leaf   *x509.Certificate
	path   []*x509.Certificate // issuers up to the anchor
	issued func(spki []byte) bool
}

// VerifyClient validates the certificate chain of a TLS client by RFC 5280 §6: chain is what the client
// sent, the leaf first, untrusted help beyond it. TLS has proved the leaf's key. issued says whether a CA key is
// ours: what our own CAs signed is known by its record or not at all. Extended key usages do not matter, an IDevID
// has none or any; notAfter may be 99991231235959Z. Revocation by the other CA is not asked for.
func VerifyClient(now time.Time, chain []*x509.Certificate, t ClientTrust, issued func(spki []byte) bool) Reasons {
	var why Reasons
	switch {
	case len(chain) == 0:
		why.add(ClientMissing, "no client certificate")
		return why
	case len(chain) > evidence.MaxCerts:
		why.add(ClientOversize, fmt.Sprintf("the client sent %d certificates; at most %d", len(chain), evidence.MaxCerts))
		return why
	}
	s := &clientSubject{now: now, leaf: chain[0], issued: issued}
	if run(&why, clientChecks, s); !why.OK() {
		return why
	}
	if s.path, why = clientPath(now, chain, t); !why.OK() {
		return why
	}
	run(&why, clientPathChecks, s)
	return why
}

// clientPath lets crypto/x509 find and validate a path.
func clientPath(now time.Time, chain []*x509.Certificate, t ClientTrust) ([]*x509.Certificate, Reasons) {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range t.Anchors {
		roots.AddCert(c)
	}
	for _, c := range slices.Concat(t.Intermediates, chain[1:]) {
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSA {
			continue // verifying under it would be slow
		}
		inter.AddCert(c)
	}
	leaf := *chain[0]
	leaf.UnhandledCriticalExtensions = nil // clientChecks have looked at them
	paths, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var why Reasons
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		why.add(ClientUntrusted, fmt.Sprintf("issuer %q leads to no CA that is registered here", issuerOf(chain[0])))
		return nil, why
	case err != nil:
		why.add(ClientPath, err.Error())
		return nil, why
	}
	return paths[0][1:], why
}

var clientChecks = []check[*clientSubject]{
	{ClientIsCA, func(s *clientSubject) string { return unless(!s.leaf.IsCA, "the client certificate is a CA's") }},
	{ClientUsage, func(s *clientSubject) string {
		ok := s.leaf.KeyUsage == 0 || s.leaf.KeyUsage&x509.KeyUsageDigitalSignature != 0
		return unless(ok, "key usage of the client certificate does not allow digital signatures")
	}},
	{ClientKey, func(s *clientSubject) string { return weakClientKey(s.leaf.PublicKey) }},
	{ClientCritical, func(s *clientSubject) string { return unhandled(s.leaf, oidSAN) }},
	{ClientValidity, func(s *clientSubject) string { return outside(s.now, s.leaf, false) }},
}

var clientPathChecks = []check[*clientSubject]{
	{ClientOurs, func(s *clientSubject) string {
		ours := s.issued != nil && slices.ContainsFunc(s.path, func(c *x509.Certificate) bool { return s.issued(c.RawSubjectPublicKeyInfo) })
		return unless(!ours, "a CA of this installation signed it, but there is no record of it")
	}},
	{ClientCAKey, func(s *clientSubject) string {
		for _, c := range s.path {
			if detail := weakCAKey(c); detail != "" {
				return detail
			}
		}
		return ""
	}},
}

// weakClientKey names what is weak about a key that a client holds.
func weakClientKey(pub any) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return weakkey.RSA(k)
	case *ecdsa.PublicKey:
		return unless(k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521(), "an EC key on another curve than P-256, P-384 or P-521")
	case ed25519.PublicKey:
		return ""
	}
	return "a key that is neither RSA nor EC nor Ed25519"
}

// VerifyPossession judges a CSR without evidence: that its key is no weak one and has signed it.
func VerifyPossession(csr *evidence.CSR) Reasons {
	var why Reasons
	if run(&why, possessionChecks, csr); why.OK() {
		run(&why, possessionSignature, csr)
	}
	return why
}

var possessionChecks = []check[*evidence.CSR]{
	{POPAlgorithm, func(c *evidence.CSR) string {
		switch a := c.Request.SignatureAlgorithm; a {
		case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
			x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS, x509.PureEd25519:
			return ""
		default:
			return fmt.Sprintf("signature algorithm %s of the CSR is not allowed", a)
		}
	}},
	{POPKey, func(c *evidence.CSR) string { return weakClientKey(c.Request.PublicKey) }},
}

var possessionSignature = []check[*evidence.CSR]{
	{POPSignature, func(c *evidence.CSR) string {
		if err := c.Request.CheckSignature(); err != nil {
			return "the CSR is not signed by its key: " + err.Error()
		}
		return ""
	}},
}
