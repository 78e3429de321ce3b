package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/weakkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// The types of endorsement key, as orders name them.
const (
	RSA2048 = "rsa2048"
	RSA3072 = "rsa3072"
	RSA4096 = "rsa4096"
	P256    = "p256"
	P384    = "p384"
)

// EKFacts is what is recorded of an endorsement key. Digests are lower-case hexadecimal.
type EKFacts struct {
	Digest       string         // SHA-256 of the SPKI; of an RSA key always in the form rsaEncryption: one key, one digest
	Type         string         // RSA2048, P256, ...
	Maker        cradle.MakerID // tag of the anchor
	Tier         cradle.Tier    // tag of the anchor
	Anchor       string         // SHA-256 of the anchor's certificate
	Certificate  string         // SHA-256 of the EK certificate
	Issuers      []string       // SHA-256 of the SPKIs of the issuers up to the anchor, nearest first
	Manufacturer string         // as the certificate's SAN says, for example "id:49465800"
	Model        string
	Version      string
}

// EK is an endorsement key with its certificate.
type EK struct {
	Facts  EKFacts
	Public crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey; of the certificate, never of the device's own telling
	Cert   *x509.Certificate
}

// Rules are an order's demands on the TPM. An empty list allows all.
type Rules struct {
	Tiers       []cradle.Tier
	Makers      []cradle.MakerID
	EKTypes     []string
	MinFirmware uint64 // of TPMS_ATTEST; 0 for none
	// ExpiredEK accepts EK certificates and issuers after their end, for makers who let them expire
	// while the chips are still sold.
	ExpiredEK bool
}

// Denied tells whether an endorsement key with that digest (EKFacts.Digest) is denied.
type Denied func(digest string) bool

var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidSAN           = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidManufacturer  = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel         = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion       = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// ekSubject is what the checks of an EK certificate look at.
type ekSubject struct {
	*EK
	now    time.Time
	rules  Rules
	denied Denied
}

// VerifyEK checks an EK certificate (DER; the zero bytes that NV indices carry after it, or TCG's header
// before it, are cut) against the anchors, the order's rules and the deny list. chain is what the device
// sent beside it, untrusted help to find a path. denied may be nil. The EK is nil when there are reasons.
func (s *AnchorSet) VerifyEK(now time.Time, certificate []byte, chain [][]byte, rules Rules, denied Denied) (*EK, Reasons) {
	ek, why := parseEK(certificate, chain)
	if !why.OK() {
		return nil, why
	}
	sub := &ekSubject{EK: ek, now: now, rules: rules, denied: denied}
	if run(&why, ekChecks, sub); !why.OK() {
		return nil, why
	}
	path, why := s.findPath(ek.Cert, chain)
	if !why.OK() {
		return nil, why
	}
	anchor := path[len(path)-1].anchor
	ek.Facts.Maker, ek.Facts.Tier, ek.Facts.Anchor = anchor.Maker, anchor.Tier, anchor.fingerprint
	for _, l := range path {
		ek.Facts.Issuers = append(ek.Facts.Issuers, l.spki)
	}
	run(&why, pathChecks, &pathSubject{ekSubject: sub, path: path, distrusted: s.distrusted})
	run(&why, ruleChecks, sub)
	if !why.OK() {
		return nil, why
	}
	return ek, nil
}

func parseEK(certificate []byte, chain [][]byte) (*EK, Reasons) {
	var why Reasons
	if len(certificate) > evidence.MaxCert {
		why.add(EKOversize, fmt.Sprintf("EK certificate has %d bytes; at most %d", len(certificate), evidence.MaxCert))
	}
	if len(chain) > evidence.MaxCerts {
		why.add(EKOversize, fmt.Sprintf("EK chain has %d certificates; at most %d", len(chain), evidence.MaxCerts))
	}
	for _, c := range chain {
		if len(c) > evidence.MaxCert {
			why.add(EKOversize, fmt.Sprintf("a certificate of the EK chain has %d bytes; at most %d", len(c), evidence.MaxCert))
		}
	}
	if !why.OK() {
		return nil, why
	}
	cert, err := parseCertificate(certificate)
	if err != nil {
		code := EKMalformed
		if err == errNegativeSerial {
			code = EKSerial
		}
		why.add(code, "EK certificate: "+err.Error())
		return nil, why
	}
	ek := &EK{Cert: cert, Public: cert.PublicKey}
	if ek.Public == nil {
		ek.Public = oaepKey(cert.RawSubjectPublicKeyInfo)
	}
	switch k := ek.Public.(type) {
	case *rsa.PublicKey:
		ek.Facts.Type = map[int]string{2048: RSA2048, 3072: RSA3072, 4096: RSA4096}[k.N.BitLen()]
	case *ecdsa.PublicKey:
		ek.Facts.Type = map[elliptic.Curve]string{elliptic.P256(): P256, elliptic.P384(): P384}[k.Curve]
	}
	spki, err := x509.MarshalPKIXPublicKey(ek.Public)
	if err != nil {
		spki = cert.RawSubjectPublicKeyInfo // of a key that ekChecks refuse
	}
	ek.Facts.Digest = hexDigest(spki)
	ek.Facts.Certificate = hexDigest(cert.Raw)
	ek.Facts.readSAN(cert)
	return ek, why
}

