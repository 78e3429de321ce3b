// Package permit is the way between EST front ends and a signer that holds the issuing keys in another process (DESIGN
// §5): Client is the front end's provider.Signer, Handler the signer's door, both over mutual TLS.
//
// A front end brings the id of an intent that it stored, with the request as it came from the device; the signer judges
// it again against the store and answers with the certificate (provider.Redeem). Each intent is taken once.
// The two sides know each other by the very certificates that the signer made at its set-up (Issue): neither is below
// the services CA, whose key front ends have. A front end is withdrawn by removing its file.
//
// What a front end may not do, it cannot ask for: there is no call that signs what is handed in.
package permit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
)

// Path is where the signer takes permits, PreparePath where it takes orders that an account signed, AcceptPath where it
// takes those that the OEM countersigned.
const (
	Path        = "/signer/v1/permits"
	PreparePath = "/signer/v1/orders/prepare"
	AcceptPath  = "/signer/v1/orders/accept"
	NoncePath   = "/signer/v1/births/nonce"
	BirthPath   = "/signer/v1/births"
	AlivePath   = "/signer/v1/alive"
)

// ServerName is the name in the signer's certificate by which front ends know it, whatever its address.
const ServerName = "signer.cradle.internal"

// request is a permit on the wire.
type request struct {
	Intent    string             `json:"intent"`
	Account   cradle.AccountID   `json:"account"`
	Profile   cradle.Profile     `json:"profile"`
	Label     string             `json:"label"`
	Operation provider.Operation `json:"operation"`
	Peer      []byte             `json:"peer,omitempty"`  // DER
	Chain     [][]byte           `json:"chain,omitempty"` // DER, as the client sent it
	Basic     *provider.Basic    `json:"basic,omitempty"`
	CSR       []byte             `json:"csr"`
	Made      []byte             `json:"made,omitempty"` // SPKI
	TPM       *tpm               `json:"tpm,omitempty"`
}

// tpm is what a request of tpmenroll has beside its CSR.
type tpm struct {
	EKChain  [][]byte `json:"ek_chain"`
	EKPublic []byte   `json:"ek_public"`
	AKPublic []byte   `json:"ak_public"`
}

type answer struct {
	Certificate []byte   `json:"certificate"`
	Replaced    []string `json:"replaced,omitempty"`
}

type nonceRequest struct {
	Account cradle.AccountID `json:"account"`
	Profile cradle.Profile   `json:"profile"`
	Label   string           `json:"label"`
	Peer    []byte           `json:"peer"` // DER
	Claim   json.RawMessage  `json:"claim"`
}

type prepareRequest struct {
	Order json.RawMessage `json:"order"` // JWS
}

type acceptRequest struct {
	Order       cradle.OrderID      `json:"order"`
	Request     order.AcceptRequest `json:"request"`
	ProviderURL string              `json:"provider_url"`
}

// Identity is the key and self-signed certificate of one side.
type Identity struct{ tls.Certificate }

// life is long: both ends pin the very certificate, and withdraw it by its file.
const life = 20 * 365 * 24 * time.Hour

// NewIdentity makes one for these names; none for a front end.
func NewIdentity(name string, hosts []string, now time.Time) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if hosts != nil {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}, nil
}

// PEM encodes the identity: key, then certificate.
func (i *Identity) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(i.PrivateKey)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), i.CertificatePEM()...), nil
}

// CertificatePEM encodes the certificate alone.
func (i *Identity) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Leaf.Raw})
}

// ParseIdentity reads what PEM wrote.
func ParseIdentity(b []byte) (*Identity, error) {
	c, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, err
	}
	c.Leaf, err = x509.ParseCertificate(c.Certificate[0])
	return &Identity{c}, err
}

// Digest names a certificate: SHA-256 of its DER, hexadecimal.
func Digest(c *x509.Certificate) string {
	h := sha256.Sum256(c.Raw)
	return hex.EncodeToString(h[:])
}

// DigestPEM is Digest of a certificate in PEM.
func DigestPEM(b []byte) (string, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return "", errors.New("it holds no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return Digest(c), nil
}

// credential is the file that a front end gets.
type credential struct {
	Identity string `json:"identity"` // PEM: its key and certificate
	Signer   string `json:"signer"`   // PEM: the signer's certificate
}

// Credential encodes a front end's credential for a signer.
func Credential(front, signer *Identity) ([]byte, error) {
	id, err := front.PEM()
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(credential{string(id), string(signer.CertificatePEM())}, "", "  ")
	return append(b, '\n'), err
}

// ReadCredential reads a front end's credential from a file that nobody else may read.
func ReadCredential(file string) (front *Identity, signer *x509.Certificate, err error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, nil, cradle.Errorf(cradle.Invalid, "signer credential: %v", err).WithHint("the signer writes one for each front end into its data folder; copy it here")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, nil, cradle.Errorf(cradle.Invalid, "%s may be read by others (mode %v)", file, st.Mode().Perm()).WithHint("chmod 600 %s", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	var c credential
	if err = json.Unmarshal(b, &c); err == nil {
		front, err = ParseIdentity([]byte(c.Identity))
	}
	block, _ := pem.Decode([]byte(c.Signer))
	if err == nil && block == nil {
		err = errors.New("it holds no certificate of the signer")
	}
	if err == nil {
		signer, err = x509.ParseCertificate(block.Bytes)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("signer credential %s: %w", file, err)
	}
	return front, signer, nil
}
