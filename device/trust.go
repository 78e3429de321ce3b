package device

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
)

// readChain reads the certificates of a PEM file in their order.
func readChain(file string) ([][]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for {
		var p *pem.Block
		if p, b = pem.Decode(b); p == nil {
			break
		}
		if p.Type == "CERTIFICATE" {
			out = append(out, p.Bytes)
		}
	}
	if len(out) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "%s holds no certificate", file)
	}
	return out, nil
}

func loadAnchors(file string) (*x509.CertPool, error) {
	chain, err := readChain(file)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "anchors: %v", err).WithHint("the line writes the anchors beside agent.toml")
	}
	pool := x509.NewCertPool()
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "anchors: certificate %d of %s: %v", i+1, file, err)
		}
		pool.AddCert(c)
	}
	return pool, nil
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// tlsConfig verifies a server at rawURL against the services' anchors at our time. cert may be nil.
func (d *Device) tlsConfig(host string, cert *tls.Certificate) *tls.Config {
	return d.tlsConfigAt(host, cert, d.verifyServer)
}

func (d *Device) tlsConfigAt(host string, cert *tls.Certificate, verify func(leaf *x509.Certificate, o x509.VerifyOptions) error) *tls.Config {
	c := &tls.Config{
		ServerName: host,
		MinVersion: tls.VersionTLS13,
		Time:       d.time.now,
		// crypto/tls cannot be told that validity is judged at a lower bound of the time; VerifyConnection does
		// all that it would do, of a resumed session too. Sessions are not resumed but for the one of type ticket.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server sent no certificate")
			}
			o := x509.VerifyOptions{Roots: d.services, Intermediates: x509.NewCertPool(), DNSName: host, CurrentTime: d.time.now()}
			for _, c := range s.PeerCertificates[1:] {
				o.Intermediates.AddCert(c)
			}
			return verify(s.PeerCertificates[0], o)
		},
	}
	if cert != nil {
		// Not Certificates: those are withheld when the server's CA list does not name the issuer.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

func (d *Device) verifyServer(leaf *x509.Certificate, o x509.VerifyOptions) error {
	_, err := d.verify(leaf, o)
	return err
}

// verify is leaf.Verify at a time that is only a lower bound unless somebody vouched for it: a chain that
// is not valid yet is then judged at the moment at which all of it is.
func (d *Device) verify(leaf *x509.Certificate, o x509.VerifyOptions) ([][]*x509.Certificate, error) {
	chains, err := leaf.Verify(o)
	if err == nil || !isTimeError(err) || d.time.vouched() {
		return chains, err
	}
	o.CurrentTime = slices.MaxFunc([]time.Time{leaf.NotBefore, o.CurrentTime}, time.Time.Compare)
	if c, err := leaf.Verify(o); err == nil {
		return c, nil
	}
	return nil, err
}

// ignoreValidity accepts a chain that holds at any moment of the leaf's life: only for asking the time.
func ignoreValidity(leaf *x509.Certificate, o x509.VerifyOptions) error {
	var err error
	for _, o.CurrentTime = range []time.Time{leaf.NotBefore, leaf.NotAfter} {
		if _, err = leaf.Verify(o); err == nil {
			return nil
		}
	}
	return err
}

// isTimeError reports whether a chain failed for its validity period alone, so that a better clock may
// mend it. crypto/x509 says Expired for "not yet" too.
func isTimeError(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// certificate joins a credential and its key for TLS.
func certificate(c *Credential, key Key) (*tls.Certificate, error) {
	leaf := c.leaf()
	if leaf == nil {
		return nil, errors.New("internal error: no certificate")
	}
	if !samePublic(leaf.PublicKey, key.Public()) {
		return nil, errNotOurKey
	}
	return &tls.Certificate{Certificate: c.Chain, PrivateKey: key, Leaf: leaf,
		SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}, nil
}

// errNotOurKey: the TPM holds another key than the certificate, as after TPM2_Clear.
var errNotOurKey = errors.New("the TPM's key is not the certificate's")

// authenticator finds the credential and key of a.
func (d *Device) authenticator(ctx context.Context, j *Journal, a Authenticator) (*tls.Certificate, error) {
	switch a {
	case ByIDevID:
		return certificate(&d.idevidCert, d.idevid)
	case ByLDevID:
		key, err := d.tpm.LDevID(ctx)
		if err != nil {
			return nil, err
		}
		cert, err := certificate(&j.LDevID, key)
		if err == nil {
			cert.Certificate = cert.Certificate[:1] // it is for the provider alone, whose CA issued it (RFC 8446 §4.4.2)
		}
		return cert, err
	}
	return d.slotCertificate(ctx, &j.Slots[map[Authenticator]int{BySlot0: 0, BySlot1: 1}[a]])
}

func (d *Device) slotCertificate(ctx context.Context, s *Slot) (*tls.Certificate, error) {
	key, err := d.key(ctx, s.Key)
	if err != nil {
		return nil, err
	}
	return certificate(&s.Credential, key)
}

// checkCACerts keeps of what cacerts answered the CA certificates that chain to the account's anchors.
func (d *Device) checkCACerts(certs []*x509.Certificate) ([][]byte, error) {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	var out [][]byte
	var last error
	for _, c := range certs {
		if !c.IsCA {
			continue
		}
		_, err := d.verify(c, x509.VerifyOptions{Roots: d.account, Intermediates: pool, CurrentTime: d.time.now(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err != nil {
			last = err
			continue
		}
		out = append(out, c.Raw)
	}
	if len(out) == 0 {
		return nil, errors.Join(cradle.Errorf(cradle.Unauthorized, "none of the %d CA certificates of EST chains to the account's anchors", len(certs)), last)
	}
	return out, nil
}

// checkIssued verifies that a certificate is what was asked for: our key, our name, of our account, chaining to its
// anchors. It returns the chain to present: the leaf and the issuers below the anchor.
func (d *Device) checkIssued(leaf *x509.Certificate, spki []byte, issuers [][]byte) ([][]byte, error) {
	bad := func(format string, args ...any) ([][]byte, error) {
		return nil, cradle.Errorf(cradle.Unauthorized, "the certificate that EST issued: "+format, args...)
	}
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, spki) {
		return bad("it holds another key than ours")
	}
	if leaf.Subject.CommonName != string(d.set.Device) {
		return bad("it is of %q, not of %q", leaf.Subject.CommonName, d.set.Device)
	}
	if o := leaf.Subject.Organization; len(o) > 0 && !slices.Contains(o, string(d.set.Account)) {
		return bad("it is of account %q, not of %q", o, d.set.Account)
	}
	pool := x509.NewCertPool()
	for _, der := range issuers {
		if c, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(c)
		}
	}
	chains, err := d.verify(leaf, x509.VerifyOptions{Roots: d.account, Intermediates: pool, CurrentTime: d.time.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return bad("%w", err)
	}
	var out [][]byte
	for _, c := range chains[0][:len(chains[0])-1] {
		out = append(out, c.Raw)
	}
	if len(out) == 0 {
		return bad("it is an anchor itself")
	}
	return out, nil
}

func hostOf(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "", cradle.Errorf(cradle.Invalid, "address %q is not https://host[:port]", rawURL).WithHint("mend the settings")
	}
	return u.Hostname(), nil
}

// hubAddress completes an assigned hub, "host" or "host:port", for dialling.
func hubAddress(hub string) (host, address string, err error) {
	host, _, err = net.SplitHostPort(hub)
	if err != nil {
		host, hub = hub, net.JoinHostPort(hub, "8883")
	}
	if host == "" {
		return "", "", fmt.Errorf("assigned hub %q has no host", hub)
	}
	return host, hub, nil
}

func digest(b []byte) [32]byte { return sha256.Sum256(b) }
