package interop_test

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/test/world"
)

// azure plays certd of Azure IoT Identity Service (and cloud its identityd): the bytes it sends, the order in which it sends them and what it
// accepts as an answer. It is not that program, which neither Debian nor a package registry has.
type azure struct {
	t     *testing.T
	p     *place
	roots *x509.CertPool
	basic string // user:password, sent with every request when set
}

// identity is a certificate with its key; chain is what the client stored behind the leaf.
type identity struct {
	key   crypto.Signer
	leaf  *x509.Certificate
	chain [][]byte
}

// pair is what TLS gets: the whole stored chain, or the leaf alone as its renewals do.
func (i *identity) pair(leafOnly bool) []tls.Certificate {
	if i == nil {
		return nil
	}
	c := tls.Certificate{Certificate: [][]byte{i.leaf.Raw}, PrivateKey: i.key}
	if !leafOnly {
		c.Certificate = append(c.Certificate, i.chain...)
	}
	return []tls.Certificate{c}
}

// exchange sends one request to EST and reads the answer to its end.
func (a *azure) exchange(auth []tls.Certificate, method, op string, body []byte) (*http.Response, []byte, error) {
	addr := "localhost:" + a.p.port
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s /.well-known/est/%s-%s/%s HTTP/1.1\r\n", method, world.Account, profile, op)
	if method == "POST" {
		b.WriteString("content-type: application/pkcs10\r\ncontent-transfer-encoding: base64\r\n")
	}
	if a.basic != "" {
		fmt.Fprintf(&b, "authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(a.basic)))
	}
	fmt.Fprintf(&b, "host: %s\r\n", addr)
	if method == "POST" {
		fmt.Fprintf(&b, "content-length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return a.send(auth, addr, b.Bytes())
}

// send sends a request's bytes on a connection of its own and reads the answer to its end.
func (a *azure) send(auth []tls.Certificate, addr string, request []byte) (*http.Response, []byte, error) {
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: a.roots, Certificates: auth,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // OpenSSL sends it whatever CAs the server names
			if len(auth) == 0 {
				return new(tls.Certificate), nil
			}
			return &auth[0], nil
		}})
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testenv.Patience))
	if _, err := conn.Write(request); err != nil {
		return nil, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, text, err
}

// certificates reads an answer by certd's rules: status 200, the exact type, base64, certificates in the order as sent.
func (a *azure) certificates(resp *http.Response, body []byte) ([]*x509.Certificate, error) {
	if resp.StatusCode != 200 {
		return nil, fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/pkcs7-mime" && !strings.HasPrefix(ct, "application/pkcs7-mime;") {
		return nil, fmt.Errorf("content type %q", ct)
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(body)), ""))
	if err != nil {
		return nil, err
	}
	return est.DecodeCerts(der)
}

// issue is one issuance: simpleenroll and cacerts at the same time on connections of their own.
func (a *azure) issue(auth []tls.Certificate, key crypto.Signer, csr []byte) (*identity, error) {
	var body bytes.Buffer
	for text := base64.StdEncoding.EncodeToString(csr); text != ""; {
		n := min(64, len(text))
		body.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	var enrolled, cas []*x509.Certificate
	var g errgroup.Group
	for _, part := range []struct {
		method, op string
		body       []byte
		to         *[]*x509.Certificate
	}{{"POST", "simpleenroll", body.Bytes(), &enrolled}, {"GET", "cacerts", nil, &cas}} {
		g.Go(func() error {
			resp, text, err := a.exchange(auth, part.method, part.op, part.body)
			if err == nil {
				*part.to, err = a.certificates(resp, text)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", part.op, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := &identity{key: key, leaf: enrolled[0]}
	for _, c := range append(enrolled[1:], cas...) {
		out.chain = append(out.chain, c.Raw)
	}
	return out, nil
}

// estID is the certificate that authenticates to EST: an EC key, an extended key usage in the CSR.
func (a *azure) estID(auth []tls.Certificate, cn string) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 2}})
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: usage}}}, key)
	if err != nil {
		return nil, err
	}
	return a.issue(auth, key, csr)
}

// deviceID is the device's certificate for DPS and hub: RSA-2048, a CSR without extensions.
func (a *azure) deviceID(auth []tls.Certificate, cn string) (*identity, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		return nil, err
	}
	return a.issue(auth, key, csr)
}

