package enrol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// authority is a CA of the bench, P-256.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(name string, by *authority) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if by == nil {
		by = &authority{key: key}
	}
	cert, err := by.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, key.Public())
	return &authority{key, cert}, err
}

func (a *authority) sign(t *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	serial := make([]byte, 16)
	rand.Read(serial)
	t.SerialNumber = new(big.Int).SetBytes(serial[:15])
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	parent := a.cert
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// leaf makes a certificate with its key.
func (a *authority) leaf(t *x509.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	cert, err := a.sign(t, key.Public())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

func (a *authority) first(d *Device) (err error) {
	d.Auth, err = a.leaf(&x509.Certificate{Subject: pkix.Name{CommonName: d.Name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

func certPEM(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

func keyPEM(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// Ours is our server, whose clients are those of another CA.
type Ours struct {
	*plant.Plant
	clients *authority
	roots   *x509.CertPool
	url     string
}

// OursPrefix begins the names of our servers.
const OursPrefix = "cradle, "

// NewOurs registers the clients' CA at an installation, for the devices of that many rounds.
func NewOurs(ctx context.Context, p *plant.Plant, rounds, devices int) (*Ours, error) {
	o := &Ours{Plant: p, url: "https://localhost" + est.WellKnown + string(plant.Account) + "-operational"}
	var err error
	if o.clients, err = newAuthority("Clients of the bench", nil); err != nil {
		return nil, err
	}
	if err := os.WriteFile(p.Path("clients.pem"), certPEM(o.clients.cert), 0o644); err != nil {
		return nil, err
	}
	var names strings.Builder
	for r := range rounds {
		for d := range devices {
			fmt.Fprintln(&names, deviceName(r, d))
		}
	}
	if err := os.WriteFile(p.Path("clients.txt"), []byte(names.String()), 0o644); err != nil {
		return nil, err
	}
	if _, err := p.Run(ctx, "cradle", "account", "trust-ca", string(plant.Account), p.Path("clients.pem"), "--profile", "operational",
		"--manifest", p.Path("clients.txt"), "--data", p.Data()); err != nil {
		return nil, err
	}
	o.roots, err = p.Roots()
	return o, err
}

// Name implements Server.
func (o *Ours) Name() string { return OursPrefix + o.Store }

// Roots implements Server.
func (o *Ours) Roots() *x509.CertPool { return o.roots }

// Chain implements Server: ours needs none.
func (o *Ours) Chain() [][]byte { return nil }

// CPU implements Server.
func (o *Ours) CPU() (time.Duration, error) {
	c, err := o.Plant.CPU()
	return c.Total(), err
}

// First implements Server.
func (o *Ours) First(d *Device) error { return o.clients.first(d) }

// Enroll implements Server.
func (o *Ours) Enroll(ctx context.Context, hc *http.Client, _ *Device, r *Request) (*x509.Certificate, error) {
	return (&est.Client{HTTP: hc, URL: o.url}).SimpleEnroll(ctx, r.CSR)
}

// Reenroll implements Server.
func (o *Ours) Reenroll(ctx context.Context, hc *http.Client, _ *Device, r *Request) (*x509.Certificate, error) {
	return (&est.Client{HTTP: hc, URL: o.url}).SimpleReenroll(ctx, r.CSR)
}

// peer is another server's process.
type peer struct {
	name, addr string
	ca         *authority
	roots      *x509.CertPool
	cmd        *exec.Cmd
}

func (p *peer) Name() string                { return p.name }
func (p *peer) Addr() string                { return p.addr }
func (p *peer) Roots() *x509.CertPool       { return p.roots }
func (p *peer) Chain() [][]byte             { return [][]byte{p.ca.cert.Raw} }
func (p *peer) CPU() (time.Duration, error) { return plant.ProcessCPU(p.cmd.Process.Pid) }

func (p *peer) Close() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func newPeer(name, dir string) (*peer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &peer{name: name, addr: ln.Addr().String(), roots: x509.NewCertPool()}
	if err := ln.Close(); err != nil {
		return nil, err
	}
	root, err := newAuthority(name+" root", nil)
	if err != nil {
		return nil, err
	}
	if p.ca, err = newAuthority(name+" issuing", root); err != nil {
		return nil, err
	}
	p.roots.AddCert(root.cert)
	server, err := p.ca.leaf(&x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return nil, err
	}
	for file, b := range map[string][]byte{"root.pem": certPEM(root.cert), "ca.pem": certPEM(p.ca.cert, root.cert), "issuing.pem": certPEM(p.ca.cert), "ca.key": keyPEM(p.ca.key),
		"server.pem": certPEM(server.Leaf, p.ca.cert), "server.key": keyPEM(server.PrivateKey.(*ecdsa.PrivateKey))} {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// start runs the server until it answers.
func (p *peer) start(dir string, config any, program string, args ...string) error {
	b, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	for range 200 {
		if conn, err := net.Dial("tcp", p.addr); err == nil {
			return conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, _ := os.ReadFile(filepath.Join(dir, "log"))
	p.Close()
	return fmt.Errorf("%s does not answer: %s", p.name, text[max(0, len(text)-1000):])
}

// estServer is GlobalSign's.
type estServer struct{ *peer }

// NewESTServer starts github.com/globalsign/est's server.
func NewESTServer(bin, dir string) (Server, error) {
	p, err := newPeer("globalsign/est", dir)
	if err != nil {
		return nil, err
	}
	return &estServer{p}, p.start(dir, map[string]any{
		"mock_ca":  map[string]any{"certificates": "ca.pem", "private_key": "ca.key"},
		"tls":      map[string]any{"listen_address": p.addr, "certificates": "server.pem", "private_key": "server.key", "client_cas": []string{"root.pem"}},
		"log_file": "est.log",
		"timeout":  30,
	}, filepath.Join(bin, "estserver"), "-config", "config.json")
}

// First implements Server: the issuing CA's own hand, since the server knows no other clients.
func (s *estServer) First(d *Device) error {
	err := s.ca.first(d)
	if err == nil {
		d.Auth.Certificate = append(d.Auth.Certificate, s.Chain()...)
	}
	return err
}

func (s *estServer) client(hc *http.Client) *est.Client {
	return &est.Client{HTTP: hc, URL: "https://localhost" + est.WellKnown}
}

// Enroll implements Server.
func (s *estServer) Enroll(ctx context.Context, hc *http.Client, _ *Device, r *Request) (*x509.Certificate, error) {
	return s.client(hc).SimpleEnroll(ctx, r.CSR)
}

// Reenroll implements Server.
func (s *estServer) Reenroll(ctx context.Context, hc *http.Client, _ *Device, r *Request) (*x509.Certificate, error) {
	return s.client(hc).SimpleReenroll(ctx, r.CSR)
}