var errNegativeSerial = errors.New("the serial number is negative (RFC 5280 §4.1.2.2); the TPM's maker must replace it")

// parseCertificate reads one certificate, cutting what NV indices carry around it.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	// TCG PC Client: tag 1001, type 00, length (16 bits) before the certificate.
	if len(der) > 5 && der[0] == 0x10 && der[1] == 0x01 && der[2] == 0x00 {
		der = der[5:]
	}
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	if err != nil {
		return nil, fmt.Errorf("not DER: %v", err)
	}
	der = der[:len(der)-len(rest)]
	if negativeSerial(outer) {
		return nil, errNegativeSerial
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return cert, nil
}

func negativeSerial(certificate asn1.RawValue) bool {
	var tbs, v asn1.RawValue
	if _, err := asn1.Unmarshal(certificate.Bytes, &tbs); err != nil {
		return false
	}
	in := tbs.Bytes
	for range 2 { // version, serialNumber
		rest, err := asn1.Unmarshal(in, &v)
		if err != nil {
			return false
		}
		if v.Class == asn1.ClassUniversal && v.Tag == asn1.TagInteger {
			return len(v.Bytes) > 0 && v.Bytes[0]&0x80 != 0
		}
		in = rest
	}
	return false
}

// oaepKey reads an RSA key whose algorithm is id-RSAES-OAEP, as in older Infineon EK certificates, which
// crypto/x509 leaves alone. It returns nil for anything else.
func oaepKey(spki []byte) crypto.PublicKey {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 ||
		!info.Algorithm.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}) {
		return nil
	}
	var k struct {
		N *big.Int
		E int
	}
	if rest, err := asn1.Unmarshal(info.Key.RightAlign(), &k); err != nil || len(rest) > 0 || k.N.Sign() <= 0 || k.E <= 0 {
		return nil
	}
	return &rsa.PublicKey{N: k.N, E: k.E}
}

// readSAN records the TPM's attributes (EK Credential Profile §3.1.2) as the maker certified them.
func (f *EKFacts) readSAN(cert *x509.Certificate) {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var names asn1.RawValue
		if _, err := asn1.Unmarshal(e.Value, &names); err != nil {
			return
		}
		for in := names.Bytes; len(in) > 0; {
			var n asn1.RawValue
			var err error
			if in, err = asn1.Unmarshal(in, &n); err != nil {
				return
			}
			if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
				continue
			}
			var dn pkix.RDNSequence
			if _, err := asn1.Unmarshal(n.Bytes, &dn); err != nil {
				return
			}
			for _, rdn := range dn {
				for _, a := range rdn {
					v, _ := a.Value.(string)
					switch {
					case len(v) > 64:
					case a.Type.Equal(oidManufacturer):
						f.Manufacturer = v
					case a.Type.Equal(oidModel):
						f.Model = v
					case a.Type.Equal(oidVersion):
						f.Version = v
					}
				}
			}
		}
	}
}

