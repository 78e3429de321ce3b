package enrol

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle/protocol/est"
)

// BareName is the server that does what none can avoid and nothing else: what is Go's own of a target.
const BareName = "bare Go server"

// BareArg begins the command line of its process, which is the bench's program.
const BareArg = "bare-server"

// NewBare starts it: net/http over TLS 1.3, a client certificate required and verified against its own CA and those of
// clients (DER). A POST is an enrolment, by the same messages as at ours: the CSR is verified and x509.CreateCertificate signs.
// Nothing is stored, logged or looked up. Everything else is answered with 404.
func NewBare(dir string, clients ...[]byte) (Server, error) {
	p, err := newPeer(BareName, dir)
	if err != nil {
		return nil, err
	}
	cas := []*x509.Certificate{p.ca.cert}
	for _, der := range clients {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		cas = append(cas, c)
	}
	if err := os.WriteFile(filepath.Join(dir, "clients.pem"), certPEM(cas...), 0o600); err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return &estServer{p}, p.start(dir, nil, exe, BareArg, p.addr)
}

// RunBare is that process, in the folder that NewBare made.
func RunBare(addr string) error {
	server, err := tls.LoadX509KeyPair("server.pem", "server.key")
	if err != nil {
		return err
	}
	ca, err := tls.LoadX509KeyPair("issuing.pem", "ca.key")
	if err != nil {
		return err
	}
	clients, err := os.ReadFile("clients.pem")
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(clients)
	s := &http.Server{Addr: addr, Handler: bare{ca}, ErrorLog: log.New(io.Discard, "", 0), TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}}
	return s.ListenAndServeTLS("", "")
}

// bare issues by its CA.
type bare struct{ ca tls.Certificate }

func (b bare) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	answer, err := b.enroll(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Header().Set("Content-Transfer-Encoding", "base64")
	w.Write(answer)
}

func (b bare) enroll(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	der, err := est.DecodeBody(body)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial[1:]), Subject: pkix.Name{CommonName: csr.Subject.CommonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, b.ca.Leaf, csr.PublicKey, b.ca.PrivateKey)
	if err != nil {
		return nil, err
	}
	certs, err := est.EncodeCerts(cert)
	return est.EncodeBody(certs, true), err
}