// good checks that the identity's chain ends at the account's root and that the names are what was asked for.
func (a *azure) good(what string, i *identity, err error, cn string) *identity {
	a.t.Helper()
	if err != nil {
		a.t.Fatalf("%s: %v", what, err)
	}
	inter := x509.NewCertPool()
	roots := x509.NewCertPool()
	for _, der := range i.chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			a.t.Fatal(err)
		}
		inter.AddCert(c)
	}
	roots.AppendCertsFromPEM(readFile(a.t, filepath.Join(a.p.dir, "account", "evaluation-root.pem")))
	if _, err := i.leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		a.t.Fatalf("%s: %v", what, err)
	}
	if i.leaf.Subject.CommonName != cn || !i.leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(i.key.Public()) {
		a.t.Fatalf("%s: for %q and another key", what, i.leaf.Subject)
	}
	return i
}

// TestIdentityService plays Azure IoT Identity Service: first boot from a bootstrap certificate of a foreign CA, est-id
// and device-id with the same name at the same label, renewals of both by simpleenroll, and the bootstrap used again.
func TestIdentityService(t *testing.T) {
	testenv.Long(t)
	p := open(t)
	const cn = "gw-0001"
	foreign := testca.New(t, foreignCA("Gateway maker CA"), nil)
	boot := issue(t, foreign, "gateway serial 4711")
	manifest := p.Write("manifest", fmt.Sprintf("sha256:%x %s\n", sha256.Sum256(boot.leaf.Raw), cn))
	p.MustCradle("account", "trust-ca", world.Account, "--profile", profile, p.Write("foreign-ca.pem", foreign.PEM()), "--manifest", manifest)

	a := &azure{t: t, p: p, roots: p.Anchors()}
	estID, err := a.estID(boot.pair(false), cn)
	estID = a.good("est-id by bootstrap", estID, err, cn)
	deviceID, err := a.deviceID(estID.pair(false), cn)
	a.good("device-id by est-id", deviceID, err, cn)

	// Years of renewals: est-id by itself with the old leaf only, device-id by est-id; each with a new key.
	for n := range 5 {
		next, err := a.estID(estID.pair(true), cn)
		estID = a.good(fmt.Sprintf("est-id renewed %d", n), next, err, cn)
		next, err = a.deviceID(estID.pair(false), cn)
		a.good(fmt.Sprintf("device-id renewed %d", n), next, err, cn)
	}

	// est-id lost: the bootstrap again, then device-id again.
	estID, err = a.estID(boot.pair(false), cn)
	estID = a.good("est-id by bootstrap again", estID, err, cn)
	deviceID, err = a.deviceID(estID.pair(false), cn)
	a.good("device-id after that", deviceID, err, cn)

	// A bootstrap certificate for a unit that nobody named, and one for another name, get nothing.
	stranger := issue(t, foreign, "gateway serial 4712")
	if _, err := a.estID(stranger.pair(false), "gw-0002"); err == nil || !strings.Contains(err.Error(), "status 403") {
		t.Errorf("a unit outside the manifest: %v", err)
	}
	if _, err := a.estID(boot.pair(false), "gw-0002"); err == nil || !strings.Contains(err.Error(), "status 403") {
		t.Errorf("another's name: %v", err)
	}
}

// TestIdentityServiceBasic is the same client with a password in place of the bootstrap certificate, sent on both requests.
func TestIdentityServiceBasic(t *testing.T) {
	testenv.Long(t)
	p := open(t)
	const cn = "gw-0003"
	a := &azure{t: t, p: p, roots: p.Anchors(), basic: user + ":" + password}
	id, err := a.deviceID(nil, cn)
	id = a.good("device-id by password", id, err, cn)
	next, err := a.deviceID(id.pair(true), cn)
	a.good("renewed, with its certificate and the password", next, err, cn)
	next, err = a.deviceID(nil, cn)
	a.good("the password again", next, err, cn)
	a.basic = user + ":wrong"
	if _, err := a.deviceID(nil, cn); err == nil || !strings.Contains(err.Error(), "status 401") {
		t.Errorf("a wrong password: %v", err)
	}
}

// issue makes an IDevID of the other maker: no extended key usage and no end (802.1AR).
func issue(t *testing.T, ca *testca.Pair, cn string) *identity {
	t.Helper()
	p := testca.New(t, &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(23 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature}, ca)
	return &identity{key: p.Key, leaf: p.Cert}
}

// foreignCA is the template of a CA that is not ours.
func foreignCA(name string) *x509.Certificate {
	c := testca.CA(name)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	return c
}