// ekChecks look at the certificate alone.
var ekChecks = []check[*ekSubject]{
	{EKKey, func(s *ekSubject) string {
		return unless(s.Facts.Type != "", "key is neither RSA of 2048, 3072 or 4096 bits nor EC on P-256 or P-384")
	}},
	{EKExponent, func(s *ekSubject) string {
		if k, ok := s.Public.(*rsa.PublicKey); ok && k.E != 65537 {
			return fmt.Sprintf("RSA exponent %d is not 65537", k.E)
		}
		return ""
	}},
	{EKROCA, func(s *ekSubject) string {
		k, ok := s.Public.(*rsa.PublicKey)
		return unless(!ok || !weakkey.ROCA(k.N), "RSA modulus has the ROCA fingerprint (CVE-2017-15361)")
	}},
	{EKIsCA, func(s *ekSubject) string {
		return unless(!s.Cert.IsCA, "the certificate is a CA's")
	}},
	{EKPurpose, func(s *ekSubject) string {
		for _, u := range s.Cert.UnknownExtKeyUsage {
			if u.Equal(oidEKCertificate) {
				return ""
			}
		}
		return "extended key usage 2.23.133.8.1 (EK certificate) is missing"
	}},
	{EKUsage, func(s *ekSubject) string {
		want := x509.KeyUsageKeyEncipherment
		if _, ok := s.Public.(*ecdsa.PublicKey); ok {
			want |= x509.KeyUsageKeyAgreement // some makers write keyEncipherment here too
		}
		if s.Cert.KeyUsage&want == 0 {
			return "key usage is not that of a decryption key"
		}
		const signs = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		return unless(s.Cert.KeyUsage&signs == 0, "key usage allows signing: not an endorsement key")
	}},
	{EKCritical, func(s *ekSubject) string { return unhandled(s.Cert, oidSAN) }},
	{EKValidity, func(s *ekSubject) string { return outside(s.now, s.Cert, s.rules.ExpiredEK) }},
	{EKDenied, func(s *ekSubject) string {
		return unless(s.denied == nil || !s.denied(s.Facts.Digest), "this endorsement key is denied")
	}},
}

// ruleChecks hold what the anchor says against the order.
var ruleChecks = []check[*ekSubject]{
	{EKManufacturer, func(s *ekSubject) string {
		want, known := manufacturers[s.Facts.Maker]
		if !known || slices.Contains(want, strings.ToUpper(s.Facts.Manufacturer)) {
			return ""
		}
		return fmt.Sprintf("certificate names manufacturer %q, its anchor belongs to %s", s.Facts.Manufacturer, s.Facts.Maker)
	}},
	{TierForbidden, func(s *ekSubject) string {
		return allowed("tier", s.Facts.Tier, s.rules.Tiers)
	}},
	{MakerForbidden, func(s *ekSubject) string {
		return allowed("TPM maker", s.Facts.Maker, s.rules.Makers)
	}},
	{TypeForbidden, func(s *ekSubject) string {
		return allowed("EK type", s.Facts.Type, s.rules.EKTypes)
	}},
}

// manufacturers are the ids (TCG Vendor ID Registry) that makers of these names write; makers of other
// names are not checked, since names are the operator's choice.
var manufacturers = map[cradle.MakerID][]string{
	"amd":      {"ID:414D4400"},
	"infineon": {"ID:49465800"},
	"intel":    {"ID:494E5443"},
	"nsing":    {"ID:4E534700", "ID:4E545A00"},
	"nuvoton":  {"ID:4E544300", "ID:57454300"},
	"stm":      {"ID:53544D20"},
}

func allowed[T ~string](what string, got T, list []T) string {
	if len(list) == 0 || slices.Contains(list, got) {
		return ""
	}
	return fmt.Sprintf("%s %q is not among %q", what, got, list)
}

// unhandled names a critical extension that nobody here understands.
func unhandled(c *x509.Certificate, but asn1.ObjectIdentifier) string {
	for _, id := range c.UnhandledCriticalExtensions {
		if !id.Equal(but) {
			return fmt.Sprintf("critical extension %v of %s is not understood", id, nameOf(c))
		}
	}
	return ""
}

func outside(now time.Time, c *x509.Certificate, lateOK bool) string {
	switch {
	case now.Before(c.NotBefore):
		return fmt.Sprintf("certificate of %s is valid from %s", nameOf(c), c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter) && !lateOK:
		return fmt.Sprintf("certificate of %s expired at %s", nameOf(c), c.NotAfter.UTC().Format(time.RFC3339))
	}
	return ""
}

// named prints a certificate by nameOf, if it comes to be printed.
type named struct{ cert *x509.Certificate }

func (n named) String() string { return nameOf(n.cert) }

// nameOf is the subject, for people; EK certificates often have none.
func nameOf(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		if len(s) > 120 {
			s = s[:120]
		}
		return strings.ToValidUTF8(s, "?")
	}
	return "the EK"
}

func hexDigest(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}
