// Package ca is the only user of issuing keys. It makes CA certificates at set-up and turns a
// request that the provider decided on into a leaf certificate: lint, then sign, against a Permit that
// works once. It keeps nothing and decides nothing about who may have a certificate; the provider owns
// the cycle (DESIGN §5: intent -> lint -> sign -> record).
//
// Certificates follow RFC 5280 and, for IDevIDs, IEEE 802.1AR and the TCG "TPM 2.0 Keys for Device
// Identity and Attestation": notAfter 99991231235959Z, hardwareModuleName in the subjectAltName.
package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
)

// Forever is 99991231235959Z, "no well-defined expiration date" (RFC 5280 §4.1.2.5, 802.1AR-2018 §8.7).
var Forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Backdate is how far before now a certificate becomes valid, so that clocks a little behind accept it.
const Backdate = time.Minute

// SignatureAlgorithm is with what a key of this kind signs here; Unknown if it may not be an issuing key. It is what
// crypto/x509 takes by itself for it.
func SignatureAlgorithm(pub crypto.PublicKey) x509.SignatureAlgorithm {
	switch keystore.AlgorithmOf(pub) {
	case keystore.P256:
		return x509.ECDSAWithSHA256
	case keystore.P384:
		return x509.ECDSAWithSHA384
	case keystore.RSA3072, keystore.RSA4096:
		return x509.SHA256WithRSA
	}
	return x509.UnknownSignatureAlgorithm
}

// Signs reports whether parent's key signed c, in the way that parent's key signs here.
func Signs(parent, c *x509.Certificate) bool {
	alg := SignatureAlgorithm(parent.PublicKey)
	return alg != x509.UnknownSignatureAlgorithm && c.SignatureAlgorithm == alg && c.CheckSignatureFrom(parent) == nil
}

// Issuer is an issuing key with its certificate.
type Issuer struct {
	ID   string // SHA-256 of the certificate, hexadecimal
	Cert *x509.Certificate
	Key  crypto.Signer // nil: kept elsewhere
	// Policies are those under which it signs; nil: those of its certificate. A certificate that another's CA made
	// may lack ours.
	Policies []x509.OID
	Points   *Points // may be nil
}

func (iss *Issuer) policies() []x509.OID {
	if iss.Policies != nil {
		return iss.Policies
	}
	return iss.Cert.Policies
}

// NewSerial returns a random positive serial number of 127 bits (RFC 5280 §4.1.2.2; 802.1AR asks 64 to 160 bits).
func NewSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x3f | 0x40 // positive, never short
	return new(big.Int).SetBytes(b)
}

// LeafSerial returns a serial number of 135 bits for a certificate that is issued now. It begins with the time, in steps of
// 1/64 s that come round after 136 years, so that rows follow each other in the store's indexes; the 96 bits behind that are
// random. The time tells no more than notBefore does.
func LeafSerial(now time.Time) *big.Int {
	b := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli())<<6/1000)[3:]
	b = append(b, make([]byte, 12)...)
	b[0] = b[0]&0x3f | 0x40 // positive, never short
	rand.Read(b[5:])
	return new(big.Int).SetBytes(b)
}

// SerialString is how a serial number is written everywhere: lower-case hexadecimal.
func SerialString(n *big.Int) cradle.CertSerial { return cradle.CertSerial(n.Text(16)) }

// ParseSerial is the inverse of SerialString.
func ParseSerial(s cradle.CertSerial) (*big.Int, error) {
	n, ok := new(big.Int).SetString(string(s), 16)
	if !ok || SerialString(n) != s {
		return nil, fmt.Errorf("%q is not a serial number", s)
	}
	return n, nil
}

// Permit allows one signature. The provider makes it from a stored intent.
type Permit struct {
	Intent string
	Serial *big.Int
	used   atomic.Bool
}

// NewPermit makes a permit for the intent with that id and serial number.
func NewPermit(intent string, serial *big.Int) *Permit {
	return &Permit{Intent: intent, Serial: serial}
}

// Leaf is what a device's certificate is made of: its profile and the facts about the device.
type Leaf struct {
	Profile   cradle.Profile
	Rules     *Profile // complete
	Account   cradle.AccountID
	Device    cradle.DeviceID
	Serial    string // the unit's serial number
	Order     cradle.OrderID
	OEM       cradle.OEMID
	Tier      cradle.Tier
	Maker     cradle.MakerID
	Proved    bool // the key was proved to live in the device's TPM
	Activated bool // not proved, but only the TPM with the key can read the certificate
	EKDigest  []byte
	Names     []string // alternative names that were granted (Wishes.Grant)
	Usages    []string // extended key usages that were granted
	Public    crypto.PublicKey
	SPKI      []byte // DER of Public as it stood in the CSR
	NotBefore time.Time
	NotAfter  time.Time
}

// Issue makes the draft of a certificate, signs it and reads it again.
func Issue(iss *Issuer, p *Permit, l Leaf) (*x509.Certificate, error) {
	d, err := NewDraft(iss, p.Serial, l)
	if err != nil {
		return nil, err
	}
	der, err := d.Sign(p)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// NewDraft makes the draft of a certificate with that serial number and lints it. A refusal is of kind Invalid.
func NewDraft(iss *Issuer, serial *big.Int, l Leaf) (*Draft, error) { return lint(iss, serial, &l) }

// SerialNumber is what the certificate will have.
func (d *Draft) SerialNumber() *big.Int { return d.serial }

// Sign spends the permit, which must be for the draft's serial number, and signs. The certificate is in DER.
func (d *Draft) Sign(p *Permit) ([]byte, error) {
	if p.Serial.Cmp(d.SerialNumber()) != 0 {
		return nil, fmt.Errorf("internal error: permit of intent %s is for another serial number than its draft", p.Intent)
	}
	at, err := d.iss.points(d.NotAfter)
	if err != nil {
		return nil, err
	}
	if p.used.Swap(true) {
		return nil, fmt.Errorf("internal error: permit of intent %s used twice", p.Intent)
	}
	alg := SignatureAlgorithm(d.iss.Cert.PublicKey)
	id := signatureAlgorithms[alg].id
	if id == nil {
		return nil, fmt.Errorf("internal error: %q has a key that may not issue", d.iss.Cert.Subject.CommonName)
	}
	tbs := d.tbs(id, at)
	sig, err := d.iss.sign(alg, tbs)
	if err != nil {
		return nil, fmt.Errorf("signing for intent %s: %w", p.Intent, err)
	}
	return certificate(tbs, id, sig), nil
}

func leafPolicies(l *Leaf) []x509.OID {
	p := cradle.PolicyKeyNotProved
	if l.Proved {
		p = cradle.PolicyKeyProved
	}
	out := []x509.OID{cradle.TierPolicy(l.Tier), p}
	if l.Activated {
		out = append(out, cradle.PolicyKeyActivated)
	}
	return out
}

// keyID is a subject key identifier by RFC 7093 §2 method 1: the leftmost 160 bits of SHA-256.
func keyID(spki []byte) []byte {
	h := sha256.Sum256(spki)
	return h[:20]
}

// Digest is how certificates are named in records: SHA-256 of the DER, hexadecimal.
func Digest(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}

// SPKIDigest is the SHA-256 of a certificate's SubjectPublicKeyInfo, in hexadecimal.
func SPKIDigest(der []byte) (string, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	return Digest(c.RawSubjectPublicKeyInfo), nil
}
